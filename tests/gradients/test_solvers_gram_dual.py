"""The Gram dual against the dense inverse of the same Fisher matrix."""

import pytest
import torch
from gradients.solver_examples import exact, least_squares, network
from references import relative_error

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.fisher import EmpiricalFisher, TrueFisher
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.solvers.gram_dual import GramDual
from proponent.models.torch import TorchModel


@pytest.mark.parametrize("kind", [EmpiricalFisher, TrueFisher])
@pytest.mark.parametrize("memory", [2**20, 1000])
@pytest.mark.parametrize("n", [20, 90])  # fewer and more instances than the 43 parameters
def test_equals_the_dense_inverse(kind, memory, n):
    model, instances = network(n)
    right = torch.randn(3, 43)
    for size in (n, 7):
        fisher = kind(model, instances, batch_size=size, memory=memory)
        for shift in (1e-4, 0.1):
            solution = GramDual().prepare(fisher, shift).solve(right)
            assert relative_error(solution.vectors, exact(fisher, shift, right)) < 1e-10
            assert solution.converged and solution.residuals.max() < 1e-10
            assert solution.effective_damping == shift
    largest = float(torch.linalg.eigvalsh(fisher.dense())[-1])
    assert solution.largest_eigenvalue == pytest.approx(largest, rel=1e-6)
    assert solution.smallest_eigenvalue == (0.0 if n == 20 else None)


def test_in_float32_small_shifts_are_corrected_or_flagged():
    model, instances = network(20)
    single = TorchModel(model.module.float(), loss="cross_entropy")
    right = torch.randn(2, 43, dtype=torch.float32)
    fisher = EmpiricalFisher(single, instances)
    solution = GramDual().prepare(fisher, 1e-3).solve(right)
    assert solution.converged and solution.residuals.max() < 1e-4
    try:
        solution = GramDual().prepare(fisher, 1e-12).solve(right)
    except SolveError as error:
        assert "raise the damping" in str(error)
    else:
        assert solution.converged == bool((solution.residuals < 1e-3).all())


def test_refusals_say_what_to_do():
    model, instances = network()
    fisher = EmpiricalFisher(model, instances)
    with pytest.raises(InvalidInputError, match="damping above 0"):
        GramDual().prepare(fisher, 0.0)
    for curvature in (GaussNewton(model, instances), least_squares()):
        with pytest.raises(InvalidInputError, match="ConjugateGradients or Explicit"):
            GramDual().prepare(curvature, 0.1)
    with pytest.raises(SolveError, match=r"20 gradients.*ConjugateGradients"):
        GramDual(memory=100).prepare(fisher, 0.1)
