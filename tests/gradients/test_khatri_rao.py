"""The projection by factors: a linear map, unbiased, with the stated variance.

The statistical tests draw many projections with fixed seeds and allow five standard errors.
"""

import math

import pytest
import torch
from gradients.layer_examples import LAYERS, embedding, linear, sequence, with_bias
from references import relative_error

from proponent.exceptions import InvalidInputError
from proponent.gradients.forms import Outer
from proponent.gradients.kfac.layers import Kind, Layer
from proponent.gradients.khatri_rao import KhatriRaoProjection
from proponent.gradients.projection import Projection

MEMORY = 2**24
DRAWS = 3000


def projection_of(*examples, k=48, seed=0, memory=MEMORY):
    return KhatriRaoProjection([example.layer for example in examples], k, seed, memory)


def z_score(sample, expected):
    return float((sample.mean() - expected) / (sample.std() / math.sqrt(len(sample))))


@pytest.mark.parametrize("make", LAYERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("k", [16, 12, 7])  # blocks of 4, 2 and 1
def test_one_linear_map_whatever_form_the_gradients_come_in(make, k):
    example = make(5)
    drawn = projection_of(example, k=k)
    found = drawn(example.gradients, 5)
    # The same map, column by column: the matrices' unit vectors, as sums of outer products.
    rows, columns = example.matrices.shape[1:]
    units = torch.eye(rows * columns).view(-1, rows, columns)
    left = torch.eye(rows).repeat_interleave(columns, 0)[:, None]
    right = torch.eye(columns).repeat(rows, 1)[:, None]
    whole = Layer("layer", Kind.KRONECKER, "layer.weight", (rows, columns))
    matrix = KhatriRaoProjection([whole], k, 0, MEMORY)(
        {"layer.weight": Outer(left, right, units.shape[1:])}, rows * columns
    )
    assert relative_error(found, example.matrices.flatten(1) @ matrix) < 1e-12


@pytest.mark.parametrize("k, block", [(64, 4), (36, 2), (35, 1)])
def test_unbiased_with_the_stated_variance(k, block):
    """For a rank-one gradient of norm 1 the squared norm has the variance 4 (b + 1) / k."""
    left, right = torch.randn(1, 1, 5), torch.randn(1, 1, 7)
    form = Outer(left / left.norm(), right / right.norm(), torch.Size((5, 7)))
    layer = Layer("layer", Kind.KRONECKER, "layer.weight", (5, 7))
    squares = torch.stack(
        [
            KhatriRaoProjection([layer], k, seed, MEMORY)({"layer.weight": form}, 1).square().sum()
            for seed in range(DRAWS)
        ]
    )
    assert abs(z_score(squares, 1.0)) < 5
    assert abs(z_score((squares - 1).square(), 4 * (block + 1) / k)) < 5


def test_inner_products_of_several_layers_are_unbiased():
    examples = [linear(2), embedding(2), with_bias(2)]
    for index, example in enumerate(examples):
        names = [f"{index}.{part}" for part in ("weight", "bias")]
        layer = Layer(
            str(index), example.layer.kind, names[0], example.layer.shape,
            None if example.layer.bias is None else names[1],
        )  # fmt: skip
        gradients = dict(zip(names, example.gradients.values(), strict=False))
        examples[index] = type(example)(layer, gradients, example.matrices)
    gradients = {name: form for example in examples for name, form in example.gradients.items()}
    expected = sum(float((e.matrices[0] * e.matrices[1]).sum()) for e in examples)
    sample = []
    for seed in range(DRAWS):
        first, second = projection_of(*examples, k=32, seed=seed)(gradients, 2)
        sample.append(first @ second)
    assert abs(z_score(torch.stack(sample), expected)) < 5


def test_far_less_noise_than_one_kronecker_product():
    """As many dimensions, the same kind of factors: several times the precision."""
    left, right = torch.randn(1, 1, 20), torch.randn(1, 1, 30)
    form = {"layer.weight": Outer(left / left.norm(), right / right.norm(), torch.Size((20, 30)))}
    layer = Layer("layer", Kind.KRONECKER, "layer.weight", (20, 30))
    ours = torch.stack(
        [KhatriRaoProjection([layer], 256, s, MEMORY)(form, 1).square().sum() for s in range(400)]
    )
    theirs = torch.stack(
        [Projection(256, "kronecker", s)(form, 1).square().sum() for s in range(400)]
    )
    assert theirs.var() > 2.5 * ours.var()


@pytest.mark.parametrize("memory", [1, 3000, 2**24])
@pytest.mark.parametrize("sizes", [[7], [3, 3, 1], [1, 6]])
def test_whatever_the_batches_and_the_memory(memory, sizes):
    example = sequence(7)
    truth = projection_of(example)(example.gradients, 7)
    drawn, parts, start = projection_of(example, memory=memory), [], 0
    for size in sizes:
        rows = slice(start, start + size)
        some = {name: form[rows] for name, form in example.gradients.items()}
        parts.append(drawn(some, size))
        start += size
    assert relative_error(torch.cat(parts), truth) < 1e-12
    assert relative_error(drawn(example.gradients, 7), truth) < 1e-12


def test_the_seed_and_the_name_of_a_layer_fix_it():
    example = linear(3)
    first = projection_of(example, seed="0/1")(example.gradients, 3)
    assert torch.equal(projection_of(example, seed="0/1")(example.gradients, 3), first)
    assert relative_error(projection_of(example, seed="0/2")(example.gradients, 3), first) > 0.1


def test_gradients_that_are_missing_are_zero():
    example = linear(3)
    assert torch.equal(projection_of(example)({}, 3), torch.zeros(3, 48))
    with pytest.raises(InvalidInputError, match="at least 1; got 0"):
        projection_of(example, k=0)
