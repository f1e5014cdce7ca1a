"""Utilities by the size of the coalition: what all estimators of semivalues share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Table
from proponent.retraining.semivalues import Semivalue

Values = NDArray[np.float64]

GROWTH = 0.25  # a bin of sizes is about so wide, relative to its smallest size
LEVERAGE = 0.5  # of a line's slope, on one coalition, at most
ROWS_A_BIN = 20  # coalitions that a bin holds at least, to fit a line and a variance


class Sizes:
    """The coalitions of a table by size, in bins of neighbouring sizes.

    In small coalitions a player makes another difference than in large ones, so bins are finer
    there. Within a bin the mean utility is taken to be linear in the size; nothing that is
    estimated is biased where it is not.

    Parameters
    ----------
    table : Table
        At least 3 of its coalitions are neither empty nor full.
    rows_a_bin : int
        Coalitions that each bin holds at least.

    Attributes
    ----------
    counts : ndarray of shape (n + 1,)
        Coalitions of each size.
    bins : list of ndarray
        The rows of each bin; empty and full coalitions are in none.
    known : ndarray of shape (n,)
        Whether a player is in some of the coalitions in bins, and not in all of them.
    """

    def __init__(self, table: Table, rows_a_bin: int = ROWS_A_BIN) -> None:
        self.table = table
        self.n = table.n
        sizes = table.coalitions.sizes
        self.counts = np.bincount(sizes, minlength=self.n + 1)
        inner = int(self.counts[1:-1].sum())
        if self.n < 2:
            raise InvalidInputError(
                "estimator: with one player there is nothing to sample; use estimator='exact'."
            )
        if inner < 3:
            raise InvalidInputError(
                f"n_models: {inner} coalitions are neither empty nor full; a few times as many as "
                f"there are players ({self.n}) are needed for values that say anything."
            )
        bins = _edges(self.counts, rows_a_bin)
        self.bins = [
            np.flatnonzero((sizes >= first) & (sizes <= last) & (sizes > 0) & (sizes < self.n))
            for first, last in bins
        ]
        often = np.count_nonzero(table.coalitions.masks, axis=0) - self.counts[-1]
        self.known = (often > 0) & (often < inner)

    def line(self, rows: NDArray[np.intp]) -> Values:
        """Return an orthonormal basis of the lines in the size, ``(len(rows), 1 or 2)``.

        Constants alone where a line would hang on one row, which could not be left out.
        """
        sizes = self.table.coalitions.sizes[rows].astype(np.float64)
        columns = [np.full(len(rows), 1 / np.sqrt(len(rows)))]
        slope = sizes - sizes.mean()
        if np.square(slope).max() < LEVERAGE * np.square(slope).sum():
            columns.append(slope / np.linalg.norm(slope))
        return np.stack(columns, axis=1)

    def deviations(self) -> Values:
        """Return utilities less what the sizes of the others say, ``(K, T)``; 0 without a size."""
        found = np.zeros_like(self.table.utilities)
        for rows in self.bins:
            line = self.line(rows)
            utilities = self.table.utilities[rows]
            left = utilities - line @ (line.T @ utilities)
            # As if each row had not been part of the fit.
            found[rows] = left / (1 - np.square(line).sum(axis=1))[:, None]
        return found

    def means(self, columns: Values) -> Values:
        """Return for each row the mean over the rows of its bin, ``(K, T)``; 0 without a size."""
        found = np.zeros_like(columns)
        for rows in self.bins:
            found[rows] = columns[rows].mean(axis=0)
        return found


def _edges(counts: NDArray[np.int64], rows_a_bin: int) -> list[tuple[int, int]]:
    """Return the first and last size of each bin."""
    n = len(counts) - 1
    bins: list[tuple[int, int]] = []
    first, size = 1, 1
    while size < n:
        width = max(1, round(size * GROWTH))
        last = min(size + width - 1, n - 1)
        held = counts[first : last + 1].sum()
        # A line takes two rows, and each row has to be left out once.
        if held >= rows_a_bin:
            bins.append((first, last))
            first = last + 1
        size = last + 1
    if first < n:  # too few to stand alone
        if bins:
            bins[-1] = (bins[-1][0], n - 1)
        else:
            bins.append((1, n - 1))
    return bins


def player_weights(semivalue: Semivalue, sizes: Sizes) -> Values:
    r"""Return what each coalition weighs in the part of the values that tells players apart.

    :math:`a_k / (c_k\, q (1 - q))` with :math:`q = k / n`, c_k the coalitions of size k and
    :math:`a_k = p_{k-1} (1 - q) + p_k q`: times :math:`(b_i - q)\, v` it sums to
    :math:`\sum_k a_k D_{ik}` in expectation. The weight of a size without a coalition goes to the
    nearest one that has some.
    """
    n, counts = sizes.n, sizes.counts
    law = semivalue.sizes(n)
    k = np.arange(1, n)
    portion = law[k - 1] * (1 - k / n) + law[k] * k / n
    present = k[counts[k] > 0]
    after = np.searchsorted(present, k).clip(0, len(present) - 1)
    before = (after - 1).clip(0)
    nearest = np.where(
        np.abs(present[before] - k) <= np.abs(present[after] - k), present[before], present[after]
    )
    moved = np.zeros(n + 1)
    np.add.at(moved, nearest, portion)
    q = np.arange(n + 1) / n
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.where(moved > 0, moved / (counts * q * (1 - q)), 0.0)
    return np.asarray(weights[sizes.table.coalitions.sizes])


def common_part(table: Table, semivalue: Semivalue, sizes: Sizes) -> tuple[Values, Values]:
    r"""Return what all players have in common, and its standard error, ``(T,)`` each.

    :math:`\sum_{k=0}^{n-1} p_k (\bar v_{k+1} - \bar v_k)`, with the mean utility of a size that
    has no coalition interpolated between its neighbours.

    Raises
    ------
    InvalidInputError
        If the empty or the full coalition counts, and its training failed.
    """
    n, counts = sizes.n, sizes.counts
    law = semivalue.sizes(n)
    weights = np.append(0.0, law) - np.append(law, 0.0)
    for size in (0, n):
        if abs(weights[size]) > 1e-12:
            table.end(size)
    present = np.flatnonzero(counts)
    # Interpolation is linear in the means, so the weights of missing sizes move to neighbours.
    places = np.interp(np.arange(n + 1), present, np.arange(len(present)))
    low = np.floor(places).astype(np.intp)
    high = np.minimum(low + 1, len(present) - 1)
    moved = np.zeros(len(present))
    np.add.at(moved, low, weights * (1 - (places - low)))
    np.add.at(moved, high, weights * (places - low))
    used = np.flatnonzero(np.abs(moved) > 1e-15)
    rows_of = table.coalitions.sizes
    value, variance = np.zeros(table.n_tests), np.zeros(table.n_tests)
    spread = _variances(table, sizes)
    for at in used:
        size = present[at]
        value += moved[at] * table.utilities[rows_of == size].mean(axis=0)
        variance += moved[at] ** 2 * spread[size] / counts[size]
    return value, np.sqrt(variance)


def _variances(table: Table, sizes: Sizes) -> Values:
    """Return the variance of the utilities of a size, ``(n + 1, T)``, by the bin it is in."""
    found = np.zeros((sizes.n + 1, table.n_tests))
    for rows in sizes.bins:
        line = sizes.line(rows)
        utilities = table.utilities[rows]
        left = utilities - line @ (line.T @ utilities)
        held = np.unique(table.coalitions.sizes[rows])
        found[held] = np.square(left).sum(axis=0) / max(len(rows) - line.shape[1], 1)
    return found
