"""The derivative of the proximal Bregman response, by a solve that is nearly exact."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from proponent.data import Instances
from proponent.evaluation.proximal_bregman import gradient
from proponent.gradients.curvature import Curvature
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.gradients.solvers.lanczos import krylov
from proponent.gradients.solvers.solution import Solution
from proponent.gradients.space import ParameterSpace
from proponent.models.torch import TorchModel

RANK = 100
TOLERANCE = 1e-10
PRODUCTS = 2000


def each_gradient(
    model: TorchModel, instances: Instances, use: Callable[[Tensor], Tensor]
) -> Tensor:
    """Stack up ``use(g)`` of the gradient (p,) of every instance's risk.

    Each has its own backward pass: nothing here depends on the engine that methods stand on.
    """
    space, parameters = ParameterSpace.of(model), list(model.selected.values())
    used = []
    with model.evaluating():
        for i in range(len(instances)):
            batch = model.prepare(instances.batch(slice(i, i + 1)))
            risk = model.batch_risk(batch, 1).sum()
            used.append(use(gradient(risk, parameters, space)))
    return torch.stack(used)


def leading_inverse(matrix: Curvature, memory: int) -> Callable[[Tensor], Tensor]:
    """Return products with an approximate inverse of a positive semidefinite matrix.

    It is exact on the leading eigenvectors, up to 100 or what fits ``memory`` bytes; elsewhere
    the eigenvalues are taken to be the smallest of those.
    """
    like = torch.empty(matrix.size, dtype=matrix.space.dtype, device=matrix.space.device)
    rank = max(1, min(RANK, memory // (like.element_size() * matrix.size)))
    values, vectors = krylov(matrix.matvec, like, rank).ritz()
    kept = values > torch.finfo(like.dtype).eps ** 0.5 * values[-1]
    values, vectors = values[kept], vectors[kept]
    rest = values[0]
    return lambda right: right / rest + (right @ vectors.T * (1 / values - 1 / rest)) @ vectors


def solve_exactly(
    matrix: Curvature, right: Tensor, precondition: Callable[[Tensor], Tensor]
) -> Solution:
    """Solve ``A x = b`` for right-hand sides (k, p) to a relative residual of 1e-10.

    Raises
    ------
    SolveError
        If the matrix has negative curvature, as a loss that is not convex in the outputs has.
    """
    solver = ConjugateGradients(TOLERANCE, PRODUCTS, precondition)
    return solver.prepare(matrix, 0.0).solve(right)
