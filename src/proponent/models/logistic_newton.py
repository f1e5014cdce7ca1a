r"""Newton's method for the penalised logistic losses of many subsets at once.

Every step descends. Along a direction that changes no difference of two logits of an instance by
more than R, the losses obey :math:`|\varphi'''| \le R \varphi''`, so that
:math:`\varphi''(t) \le e^{Rt} \varphi''(0)`, and for the Newton direction

.. math:: \varphi(t) \le \varphi(0) - \varphi''(0) \, (t - (e^{Rt} - Rt - 1) / R^2).

The full step descends where R is at most 1.79. Where R is larger, the full step is taken if it
does not go beyond the minimum along it. Else :math:`t = \log(1 + R) / R`, where the bound is
least, descends for certain, and is taken if none of a few longer parts of the step is better.

**Source**: F. Bach, "Self-concordant analysis for logistic regression", Electronic Journal of
Statistics 4, 2010, Section 2 (the bound on the third derivative).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proponent.models.logistic_directions import (
    LARGEST_FACTORISED,
    conjugate_direction,
    exact_direction,
    inner,
    penalised,
    rough_direction,
)
from proponent.models.logistic_losses import Loss
from proponent.models.subset_rows import Rows

Values = NDArray[np.float64]

FULL_STEP = 1.79  # just below the root of (e^R - R - 1) / R^2 = 1
# Of the residual of a direction by conjugate gradients.
SMALLEST, LARGEST = 1e-7, 0.1
# Powers of the length where the bound is least that are tried; the first descends for certain.
PARTS = (1.0, 0.75, 0.5, 0.25, 0.0)
# What rounding leaves of a direction is taken for so much more: it differs by who is beside whom.
MARGIN = 300.0
# Subsets that are done are worked on with the others until they are more than this share.
LARGEST_IDLE = 0.3


@dataclass(frozen=True)
class Solution:
    """What Newton's method arrived at.

    Attributes
    ----------
    coefficients : ndarray of shape (q - 1, p, K)
        Of the classes after the first, relative to the first.
    converged : ndarray of shape (K,)
        Whether the error that was left is small enough.
    """

    coefficients: Values
    converged: NDArray[np.bool_]


def newton(
    rows: Rows, loss: Loss, ridge: Values, start: Values, *, max_iter: int, tol: float
) -> Solution:
    """Minimise the sum of the losses and of the penalty for each subset.

    Parameters
    ----------
    rows : Rows
        Of the subsets.
    loss : Loss
        Of their instances, as often as they are in.
    ridge : ndarray of shape (p,)
        The penalty's factor for each feature, 0 for an intercept.
    start : ndarray of shape (q - 1, p, K)
        Where to begin: there, or at zero where the objective is less there.
    max_iter : int
        Steps at most.
    tol : float
        A subset is done when the largest change R of a difference of logits, times R or the
        largest change of a coefficient if that is larger, is at most this, relative to the
        largest coefficient (at least 1). As the method converges quadratically, this product is
        of the order of the error that is left.

    Returns
    -------
    Solution
        That of each subset is the same, up to rounding, whatever subsets are with it (up to
        ``tol``, where conjugate gradients find the directions).
    """
    unknown = np.full(start.shape[2], np.inf)
    descent = _Descent(rows, loss, ridge, start, unknown)
    if (worse := _worse_than_zero(rows, loss, ridge, start, descent.slope(start))).any():
        descent = _Descent(rows, loss, ridge, np.where(worse, 0.0, start), unknown)
    result = np.empty_like(start)
    converged = np.zeros(start.shape[2], np.bool_)
    active = np.arange(start.shape[2])  # the subsets that are worked on
    going = np.ones(start.shape[2], np.bool_)  # which of them are not done
    for _ in range(max_iter):
        error = descent.step()
        result[:, :, active[going]] = descent.coefficients[:, :, going]
        scale = np.maximum(np.abs(descent.coefficients).max(axis=(0, 1)), 1.0)
        done = error <= tol * scale
        converged[active[going & done]] = True
        going &= ~done & np.isfinite(scale)
        if not going.any():
            break
        if np.count_nonzero(going) < (1.0 - LARGEST_IDLE) * len(active):
            kept = np.flatnonzero(going)
            active, going, descent = active[kept], going[kept], descent.select(kept)
    return Solution(result, converged)


class _Descent:
    """Where the subsets that are worked on stand, and the steps from there."""

    def __init__(
        self, rows: Rows, loss: Loss, ridge: Values, coefficients: Values, spread: Values
    ) -> None:
        self._rows, self._loss, self._ridge, self._spread = rows, loss, ridge, spread
        others, width, count = coefficients.shape
        factorise = others * width <= LARGEST_FACTORISED
        shape = others, width, others, width, count
        self._workspace = np.empty(shape, np.float32) if factorise else None
        self._rough = True  # until it is not enough for most
        self._move(coefficients, rows.forward(coefficients))

    def select(self, subsets: NDArray[np.intp]) -> _Descent:
        """Return where some of the subsets stand."""
        rows, loss = self._rows.select(subsets), self._loss.select(subsets)
        coefficients = self.coefficients[:, :, subsets]
        return _Descent(rows, loss, self._ridge, coefficients, self._spread[subsets])

    def _move(self, coefficients: Values, logits: Values) -> None:
        self.coefficients, self._logits = coefficients, logits
        residuals, self._chances = self._loss.gradient(logits)
        self._gradient = self._rows.backward(residuals)
        self._gradient += penalised(self._loss, self._ridge, coefficients)

    def slope(self, direction: Values) -> Values:
        """Return the derivative of the objective along directions, ``(K,)``."""
        return inner(self._gradient, direction)

    def step(self) -> Values:
        """Take a step, and return the order of the error that it leaves, ``(K,)``."""
        direction, change, inexact = self._direction()
        spread = self._spread = self._loss.spread(change)
        length = np.ones(len(spread))
        here, logits = self.coefficients, self._logits
        before = self.slope(direction)
        self._move(here + direction, logits + change)
        after = self.slope(direction)
        # The objective is convex: a step that ends before the minimum along it descends.
        unsure = np.flatnonzero((spread > FULL_STEP) & ~(after <= 0.0))
        if len(unsure):
            line = _Line(
                self._loss.select(unsure),
                self._ridge,
                *(part[:, :, unsure] for part in (here, direction, logits, change)),
            )
            cautious = np.log1p(spread[unsure]) / spread[unsure]
            # Where the slope, interpolated, vanishes.
            level = before[unsure] / (before[unsure] - after[unsure])
            length[unsure] = line.best([cautious**part for part in PARTS] + [level])
            self._move(here + length * direction, logits + length * change)
        moved = np.abs(direction).max(axis=(0, 1))
        error = (spread + inexact) * np.maximum(spread, moved)
        return np.where(length == 1.0, error, np.inf)

    def _direction(self) -> tuple[Values, Values, Values]:
        """Return directions, the changes of the logits, and how inexact they are, ``(K,)``."""
        where = self._rows, self._loss, self._ridge, self._chances
        if self._workspace is None:
            # Exact enough for the error to be squared by the step, as far as one can tell.
            tolerance = np.clip(self._spread, SMALLEST, LARGEST)
            direction, reached = conjugate_direction(*where, self._gradient, tolerance)
            return direction, self._rows.forward(direction), reached
        if not self._rough:
            direction = exact_direction(*where, self._gradient)
            return direction, self._rows.forward(direction), np.zeros(len(self._spread))
        direction, change, left = rough_direction(*where, self._gradient, self._workspace)
        self._rough = int(np.count_nonzero(left)) > len(left) // 2
        return direction, change, MARGIN * left


@dataclass(frozen=True)
class _Line:
    """The objectives of some subsets along their directions."""

    loss: Loss
    ridge: Values
    coefficients: Values
    direction: Values
    logits: Values
    change: Values

    def best(self, lengths: list[Values]) -> Values:
        """Return, of some parts of the steps, those with the least objectives; else the first."""
        objectives = np.array([self._objective(length) for length in lengths])
        chosen = np.argmin(np.where(np.isnan(objectives), np.inf, objectives), axis=0)
        return np.asarray(np.choose(chosen, lengths))

    def _objective(self, length: Values) -> Values:
        coefficients = self.coefficients + length * self.direction
        logits = self.logits + length * self.change
        return _objective(self.loss, self.ridge, coefficients, logits)


def _objective(loss: Loss, ridge: Values, coefficients: Values, logits: Values) -> Values:
    """Return the sum of the losses and of the penalty, ``(K,)``."""
    penalty = 0.5 * inner(coefficients, penalised(loss, ridge, coefficients))
    return np.asarray(loss.total(logits) + penalty)


def _worse_than_zero(
    rows: Rows, loss: Loss, ridge: Values, start: Values, slope: Values
) -> NDArray[np.bool_]:
    """Return whether the objective is less at zero than at the start, ``(K,)``.

    It is convex: it cannot be where its slope along the start is negative.
    """
    worse = ~(slope <= 0.0)
    if (doubtful := np.flatnonzero(worse)).size:
        some, their = rows.select(doubtful), loss.select(doubtful)
        there = start[:, :, doubtful]
        zero = np.zeros_like(there)
        found = [_objective(their, ridge, at, some.forward(at)) for at in (there, zero)]
        worse[doubtful] = ~(found[0] < found[1])
    return worse
