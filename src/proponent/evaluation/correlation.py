"""Correlations of rows, exactly with ties, under weights that repeat or delete columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Of the variance of the full rows: below it, the columns left hold one value and rounding.
CONSTANT = 1e-24


class PairedRows:
    """Row by row correlation of two matrices, over weighted columns.

    Parameters
    ----------
    first, second : array of shape (n_rows, n_columns)
        The rows to correlate.
    """

    def __init__(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
        n_rows, n_columns = first.shape
        self._first, self._second = _standardised(first), _standardised(second)
        self._first_order, self._second_order = _RowOrder(first), _RowOrder(second)
        # Where the entries, taken in the order of the first matrix, stand in that of the second.
        places = np.empty((n_rows, n_columns), dtype=np.intp)
        offsets = n_columns * np.arange(n_rows)[:, None]
        np.put_along_axis(
            places, self._second_order.columns, np.arange(n_columns) + offsets, axis=1
        )
        self._places = np.take_along_axis(places, self._first_order.columns, axis=1)
        self._ones = np.ones(n_columns)

    def pearson(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Pearson correlation of each row, of shape (n_rows,); NaN where a row is constant."""
        weights = self._ones if weights is None else weights
        first, second = (
            rows - (rows @ weights / weights.sum())[:, None] for rows in (self._first, self._second)
        )
        weighted = first * weights
        return _correlation(
            np.einsum("rc,rc->r", weighted, second) / weights.sum(),
            np.einsum("rc,rc->r", weighted, first) / weights.sum(),
            np.einsum("rc,rc,c->r", second, second, weights) / weights.sum(),
        )

    def spearman(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Spearman correlation (ties share their mean rank) of each row; NaN where constant."""
        weights = self._ones if weights is None else weights
        first_weights, first = self._first_order.ranks(weights)
        second_weights, second = self._second_order.ranks(weights)
        weighted = first * first_weights
        return _correlation(
            np.einsum("rc,rc->r", weighted, second.ravel()[self._places]) / weights.sum(),
            np.einsum("rc,rc->r", weighted, first) / weights.sum(),
            np.einsum("rc,rc,rc->r", second, second, second_weights) / weights.sum(),
        )


def mean_of_defined(values: NDArray[np.float64]) -> float:
    """Mean of the values that are not NaN; NaN where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


class _RowOrder:
    """The entries of each row in ascending order, with ties known as such."""

    def __init__(self, rows: NDArray[np.float64]) -> None:
        n_rows, n_columns = rows.shape
        self.columns = np.argsort(rows, axis=1, kind="stable")
        ordered = np.take_along_axis(rows, self.columns, axis=1)
        opens_tie = np.ones((n_rows, n_columns), dtype=bool)
        opens_tie[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        self._tied = not opens_tie.all()
        if self._tied:
            closes_tie = np.roll(opens_tie, -1, axis=1)
            closes_tie[:, -1] = True
            places = np.arange(n_columns)
            self._start = np.maximum.accumulate(np.where(opens_tie, places, 0), axis=1)
            end = np.where(closes_tie, places + 1, n_columns)
            self._end = np.minimum.accumulate(end[:, ::-1], axis=1)[:, ::-1]

    def ranks(
        self, weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Weights and mean ranks in ascending order; ranks run from -1/2 to 1/2, of mean 0."""
        ordered = weights[self.columns]
        through = np.cumsum(ordered, axis=1)
        if self._tied:
            cumulative = np.zeros((ordered.shape[0], ordered.shape[1] + 1))
            cumulative[:, 1:] = through
            below = np.take_along_axis(cumulative, self._start, axis=1)
            through = np.take_along_axis(cumulative, self._end, axis=1)
            return ordered, (below + through) / (2.0 * weights.sum()) - 0.5
        return ordered, (through - 0.5 * ordered) / weights.sum() - 0.5


def _standardised(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of mean 0 and variance 1, whatever their scale; constant rows become 0."""
    scale = np.abs(rows).max(axis=1, keepdims=True)
    scaled = rows / np.where(scale > 0, scale, 1.0)
    centred = scaled - scaled.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    standardised: NDArray[np.float64] = centred / np.where(spread > 0, spread, 1.0)
    return standardised


def _correlation(
    covariance: NDArray[np.float64],
    first_variance: NDArray[np.float64],
    second_variance: NDArray[np.float64],
) -> NDArray[np.float64]:
    defined = (first_variance > CONSTANT) & (second_variance > CONSTANT)
    scale = np.sqrt(np.where(defined, first_variance * second_variance, 1.0))
    return np.where(defined, np.clip(covariance / scale, -1.0, 1.0), np.nan)
