"""Solving with Kronecker factors against dense matrices."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradients.kfac_examples import EXAMPLES, Example, N, classes, cnn, dense_curvature, mlp
from references import flat, gradients_by_loop, relative_error
from torch import Tensor, nn

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.kfac import KroneckerFactors, Preconditioner
from proponent.models.torch import TorchModel

SHIFT = 0.03


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(2)
    yield


def prepared(
    example: Example, method: Any = "ekfac", shift: Any = SHIFT
) -> tuple[KroneckerFactors, Preconditioner, Tensor]:
    """Factors, ready to solve with, and the dense inverse."""
    factors = KroneckerFactors.fit(example.model, example.data, method=method)
    inverse = torch.linalg.inv(dense_curvature(factors) + shift * torch.eye(factors.size))
    return factors, factors.prepare(shift), inverse


def captured(example: Example, rows: slice) -> Any:
    instances = Instances.of(example.data)
    capture = GradientCapture(example.model, instances)
    with example.model.evaluating():
        return capture(example.model.prepare(instances.batch(rows)), instances.ids[rows])


def true_gradients(example: Example) -> Tensor:
    model = example.model
    found = gradients_by_loop(model.module, model.risk, tuple(example.data), N)
    return flat({name: found[name] for name in model.selected})


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
@pytest.mark.parametrize("name", EXAMPLES)
def test_solutions_are_those_of_the_dense_matrix(name: str, method: Any) -> None:
    factors, ready, inverse = prepared(EXAMPLES[name](), method)
    right = torch.randn(4, factors.size)
    solution = ready.solve(right)
    assert relative_error(solution.vectors, right @ inverse) < 1e-11
    assert relative_error(factors.matvec(right), right @ dense_curvature(factors)) < 1e-11
    assert relative_error(ready.matvec(solution.vectors), right) < 1e-11
    assert solution.converged and solution.residuals.shape == (4,)
    assert float(solution.residuals.max()) < 1e-11
    assert solution.effective_damping == SHIFT


# By the number of training instances expected test gradients stay in the eigenbasis, or not.
@pytest.mark.parametrize("n", [0, 10**6])
@pytest.mark.parametrize("name", EXAMPLES)
def test_captured_gradients_meet(name: str, n: int) -> None:
    example = EXAMPLES[name]()
    factors, ready, inverse = prepared(example)
    ready = replace(ready, n=n)
    gradients = true_gradients(example)
    forms = captured(example, slice(0, N))
    expected = gradients @ inverse @ gradients.T
    assert relative_error(ready.self_inner(forms, N), expected.diagonal()) < 1e-11
    norms = (gradients @ inverse).norm(dim=1)
    assert relative_error(ready.inverse_norms(forms, N), norms) < 1e-11
    tests = [captured(example, slice(0, 4)), captured(example, slice(4, 9))]
    query = ready.query(tests, [4, 5])
    rotated = [
        part.coordinates is not None for part in query.blocks if not part.block.layer.diagonal
    ]
    assert all(rotated) if n == 0 else not any(rotated)
    products, squares = query.meet(forms, N, norms=True)
    assert len(query) == 9
    assert relative_error(products, expected[:, :9]) < 1e-11
    assert squares is not None
    assert relative_error(squares, gradients.square().sum(1)) < 1e-11
    vectors = torch.randn(3, factors.size)
    expected = vectors @ inverse @ gradients.T
    assert relative_error(ready.inner(vectors, forms, N), expected) < 1e-11


@pytest.mark.parametrize("n", [0, 10**6])
def test_gradients_that_do_not_fit_are_met_in_pieces(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = cnn()
    _, ready, inverse = prepared(example)
    ready = replace(ready, n=n)
    gradients, forms = true_gradients(example), captured(example, slice(0, N))
    expected = gradients @ inverse @ gradients.T
    for module in ("precondition", "query", "squares"):
        monkeypatch.setattr(f"proponent.gradients.kfac.{module}.PIECE_BYTES", 1)
    assert relative_error(ready.self_inner(forms, N), expected.diagonal()) < 1e-11
    assert relative_error(ready.query([forms], [N]).meet(forms, N)[0], expected) < 1e-11


def test_test_sets_that_do_not_fit_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    example = cnn()
    _, ready, inverse = prepared(example)
    forms = captured(example, slice(0, N))
    expected = true_gradients(example) @ inverse @ true_gradients(example).T
    taken = 8 * sum(form.numel for form in forms.values())
    size = ready.queries_at_once(5 * taken)
    assert size == 5 and ready.queries_at_once(6 * taken - 1) == 5
    assert ready.queries_at_once(1) == 1
    found = []
    for start in range(0, N, size):
        part = captured(example, slice(start, min(N, start + size)))
        query = ready.query([part], [min(size, N - start)])
        held = [*query.blocks[0].vectors.values()]
        assert sum(v.nbytes for v in held) <= 5 * taken
        found.append(query.meet(forms, N)[0])
    assert relative_error(torch.cat(found, 1), expected) < 1e-11


def test_the_default_damping_is_a_tenth_of_each_layers_mean_eigenvalue() -> None:
    factors = KroneckerFactors.fit(mlp().model, mlp().data)
    damping = factors.default_damping()
    dense = dense_curvature(factors)
    numbers = torch.arange(factors.size)[None].to(dense.dtype)
    positions = factors.space.unflatten(numbers)
    shifts = torch.zeros(factors.size)
    for block in factors.blocks:
        where = torch.cat([positions[name].flatten() for name in block.layer.parameters]).long()
        mean = float(dense.diagonal()[where].mean())  # the trace over the number of entries
        assert damping[block.layer.name] == pytest.approx(0.1 * mean, rel=1e-12)
        shifts[where] = 0.1 * mean
    right = torch.randn(2, factors.size)
    ready = factors.prepare(damping)
    expected = torch.linalg.solve(dense + torch.diag(shifts), right.T).T
    assert relative_error(ready.solve(right).vectors, expected) < 1e-11
    layers = ready.diagnostics()["layers"]
    assert {name: layer["shift"] for name, layer in layers.items()} == damping
    assert factors.default_damping(0.2)["0"] == pytest.approx(2 * damping["0"])


def test_a_gradient_of_other_factors_is_formed_and_rotated() -> None:
    """A forward pass that takes another way on some batches leaves the gradients dense."""
    example = mlp()
    _, ready, inverse = prepared(example)
    gradients, forms = true_gradients(example), captured(example, slice(0, N))
    from proponent.gradients.forms import Dense

    written_out = {name: Dense(form.materialise()) for name, form in forms.items()}
    expected = (gradients @ inverse * gradients).sum(1)
    assert relative_error(ready.self_inner(written_out, N), expected) < 1e-11


def test_a_singular_curvature_is_refused_and_the_remedy_named() -> None:
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    model = TorchModel(net, loss="cross_entropy")
    # A feature that is always zero, and a softmax that does not see a shift of its logits.
    x = torch.randn(N, 5)
    x[:, 2] = 0
    factors = KroneckerFactors.fit(model, (x, classes(N)))
    with pytest.raises(SolveError, match=r"layer '0'.*singular.*default_damping"):
        factors.prepare(0.0)
    small = factors.prepare(1e-30).solve(torch.ones(1, factors.size))
    assert any("rounding" in warning for warning in small.warnings)
    assert (
        not factors.prepare(factors.default_damping()).solve(torch.ones(1, factors.size)).warnings
    )


def test_no_shift_is_needed_where_the_curvature_is_positive() -> None:
    example = Example(
        TorchModel(nn.Linear(3, 2), loss="mse"), (torch.randn(N, 3), torch.randn(N, 2))
    )
    factors, ready, inverse = prepared(example, shift=0.0)
    right = torch.randn(2, factors.size)
    assert relative_error(ready.solve(right).vectors, right @ inverse) < 1e-9


def test_shifts_that_cannot_be_used_are_refused() -> None:
    factors = KroneckerFactors.fit(mlp().model, mlp().data)
    with pytest.raises(InvalidInputError, match="shift"):
        factors.prepare(-1.0)
    with pytest.raises(InvalidInputError, match=r"missing or unknown: 2, 3"):
        factors.prepare({"0": 1.0})


def test_single_precision_is_near_double() -> None:
    example = mlp()
    _, _, inverse = prepared(example)
    expected = (true_gradients(example) @ inverse * true_gradients(example)).sum(1)
    single = Example(example.model, example.data)
    single.model.module.float()
    factors = KroneckerFactors.fit(single.model, single.data)
    assert all(block.eigenvalues.dtype == torch.float32 for block in factors.blocks)
    forms = captured(single, slice(0, N))
    assert 1e-14 < relative_error(factors.prepare(SHIFT).self_inner(forms, N), expected) < 1e-4
    solution = factors.prepare(SHIFT).solve(torch.randn(2, factors.size))
    assert solution.vectors.dtype == torch.float32 and solution.converged
    # Finer factors than the module, and gradients of either precision.
    finer = KroneckerFactors.fit(single.model, single.data, dtype=torch.float64)
    assert all(block.eigenvalues.dtype == torch.float64 for block in finer.blocks)
    assert relative_error(finer.prepare(SHIFT).self_inner(forms, N), expected) < 1e-4


def test_factors_are_not_coarser_than_the_module() -> None:
    with pytest.raises(InvalidInputError, match="coarser than the module"):
        KroneckerFactors.fit(mlp().model, mlp().data, dtype=torch.float32)
