"""The mean utility with a player, less that without."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Estimate, Estimated, Estimator, Table

Values = NDArray[np.float64]


class InOutMeans(Estimator):
    """Mean utility of the coalitions with a player, less the mean of those without.

    Every coalition says something about every player (maximum sample reuse). The standard error is
    Welch's. A player who is in all coalitions, or in none, gets NaN.

    **Source** Feldman and Zhang, NeurIPS 2020; Wang and Jia, AISTATS 2023.

    Parameters
    ----------
    sizes : (int, int), optional
        Only coalitions of the first size count as those with a player, and only those of the
        second as those without.
    """

    linear: ClassVar[bool] = True

    def __init__(self, sizes: tuple[int, int] | None = None) -> None:
        self.sizes = sizes

    @override
    def on(self, table: Table) -> Estimated:
        """Take the table as it is; sums are taken for the players that are asked for.

        Raises
        ------
        InvalidInputError
            If there is no coalition.
        """
        if not len(table.coalitions):
            raise InvalidInputError("n_models: there is no coalition to estimate from.")
        return _Means(table, self.sizes)


class _Means(Estimated):
    def __init__(self, table: Table, sizes: tuple[int, int] | None) -> None:
        self._masks = table.coalitions.masks
        # Differences of means do not mind, and squares keep their digits.
        centred = table.utilities - table.utilities.mean(axis=0)
        has = [np.ones(len(centred), np.bool_)] * 2
        if sizes is not None:
            has = [table.coalitions.sizes == size for size in sizes]
        self._sides = [(rows, centred[rows], np.square(centred[rows])) for rows in has]

    @override
    def players(self, rows: range) -> Estimate:
        """Return the differences of some players, ``(T, players)``."""
        chosen = self._masks[:, rows.start : rows.stop] != 0
        inside, inside_error = _mean(chosen, *self._sides[0])
        outside, outside_error = _mean(~chosen, *self._sides[1])
        return Estimate(inside - outside, np.sqrt(inside_error + outside_error))


def _mean(
    chosen: NDArray[np.bool_], rows: NDArray[Any], utilities: Values, squares: Values
) -> tuple[Values, Values]:
    """Return the means over the chosen rows, ``(T, players)``, and their squared errors."""
    weights = chosen[rows].astype(np.float64)
    counts = weights.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (utilities.T @ weights) / counts
        variance = (squares.T @ weights - counts * mean**2) / (counts - 1)
        error = np.maximum(variance, 0) / counts
    error[:, counts < 2] = np.nan
    return mean, error
