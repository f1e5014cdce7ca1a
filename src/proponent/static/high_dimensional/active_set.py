"""Newton's method on the support of a sparse solution: takes a rough one to full precision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from proponent.static.high_dimensional.arrays import Array
from proponent.static.high_dimensional.penalties import ElasticNet
from proponent.static.high_dimensional.risks import LinearRisk

FIRST_DAMPING, SMALLEST_DAMPING, LARGEST_DAMPING = 1e-8, 1e-14, 1e-2
HALVINGS = 40
# Objectives closer than this, relatively, count as equal.
ROUNDING = 1e-13


def newton_on_support(
    risk: LinearRisk,
    penalty: ElasticNet,
    theta: Array,
    *,
    curvature: float,
    tolerance: float,
    max_iterations: int,
) -> Array:
    """Minimise ``risk + penalty`` from a point close to the minimiser.

    With the signs of theta fixed the objective is smooth in the entries that are not zero. A
    step is Newton's on these, by conjugate gradients, cut where an entry would change its sign;
    once they are closer to optimal than the entries at zero, the worst of the latter join them.
    The objective never rises. The active-set idea is the feature-sign search of Lee et al.
    (2006).

    Parameters
    ----------
    risk : LinearRisk
        The smooth part.
    penalty : ElasticNet
        The other part.
    theta : array of shape (k, d)
        Where to start.
    curvature : float
        About the largest eigenvalue of the Hessian; the damping is relative to it. A softmax
        leaves directions without curvature.
    tolerance : float
        Stop when ``penalty.distance`` is at most this.
    max_iterations : int
        Largest number of steps.

    Returns
    -------
    array of shape (k, d)
        Optimal to the tolerance, or the last point if no step is left that improves.
    """
    damping = FIRST_DAMPING
    slope = risk.gradient(theta)
    objective = risk.value(theta) + penalty.value(theta)
    distance = penalty.distance(theta, slope)
    for _ in range(max_iterations):
        if distance <= tolerance:
            break
        active, signs = _active(penalty, theta, slope)
        direction = _newton_direction(
            risk, penalty, theta, slope, signs, active, damping * curvature, min(distance, 0.1)
        )
        for halving in range(HALVINGS):
            new = theta + 0.5**halving * direction
            new = np.where((penalty.l1 > 0) & (new * signs < 0), 0.0, new)
            new_objective, new_slope = risk.value(new) + penalty.value(new), risk.gradient(new)
            new_distance = penalty.distance(new, new_slope)
            fall, rounding = objective - new_objective, ROUNDING * abs(objective)
            if fall > rounding or (fall >= -rounding and new_distance < distance):
                break
        else:
            break  # at the limit of the precision
        if halving == 0:
            damping = max(damping / 10, SMALLEST_DAMPING)
        elif halving > 3:
            damping = min(damping * 10, LARGEST_DAMPING)
        theta, slope, objective, distance = new, new_slope, new_objective, new_distance
    return theta


def _active(penalty: ElasticNet, theta: Array, slope: Array) -> tuple[Array, Array]:
    """Return the entries to move, and the signs that they keep or take."""
    residual, active = penalty.residual(theta, slope), penalty.free(theta)
    outside = np.where(active, 0.0, residual)
    signs = np.sign(theta)
    if np.where(active, residual, 0.0).max() < outside.max():
        joining = outside >= outside.max() / 2
        active = active | joining
        signs = np.where(joining, -np.sign(slope), signs)
    return active.astype(float), signs


def _newton_direction(
    risk: LinearRisk,
    penalty: ElasticNet,
    theta: Array,
    slope: Array,
    signs: Array,
    active: Array,
    damping: float,
    tolerance: float,
) -> Array:
    downhill = -active * (slope + penalty.l2 * theta + penalty.l1 * signs)

    def hessian(direction: Array) -> Array:
        bent = risk.product(theta, direction) + (penalty.l2 + damping) * direction
        return active * bent

    return _conjugate_gradients(hessian, downhill, tolerance, 5 * int(active.sum()))


def _conjugate_gradients(
    product: Callable[[Array], Array], right: Array, tolerance: float, max_iterations: int
) -> Array:
    """Solve ``A x = right`` for a positive semidefinite A, to a relative residual."""
    solution, residual, direction = np.zeros_like(right), right, right
    square = first = float((right * right).sum())
    for _ in range(max_iterations):
        if square <= tolerance**2 * first:
            break
        image = product(direction)
        bend = float((direction * image).sum())
        if bend <= 0:
            break
        solution = solution + square / bend * direction
        residual = residual - square / bend * image
        square, previous = float((residual * residual).sum()), square
        direction = residual + square / previous * direction
    return solution
