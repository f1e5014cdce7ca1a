"""The mean utility with a player, less that without."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Estimate, Estimated, Estimator, Table

Values = NDArray[np.float64]

PART_BYTES = 2**20  # of weights that are multiplied at once


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
        self._n_tests = table.n_tests
        # Differences of means do not mind, and squares keep their digits.
        centred = table.utilities - table.utilities.mean(axis=0)
        whole = table.coalitions.masks, np.concatenate([centred, np.square(centred)], axis=1)
        self._sides = [whole, whole]
        if sizes is not None:
            chosen = [table.coalitions.sizes == size for size in sizes]
            self._sides = [(whole[0][rows], whole[1][rows]) for rows in chosen]

    @override
    def players(self, rows: range) -> Estimate:
        """Return the differences of some players, ``(T, players)``."""
        inside, inside_error = self._means(rows, within=True)
        outside, outside_error = self._means(rows, within=False)
        return Estimate(inside - outside, np.sqrt(inside_error + outside_error))

    def _means(self, rows: range, within: bool) -> tuple[Values, Values]:
        """Return means with or without some players, ``(T, players)``, and squared errors."""
        masks, utilities = self._sides[0 if within else 1]
        chosen = masks[:, rows.start : rows.stop]
        counts = np.zeros(chosen.shape[1])
        sums = np.zeros((utilities.shape[1], chosen.shape[1]))
        # A part at a time, so that the weights are still in the cache when they are multiplied.
        step = max(1, PART_BYTES // (8 * max(chosen.shape[1], 1)))
        for start in range(0, len(chosen), step):
            part = slice(start, start + step)
            weights = ((chosen[part] != 0) == within).astype(np.float64)
            counts += weights.sum(axis=0)
            sums += utilities[part].T @ weights
        with np.errstate(invalid="ignore", divide="ignore"):
            sums /= counts
            mean, squares = sums[: self._n_tests], sums[self._n_tests :]
            error = np.maximum(squares - mean**2, 0) / (counts - 1)
        error[:, counts < 2] = np.nan
        return mean, error
