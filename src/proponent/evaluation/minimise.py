"""Minimise a smooth function of a model's parameters: L-BFGS around a known inverse Hessian."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Objective = Callable[[Tensor], tuple[float, Tensor]]
Preconditioner = Callable[[Tensor], Tensor]
Stop = Literal["converged", "stalled", "iterations", "unbounded"]

PAIRS = 30  # steps that are remembered
WINDOW = 20  # steps over which some progress must be seen
TRIALS = 30  # lengths that are tried for one step
DECREASE, FLATTENING = 1e-4, 0.9  # Wolfe's conditions


@dataclass(frozen=True)
class Minimum:
    """Where a minimisation ended.

    Attributes
    ----------
    theta : Tensor of shape (p,)
        The parameters.
    gradient_norm : float
        Norm of the gradient there.
    iterations : int
        Steps taken.
    stop : "converged", "stalled", "iterations" or "unbounded"
        Why it ended: the gradient is small; neither it nor the value fell any more, because of
        the precision, or at a kink such as ReLU's, where a minimum has a gradient; the steps ran
        out; or the value fell so far that there seems to be no minimum.
    """

    theta: Tensor
    gradient_norm: float
    iterations: int
    stop: Stop


@dataclass(frozen=True)
class _Point:
    theta: Tensor
    value: float
    gradient: Tensor

    @classmethod
    def at(cls, theta: Tensor, objective: Objective) -> _Point:
        return cls(theta, *objective(theta))

    @property
    def norm(self) -> float:
        return float(torch.linalg.vector_norm(self.gradient))

    @property
    def rounding(self) -> float:
        return torch.finfo(self.theta.dtype).eps * abs(self.value)


@dataclass(frozen=True)
class _Pair:
    """A step, the change of the gradient along it, and their product."""

    step: Tensor
    change: Tensor
    bend: float

    @classmethod
    def between(cls, here: _Point, there: _Point) -> _Pair:
        step, change = there.theta - here.theta, there.gradient - here.gradient
        return cls(step, change, float(step @ change))


def minimise(
    objective: Objective,
    start: Tensor,
    *,
    precondition: Preconditioner,
    gradient_goal: float,
    value_goal: float,
    max_iterations: int,
    deepest_fall: float = math.inf,
) -> Minimum:
    """Descend from ``start`` to the minimum that it leads to.

    Parameters
    ----------
    objective : callable
        Maps parameters (p,) to the value and the gradient (p,).
    start : Tensor of shape (p,)
        Where to begin.
    precondition : callable
        Approximates the inverse Hessian at the start: (k, p) to (k, p), symmetric and positive.
        Where it is exact the first step is Newton's.
    gradient_goal : float
        Norm of the gradient at which the minimum is reached.
    value_goal : float
        Fall of the value in 20 steps that is not worth going on for, where the gradient does
        not fall either.
    max_iterations : int
        Steps, at most.
    deepest_fall : float
        Fall of the value beyond which the function counts as unbounded.

    Notes
    -----
    **Source**: Nocedal and Wright (2006), algorithms 7.4 and 7.5, with the given inverse Hessian,
    scaled, as the initial matrix of every recursion. Line search by bisection for the weak Wolfe
    conditions (Lewis and Overton, 2013), or the approximate ones (Hager and Zhang, 2005) where
    differences of the value drown in its rounding.
    """
    here = first = _Point.at(start, objective)
    pairs: deque[_Pair] = deque(maxlen=PAIRS)
    smallest, before = here.norm, (here.value, here.norm)
    for iteration in range(max_iterations):
        if here.norm <= gradient_goal:
            return Minimum(here.theta, here.norm, iteration, "converged")
        if first.value - here.value > deepest_fall:
            return Minimum(here.theta, here.norm, iteration, "unbounded")
        if iteration and iteration % WINDOW == 0:
            fall = before[0] - here.value
            if fall <= max(value_goal, 8 * here.rounding) and smallest > before[1] / 2:
                return Minimum(here.theta, here.norm, iteration, "stalled")
            before = here.value, smallest
        following = _line_search(objective, here, _direction(here.gradient, pairs, precondition))
        if following is None and pairs:
            pairs.clear()  # what they remember may be rounding
            following = _line_search(objective, here, -precondition(here.gradient[None])[0])
        if following is None:
            return Minimum(here.theta, here.norm, iteration, "stalled")
        pair = _Pair.between(here, following)
        if pair.bend > 0:
            pairs.append(pair)
        here, smallest = following, min(smallest, following.norm)
    stop: Stop = "converged" if here.norm <= gradient_goal else "iterations"
    return Minimum(here.theta, here.norm, max_iterations, stop)


def _direction(gradient: Tensor, pairs: deque[_Pair], precondition: Preconditioner) -> Tensor:
    """Return minus the gradient times the inverse Hessian that fits the pairs."""
    direction, weights = -gradient, []
    for pair in reversed(pairs):
        weights.append((pair.step @ direction) / pair.bend)
        direction = direction - weights[-1] * pair.change
    direction = precondition(direction[None])[0]
    if pairs:
        last = pairs[-1]
        direction = direction * (last.bend / (last.change @ precondition(last.change[None])[0]))
    for pair, weight in zip(pairs, reversed(weights), strict=True):
        direction = direction + (weight - (pair.change @ direction) / pair.bend) * pair.step
    return direction


def _line_search(objective: Objective, here: _Point, direction: Tensor) -> _Point | None:
    """Return a point along the direction that is lower and flatter; None where none is found."""
    slope = float(here.gradient @ direction)
    near, far, length = 0.0, math.inf, 1.0
    for _ in range(TRIALS if slope < 0 else 0):
        there = _Point.at(here.theta + length * direction, objective)
        there_slope = float(there.gradient @ direction)
        lower = there.value <= here.value + DECREASE * length * slope
        level = there.value <= here.value + here.rounding
        if not (lower or (level and there_slope <= (2 * DECREASE - 1) * slope)):
            far = length
        elif there_slope < FLATTENING * slope:
            near = length
        else:
            return there
        length = (near + far) / 2 if math.isfinite(far) else 2 * near
    return None
