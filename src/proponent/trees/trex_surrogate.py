r"""The linear model on tree features that TREX explains in an ensemble's place.

.. math::
    W^* = \arg\min_W \frac{1}{\sum_i w_i} \sum_i w_i \, \ell(W \phi_i, y_i)
    + \frac{\lambda}{2} \lVert W \rVert^2

At the minimum :math:`W = \sum_i \alpha_i \phi_i^\top` with
:math:`\alpha_i = -\frac{w_i}{\lambda \sum_j w_j} \frac{\partial\ell}{\partial z_i}`; short of it
that sum is off by :math:`\nabla J / \lambda`, by which a fit is judged. Newton steps by
preconditioned conjugate gradients, where a product is a gather and a scatter over leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from proponent.trees.losses import Derivatives, Loss, Values
from proponent.trees.tree_kernels import TreeKernel
from proponent.trees.view import LeafRows

NEWTON_STEPS = 100
CG_STEPS = 10_000
STALLED = 3  # Newton steps without progress: rounding


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A fitted linear model on tree features, by its representer values.

    Attributes
    ----------
    alphas : ndarray of shape (C, n)
    weights : ndarray of shape (C, features)
        ``sum_i alpha_i phi_i``.
    scores : ndarray of shape (C, n)
        Of the training set: ``sum_j alpha_j k(j, i)``.
    residual : float
        The largest departure of these from the scores of W itself, relative to the largest.
    products : int
        Products with the Hessian that the fit took.
    """

    alphas: Values
    weights: Values
    scores: Values
    residual: float
    products: int


@dataclass(frozen=True, eq=False)
class SurrogateLoss:
    """A loss of C scores, and by how much it is multiplied in the fit.

    Attributes
    ----------
    loss : Loss
    outputs : int
        C.
    scale : float
        2 for the squared loss, whose risk has a half that the fit has not.
    """

    loss: Loss
    outputs: int
    scale: float


@dataclass(frozen=True, eq=False)
class _Objective:
    """What is minimised, divided by the decay."""

    kernel: TreeKernel
    rows: LeafRows
    of: SurrogateLoss
    targets: Values
    shares: Values  # scale w_i / (decay sum w), (n,)

    def value(self, weights: Values, scores: Values) -> float:
        risks = self.of.loss.risk(scores, self.targets)
        return float(self.shares @ risks + 0.5 * (weights * weights).sum())

    def alphas(self, found: Derivatives) -> Values:
        return -self.shares * found.gradient

    def curvature(self, found: Derivatives, direction: Values) -> Values:
        """Return the Hessian times a direction."""
        bent = found.curve(self.kernel.predict(self.rows, direction))
        return direction + self.kernel.combine(self.rows, self.shares * bent)

    def diagonal(self, found: Derivatives) -> Values:
        """Return the diagonal of the Hessian."""
        return 1.0 + self.kernel.squares(self.rows, self.shares * found.hessian)


def fit_surrogate(
    kernel: TreeKernel,
    rows: LeafRows,
    of: SurrogateLoss,
    targets: Values,
    sample_weights: Values,
    decay: float,
    tolerance: float,
) -> Surrogate:
    """Return the surrogate at its minimum.

    Parameters
    ----------
    kernel : TreeKernel
    rows : LeafRows
        The training set.
    of : SurrogateLoss
    targets : ndarray of shape (n,) or (C, n)
    sample_weights : ndarray of shape (n,)
    decay : float
        ``lambda``.
    tolerance : float
        The residual at which it stops. It stops as well where rounding keeps it from coming
        nearer; the residual says so.
    """
    shares = of.scale * sample_weights / (decay * sample_weights.sum())
    objective = _Objective(kernel, rows, of, targets, shares)
    weights = np.zeros((of.outputs, kernel.size))
    scores = np.zeros((of.outputs, len(rows)))
    best: Surrogate | None = None
    products = stalled = 0
    first = 0.0
    for _ in range(NEWTON_STEPS):
        found = of.loss.derivatives(scores, targets)
        alphas = objective.alphas(found)
        combined = kernel.combine(rows, alphas)
        reached = kernel.predict(rows, combined)
        largest = float(np.abs(reached).max(initial=0.0))
        gap = float(np.abs(reached - scores).max(initial=0.0))
        residual = gap / largest if largest else 0.0
        stalled = stalled + 1 if best is not None and residual >= best.residual else 0
        if best is None or residual < best.residual:
            best = Surrogate(alphas, combined, reached, residual, products)
        if best.residual <= tolerance or stalled == STALLED:
            break
        downhill = combined - weights
        size = float(np.sqrt((downhill * downhill).sum()))
        first = first or size
        # The squared loss is solved in one go; others need no better step than Newton's model is.
        accuracy = 0.1 * tolerance if of.scale != 1.0 else min(0.1, np.sqrt(size / first)) ** 2
        step, used = _solve(objective, found, downhill, max(accuracy, 1e-14))
        products += used
        weights, scores = _descend(objective, weights, scores, step, downhill)
    if best is None:
        raise RuntimeError("no step was taken")
    return Surrogate(best.alphas, best.weights, best.scores, best.residual, products)


def _solve(
    objective: _Objective, found: Derivatives, right: Values, accuracy: float
) -> tuple[Values, int]:
    """Return ``H^-1 right`` by conjugate gradients, and how many products it took."""
    inverse = 1.0 / objective.diagonal(found)
    solution, rest = np.zeros_like(right), right.copy()
    conditioned = inverse * rest
    direction, inner = conditioned.copy(), float((rest * conditioned).sum())
    stop = accuracy**2 * float((right * right).sum())
    for count in range(CG_STEPS):
        if not inner or float((rest * rest).sum()) <= stop:
            return solution, count
        bent = objective.curvature(found, direction)
        length = inner / float((direction * bent).sum())
        solution += length * direction
        rest -= length * bent
        conditioned = inverse * rest
        before, inner = inner, float((rest * conditioned).sum())
        direction *= inner / before
        direction += conditioned
    return solution, CG_STEPS


def _descend(
    objective: _Objective, weights: Values, scores: Values, step: Values, downhill: Values
) -> tuple[Values, Values]:
    """Go along a step as far as the objective falls enough."""
    along = objective.kernel.predict(objective.rows, step)
    start = objective.value(weights, scores)
    slope = -float((downhill * step).sum())
    rounding = 1e-13 * abs(start)
    length = 1.0
    while length > 1e-10:
        moved, reached = weights + length * step, scores + length * along
        if objective.value(moved, reached) <= start + 1e-4 * length * slope + rounding:
            return moved, reached
        length *= 0.5
    return weights, scores
