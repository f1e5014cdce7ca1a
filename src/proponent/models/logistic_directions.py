"""Newton directions of many penalised logistic losses: by a factor, or by conjugate gradients.

Up to some order the Hessian of each subset is formed and factorised: in single precision, which
takes half as long, as the gradient, in double precision, decides where the method ends. Beyond it
the directions are found by conjugate gradients, which only multiply by it: two products with the
rows each time, however many coefficients there are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.models.batched_cholesky import BatchedCholesky
from proponent.models.logistic_losses import Curvature, Loss
from proponent.models.subset_rows import Rows

Values = NDArray[np.float64]

Rough = NDArray[np.float32]

LARGEST_FACTORISED = 64
# What is added to a Hessian that rounding has made singular, as a share of its largest entry.
SHIFTS = 10.0 ** np.arange(-14, 0)
# Of a direction by factors in single precision; beyond it they are found in double precision.
LARGEST_RESIDUAL = 1e-2
# What is left of a second derivative when the other coefficients adapt, with digits to spare.
LEAST_ALONE = 1e-3
MOST_MULTIPLICATIONS = 250  # for one direction; what is found by then descends too


def penalised(loss: Loss, ridge: Values, coefficients: Values) -> Values:
    """Return the gradient of the penalty, ``(q - 1, p, K)``."""
    found = np.asarray(np.einsum("ab,bpk->apk", loss.penalty, coefficients))
    found *= ridge[:, None]
    return found


def inner(first: Values, second: Values) -> Values:
    """Return the inner products of coefficients ``(q - 1, p, K)``: ``(K,)``."""
    return np.asarray(np.einsum("apk,apk->k", first, second))


def rough_direction(
    rows: Rows, loss: Loss, ridge: Values, chances: Values, gradient: Values, workspace: Rough
) -> tuple[Values, Values, Values]:
    """Return the Newton directions by factors of the Hessians in single precision.

    Their residuals, in double precision, say what was lost. Where that is too much, or a
    coefficient's second derivative is nearly nothing once the others adapt, the factors are found
    in double precision.

    Parameters
    ----------
    rows, loss, ridge
        As in :func:`~proponent.models.logistic_newton.newton`.
    chances : ndarray
        What the loss says of the logits.
    gradient : ndarray of shape (q - 1, p, K)
        Of the objective.
    workspace : ndarray of shape (q - 1, p, q - 1, p, K)
        Of float32, overwritten: fresh memory would take longer than what is done in it.

    Returns
    -------
    direction : ndarray of shape (q - 1, p, K)
    change : ndarray of shape (q - 1, m, K)
        Of the logits along it.
    left : ndarray of shape (K,)
        The residual relative to the gradient, each entry by the root of its second derivative;
        0 in double precision.
    """
    scale = np.abs(gradient).max(axis=(0, 1))
    scale[scale == 0.0] = 1.0
    unit = gradient / scale
    # What overflows or underflows is found out by the residual.
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        matrices = _hessian(rows, loss, ridge, loss.curvature(chances), workspace)
        inverse = 1.0 / np.einsum("iik->ik", matrices)
        factor = BatchedCholesky(matrices)
        right = -unit.astype(np.float32).reshape(-1, len(scale))
        found = factor.solve(right).astype(np.float64).reshape(gradient.shape)
        alone = (factor.pivots**2 * inverse).min(axis=0)
        inverse = inverse.reshape(gradient.shape)
        change = rows.forward(found)
        residual = rows.backward(loss.bend(chances, change))
        residual += penalised(loss, ridge, found)
        residual += unit
        left = np.sqrt(inner(inverse * residual, residual) / inner(inverse * unit, unit))
    direction = found * scale
    change *= scale
    left[~gradient.any(axis=(0, 1))] = 0.0
    exact = np.flatnonzero(~((left <= LARGEST_RESIDUAL) & (alone >= LEAST_ALONE)))
    if len(exact):
        some = rows.select(exact)
        direction[:, :, exact] = exact_direction(
            some, loss.select(exact), ridge, chances[..., exact], gradient[:, :, exact]
        )
        change[:, :, exact] = some.forward(direction[:, :, exact])
        left[exact] = 0.0
    return direction, change, left


def exact_direction(
    rows: Rows, loss: Loss, ridge: Values, chances: Values, gradient: Values
) -> Values:
    """Return the Newton directions in double precision, as :func:`rough_direction` does."""
    curvature = loss.curvature(chances)
    shape = (*gradient.shape[:2], *gradient.shape)
    right = -gradient.reshape(-1, gradient.shape[2])
    factor = BatchedCholesky(_hessian(rows, loss, ridge, curvature, np.empty(shape)))
    solution = factor.solve(right)
    failed = np.flatnonzero(factor.failed)
    if len(failed):
        some = [(a, b, weights[:, failed]) for a, b, weights in curvature]
        fresh = np.empty((*shape[:-1], len(failed)))
        matrices = _hessian(rows.select(failed), loss, ridge, some, fresh)
        solution[:, failed] = _solve_shifted(matrices, right[:, failed])
    return solution.reshape(gradient.shape)


def conjugate_direction(
    rows: Rows, loss: Loss, ridge: Values, chances: Values, gradient: Values, tolerance: Values
) -> tuple[Values, Values]:
    """Return the Newton directions by preconditioned conjugate gradients.

    The preconditioner takes the second derivatives of an instance for what they are on average
    over the classes, and the features for uncorrelated.

    Parameters
    ----------
    rows, loss, ridge, chances, gradient
        As in :func:`rough_direction`.
    tolerance : ndarray of shape (K,)
        How small the residual must become, relative to the gradient.

    Returns
    -------
    direction : ndarray of shape (q - 1, p, K)
    reached : ndarray of shape (K,)
        How small it did become.
    """
    curvature = rows.squares(loss.mean_curvature(chances)) + ridge[:, None]
    scale = 1.0 / np.maximum(curvature, SHIFTS[0] * curvature.max(axis=0))
    mix = np.linalg.inv(loss.penalty)
    direction = np.zeros_like(gradient)
    residual = -gradient
    preconditioned = scale * np.tensordot(mix, residual, axes=1)
    search = preconditioned
    size = first = inner(residual, preconditioned)
    with np.errstate(invalid="ignore", divide="ignore"):
        for _ in range(MOST_MULTIPLICATIONS):
            going = size > tolerance**2 * first
            if not going.any():
                break
            bent = rows.backward(loss.bend(chances, rows.forward(search)))
            bent += penalised(loss, ridge, search)
            along = np.where(going, size / inner(search, bent), 0.0)
            direction += along * search
            residual -= along * bent
            preconditioned = scale * np.tensordot(mix, residual, axes=1)
            before, size = size, np.where(going, inner(residual, preconditioned), size)
            search = preconditioned + (size / before) * search
        reached = np.sqrt(np.where(first > 0.0, size / first, 0.0 * first))  # NaN stays NaN
    return direction, reached


def _hessian(
    rows: Rows, loss: Loss, ridge: Values, curvature: list[Curvature], out: NDArray[Any]
) -> NDArray[Any]:
    """Return the second derivatives, ``(p (q - 1), p (q - 1), K)``: their lower triangles.

    They are written to ``out``, ``(q - 1, p, q - 1, p, K)``.
    """
    others, width, _, _, count = out.shape
    diagonal = np.arange(width)
    for a, b, weights in curvature:
        block = out[a, :, b]
        rows.gram(weights, block)
        if a != b:
            np.negative(block, out=block)
        block[diagonal, diagonal] += (loss.penalty[a, b] * ridge)[:, None]
    return out.reshape(others * width, others * width, count)


def _solve_shifted(matrices: Values, right: Values) -> Values:
    """Solve where the Hessian is singular in float64, with the least shift that it takes.

    Such a direction descends too, and the bound of the step holds for it.
    """
    solution = np.full_like(right, np.nan)
    diagonal = np.arange(len(matrices))
    left = np.arange(right.shape[1])
    for shift in SHIFTS:
        shifted = matrices[:, :, left]
        largest = shifted[diagonal, diagonal].max(axis=0)
        shifted[diagonal, diagonal] += np.maximum(shift * largest, np.finfo(np.float64).tiny)
        factor = BatchedCholesky(shifted)
        solution[:, left] = factor.solve(right[:, left])
        left = left[factor.failed]
        if not len(left):
            break
    return solution
