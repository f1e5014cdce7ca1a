"""Which solver is chosen at which size, that it says why, and that it solves."""

import json

import pytest
import torch
from gradients.solver_examples import Matrices, exact, least_squares, network
from references import relative_error

from proponent.exceptions import SolveError
from proponent.gradients.curvature import Hessian
from proponent.gradients.fisher import EmpiricalFisher
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.solvers.arnoldi import Arnoldi
from proponent.gradients.solvers.choose import Automatic, choose
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.gradients.solvers.explicit import Explicit
from proponent.gradients.solvers.gram_dual import GramDual
from proponent.gradients.solvers.lissa import LiSSA
from proponent.gradients.space import ParameterSpace


class Sized(Matrices):
    """A curvature of which only the sizes are looked at."""

    def __init__(self, p, n):
        self.n = n
        self.space = ParameterSpace(("x",), (torch.Size([p]),), torch.float32, torch.device("cpu"))


@pytest.mark.parametrize(
    "p, n, settings, solver, words",
    [
        (650, 800, {}, Explicit, "650 parameters is factorised"),
        (50_000, 1000, {}, ConjugateGradients, "50,000 parameters are too many"),
        (650, 800, {"memory": 10**6}, ConjugateGradients, "650 parameters are too many"),
        (50_000, 1000, {"right_hand_sides": 5000}, Arnoldi, "serves all 5,000"),
        (50_000, 1000, {"right_hand_sides": 5000, "memory": 10**6}, ConjugateGradients, "products"),
        (50_000, 2_000_000, {}, LiSSA, "2,000,000 instances"),
    ],
)
def test_sizes(p, n, settings, solver, words):
    chosen = choose(Sized(p, n), 0.1, **settings)
    assert isinstance(chosen.solver, solver)
    assert words in chosen.reason


def test_what_divides_by_the_shift_is_left_out_without_one():
    assert isinstance(choose(Sized(50_000, 2_000_000), 0.0).solver, ConjugateGradients)
    many = choose(Sized(50_000, 1000), 0.0, right_hand_sides=5000)
    assert isinstance(many.solver, ConjugateGradients)


def test_fisher_matrices_of_few_instances_go_by_their_dual():
    fisher = EmpiricalFisher(*network(20))
    assert isinstance(choose(fisher, 0.1).solver, GramDual)
    assert isinstance(choose(fisher, 0.0).solver, Explicit)
    assert isinstance(choose(EmpiricalFisher(*network(50)), 0.1).solver, Explicit)


@pytest.mark.parametrize("kind", [GaussNewton, EmpiricalFisher, None])
@pytest.mark.parametrize("memory", [2**30, 10**4])
def test_what_is_chosen_solves(kind, memory):
    curvature = least_squares() if kind is None else kind(*network(20))
    right = torch.randn(2, curvature.size)
    solution = Automatic(memory=memory).prepare(curvature, 0.5).solve(right)
    assert solution.converged
    assert relative_error(solution.vectors, exact(curvature, 0.5, right)) < 1e-5
    noticed = json.loads(json.dumps(solution.diagnostics()))
    assert noticed["solver"] in noticed["reason"] and noticed["effective_damping"] == 0.5


def test_an_indefinite_hessian_is_refused_whatever_is_chosen():
    curvature = Hessian(*network(20))
    for memory in (2**30, 10**3):
        with pytest.raises(SolveError, match="Gauss-Newton"):
            Automatic(memory=memory).prepare(curvature, 1e-6).solve(torch.randn(1, 43))
