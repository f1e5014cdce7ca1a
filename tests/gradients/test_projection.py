"""Random projections: unbiased, with the stated variance, the same whatever the batches.

The statistical tests draw many projections with fixed seeds and allow five standard errors.
"""

import math

import pytest
import torch
from gradients.form_examples import KERNELS, MATRICES, outer, written_out
from references import flat, inner_products, relative_error

from proponent.exceptions import InvalidInputError
from proponent.gradients import projection
from proponent.gradients.forms import Dense, Outer
from proponent.gradients.products import squared_norms
from proponent.gradients.projection import ProjectedQuery, Projection, factor

KINDS = ("gaussian", "rademacher", "kronecker")
K, DRAWS = 6, 3000


def pair_of_gradients():
    """Two instances whose gradients have a few large entries in common."""
    left, right = torch.randn(2, 1, 3), torch.randn(2, 1, 2)
    left[:, :, 0] = torch.tensor([[3.0], [2.0]])
    right[:, :, 1] = torch.tensor([[2.0], [-3.0]])
    return {
        "weight": Outer(left, right, torch.Size((3, 2))),
        "bias": Dense(torch.tensor([[1.0, 4.0], [0.5, 3.0]])),
        "scalar": Dense(torch.tensor([0.5, -1.0])),
    }


def estimates(kind, gradients):
    """Return estimates of <g_0, g_1>, (draws,), from independent projections."""
    found = [Projection(K, kind, seed)(gradients, 2) for seed in range(DRAWS)]
    return torch.stack([(pair[0] * pair[1]).sum() for pair in found])


def z_score(sample, expected):
    return float((sample.mean() - expected) / (sample.std() / math.sqrt(len(sample))))


@pytest.mark.parametrize("kind", KINDS)
def test_unbiased(kind):
    gradients = pair_of_gradients()
    dense = {name: written_out(form) for name, form in gradients.items()}
    expected = float(inner_products(dense, dense)[0, 1])
    sample = estimates(kind, gradients)
    assert abs(z_score(sample, expected)) < 5
    # The sample is precise enough to tell a projection that is off by a fifth.
    assert abs(z_score(sample, 0.8 * expected)) > 5


@pytest.mark.parametrize("kind", ["gaussian", "rademacher"])
def test_variance(kind):
    """(|g|^2 |g'|^2 + <g, g'>^2 - 2 sum g_j^2 g'_j^2 [rademacher]) / k."""
    gradients = pair_of_gradients()
    first, second = flat({name: written_out(form) for name, form in gradients.items()})
    gaussian = (first.square().sum() * second.square().sum() + (first @ second) ** 2) / K
    smaller = 2 * (first.square() * second.square()).sum() / K
    expected = {"gaussian": gaussian, "rademacher": gaussian - smaller}
    sample = estimates(kind, gradients)
    squares = (sample - first @ second).square()
    assert abs(z_score(squares, float(expected[kind]))) < 5
    other = expected["rademacher" if kind == "gaussian" else "gaussian"]
    assert abs(z_score(squares, float(other))) > 5


def test_variance_of_kronecker():
    r"""Of a rank-one gradient u v^T, whose norms' estimates are products of two chi-squares.

    With factors of k_o and k_i dimensions, |P_o u|^2 |P_i v|^2 has the variance
    |u|^4 |v|^4 ((1 + 2/k_o)(1 + 2/k_i) - 1).
    """
    u, v = torch.randn(1, 1, 3), torch.randn(1, 1, 4)
    gradients = {"weight": Outer(u, v, torch.Size((3, 4)))}
    sample = torch.stack(
        [Projection(K, "kronecker", seed)(gradients, 1).square().sum() for seed in range(DRAWS)]
    )
    squared_norm = float(u.square().sum() * v.square().sum())
    smaller, larger = factor(K)
    variance = squared_norm**2 * ((1 + 2 / smaller) * (1 + 2 / larger) - 1)
    assert abs(z_score(sample, squared_norm)) < 5
    assert abs(z_score((sample - squared_norm).square(), variance)) < 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", (*MATRICES, *KERNELS), ids=lambda make: make.__name__)
def test_whatever_form_the_gradient_comes_in(kind, make):
    """A batch may be captured where another had to be differentiated: one map serves both."""
    form = make(5)
    drawn = Projection(K, kind, seed=3)
    found = drawn({"weight": form}, 5)
    same = drawn({"weight": Dense(written_out(form))}, 5)
    assert relative_error(found, same) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[7], [3, 3, 1], [1, 6]])
@pytest.mark.parametrize("memory", [1, 400, 2**20])
def test_whatever_the_batches_and_the_memory(kind, sizes, memory, monkeypatch):
    # Several blocks of random numbers a parameter, of which some or none are kept.
    monkeypatch.setattr(projection, "BLOCK_ENTRIES", 5 * K)
    gradients = {"weight": outer(7), "bias": Dense(torch.randn(7, 11))}
    truth = Projection(K, kind, seed=1)(gradients, 7)
    drawn = Projection(K, kind, seed=1, memory=memory)
    parts, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        parts.append(drawn({name: form[rows] for name, form in gradients.items()}, size))
        start += size
    assert relative_error(torch.cat(parts), truth) < 1e-12
    # Drawn again and kept are the same numbers.
    assert relative_error(drawn(gradients, 7), truth) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_the_parameters_does_not_matter(kind):
    gradients = {"weight": outer(4), "bias": Dense(torch.randn(4, 11))}
    backwards = dict(reversed(gradients.items()))
    found = Projection(K, kind)(backwards, 4)
    assert relative_error(found, Projection(K, kind)(gradients, 4)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_parameters_are_drawn_apart(kind, monkeypatch):
    """Equal gradients in two places would cancel or add up if their random numbers were one."""
    monkeypatch.setattr(projection, "BLOCK_ENTRIES", 2 * K)
    one = torch.ones(1, 2)
    both = {"a": Dense(one), "b": Dense(-one)}
    assert Projection(K, kind)(both, 1).norm() > 0.1
    blocks = {"a": Dense(torch.cat([one, -one], 1))}
    assert Projection(K, kind)(blocks, 1).norm() > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_seeds(kind):
    gradients = {"weight": outer(4), "bias": Dense(torch.randn(4, 11))}
    first = Projection(K, kind, seed=0)(gradients, 4)
    assert torch.equal(first, Projection(K, kind, seed=0)(gradients, 4))
    for seed in (1, "0/theta_1"):
        assert relative_error(Projection(K, kind, seed=seed)(gradients, 4), first) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_global_randomness_is_neither_used_nor_moved(kind):
    gradients = {"weight": outer(4), "bias": Dense(torch.randn(4, 11))}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = Projection(K, kind)(gradients, 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(Projection(K, kind)(gradients, 4), first)


@pytest.mark.parametrize("kind", KINDS)
def test_scales(kind):
    gradients = {"weight": outer(4), "bias": Dense(torch.randn(4, 11))}
    drawn = Projection(K, kind)
    weight, bias = (drawn({name: form}, 4) for name, form in gradients.items())
    found = drawn(gradients, 4, {"weight": 0.5})
    assert relative_error(found, 0.5 * weight + bias) < 1e-12
    assert relative_error(drawn(gradients, 4, {"weight": 0.0}), bias) < 1e-12
    none = drawn(gradients, 4, {"weight": 0.0, "bias": 0.0})
    assert none.shape == (4, K)
    assert not none.any()


@pytest.mark.parametrize("kind", KINDS)
def test_query(kind):
    train = {"weight": outer(5), "bias": Dense(torch.randn(5, 11))}
    drawn = Projection(K, kind)
    vectors = torch.randn(3, K)
    query = ProjectedQuery(vectors, drawn)
    found, squares = query.meet(train, 5, norms=True)
    projected = drawn(train, 5)
    assert len(query) == 3
    assert relative_error(found, projected @ vectors.T) < 1e-12
    assert relative_error(squares, projected.square().sum(1)) < 1e-12
    assert query.meet(train, 5)[1] is None


@pytest.mark.parametrize("kind", KINDS)
def test_more_dimensions_are_more_exact(kind):
    gradients = {"weight": outer(5), "bias": Dense(torch.randn(5, 11))}
    truth = squared_norms(gradients, 5, projection.Products())
    errors = [
        relative_error(Projection(k, kind)(gradients, 5).square().sum(1), truth)
        for k in (4, 40_000)
    ]
    assert errors[1] < 0.15 < errors[0]


def test_a_projection_without_memory():
    gradients = {"weight": outer(5)}
    kept, redrawn = Projection(K)(gradients, 5), Projection(K, memory=0)(gradients, 5)
    assert relative_error(redrawn, kept) < 1e-12


@pytest.mark.parametrize("k, factors", [(1, (1, 1)), (6, (2, 3)), (7, (1, 7)), (64, (8, 8))])
def test_factors(k, factors):
    assert factor(k) == factors


def test_settings_that_cannot_be():
    with pytest.raises(InvalidInputError, match="dimensions must be at least 1; got 0"):
        Projection(0)
    with pytest.raises(InvalidInputError, match=r"projection='sparse'.*gaussian, rademacher"):
        Projection(4, "sparse")
