"""Least squares on many subsets at once, with the digits that a decomposition of each would have.

The normal equations square the condition number. One step of refinement, with the residuals of
the predictions themselves, both restores the digits and shows how many there were; the few subsets
for which that is not enough, and those that leave coefficients undetermined, are decomposed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from proponent.models.batched_cholesky import BatchedCholesky, empty_matrices
from proponent.models.gathered_rows import gather, members_of
from proponent.models.learner import Counts
from proponent.models.subset_rows import SharedRows

Values = NDArray[np.float64]

# Of a singular value to the largest: below it a direction is undetermined, in scikit-learn too.
UNDETERMINED = 1e-6
# What refinement may change, as a share: the condition number of the equations times 2e-16.
LARGEST_CORRECTION = 1e-8
# Of the pivots of a factor: a bound of the condition number of the rows.
LARGEST_RATIO = 1e4


def least_squares(
    shared: SharedRows, counts: Counts, targets: Values, ridge: Values
) -> tuple[Values, NDArray[np.bool_]]:
    """Minimise the squared errors and the penalty of each subset.

    Parameters
    ----------
    shared : SharedRows
        The training set. The coefficient of its column of ones, if any, is not penalised.
    counts : ndarray of shape (K, n)
        How often each instance is in each subset.
    targets : ndarray of shape (n, outputs)
    ridge : ndarray of shape (K,)
        The penalty's factor. Where it is 0 the coefficients are the shortest that fit best.

    Returns
    -------
    coefficients : ndarray of shape (K, outputs, p)
        NaN where they failed.
    failed : ndarray of shape (K,)
        Whose decomposition did not converge.
    """
    sizes = np.count_nonzero(counts, axis=1)
    coefficients = np.empty((len(counts), targets.shape[1], shared.width))
    sure, failed = np.zeros((2, len(counts)), np.bool_)
    few = sizes < shared.width
    for rows, solve in ((~few, _by_normal_equations), (few, _by_inner_products)):
        some = np.flatnonzero(rows)
        if len(some):
            found = solve(shared, counts[some], targets, ridge[some])
            coefficients[some], sure[some] = found
    for size in np.unique(sizes[~sure]):
        some = np.flatnonzero(~sure & (sizes == size))
        found = _by_decomposition(shared, counts[some], targets, ridge[some])
        coefficients[some], failed[some] = found
    return coefficients, failed


def _sure(pivots: Values, found: Values, correction: Values) -> NDArray[np.bool_]:
    """Return which solutions ``(outputs, p, K)`` have all their digits."""
    with np.errstate(invalid="ignore"):
        size, changed = np.abs(found).max(axis=(0, 1)), np.abs(correction).max(axis=(0, 1))
        ratio = pivots.max(axis=0) / pivots.min(axis=0)
        return np.asarray((changed <= LARGEST_CORRECTION * size) & (ratio <= LARGEST_RATIO))


def _by_normal_equations(
    shared: SharedRows, counts: Counts, targets: Values, ridge: Values
) -> tuple[Values, NDArray[np.bool_]]:
    """Return the coefficients, and which have all their digits."""
    gathered = gather(shared, counts, rotate=False, grams=True)
    rows, times = gathered.rows, gathered.counts
    wanted = np.stack([gathered.entries(column) for column in targets.T])
    matrices = empty_matrices(shared.width, len(counts))
    rows.gram(times, matrices)
    penalty = np.repeat(ridge[None], shared.width, axis=0)
    penalty[: int(shared.intercept)] = 0.0
    diagonal = np.arange(shared.width)
    matrices[diagonal, diagonal] += penalty
    # In units of the predictions, whatever those of the features are.
    lengths = np.sqrt(matrices[diagonal, diagonal])
    factor = BatchedCholesky(matrices)
    found = factor.solve(rows.backward(times * wanted))
    residuals = wanted - rows.forward(found)
    residuals *= times
    correction = factor.solve(rows.backward(residuals) - penalty * found)
    found += correction
    # The first pivot is that of the intercept, the others are those of centred features.
    pivots = factor.pivots[int(shared.intercept) :]
    return found.transpose(2, 0, 1), _sure(pivots, found * lengths, correction * lengths)


def _by_inner_products(
    shared: SharedRows, counts: Counts, targets: Values, ridge: Values
) -> tuple[Values, NDArray[np.bool_]]:
    """Return the coefficients of subsets with few rows, and which have all their digits.

    They are combinations ``X^T a`` of the rows, with ``(X X^T + ridge / counts) a = y - b`` and,
    where there is an intercept b, ``sum a = 0``.
    """
    positions, times = members_of(counts)
    inside = np.asarray((times > 0).T, np.float64)  # (m, K)
    matrices = shared.kernel(positions)
    diagonal = np.arange(len(inside))
    typical = np.einsum("iik,ik->k", matrices, inside) / inside.sum(axis=0)
    typical = np.where(typical > 0.0, typical, 1.0)
    if shared.intercept:
        # It multiplies sum a = 0, and centred rows alone would be dependent.
        matrices += typical
    matrices *= inside[:, None] * inside
    penalty = np.divide(ridge, times.T, out=np.zeros_like(inside), where=inside > 0.0)
    matrices[diagonal, diagonal] += np.where(inside > 0.0, penalty, typical)
    lengths = np.sqrt(matrices[diagonal, diagonal])
    factor = BatchedCholesky(matrices)
    ones = factor.solve(inside)
    residuals = targets.T[:, positions.T] * inside
    weights, constant = np.zeros_like(residuals), np.zeros((len(residuals), 1, len(counts)))
    for _ in range(2):  # to solve, and to refine
        correction = factor.solve(residuals)
        if shared.intercept:
            level = (weights + correction).sum(axis=1, keepdims=True) / ones.sum(axis=0)
            correction -= level * ones
            constant += level
        weights += correction
        found = _combined(shared, weights, positions, inside)
        predicted = found @ shared.features.T
        residuals = (targets.T - predicted).transpose(1, 2, 0)
        residuals = np.take_along_axis(residuals, positions.T[None], axis=1) - constant
        residuals = (residuals - penalty * weights) * inside
    sure = _sure(factor.pivots, weights * lengths, correction * lengths)
    if shared.intercept:
        found = np.concatenate([constant.transpose(2, 0, 1), found], axis=2)
    return found, sure


def _combined(
    shared: SharedRows, weights: Values, positions: NDArray[np.intp], inside: Values
) -> Values:
    """Return combinations of rows, ``(K, outputs, d)``, with weights ``(outputs, m, K)``."""
    spread = np.zeros((len(positions), len(weights), len(shared.matrix)))
    slots, subsets = np.nonzero(inside)
    spread[subsets, :, positions[subsets, slots]] = weights[:, slots, subsets].T
    return np.asarray(spread @ shared.features)


def _by_decomposition(
    shared: SharedRows, counts: Counts, targets: Values, ridge: Values
) -> tuple[Values, NDArray[np.bool_]]:
    """Fit subsets of the same size by singular value decompositions."""
    positions, times = members_of(counts)
    weights = times[:, :, None]
    features, wanted = shared.features[positions], targets[positions]
    centre, level = np.zeros((2, 1, 1, 1))
    if shared.intercept:
        total = weights.sum(axis=1, keepdims=True)
        centre = (weights * features).sum(axis=1, keepdims=True) / total
        level = (weights * wanted).sum(axis=1, keepdims=True) / total
    roots = np.sqrt(weights)
    bases, lengths, directions, failed = _decompose(roots * (features - centre))
    kept = lengths > UNDETERMINED * lengths.max(axis=1, keepdims=True)
    kept |= (ridge > 0)[:, None] & (lengths > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverses = np.where(kept, lengths / (lengths**2 + ridge[:, None]), 0.0)
    along = inverses[:, :, None] * (bases.transpose(0, 2, 1) @ (roots * (wanted - level)))
    found = (directions.transpose(0, 2, 1) @ along).transpose(0, 2, 1)
    found[failed] = np.nan
    if not shared.intercept:
        return found, failed
    constant = level.transpose(0, 2, 1) - found @ centre.transpose(0, 2, 1)
    return np.concatenate([constant, found], axis=2), failed


def _decompose(matrices: Values) -> tuple[Values, Values, Values, NDArray[np.bool_]]:
    """Return the singular value decompositions, and which did not converge."""
    failed = np.zeros(len(matrices), np.bool_)
    try:
        return *np.linalg.svd(matrices, full_matrices=False), failed
    except np.linalg.LinAlgError:
        for position, matrix in enumerate(matrices):
            try:
                np.linalg.svd(matrix, full_matrices=False)
            except np.linalg.LinAlgError:
                failed[position] = True
        kept = np.where(failed[:, None, None], 0.0, matrices)
        return *np.linalg.svd(kept, full_matrices=False), failed
