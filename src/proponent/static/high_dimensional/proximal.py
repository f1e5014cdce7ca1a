"""Accelerated proximal gradient descent: minimises a convex risk plus a penalty."""

from __future__ import annotations

import numpy as np

from proponent.progress import progress as progress_bar
from proponent.static.high_dimensional.arrays import Array
from proponent.static.high_dimensional.penalties import Penalty
from proponent.static.high_dimensional.risks import Risk

# Below this, relatively, a move tells rounding instead of curvature.
SMALLEST_MOVE = 1e-10
HALVINGS = 100


def accelerated_descent(
    risk: Risk,
    penalty: Penalty,
    start: Array,
    *,
    tolerance: float,
    max_iterations: int,
    progress: bool | None = None,
) -> tuple[Array, float]:
    """Minimise ``risk + penalty`` from a start.

    **Source** Beck and Teboulle (2009), with the restart of O'Donoghue and Candes (2015) when
    the momentum points uphill. The step is halved until it suits the curvature, which is told
    from gradients: near the optimum values say nothing more.

    Parameters
    ----------
    risk : Risk
        The smooth part.
    penalty : Penalty
        The other part.
    start : array
        Parameters.
    tolerance : float
        Stop when ``penalty.distance`` is at most this.
    max_iterations : int
        Largest number of steps.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    theta : array
        Parameters, optimal to the tolerance or the last ones.
    step : float
        The step length at the end, about one over the largest curvature.
    """
    theta = ahead = start
    slope = risk.gradient(start)
    if penalty.distance(start, slope) <= tolerance:
        return start, 1.0
    step, momentum = _first_step(risk, start, slope), 1.0
    steps = progress_bar(range(max_iterations), description="proximal gradient", enabled=progress)
    with steps as bar:
        for _ in bar:
            new, new_slope, step = _descended(risk, penalty, ahead, step)
            if penalty.distance(new, new_slope) <= tolerance:
                return new, step
            if ((ahead - new) * (new - theta)).sum() > 0:
                momentum = 1.0
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead = new + (momentum - 1) / following * (new - theta)
            theta, momentum = new, following
    return theta, step


def _descended(
    risk: Risk, penalty: Penalty, theta: Array, step: float
) -> tuple[Array, Array, float]:
    """Return a proximal step from theta, the gradient there, and the length that suited."""
    slope = risk.gradient(theta)
    for _ in range(HALVINGS):
        new = penalty.proximal(theta - step * slope, step)
        move, new_slope = new - theta, risk.gradient(new)
        square = float((move * move).sum())
        # By convexity risk(new) - risk(theta) - <slope, move> is at most this product.
        if ((new_slope - slope) * move).sum() <= square / (2 * step):
            break
        if square <= SMALLEST_MOVE**2 * (new * new).sum():
            break
        step /= 2
    return new, new_slope, step


def _first_step(risk: Risk, start: Array, slope: Array) -> float:
    """Return one over the curvature of the risk along its gradient."""
    square = float((slope * slope).sum())
    bend = float(((slope - risk.gradient(start - slope)) * slope).sum())
    return square / bend if bend > 0 and square > 0 else 1.0
