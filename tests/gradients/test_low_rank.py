"""Compressed queries: what they meet, what they lose, and that they say so."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from gradient_checks import capture_in_batches
from gradients.form_examples import KERNELS, MATRICES
from gradients.kfac_examples import EXAMPLES, Example, N, cnn, mlp, sequence
from references import relative_error
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.gradients import low_rank_query
from proponent.gradients.kfac import KroneckerFactors, KroneckerQuery
from proponent.gradients.low_rank import compressed
from proponent.gradients.low_rank_query import LowRank, LowRankQuery
from proponent.gradients.products import Products, VectorQuery

M = 6


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(5)
    yield


def captured(example: Example, size: int = N) -> Any:
    _, parts, sizes = capture_in_batches(example.model, example.data, size)
    return parts, sizes


def kronecker(example: Example, *, rotated: bool, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A query of some instances in the eigenbasis or rotated back, and the training gradients."""
    monkeypatch.setattr(KroneckerQuery, "_rotating_back_pays", lambda *_: not rotated)
    ready = KroneckerFactors.fit(example.model, example.data).prepare(0.05)
    (part, *_), (size, *_) = captured(example, M)
    (train,), _ = captured(example)
    return ready.query([part], [size]), train


def random_vectors(m: int, o: int, d: int, decay: float = 0.7) -> Tensor:
    """Matrices with decaying singular values."""
    left = torch.linalg.qr(torch.randn(m, o, min(o, d))).Q
    right = torch.linalg.qr(torch.randn(m, d, min(o, d))).Q
    return left * decay ** torch.arange(min(o, d)) @ right.mT


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_is_lost_at_full_rank(
    name: str, rotated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, train = kronecker(EXAMPLES[name](), rotated=rotated, monkeypatch=monkeypatch)
    small = compressed(found, 100)
    assert relative_error(small.meet(train, N)[0], found.meet(train, N)[0]) < 1e-11
    assert not small.errors.any() and not small.matrices


@pytest.mark.parametrize("columns", [60, 90])
@pytest.mark.parametrize("rank", [1, 4])
def test_matrices_of_rank_r_are_exact_at_rank_r(rank: int, columns: int) -> None:
    vectors = torch.randn(M, 70, rank) @ torch.randn(M, rank, columns)
    found = VectorQuery({"w": vectors, "b": torch.randn(M, 5)}, Products())
    small = compressed(found, rank)
    assert set(small.matrices) == {"w"} and float(small.errors.max()) < 1e-12
    assert relative_error(small.matrices["w"].materialise(slice(None)), vectors) < 1e-12
    assert small.nbytes == 8 * M * (rank * (70 + columns) + 5)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("make", [mlp, cnn, sequence])
def test_the_error_reported_is_the_true_one_and_bounds_the_products(
    make: Any, rotated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = make()
    found, train = kronecker(example, rotated=rotated, monkeypatch=monkeypatch)
    small = compressed(found, 1)
    assert small.matrices
    solved: dict[str, Tensor] = {}
    for block in found.blocks:
        part = block.vectors if block.coordinates is None else None
        solved |= block.block.unrotate(block.coordinates) if part is None else part
    squares, lost = torch.zeros(M), torch.zeros(M)
    for name, vectors in solved.items():
        held = (
            small.matrices[name].materialise(slice(None))
            if name in small.matrices
            else small.vectors[name]
        )
        squares += vectors.flatten(1).square().sum(1)
        lost += (vectors - held).flatten(1).square().sum(1)
    assert float(lost.min()) > 0
    assert relative_error(small.errors, (lost / squares).sqrt()) < 1e-10
    assert relative_error(small.norms, squares.sqrt()) < 1e-12
    exact, (products, norms) = found.meet(train, N)[0], small.meet(train, N, norms=True)
    assert norms is not None
    bound = norms.sqrt()[:, None] * small.errors * small.norms
    off = (products - exact).abs()
    assert (off <= bound * (1 + 1e-9)).all() and float((off / bound).max()) > 0.05


def test_oversampling_and_power_iterations_come_near_the_best() -> None:
    """peers: without oversampling rank 16 of sequences had a Spearman correlation of 0.91."""
    vectors = random_vectors(M, 80, 64, decay=0.9)
    best = torch.linalg.svdvals(vectors)[:, 16:].square().sum(1).sqrt()
    best /= vectors.flatten(1).norm(dim=1)
    found = VectorQuery({"w": vectors}, Products())
    errors = compressed(found, 16).errors
    without = compressed(found, 16, oversampling=0).errors
    assert (errors < without).all() and (errors < 1.003 * best).all()
    assert (errors > best * (1 - 1e-9)).all()
    # As kronfluence does it.
    torch.manual_seed(0)
    left, values, right = torch.svd_lowrank(vectors, q=16)
    theirs = (vectors - left * values[:, None] @ right.mT).flatten(1).norm(dim=1)
    assert (errors < theirs / vectors.flatten(1).norm(dim=1)).all()


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("make", (*MATRICES, *KERNELS), ids=lambda make: make.__name__)
def test_products_of_every_form(make: Any, written: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(low_rank_query, "ENTRY_COST", -(10**6) if written else 10**6)
    monkeypatch.setattr(low_rank_query, "PIECE_BYTES", 1000)
    monkeypatch.setattr(low_rank_query, "PRODUCT_BYTES", 400)
    form = make(7)
    rows, columns = form.shape[0], form.numel // form.shape[0]
    small = LowRank(torch.randn(rows, M, 2), torch.randn(columns, M, 2), form.shape)
    expected = torch.einsum(
        "nod,omk,dmk->nm", form.materialise().flatten(2), small.left, small.right
    )
    assert relative_error(small.meet(form), expected) < 1e-12


@pytest.mark.parametrize("make", [sequence, mlp, cnn])
def test_neither_cuts_nor_other_instances_change_the_numbers(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A ragged last part may be rotated back where the others are not.
    monkeypatch.setattr(KroneckerQuery, "_rotating_back_pays", lambda query, *_: len(query) == 5)
    example = make()
    ready = KroneckerFactors.fit(example.model, example.data).prepare(0.05)
    (train,), _ = captured(example)
    whole = compressed(ready.query([train], [N]), 1)
    parts = [
        compressed(ready.query([part], [size]), 1)
        for part, size in zip(*captured(example, 5), strict=True)
    ]
    assert len(parts[-1]) != 5
    joined = LowRankQuery.joined(parts)
    assert len(joined) == N
    assert relative_error(joined.meet(train, N)[0], whole.meet(train, N)[0]) < 1e-9
    assert relative_error(joined.errors, whole.errors) < 1e-9
    assert relative_error(joined.norms, whole.norms) < 1e-12
    with pytest.raises(InvalidInputError, match="compress all parts of a test set alike"):
        LowRankQuery.joined([whole, compressed(ready.query([train], [N]), 2)])


def test_scales_count_in_products_and_errors() -> None:
    vectors = {"0.weight": random_vectors(M, 4, 5), "0.bias": torch.randn(M, 4)}
    example = mlp()
    (train,), _ = captured(example)
    scales = {"0.weight": 3.0, "0.bias": 0.0}
    found = VectorQuery(vectors, Products(), scales)
    small = compressed(found, 1)
    assert relative_error(small.norms, 3 * vectors["0.weight"].flatten(1).norm(dim=1)) < 1e-12
    held = small.matrices["0.weight"].materialise(slice(None))
    off = 3 * (vectors["0.weight"] - held).flatten(1).norm(dim=1)
    assert relative_error(small.errors, off / small.norms) < 1e-10
    expected = 3 * train["0.weight"].flat() @ held.flatten(1).T
    products, norms = small.meet(train, N, norms=True)
    assert relative_error(products, expected) < 1e-12
    assert norms is not None
    left = {name: form for name, form in train.items() if name != "0.bias"}
    squares = sum(form.flat().square().sum(1) for form in left.values())
    assert relative_error(norms, torch.as_tensor(squares)) < 1e-12


def test_a_zero_gradient_has_no_error() -> None:
    vectors = torch.zeros(2, 9, 9)
    vectors[1] = torch.randn(9, 9)
    small = compressed(VectorQuery({"w": vectors}, Products()), 2)
    assert float(small.errors[0]) == 0 and float(small.errors[1]) > 0.1
    # Squares of such numbers are zero in their own precision.
    tiny = compressed(VectorQuery({"w": vectors.float() * 1e-30}, Products()), 2)
    assert relative_error(tiny.errors, small.errors) < 1e-5


def test_settings_that_cannot_be_used_are_refused() -> None:
    found = VectorQuery({"w": torch.randn(2, 9, 9)}, Products())
    for rank, oversampling in ((0, 10), (2, -1)):
        with pytest.raises(InvalidInputError, match="rank must be at least 1"):
            compressed(found, rank, oversampling)
