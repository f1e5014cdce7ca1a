"""Conjugate gradients against dense solves; what peers get wrong at the end of a run."""

import pytest
import torch
from gradients.solver_examples import (
    Matrices,
    exact,
    least_squares,
    network,
    with_eigenvalues,
)
from references import relative_error

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Hessian
from proponent.gradients.fisher import TrueFisher
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients, jacobi
from proponent.gradients.solvers.explicit import Explicit

COUPLED = pytest.mark.parametrize("coupled", [True, False])


@COUPLED
def test_a_quadratic_is_solved_in_at_most_p_iterations(coupled):
    curvature, right = least_squares(p=8), torch.randn(5, 8)
    solution = ConjugateGradients(1e-13, coupled=coupled).prepare(curvature, 0.1).solve(right)
    assert relative_error(solution.vectors, exact(curvature, 0.1, right)) < 1e-12
    assert solution.converged and solution.iterations <= 8


@COUPLED
def test_networks_agree_with_the_explicit_solver_for_every_batch_size(coupled):
    """dattri's answer depends on the batches: it sums the inverses of their Hessians."""
    model, instances = network()
    right = None
    for kind in (Hessian, GaussNewton):
        for size in (20, 12, 7):
            curvature = kind(model, instances, batch_size=size)
            right = torch.randn(3, curvature.size) if right is None else right
            expected = Explicit().prepare(kind(model, instances), 0.5).solve(right)
            solution = (
                ConjugateGradients(1e-12, coupled=coupled).prepare(curvature, 0.5).solve(right)
            )
            assert solution.converged
            assert relative_error(solution.vectors, expected.vectors) < 1e-11


@COUPLED
def test_each_right_hand_side_converges_for_itself(coupled):
    curvature = with_eigenvalues(*range(1, 21))
    easy = torch.linalg.eigh(curvature.matrix)[1][:, 3]
    right = torch.stack([easy, torch.randn(20), torch.zeros(20), 1e-9 * torch.randn(20)])
    solution = (
        ConjugateGradients(tolerance=1e-10, coupled=coupled).prepare(curvature, 0.0).solve(right)
    )
    expected = exact(curvature, 0.0, right)
    for row in (0, 1, 3):
        assert relative_error(solution.vectors[row], expected[row]) < 1e-9
    assert torch.equal(solution.vectors[2], torch.zeros(20))
    assert solution.residuals.max() <= 1e-10 and solution.converged
    alone = (
        ConjugateGradients(tolerance=1e-10, coupled=coupled)
        .prepare(curvature, 0.0)
        .solve(right[:1])
    )
    assert alone.iterations == 1


@COUPLED
def test_all_right_hand_sides_share_their_products(coupled):
    curvature, right = least_squares(), torch.randn(50, 8)
    solution = (
        ConjugateGradients(tolerance=1e-8, coupled=coupled).prepare(curvature, 0.1).solve(right)
    )
    assert solution.converged and curvature.count <= 8 + 1


@COUPLED
@pytest.mark.parametrize("tolerance", [0.0, 1e-300, 1e-15])
def test_going_on_after_convergence_stays_finite(tolerance, coupled):
    """dattri's conjugate gradients are all NaN at max_iter=100: 0 / 0 once converged."""
    curvature, right = least_squares(), torch.randn(3, 8)
    settings = ConjugateGradients(tolerance, 100, coupled=coupled)
    solution = settings.prepare(curvature, 0.1).solve(right)
    assert relative_error(solution.vectors, exact(curvature, 0.1, right)) < 1e-12
    assert solution.converged == bool((solution.residuals <= tolerance).all())
    if not solution.converged:
        assert "precision" in solution.warnings[0]


@COUPLED
def test_the_tolerance_is_honoured(coupled):
    """dattri ignores it."""
    curvature, right = with_eigenvalues(*torch.logspace(0, 4, 40).tolist()), torch.randn(4, 40)
    counts = []
    for tolerance in (1e-1, 1e-3, 1e-6, 1e-9):
        solution = (
            ConjugateGradients(tolerance=tolerance, coupled=coupled)
            .prepare(curvature, 0.0)
            .solve(right)
        )
        true = relative_rows(curvature.matvec(solution.vectors) - right, right)
        assert true.max() <= tolerance and solution.converged
        assert torch.allclose(solution.residuals, true, rtol=1e-6)
        counts.append(solution.iterations)
    assert counts == sorted(counts) and counts[0] < counts[-1]


def relative_rows(difference, right):
    return difference.norm(dim=1) / right.norm(dim=1)


@COUPLED
def test_too_few_iterations_are_flagged(coupled):
    curvature, right = with_eigenvalues(*torch.logspace(0, 4, 40).tolist()), torch.randn(4, 40)
    solution = (
        ConjugateGradients(max_iterations=3, coupled=coupled).prepare(curvature, 0.0).solve(right)
    )
    assert not solution.converged and solution.iterations == 3
    assert "4 of 4 right-hand sides" in solution.warnings[0]
    assert "max_iterations" in solution.warnings[0]
    true = relative_rows(curvature.matvec(solution.vectors) - right, right)
    assert torch.allclose(solution.residuals, true)


@COUPLED
def test_negative_curvature_is_refused_or_flagged(coupled):
    curvature, right = with_eigenvalues(-0.5, 0.3, 1.0, 2.0), torch.randn(3, 4)
    with pytest.raises(SolveError, match=r"negative curvature.*Gauss-Newton.*damping"):
        ConjugateGradients(coupled=coupled).prepare(curvature, 0.1).solve(right)
    settings = ConjugateGradients(negative_curvature="flag", coupled=coupled)
    solution = settings.prepare(curvature, 0.1).solve(right)
    assert not solution.converged and "negative curvature" in solution.warnings[0]
    assert torch.isfinite(solution.vectors).all()
    assert solution.smallest_eigenvalue < 0
    enough = ConjugateGradients(1e-12, coupled=coupled).prepare(curvature, 0.6).solve(right)
    assert relative_error(enough.vectors, exact(curvature, 0.6, right)) < 1e-10


@COUPLED
def test_an_untrained_networks_hessian_has_negative_curvature(coupled):
    model, instances = network()
    curvature = Hessian(model, instances)
    assert torch.linalg.eigvalsh(curvature.dense())[0] < -1e-3
    right = torch.randn(2, curvature.size)
    with pytest.raises(SolveError, match="Gauss-Newton"):
        ConjugateGradients(coupled=coupled).prepare(curvature, 1e-4).solve(right)
    solution = (
        ConjugateGradients(coupled=coupled)
        .prepare(GaussNewton(model, instances), 1e-2)
        .solve(right)
    )
    assert solution.converged


@COUPLED
def test_a_singular_system_is_flagged_or_solved_where_it_can_be(coupled):
    curvature = with_eigenvalues(0.0, 0.0, 1.0, 2.0, 3.0)
    basis = torch.linalg.eigh(curvature.matrix)[1]
    inside = torch.randn(2, 3) @ basis[:, 2:].T
    solution = ConjugateGradients(1e-10, coupled=coupled).prepare(curvature, 0.0).solve(inside)
    assert solution.converged
    assert relative_error(solution.vectors @ curvature.matrix, inside) < 1e-9
    outside = ConjugateGradients(coupled=coupled).prepare(curvature, 0.0).solve(torch.randn(2, 5))
    assert not outside.converged and outside.warnings
    assert torch.isfinite(outside.vectors).all()


@COUPLED
def test_eigenvalue_estimates_lie_in_the_spectrum_and_near_its_ends(coupled):
    curvature = with_eigenvalues(*torch.linspace(1, 50, 30).tolist())
    solution = (
        ConjugateGradients(1e-12, coupled=coupled).prepare(curvature, 0.5).solve(torch.randn(2, 30))
    )
    assert solution.smallest_eigenvalue == pytest.approx(1.0, rel=1e-3)
    assert solution.largest_eigenvalue == pytest.approx(50.0, rel=1e-3)


@COUPLED
def test_preconditioners_change_the_iterations_and_not_the_answer(coupled):
    scales = torch.logspace(-2, 2, 30)
    small = torch.randn(30, 30) / 30
    matrix = scales.sqrt()[:, None] * (torch.eye(30) + (small + small.T) / 4) * scales.sqrt()
    right = torch.randn(3, 30)

    class Known(Matrices):
        def diagonal(self):
            return self.matrix.diagonal()

    plain = ConjugateGradients(1e-10, coupled=coupled)
    plain = plain.prepare(Matrices(matrix[None]), 1e-3).solve(right)
    for preconditioner in ("jacobi", lambda b: b / (matrix.diagonal() + 1e-3)):
        settings = ConjugateGradients(1e-10, preconditioner=preconditioner, coupled=coupled)
        solution = settings.prepare(Known(matrix[None]), 1e-3).solve(right)
        assert solution.converged and solution.iterations < 0.6 * plain.iterations
        expected = torch.linalg.solve(matrix + 1e-3 * torch.eye(30), right.T).T
        assert relative_error(solution.vectors, expected) < 1e-6
    perfect = ConjugateGradients(
        1e-8, preconditioner=lambda b: torch.linalg.solve(matrix + 1e-3 * torch.eye(30), b.T).T
    )
    assert perfect.prepare(Matrices(matrix[None]), 1e-3).solve(right).iterations == 1


def test_coupled_right_hand_sides_take_fewer_passes():
    curvature = with_eigenvalues(*torch.logspace(0, 4, 60).tolist())
    right = torch.randn(12, 60)
    counts = {}
    for coupled in (True, False):
        settings = ConjugateGradients(1e-8, coupled=coupled)
        solution = settings.prepare(curvature, 0.0).solve(right)
        assert solution.converged
        assert relative_error(solution.vectors, exact(curvature, 0.0, right)) < 1e-6
        counts[coupled] = solution.iterations
    assert counts[True] <= 60 / 12 + 2 < counts[False] / 4


@pytest.mark.parametrize("k", [1, 8, 70])  # 70: two groups, and more than there are parameters
def test_right_hand_sides_that_depend_on_each_other(k):
    curvature, some = least_squares(p=12), torch.randn(3, 12)
    right = torch.randn(k, 3) @ some
    right[0] = 0.0 if k > 1 else right[0]
    right[-1] *= 1e12
    solution = ConjugateGradients(1e-11).prepare(curvature, 0.1).solve(right)
    assert solution.converged
    for found, expected in zip(solution.vectors, exact(curvature, 0.1, right), strict=True):
        assert relative_error(found, expected) < 1e-10


def test_the_diagonal_of_a_fisher_matrix_and_hutchinsons_estimate():
    model, instances = network()
    fisher = TrueFisher(model, instances)
    right = torch.randn(2, fisher.size)
    expected = right / (fisher.dense().diagonal() + 0.1)
    assert relative_error(jacobi(fisher, 0.1)(right), expected) < 1e-12
    curvature = GaussNewton(model, instances)
    truth = right / (curvature.dense().diagonal() + 0.1)
    assert relative_error(jacobi(curvature, 0.1, probes=4000)(right), truth) < 0.05
    assert torch.equal(jacobi(curvature, 0.1, seed=3)(right), jacobi(curvature, 0.1, seed=3)(right))


@COUPLED
def test_a_preconditioner_that_is_not_positive_is_refused(coupled):
    settings = ConjugateGradients(preconditioner=lambda b: -b, coupled=coupled)
    with pytest.raises(SolveError, match="preconditioner is not positive"):
        settings.prepare(least_squares(), 0.1).solve(torch.randn(1, 8))


@COUPLED
def test_in_float32_the_true_residual_is_reported(coupled):
    values = torch.logspace(0, 5, 60).tolist()
    matrix = with_eigenvalues(*values).matrix
    right = torch.randn(2, 60)
    curvature = Matrices(matrix.float()[None])
    solution = ConjugateGradients(1e-6, 2000, coupled=coupled).prepare(curvature, 0.0).solve(right)
    true = relative_rows(solution.vectors.double() @ matrix - right, right)
    assert (solution.residuals.double() / true).min() > 0.2
    assert solution.converged == bool((solution.residuals <= 1e-6).all())


@pytest.mark.parametrize(
    "settings",
    [
        {"tolerance": -1.0},
        {"max_iterations": 0},
        {"preconditioner": "ichol"},
        {"negative_curvature": "hope"},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(InvalidInputError, match=next(iter(settings))):
        ConjugateGradients(**settings)
