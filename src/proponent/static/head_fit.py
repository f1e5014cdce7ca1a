r"""Refit a linear layer with a penalty: minimise ``J = L(theta) + (weight_decay / 2) ||theta||^2``.

At the minimum ``theta = -(1 / weight_decay) grad L`` is a sum over the training instances, which
is what representer points are made of. Short of it that sum is off by exactly
``grad J / weight_decay``, so the gradient is what a fit is judged by.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.exceptions import SolveError
from proponent.gradients.linear_head import HeadCurvature, LinearHead
from proponent.gradients.solvers.choose import FACTORISED
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.gradients.solvers.jacobi import Preconditioner
from proponent.gradients.solvers.solution import Solution

# Newton's steps at most, Armijo's condition, and halvings of a step that is too long.
MAX_STEPS = 100
DECREASE = 1e-4
HALVINGS = 40
# Relative residuals of the linear systems: loose while far away. Iterations, at most, and after
# which the preconditioner is made anew.
LOOSEST, TIGHTEST = 0.1, 1e-6
MAX_ITERATIONS = 1000
SLOW = 50

# Yeh et al.'s descent: first step, shortest step, fall of the mean absolute gradient, epochs.
PAPER_STEP, PAPER_SHORTEST, PAPER_FALL, PAPER_EPOCHS = 10.0, 1e-10, 200, 3000


@dataclass(frozen=True)
class PenalisedHead:
    """The objective J of a linear head.

    Attributes
    ----------
    head : LinearHead
        Gives L and its derivatives.
    weight_decay : float
        Of all weights, the bias among them.
    """

    head: LinearHead
    weight_decay: float

    def at(self, theta: Tensor) -> Point:
        """Return value and gradient at some weights."""
        value, gradient = self.head.value_and_gradient(theta)
        value += self.weight_decay / 2 * float(theta.square().sum())
        return Point(theta, value, gradient + self.weight_decay * theta)

    def residual(self, point: Point) -> float:
        """Return how far theta is from its sum over the instances, relative to the larger."""
        error = float(point.gradient.norm()) / self.weight_decay
        return error / max(error, float(point.theta.norm())) if error > 0 else 0.0


@dataclass(frozen=True)
class Point:
    """Weights, with the objective's value and gradient there."""

    theta: Tensor
    value: float
    gradient: Tensor


@dataclass(frozen=True)
class HeadFit:
    """Where a fit ended.

    Attributes
    ----------
    point : Point
        The weights, and the objective there.
    residual : float
        :meth:`PenalisedHead.residual` there.
    iterations : int
        Steps taken.
    converged : bool
        Whether the residual is as small as was asked for.
    """

    point: Point
    residual: float
    iterations: int
    converged: bool


def newton(objective: PenalisedHead, *, tolerance: float, progress: bool | None = None) -> HeadFit:
    """Fit by Newton steps, each from conjugate gradients, to a relative residual ``tolerance``.

    It ends earlier, and has not converged, where the precision allows no more.

    Raises
    ------
    SolveError
        If the loss is not convex in the outputs.

    Notes
    -----
    **Source**: Nocedal and Wright (2006), algorithm 7.1.
    """
    here, iteration = objective.at(objective.head.theta), 0
    first = float(here.gradient.norm())
    precondition = HeadCurvature(objective.head, here.theta).kronecker(objective.weight_decay)
    while objective.residual(here) > tolerance and iteration < MAX_STEPS:
        curvature = HeadCurvature(objective.head, here.theta, progress=progress)
        accuracy = min(LOOSEST, max(TIGHTEST, float(here.gradient.norm()) / first))
        solved = _solved(objective, curvature, here, accuracy, precondition)
        following = _along(objective, here, solved.vectors.view_as(here.theta))
        if following is None:
            break
        if solved.iterations > min(SLOW, curvature.size / 4):
            precondition = _better(curvature, objective.weight_decay, solved.iterations)
        here, iteration = following, iteration + 1
    residual = objective.residual(here)
    return HeadFit(here, residual, iteration, residual <= tolerance)


def _solved(
    objective: PenalisedHead,
    curvature: HeadCurvature,
    here: Point,
    accuracy: float,
    precondition: Preconditioner,
) -> Solution:
    """Return the Newton step."""
    solver = ConjugateGradients(
        tolerance=accuracy,
        max_iterations=MAX_ITERATIONS,
        preconditioner=precondition,
        coupled=False,
    )
    prepared = solver.prepare(curvature, objective.weight_decay)
    try:
        return prepared.solve(here.gradient.flatten()[None])
    except SolveError as error:
        raise SolveError(
            "the last layer cannot be refitted by Newton's method: the loss is not convex in the "
            f"outputs ({error}). Raise weight_decay, or use solver='paper'."
        ) from error


def _better(curvature: HeadCurvature, shift: float, iterations: int) -> Preconditioner:
    """Return a preconditioner at the current weights, after a solve of so many iterations.

    That is the matrix itself, factorised, where writing it out would have cost less.
    """
    if iterations > curvature.size / 4 and curvature.size <= FACTORISED:
        matrix = curvature.dense()
        matrix.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if not int(failed):
            return lambda right: torch.cholesky_solve(right.T, factor).T
    return curvature.kronecker(shift)


def _along(objective: PenalisedHead, here: Point, step: Tensor) -> Point | None:
    """Return a lower point at ``theta - t step``, or None where rounding hides all descent."""
    slope = float((here.gradient * step).sum())
    if slope <= 10 * torch.finfo(step.dtype).eps * abs(here.value):
        # So close that the value tells nothing any more: the gradient does.
        there = objective.at(here.theta - step)
        return there if float(there.gradient.norm()) < float(here.gradient.norm()) / 2 else None
    length = 1.0
    for _ in range(HALVINGS):
        there = objective.at(here.theta - length * step)
        if there.value <= here.value - DECREASE * length * slope:
            return there
        length /= 2
    return None


def paper_descent(objective: PenalisedHead, *, tolerance: float) -> HeadFit:
    """Fit as Yeh et al.'s code does: gradient descent with backtracking, stopped early.

    The step starts at 10 and is halved until ``J(theta - t g) <= J(theta) - (t / 2) ||g||^2``. It
    ends when the mean absolute gradient is 1/200 of what it was, after 3000 steps, or when a step
    is shorter than 1e-10; the weights with the smallest mean absolute gradient are kept. The
    tolerance only tells whether they are stationary.

    Notes
    -----
    **Source**: Yeh et al. (2018), section 4, and their code.
    """
    here = best = objective.at(objective.head.theta)
    goal, iteration = _mean_size(here) / PAPER_FALL, 0
    while iteration < PAPER_EPOCHS and _mean_size(best) > goal:
        following = _backtracked(objective, here)
        if following is None:
            break
        here, iteration = following, iteration + 1
        best = min(best, here, key=_mean_size)
    residual = objective.residual(best)
    return HeadFit(best, residual, iteration, residual <= tolerance)


def _backtracked(objective: PenalisedHead, here: Point) -> Point | None:
    """Return the first of ever shorter steps that descends enough; None if too short a one."""
    step, squared = PAPER_STEP, float(here.gradient.square().sum())
    while step >= PAPER_SHORTEST:
        there = objective.at(here.theta - step * here.gradient)
        if there.value <= here.value - step / 2 * squared:
            return there
        step /= 2
    return None


def _mean_size(point: Point) -> float:
    return float(point.gradient.abs().mean())
