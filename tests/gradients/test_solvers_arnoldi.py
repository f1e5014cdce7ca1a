"""Arnoldi against the explicit solver; Krylov spaces that end early; the complement."""

import json

import pytest
import torch
from gradients.solver_examples import Matrices, exact, least_squares, network, with_eigenvalues
from references import relative_error

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Hessian
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.solvers.arnoldi import Arnoldi
from proponent.gradients.solvers.lanczos import extreme_eigenvalues, krylov


def test_at_full_rank_it_is_the_inverse():
    curvature, right = least_squares(p=12), torch.randn(3, 12)
    for complement in ("damped", "drop"):
        for shift in (0.0, 1e-2):
            settings = Arnoldi(complement=complement, iterations=13, rank=13)
            solution = settings.prepare(curvature, shift).solve(right)
            assert relative_error(solution.vectors, exact(curvature, shift, right)) < 1e-10
            assert solution.converged and solution.iterations == 12


def test_at_full_rank_a_network_is_inverted_for_every_batch_size():
    model, instances = network()
    right = torch.randn(2, 43)
    for size in (20, 7):
        curvature = GaussNewton(model, instances, batch_size=size)
        solution = Arnoldi(rank=43).prepare(curvature, 0.01).solve(right)
        assert relative_error(solution.vectors, exact(curvature, 0.01, right)) < 1e-10


def test_the_formula_on_the_leading_eigenvectors():
    values = [0.01, 0.02, 0.03, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    curvature, right, shift = with_eigenvalues(*values), torch.randn(2, 10), 0.1
    basis = torch.linalg.eigh(curvature.matrix)[1]
    leading = basis[:, -4:]
    inside = (right @ leading / (torch.tensor(values[-4:]) + shift)) @ leading.T
    outside = (right - right @ leading @ leading.T) / shift
    for complement, expected in (("drop", inside), ("damped", inside + outside)):
        settings = Arnoldi(iterations=10, rank=4, complement=complement)
        solution = settings.prepare(curvature, shift).solve(right)
        assert relative_error(solution.vectors, expected) < 1e-10
        true = right - solution.vectors @ curvature.matrix - shift * solution.vectors
        assert torch.allclose(solution.residuals, true.norm(dim=1) / right.norm(dim=1))
        assert not solution.converged and "not solved" in solution.warnings[0]


@pytest.mark.parametrize(
    "values",
    [
        [2.0] * 9,  # one direction spans the first Krylov space
        [1.0, 1.0, 1.0, 3.0, 3.0, 3.0, 7.0],
        [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 2.0],
        [0.0] * 5 + [1e-3, 10.0],
    ],
)
def test_krylov_spaces_that_are_exhausted(values):
    """dattri's are NaN; a space that ends early must not hide eigenvalues that stand twice."""
    curvature, right = with_eigenvalues(*values), torch.randn(3, len(values))
    solution = Arnoldi().prepare(curvature, 0.1).solve(right)
    assert relative_error(solution.vectors, exact(curvature, 0.1, right)) < 1e-10
    assert solution.converged and not solution.warnings
    assert solution.largest_eigenvalue == pytest.approx(max(values))


def test_the_zero_matrix():
    curvature, right = Matrices(torch.zeros(1, 4, 4)), torch.randn(2, 4)
    solution = Arnoldi().prepare(curvature, 0.5).solve(right)
    assert relative_error(solution.vectors, right / 0.5) < 1e-14


def test_negative_ritz_values_are_left_out_and_said():
    """dattri's are NaN; the paper's code keeps them by absolute value."""
    values = [-3.0, -0.1, 0.5, 1.0, 2.0]
    curvature, right, shift = with_eigenvalues(*values), torch.randn(2, 5), 0.2
    solution = Arnoldi(tolerance=1e-3).prepare(curvature, shift).solve(right)
    basis = torch.linalg.eigh(curvature.matrix)[1]
    expected = (right @ basis / (torch.tensor(values).clamp(min=0) + shift)) @ basis.T
    assert relative_error(solution.vectors, expected) < 1e-10
    assert "2 of 5 Ritz values are negative" in solution.warnings[0]
    assert not solution.converged
    assert solution.smallest_eigenvalue == pytest.approx(-3.0)


def test_an_untrained_networks_hessian():
    model, instances = network()
    solution = Arnoldi().prepare(Hessian(model, instances), 0.1).solve(torch.randn(2, 43))
    assert torch.isfinite(solution.vectors).all() and "indefinite" in solution.warnings[0]


def test_the_basis_is_orthonormal_in_float32():
    curvature = with_eigenvalues(*torch.logspace(-3, 2, 120).tolist())
    matrix = curvature.matrix.float()
    found = krylov(lambda v: v @ matrix, torch.randn(120).float(), 60)
    unit = torch.eye(60, dtype=torch.float32)
    assert (found.basis @ found.basis.T - unit).abs().max() < 2e-6
    exactly = found.basis @ matrix @ found.basis.T
    assert (found.projected - exactly).abs().max() < 1e-4
    # The matrix is symmetric, so the projected one is tridiagonal.
    assert torch.triu(found.projected, 2).abs().max() < 1e-4


def test_extreme_eigenvalues_are_found_from_inside():
    curvature = with_eigenvalues(*torch.linspace(-2, 30, 50).tolist())
    low, high = extreme_eigenvalues(curvature.matvec, curvature.matrix, 30)
    assert -2.0 <= low < -1.9 and 29.9 < high <= 30.0 + 1e-9


def test_the_seed_fixes_the_answer():
    curvature, right = with_eigenvalues(*torch.logspace(-2, 1, 40).tolist()), torch.randn(1, 40)
    first = Arnoldi(10, 5, seed=1).prepare(curvature, 0.1).solve(right).vectors
    again = Arnoldi(10, 5, seed=1).prepare(curvature, 0.1).solve(right).vectors
    other = Arnoldi(10, 5, seed=2).prepare(curvature, 0.1).solve(right).vectors
    assert torch.equal(first, again) and relative_error(other, first) > 1e-6


def test_residuals_are_measured_for_some_right_hand_sides():
    curvature, right = with_eigenvalues(*torch.logspace(-2, 1, 40).tolist()), torch.randn(20, 40)
    every = Arnoldi(10, 5, measured=None).prepare(curvature, 0.1).solve(right)
    some = Arnoldi(10, 5, measured=4).prepare(curvature, 0.1).solve(right)
    assert torch.equal(some.vectors, every.vectors)
    true = right - every.vectors @ curvature.matrix - 0.1 * every.vectors
    assert torch.allclose(every.residuals, true.norm(dim=1) / right.norm(dim=1))
    assert (~some.residuals.isnan()).nonzero().flatten().tolist() == [0, 5, 10, 15]
    assert torch.allclose(some.residuals[::5], every.residuals[::5])
    assert not some.converged and "4 of 4 right-hand sides" in some.warnings[0]
    noticed = json.loads(json.dumps(some.diagnostics(), allow_nan=False))
    assert noticed["residuals"][1] is None
    assert noticed["largest_residual"] == pytest.approx(float(every.residuals[::5].max()))


def test_refusals_say_what_to_do():
    curvature = with_eigenvalues(*range(1, 11))
    with pytest.raises(SolveError, match="damping above 0"):
        Arnoldi(rank=3).prepare(curvature, 0.0)
    with pytest.raises(SolveError, match=r"Krylov basis.*fewer iterations"):
        Arnoldi(memory=100).prepare(curvature, 0.1)
    with pytest.raises(SolveError, match="no positive eigenvalue"):
        Arnoldi().prepare(with_eigenvalues(-1.0, -2.0), 0.1)
    for wrong in ({"complement": "keep"}, {"rank": 0}, {"iterations": 0}, {"tolerance": 0.0}):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            Arnoldi(**wrong)
