"""In what form the rows of subsets are fitted the fastest: it depends on the shape alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.models.subset_rows import OwnRows, Rows, SharedRows

Values = NDArray[np.float64]

# The products x_i x_j of the features of a row, for all rows, are kept up to this size.
LARGEST_TABLE = 2**27
# A gathered row costs as much as this many shared ones, whose products are large: for a Gram
# matrix, and for a product with coefficients.
GRAM_COST, PRODUCT_COST = 6, 3
# Working arrays of this size are the fastest; between these numbers of subsets, whatever they take.
WORKING_BYTES = 2**24
FEWEST, MOST = 8, 512


def centred_rows(features: Values, intercept: bool) -> tuple[SharedRows, Values]:
    """Return the rows to fit to, and what was subtracted from the features, ``(d,)``.

    With an intercept the mean is subtracted, which changes nothing but the intercept, and a
    column of ones stands first; without one, nothing is done.
    """
    if not intercept:
        return SharedRows(features), np.zeros(features.shape[1])
    mean = features.mean(axis=0)
    matrix = np.hstack([np.ones((len(features), 1)), features - mean])
    return SharedRows(matrix, intercept=True), mean


def principal_rows(shared: SharedRows) -> tuple[SharedRows, Values]:
    """Return the rows along their principal axes, and these: an orthonormal ``(p, p_new)``.

    There are no more axes than rows.
    """
    features, first = shared.features, int(shared.intercept)
    n, width = features.shape
    if n < width:
        axes = np.linalg.svd(features, full_matrices=False)[2].T
    else:
        axes = np.linalg.eigh(features.T @ features)[1]
    basis = np.zeros((width + first, axes.shape[1] + first))
    basis[:first, :first] = 1.0
    basis[first:, first:] = axes
    return SharedRows(shared.matrix @ basis, shared.intercept), basis


def subsets_at_once(n: int, systems: int, outputs: int) -> int:
    """Return how many subsets to fit together, so that their working arrays stay in the cache.

    Parameters
    ----------
    n : int
        Rows of the training set.
    systems : int
        Numbers in float64 that the systems factorised for each subset take.
    outputs : int
        Logits or targets of an instance.
    """
    entries = systems + (8 + 6 * outputs) * n
    return int(np.clip(WORKING_BYTES // (8 * entries), FEWEST, MOST))


@dataclass(frozen=True)
class Gathered:
    """Subsets as the solvers take them.

    Attributes
    ----------
    rows : Rows
        Their rows.
    counts : ndarray of shape (m, K)
        How often each row is in, in float64; 0 for one that is not.
    positions : ndarray of shape (K, m) or None
        Where the rows stand in the training set; None: they are all of it, in order.
    """

    rows: Rows
    counts: Values
    positions: NDArray[np.intp] | None

    def entries(self, column: NDArray[Any]) -> NDArray[Any]:
        """Return the rows' entries in a column of the training set: ``(m, K)`` or ``(m, 1)``."""
        return column[:, None] if self.positions is None else column[self.positions].T


def gather(shared: SharedRows, counts: NDArray[Any], *, rotate: bool, grams: bool) -> Gathered:
    """Return the rows of some subsets in the form in which they are the faster to fit.

    Parameters
    ----------
    shared : SharedRows
        The training set.
    counts : ndarray of shape (K, n)
        How often each instance is in each subset.
    rotate : bool
        Whether the penalty is the same for all directions of the features, so that subsets of
        fewer rows than features can be fitted in the space of their rows.
    grams : bool
        Whether Gram matrices will be asked for, and not only products with the rows.
    """
    (n, width), intercept = shared.matrix.shape, shared.intercept
    most = int(np.count_nonzero(counts, axis=1).max())
    # The principal axes take longer to find than just any of the same space.
    rotate = rotate and (1 if grams else 2) * most < width - intercept
    effective = most + intercept if rotate else width
    power, cost = (2, GRAM_COST) if grams else (1, PRODUCT_COST)
    own = cost * most * effective**power < n * width**power
    if not own and not (grams and shared.table_bytes > LARGEST_TABLE):
        return Gathered(shared, np.ascontiguousarray(counts.T, dtype=np.float64), None)
    positions, own_counts = members_of(counts)
    matrices = shared.matrix[positions]
    matrices[own_counts == 0] = 0.0
    rows = _rotated(matrices, intercept, principal=not grams) if rotate else OwnRows(matrices)
    return Gathered(rows, np.ascontiguousarray(own_counts.T), positions)


def members_of(counts: NDArray[Any]) -> tuple[NDArray[np.intp], Values]:
    """Return where the members of each subset stand and how often they are in, ``(K, m)``.

    Smaller subsets are filled up with position 0, zero times.
    """
    subsets, columns = np.nonzero(counts)
    sizes = np.bincount(subsets, minlength=len(counts))
    slots = np.arange(len(subsets)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    positions = np.zeros((len(counts), int(sizes.max())), np.intp)
    positions[subsets, slots] = columns
    times = np.zeros(positions.shape)
    times[subsets, slots] = counts[subsets, columns]
    return positions, times


def _rotated(matrices: Values, intercept: bool, principal: bool) -> OwnRows:
    """Return the rows in an orthonormal basis of the space that they span; its principal axes."""
    count, most, width = matrices.shape
    features = matrices[:, :, int(intercept) :].transpose(0, 2, 1)
    if principal:
        basis, lengths, right = np.linalg.svd(features, full_matrices=False)
        rotated = (lengths[:, :, None] * right).transpose(0, 2, 1)
    else:
        basis, triangular = np.linalg.qr(features)
        rotated = triangular.transpose(0, 2, 1)
    if not intercept:
        return OwnRows(np.ascontiguousarray(rotated), basis)
    whole = np.zeros((count, width, most + 1))
    whole[:, 0, 0] = 1.0
    whole[:, 1:, 1:] = basis
    return OwnRows(np.concatenate([matrices[:, :, :1], rotated], axis=2), whole)
