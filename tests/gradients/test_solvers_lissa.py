"""LiSSA's fixed point, its stability, and Koh's damping."""

import pytest
import torch
from gradients.solver_examples import exact, least_squares, network, with_eigenvalues
from references import relative_error

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Hessian
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.solvers.lissa import LiSSA, stable_scale

ALL = 10_000  # a batch of every instance: no noise


@pytest.mark.parametrize("average", [True, False])
def test_the_fixed_point_is_the_solution_for_the_damping_given(average):
    curvature, right, shift = least_squares(), torch.randn(3, 8), 0.5
    settings = LiSSA(batch_size=ALL, steps=600, average=average, scale=5.0)
    solution = settings.prepare(curvature, shift).solve(right)
    assert relative_error(solution.vectors, exact(curvature, shift, right)) < 1e-10
    assert solution.converged and solution.effective_damping == shift
    assert solution.residuals.max() < 1e-10


def test_mini_batches_reach_the_solution_and_averaging_helps():
    curvature, right, shift = least_squares(200), torch.randn(3, 8), 0.3
    expected = exact(curvature, shift, right)
    errors = {}
    for average in (True, False):
        settings = LiSSA(batch_size=4, steps=4000, average=average)
        solution = settings.prepare(curvature, shift).solve(right)
        errors[average] = relative_error(solution.vectors, expected)
        remaining = right - solution.vectors @ (curvature.matrix + shift * torch.eye(8))
        assert torch.allclose(solution.residuals, remaining.norm(dim=1) / right.norm(dim=1))
    assert errors[True] < 0.05
    assert errors[True] < errors[False] / 3


def test_repeats_average_independent_runs():
    curvature, right, shift = least_squares(200), torch.randn(2, 8), 0.3
    expected = exact(curvature, shift, right)

    def error(**settings):
        solver = LiSSA(batch_size=2, steps=300, scale=60.0, **settings)
        return relative_error(solver.prepare(curvature, shift).solve(right).vectors, expected)

    single = [error(seed=seed) for seed in range(8)]
    assert error(repeats=8) < sum(single) / 8


def test_a_network_is_solved_by_the_automatic_scale():
    model, instances = network(40)
    curvature = GaussNewton(model, instances)
    right = torch.randn(2, curvature.size)
    solution = LiSSA(batch_size=10).prepare(curvature, 0.1).solve(right)
    assert solution.converged
    assert relative_error(solution.vectors, exact(curvature, 0.1, right)) < 0.1
    values = torch.linalg.eigvalsh(curvature.dense())
    assert solution.largest_eigenvalue == pytest.approx(float(values[-1]), rel=0.01)


def test_truncation_is_the_filter_of_the_spectrum():
    """After T steps each eigenvalue mu is inverted as [1 - (1 - mu / s)^(T + 1)] / mu."""
    values, scale, steps = torch.tensor([0.1, 0.5, 1.0, 3.0]), 4.0, 7
    curvature, right = with_eigenvalues(*values.tolist()), torch.randn(2, 4)
    settings = LiSSA(steps=steps, scale=scale, average=False, tolerance=1e9)
    solution = settings.prepare(curvature, 0.0).solve(right)
    basis = torch.linalg.eigh(curvature.matrix)[1]
    filtered = (1 - (1 - values / scale) ** (steps + 1)) / values
    assert relative_error(solution.vectors, (right @ basis * filtered) @ basis.T) < 1e-12


def test_kohs_damping_is_multiplied_by_the_scale():
    curvature, right, damping, scale = least_squares(), torch.randn(3, 8), 0.05, 20.0
    settings = LiSSA(batch_size=ALL, steps=800, scale=scale, koh_damping=damping)
    solution = settings.prepare(curvature, 0.0).solve(right)
    assert solution.effective_damping == pytest.approx(damping * scale)
    assert relative_error(solution.vectors, exact(curvature, damping * scale, right)) < 1e-10
    # ... as Koh's own recursion has it.
    state = right.clone()
    for _ in range(800):
        state = right + (1 - damping) * state - state @ curvature.matrix / scale
    assert relative_error(solution.vectors, state / scale) < 1e-10


def test_a_scale_that_is_too_small_is_doubled_and_said():
    curvature, right = with_eigenvalues(0.5, 1.0, 8.0), torch.randn(2, 3)
    settings = LiSSA(batch_size=ALL, steps=2000, scale=1.0)
    solution = settings.prepare(curvature, 0.1).solve(right)
    # 4.05 is the smallest stable scale: 1, 2 and 4 diverge.
    assert [warning.split(":")[0] for warning in solution.warnings] == [
        "diverged at scale 1",
        "diverged at scale 2",
        "diverged at scale 4",
    ]
    assert relative_error(solution.vectors, exact(curvature, 0.1, right)) < 1e-10


def test_the_automatic_scale_is_stable_for_one_instance_a_step():
    """Single instances bend far more than their mean; a scale for the mean diverges."""
    x = torch.randn(100, 6) * torch.linspace(0.2, 3, 100)[:, None]
    curvature = least_squares()
    curvature.matrices, curvature.n = x[:, :, None] * x[:, None, :], 100
    curvature.space = least_squares(p=6).space
    right, shift = torch.randn(1, 6), 0.5
    largest = float(torch.linalg.eigvalsh(curvature.matrix)[-1])
    single = float(x.square().sum(1).max())
    assert stable_scale(curvature, shift, largest, 100) == pytest.approx(0.55 * (largest + 0.5))
    scale = stable_scale(curvature, shift, largest, 1)
    assert 0.25 * single < scale <= 0.56 * (single + 0.5)
    solution = LiSSA(batch_size=1, steps=6000).prepare(curvature, shift).solve(right)
    assert not any("diverged" in warning for warning in solution.warnings)
    assert relative_error(solution.vectors, exact(curvature, shift, right)) < 0.15


def test_negative_curvature_is_refused_before_any_step():
    with pytest.raises(SolveError, match=r"eigenvalue of -0\.5.*Gauss-Newton"):
        LiSSA().prepare(with_eigenvalues(-0.5, 1.0, 2.0), 0.1)
    curvature, right = with_eigenvalues(-0.5, 1.0, 2.0), torch.randn(2, 3)
    solution = LiSSA(steps=2000).prepare(curvature, 0.7).solve(right)
    assert relative_error(solution.vectors, exact(curvature, 0.7, right)) < 1e-10


def test_negative_curvature_diverges_at_a_scale_that_was_given():
    curvature, right = with_eigenvalues(-0.5, 1.0, 2.0), torch.randn(2, 3)
    with pytest.raises(SolveError, match=r"diverged.*negative eigenvalue.*Gauss-Newton"):
        LiSSA(steps=2000, scale=3.0).prepare(curvature, 0.1).solve(right)
    # Growth that is too slow to be seen within the run shows in the residual.
    slow = with_eigenvalues(-0.01, 1.0, 2.0)
    solution = LiSSA(steps=100, scale=3.0).prepare(slow, 0.0).solve(right)
    assert not solution.converged and "not solved" in solution.warnings[-1]


def test_an_untrained_networks_hessian_is_never_returned_as_if_solved():
    model, instances = network(20)
    curvature = Hessian(model, instances)
    right = torch.randn(2, curvature.size)
    try:
        solution = LiSSA(batch_size=ALL, steps=400).prepare(curvature, 1e-4).solve(right)
    except SolveError as error:
        assert "Gauss-Newton" in str(error)
    else:
        assert not solution.converged and solution.warnings


def test_koh_mode_does_not_change_its_scale():
    settings = LiSSA(batch_size=ALL, steps=500, scale=1.0, koh_damping=0.01)
    with pytest.raises(SolveError, match="Give a scale above 1"):
        settings.prepare(with_eigenvalues(1.0, 8.0), 0.0).solve(torch.randn(1, 2))


def test_too_few_steps_are_flagged():
    curvature, right = with_eigenvalues(*torch.logspace(-3, 1, 20).tolist()), torch.randn(2, 20)
    solution = LiSSA(batch_size=ALL, steps=20).prepare(curvature, 1e-3).solve(right)
    assert not solution.converged and "more steps" in solution.warnings[0]


def test_the_seed_fixes_the_answer():
    curvature, right = least_squares(), torch.randn(1, 8)

    def answer(seed):
        return LiSSA(batch_size=4, steps=50, seed=seed).prepare(curvature, 1.0).solve(right).vectors

    assert torch.equal(answer(1), answer(1))
    assert not torch.equal(answer(1), answer(2))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"steps": 0},
        {"scale": 0.0},
        {"repeats": 0},
        {"tolerance": 0.0},
        {"max_restarts": -1},
        {"koh_damping": 0.1},
        {"koh_damping": 1.5, "scale": 1.0},
    ],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(InvalidInputError, match=next(iter(settings))):
        LiSSA(**settings)
