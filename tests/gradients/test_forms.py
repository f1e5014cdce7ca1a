"""Each form against the dense gradients that it stands for, written out by loops."""

import pytest
import torch
from gradients.form_examples import (
    KERNELS,
    MATRICES,
    PAIRS,
    dense,
    dense_kernel,
    grouped,
    outer,
    uses_with_dense,
    written_out,
)
from hypothesis import given
from hypothesis import strategies as st
from references import relative_error

from proponent.gradients.forms import Dense, Lookup, Outer, summed
from proponent.gradients.tokens import Tokens

FORMS = pytest.mark.parametrize("make", (*MATRICES, *KERNELS), ids=lambda make: make.__name__)
TWO = pytest.mark.parametrize("make, other", PAIRS, ids=lambda make: make.__name__)
FACTORED = pytest.mark.parametrize(
    "make, other",
    [pair for pair in PAIRS if not set(pair) & {dense, uses_with_dense, grouped, dense_kernel}],
    ids=lambda make: make.__name__,
)


@FORMS
def test_materialise(make):
    form = make(5)
    truth = written_out(form)
    assert relative_error(form.materialise(), truth) < 1e-12
    assert form.materialise().shape == truth.shape == (form.n, *form.shape)
    assert form.numel == truth[0].numel()


@FORMS
def test_materialising_changes_nothing(make):
    form = make(4)
    first = form.materialise().clone()
    assert torch.equal(form.materialise(), first)
    assert relative_error(written_out(form), first) < 1e-12


@FORMS
@pytest.mark.parametrize("rows", [slice(0, 2), slice(3, 5), slice(4, 5)])
def test_rows(make, rows):
    form = make(5)
    assert form[rows].n == rows.stop - rows.start
    assert relative_error(form[rows].materialise(), written_out(form)[rows]) < 1e-12


@FORMS
def test_scaled(make):
    form, weights = make(5), torch.randn(5)
    weights[2] = 0
    truth = written_out(form) * weights.view(-1, *[1] * len(form.shape))
    assert relative_error(form.scaled(weights).materialise(), truth) < 1e-12
    assert not form.scaled(weights).materialise()[2].any()


@FORMS
@pytest.mark.parametrize("k", [1, 3])
def test_weighted_sum(make, k):
    form, weights = make(5), torch.randn(k, 5)
    truth = torch.einsum("kn,n...->k...", weights, written_out(form))
    found = form.weighted_sum(weights)
    assert found.shape == (k, *form.shape)
    assert relative_error(found, truth) < 1e-12


@FORMS
@pytest.mark.parametrize("k", [1, 2, 40])
def test_contract(make, k):
    form = make(5)
    vectors = torch.randn(k, *form.shape)
    truth = written_out(form).flatten(1) @ vectors.flatten(1).T
    assert relative_error(form.contract(vectors), truth) < 1e-12


@FACTORED
def test_inner_products_of_factors(make, other):
    train, test = make(4), other(3)
    truth = written_out(train).flatten(1) @ written_out(test).flatten(1).T
    found = sum(a.inner(b) for a in train.tokens() for b in test.tokens())
    assert relative_error(found, truth) < 1e-12
    same = make(4), other(4)
    truth = (written_out(same[0]) * written_out(same[1])).flatten(1).sum(1)
    found = sum(a.dot_rowwise(b) for a in same[0].tokens() for b in same[1].tokens())
    assert relative_error(found, truth) < 1e-12


@pytest.mark.parametrize("make", [dense, uses_with_dense, grouped, dense_kernel])
def test_no_factors_and_no_positions(make):
    assert make(3).tokens() is None
    assert make(3).positions == 0


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3),
    st.booleans(), st.booleans(), st.integers(0, 2**32),
)  # fmt: skip
def test_factors_of_any_length(n, m, length, other_length, hot, other_hot, seed):
    torch.manual_seed(seed)

    def tokens(n, length, hot):
        left = torch.randint(0, 4, (n, length)) if hot else torch.randn(n, length, 4)
        full = torch.nn.functional.one_hot(left, 4).double() if hot else left
        right = torch.randn(n, length, 5)
        return Tokens(left, right), torch.einsum("nto,ntd->nod", full, right)

    a, dense_a = tokens(n, length, hot)
    b, dense_b = tokens(m, other_length, other_hot)
    truth = torch.einsum("nod,mod->nm", dense_a, dense_b)
    torch.testing.assert_close(a.inner(b), truth, rtol=1e-11, atol=1e-11)
    c, dense_c = tokens(n, other_length, other_hot)
    truth = torch.einsum("nod,nod->n", dense_a, dense_c)
    torch.testing.assert_close(a.dot_rowwise(c), truth, rtol=1e-11, atol=1e-11)
    assert a[0:1].right.shape[0] == 1


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 2)])
def test_dense_gradients_of_any_shape(shape):
    gradients = torch.randn(4, *shape)
    form = Dense(gradients)
    assert form.shape == shape
    assert form.numel == gradients[0].numel()
    weights, vectors = torch.randn(2, 4), torch.randn(3, *shape)
    assert (
        relative_error(
            form.weighted_sum(weights), torch.einsum("kn,n...->k...", weights, gradients)
        )
        < 1e-12
    )
    truth = gradients.reshape(4, -1) @ vectors.reshape(3, -1).T
    assert relative_error(form.contract(vectors), truth) < 1e-12
    assert relative_error(form.scaled(torch.arange(4.0)).materialise()[3], 3 * gradients[3]) < 1e-12
    assert form.materialise_cost == 0


@TWO
def test_sum_of_uses(make, other):
    first, second = make(3), other(3)
    truth = written_out(first) + written_out(second)
    found = summed([first, second])
    assert relative_error(found.materialise(), truth) < 1e-12
    assert relative_error(summed([first]).materialise(), written_out(first)) < 1e-12
    # What was summed is left as it was.
    assert relative_error(truth - first.materialise(), written_out(second)) < 1e-12


def test_uses_in_outer_form_stay_factored():
    assert isinstance(summed([outer(3, 2), outer(3, 4)]), Outer)
    assert summed([outer(3, 2), outer(3, 4)]).positions == 6
    assert isinstance(summed([dense(3), dense(3)]), Dense)


def test_repeated_lookups_add_up():
    form = Lookup(torch.tensor([[1, 1, 1]]), torch.ones(1, 3, 2), torch.Size((3, 2)))
    assert form.materialise().tolist() == [[[0, 0], [3, 3], [0, 0]]]
    (tokens,) = form.tokens()
    assert float(tokens.inner(tokens)) == 18
    assert float(tokens.dot_rowwise(tokens)) == 18
