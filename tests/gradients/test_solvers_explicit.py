"""The explicit solver against dense linear algebra, and its refusals."""

import json

import pytest
import torch
from gradients.solver_examples import Matrices, exact, least_squares, network, with_eigenvalues
from references import relative_error

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Hessian
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.solvers.explicit import Explicit


def test_ridge_is_solved_exactly():
    curvature, right = least_squares(), torch.randn(3, 8)
    for shift in (0.0, 1e-3, 1.0):
        solution = Explicit().prepare(curvature, shift).solve(right)
        assert relative_error(solution.vectors, exact(curvature, shift, right)) < 1e-12
        assert solution.converged and solution.residuals.max() < 1e-13
        assert solution.effective_damping == shift
        values = torch.linalg.eigvalsh(curvature.matrix)
        assert solution.smallest_eigenvalue == pytest.approx(float(values[0]), rel=1e-9)
        assert solution.largest_eigenvalue == pytest.approx(float(values[-1]), rel=1e-9)
        assert solution.warnings == ()


def test_leverage_identity_of_ridge():
    """Leaving out x_i moves the parameters by H^{-1} g_i / n / (1 - h_i), exactly."""
    n, p, decay = 40, 5, 0.1
    x, y = torch.randn(n, p), torch.randn(n)
    curvature = Matrices(x[:, :, None] * x[:, None, :])
    matrix = x.T @ x / n + decay * torch.eye(p)
    theta = torch.linalg.solve(matrix, x.T @ y / n)
    gradients = (x @ theta - y)[:, None] * x
    moved = Explicit().prepare(curvature, decay).solve(gradients).vectors / n
    leverage = (x * torch.linalg.solve(matrix, x.T).T).sum(1) / n
    for i in range(n):
        left = torch.arange(n) != i
        refit = torch.linalg.solve(
            x[left].T @ x[left] / n + decay * torch.eye(p), x[left].T @ y[left] / n
        )
        assert relative_error(moved[i] / (1 - leverage[i]), refit - theta) < 1e-12


def test_networks_hessian_and_gauss_newton():
    model, instances = network()
    for curvature in (Hessian(model, instances, batch_size=6), GaussNewton(model, instances)):
        right = torch.randn(3, curvature.size)
        solution = Explicit().prepare(curvature, 2.0).solve(right)
        assert relative_error(solution.vectors, exact(curvature, 2.0, right)) < 1e-12


@pytest.mark.parametrize(
    "indefinite, values", [("clamp", [0.0, 1.0, 2.0]), ("absolute", [0.5, 1.0, 2.0])]
)
def test_negative_eigenvalues_are_replaced_and_said(indefinite, values):
    curvature = with_eigenvalues(-0.5, 1.0, 2.0)
    right = torch.randn(2, 3)
    solution = Explicit(indefinite=indefinite).prepare(curvature, 0.1).solve(right)
    basis = torch.linalg.eigh(curvature.matrix)[1]
    expected = (right @ basis / (torch.tensor(values) + 0.1)) @ basis.T
    assert relative_error(solution.vectors, expected) < 1e-12
    assert solution.converged
    assert solution.smallest_eigenvalue == pytest.approx(-0.5)
    (warning,) = solution.warnings
    assert "1 negative" in warning and "-0.5" in warning
    assert json.loads(json.dumps(solution.diagnostics()))["warnings"] == [warning]


def test_indefinite_is_refused_by_default():
    with pytest.raises(SolveError, match=r"1 of 3 eigenvalues.*above 0\.5.*Gauss-Newton"):
        Explicit().prepare(with_eigenvalues(-0.5, 1.0, 2.0), 0.1)
    # Damping above the negative eigenvalue makes the matrix positive.
    curvature, right = with_eigenvalues(-0.5, 1.0, 2.0), torch.randn(1, 3)
    solution = Explicit().prepare(curvature, 0.6).solve(right)
    assert relative_error(solution.vectors, exact(curvature, 0.6, right)) < 1e-12


@pytest.mark.parametrize("indefinite", ["error", "clamp", "absolute"])
def test_singular_is_refused(indefinite):
    model, instances = network()
    softmax = type(model)(model.module, loss="cross_entropy", parameters="last")
    curvature = GaussNewton(softmax, instances)
    with pytest.raises(SolveError, match=r"singular.*damping above 0"):
        Explicit(indefinite=indefinite).prepare(curvature, 0.0)
    right = torch.randn(1, curvature.size)
    solution = Explicit(indefinite=indefinite).prepare(curvature, 1e-3).solve(right)
    assert relative_error(solution.vectors, exact(curvature, 1e-3, right)) < 1e-10


def test_too_large_a_matrix_is_refused_with_other_solvers_named():
    with pytest.raises(SolveError, match="ConjugateGradients"):
        Explicit(memory=1000).prepare(least_squares(), 1.0)


def test_wrong_input_is_refused():
    with pytest.raises(InvalidInputError, match="indefinite='cut'"):
        Explicit(indefinite="cut")
    for shift in (-1.0, float("nan"), float("inf"), None):
        with pytest.raises(InvalidInputError, match="shift"):
            Explicit().prepare(least_squares(), shift)
    prepared = Explicit().prepare(least_squares(), 1.0)
    with pytest.raises(InvalidInputError, match="right: expected shape"):
        prepared.solve(torch.ones(8))
    with pytest.raises(InvalidInputError, match=r"right: rows \[0\]"):
        prepared.solve(torch.full((1, 8), torch.nan))


def test_a_right_hand_side_of_zero_has_solution_zero():
    solution = Explicit().prepare(least_squares(), 1.0).solve(torch.zeros(2, 8))
    assert torch.equal(solution.vectors, torch.zeros(2, 8)) and solution.converged
