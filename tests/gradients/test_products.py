"""Inner products of gradients: by pairs, materialised, in blocks, with scales; always the same."""

import pytest
import torch
from gradients.form_examples import KERNELS, MATRICES, PAIRS, dense, lookup, outer, written_out
from hypothesis import given
from hypothesis import strategies as st
from references import flat, inner_products, relative_error

from proponent.exceptions import InvalidInputError
from proponent.gradients.forms import Dense, Outer
from proponent.gradients.products import (
    GradientQuery,
    Products,
    VectorQuery,
    squared_norms,
    weighted_sum,
)

WAYS = ("auto", "pair", "materialise")
TWO = pytest.mark.parametrize("make, other", PAIRS, ids=lambda make: make.__name__)


def gradients(n):
    """Forms of four parameters for n instances; the bias and the scalar have no factors."""
    return {
        "matrix": outer(n),
        "table": lookup(n),
        "bias": Dense(torch.randn(n, 5)),
        "temperature": Dense(torch.randn(n)),
    }


def truth(part):
    return {name: written_out(form) for name, form in part.items()}


def cut(part, sizes):
    """Cut gradients into consecutive parts."""
    parts, start = [], 0
    for size in sizes:
        parts.append({name: form[start : start + size] for name, form in part.items()})
        start += size
    return parts


@TWO
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("memory", [1, 2000, 2**20])
def test_two_forms(make, other, way, memory):
    train, test = {"weight": make(5)}, {"weight": other(4)}
    expected = inner_products(truth(train), truth(test))
    squares = inner_products(truth(train), truth(train)).diagonal()
    for sizes in ([4], [1, 3]):
        query = GradientQuery(cut(test, sizes), sizes, Products(way, memory))
        found, norms = query.meet(train, 5, norms=True)
        assert relative_error(found, expected) < 1e-12
        assert relative_error(norms, squares) < 1e-12
        again, none = query.meet(train, 5)
        assert none is None
        assert relative_error(again, expected) < 1e-12


@pytest.mark.parametrize("make", (*MATRICES, *KERNELS), ids=lambda make: make.__name__)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("memory", [1, 2000, 2**20])
def test_squared_norms(make, way, memory):
    form = make(5)
    expected = written_out(form).flatten(1).square().sum(1)
    assert relative_error(Products(way, memory).squared_norms(form), expected) < 1e-12


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("memory", [1, 2**20])
@pytest.mark.parametrize(
    "scales",
    [
        {},
        {"matrix": 0.1, "table": 2.5, "bias": 0.01},
        {"matrix": 0.0, "bias": -1.0},
        {"temperature": 0.0},
    ],
)
def test_scales_of_parameters(way, memory, scales):
    train, test = gradients(6), gradients(5)
    sizes = [3, 2]
    query = GradientQuery(cut(test, sizes), sizes, Products(way, memory), scales)
    found, squares = query.meet(train, 6, norms=True)
    assert relative_error(found, inner_products(truth(train), truth(test), scales)) < 1e-12
    # Norms are those of the gradients over the parameters that count, unscaled.
    counted = {name: float(scales.get(name, 1.0) != 0) for name in train}
    norms = inner_products(truth(train), truth(train), counted).diagonal()
    assert relative_error(squares, norms) < 1e-12
    test_norms = inner_products(truth(test), truth(test), counted).diagonal().sqrt()
    assert relative_error(query.norms(), test_norms) < 1e-12
    scaled = squared_norms(train, 6, Products(way, memory), scales)
    expected = inner_products(truth(train), truth(train), scales).diagonal()
    assert relative_error(scaled, expected) < 1e-12


def test_all_scales_zero():
    scales = dict.fromkeys(gradients(1), 0.0)
    query = GradientQuery([gradients(4)], [4], Products(), scales)
    found, squares = query.meet(gradients(3), 3, norms=True)
    assert found.shape == (3, 4)
    assert not found.any()
    assert squares.shape == (3,)
    assert not squares.any()
    assert not squared_norms(gradients(3), 3, Products(), scales).any()


def test_a_query_is_not_used_up():
    """Meeting one batch leaves nothing behind that changes the next."""
    test, scales = gradients(4), {"matrix": 3.0, "bias": 0.5}
    query = GradientQuery([test], [4], Products(), scales)
    train = gradients(5)
    first = query.meet(train, 5, norms=True)
    query.meet(gradients(7), 7, norms=True)
    second = query.meet(train, 5, norms=True)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("way", WAYS)
def test_parameters_that_some_parts_do_not_depend_on(way):
    train = gradients(5)
    test = cut(gradients(4), [2, 2])
    del test[0]["matrix"], test[1]["bias"]
    expected = [inner_products(truth({k: train[k] for k in part}), truth(part)) for part in test]
    query = GradientQuery(test, [2, 2], Products(way))
    found, _ = query.meet(train, 5)
    assert relative_error(found, torch.cat(expected, 1)) < 1e-12
    partly = {"table": train["table"]}
    found, squares = query.meet(partly, 5, norms=True)
    tables = torch.cat([written_out(part["table"]) for part in test])
    assert relative_error(found, inner_products(truth(partly), {"table": tables})) < 1e-12
    assert relative_error(squares, flat(truth(partly)).square().sum(1)) < 1e-12


@pytest.mark.parametrize("memory", [1, 2**20])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("scales", [{}, {"matrix": 0.0, "table": 0.3}])
def test_weighted_sums(memory, k, scales):
    train, test, weights = gradients(5), gradients(6), torch.randn(k, 6)
    sizes = [1, 3, 2]
    query = GradientQuery(cut(test, sizes), sizes, Products(memory=memory), scales)
    summed = weighted_sum(query, weights)
    assert len(summed) == k
    for name, form in test.items():
        total = torch.einsum("kn,n...->k...", weights, written_out(form))
        assert relative_error(summed.vectors[name], total) < 1e-12
    expected = inner_products(truth(train), truth(test), scales) @ weights.T
    found, squares = summed.meet(train, 5, norms=True)
    assert relative_error(found, expected) < 1e-12
    counted = {name: float(scales.get(name, 1.0) != 0) for name in train}
    norms = inner_products(truth(train), truth(train), counted).diagonal()
    assert relative_error(squares, norms) < 1e-12


@pytest.mark.parametrize("make", (*MATRICES, *KERNELS), ids=lambda make: make.__name__)
@pytest.mark.parametrize("memory", [1, 2**20])
def test_given_vectors(make, memory):
    form = make(5)
    vectors = torch.randn(3, *form.shape)
    query = VectorQuery({"weight": vectors}, Products(memory=memory), {"weight": 2.0})
    found, none = query.meet({"weight": form, "other": dense(5)}, 5)
    assert none is None
    assert len(query) == 3
    expected = 2 * flat({"weight": written_out(form)}) @ vectors.flatten(1).T
    assert relative_error(found, expected) < 1e-12


@given(
    n=st.integers(1, 5),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    positions=st.integers(1, 6),
    before=st.integers(1, 9),
    after=st.integers(1, 9),
    way=st.sampled_from(WAYS),
    memory=st.sampled_from([1, 300, 5000, 2**20]),
    seed=st.integers(0, 2**32),
)
def test_any_sizes(n, sizes, positions, before, after, way, memory, seed):
    torch.manual_seed(seed)
    shape = torch.Size((after, before))

    def make(n, positions):
        factors = torch.randn(n, positions, after), torch.randn(n, positions, before)
        return {"weight": Outer(*factors, shape), "bias": Dense(torch.randn(n, after))}

    train, test = make(n, positions), make(sum(sizes), max(1, positions - 1))
    query = GradientQuery(cut(test, sizes), sizes, Products(way, memory))
    found, squares = query.meet(train, n, norms=True)
    expected = inner_products(truth(train), truth(test))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    norms = flat(truth(train)).square().sum(1)
    torch.testing.assert_close(squares, norms, rtol=1e-11, atol=1e-11)


def test_which_way_is_chosen():
    """One position: pairs, whatever the width. Long sequences of narrow layers: materialised."""
    narrow = Outer(torch.randn(2, 64, 8), torch.randn(2, 64, 8), torch.Size((8, 8)))
    wide = Outer(torch.randn(2, 1, 64), torch.randn(2, 1, 64), torch.Size((64, 64)))
    assert Products().pairs(wide, 10, 1)
    assert not Products().pairs(narrow, 10, 64)
    assert Products("pair").pairs(narrow, 10, 64)
    assert not Products("materialise").pairs(wide, 10, 1)
    assert not Products("pair").pairs(dense(2), 10, 1)
    assert not Products("pair").pairs(wide, 10, 0)


def test_blocks_fit_the_memory():
    form = outer(10)
    bytes_each = 4 * form.numel
    blocks = list(Products(memory=8 * 3 * bytes_each).blocks(form))
    assert [block.n for block in blocks] == [3, 3, 3, 1]
    assert [block.n for block in Products(memory=1).blocks(form)] == [1] * 10
    assert [block.n for block in Products().blocks(form)] == [10]


def test_settings_that_cannot_be():
    with pytest.raises(InvalidInputError, match=r"products='fast'.*auto, pair, materialise"):
        Products("fast")
    with pytest.raises(InvalidInputError, match="memory must be a positive number of bytes"):
        Products(memory=0)
