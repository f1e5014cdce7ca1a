"""Size by size, the mean utility with a player less that without."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.retraining.coalitions import Estimate, Estimated, Estimator, Table
from proponent.retraining.estimators.by_size import Sizes, common_part, player_weights
from proponent.retraining.estimators.spread import Spread, effective_coalitions
from proponent.retraining.semivalues import Semivalue

Values = NDArray[np.float64]


class StratifiedMeans(Estimator):
    r"""A semivalue from coalitions of all sizes, by means within each size.

    .. math::

        \phi_i = \sum_{k=0}^{n-1} p_k (\bar v_{k+1} - \bar v_k) + \sum_{k=1}^{n-1} a_k D_{ik},
        \qquad a_k = p_{k-1} (1 - k/n) + p_k\, k/n

    with :math:`\bar v_k` the mean utility of the coalitions of size k, and :math:`D_{ik}` the mean
    of those with the player less that of those without, estimated from the deviations of the
    utilities from a smooth function of the size. A player who is in all coalitions but the empty
    one, or in none but the full one, gets NaN.

    Parameters
    ----------
    semivalue : Semivalue
        Its law of sizes p.
    """

    def __init__(self, semivalue: Semivalue) -> None:
        self.semivalue = semivalue

    @override
    def on(self, table: Table) -> Estimated:
        """Take the deviations from the means of each size.

        Raises
        ------
        InvalidInputError
            If the coalitions are too few.
        """
        return _ByMeans(table, self.semivalue)


class _ByMeans(Estimated):
    def __init__(self, table: Table, semivalue: Semivalue) -> None:
        sizes = Sizes(table)
        self._masks = table.coalitions.masks
        self._sizes = table.coalitions.sizes
        self._common, self._common_error = common_part(table, semivalue, sizes)
        weights = player_weights(semivalue, sizes)
        deviations = sizes.deviations()
        self._weighted = deviations * weights[:, None]
        squares = np.square(deviations)
        self._squares = squares * np.square(weights)[:, None]
        self._levels = sizes.means(squares) * np.square(weights)[:, None]
        self._known, self._n = sizes.known, table.n

    @override
    def players(self, rows: range) -> Estimate:
        """Return the values of some players, ``(T, players)``."""
        inside = self._masks[:, rows.start : rows.stop] != 0
        gauge = inside - (self._sizes / self._n)[:, None]
        values = self._weighted.T @ gauge + self._common[:, None]
        spread = self._spread(gauge)
        errors = np.sqrt(spread.variances() + np.square(self._common_error)[:, None])
        unknown = ~self._known[rows.start : rows.stop]
        values[:, unknown] = errors[:, unknown] = np.nan
        return Estimate(values, errors)

    def _spread(self, gauge: Values) -> Spread:
        spread = Spread(self._squares.shape[1], gauge.shape[1])
        spread.add(np.square(gauge), self._squares, self._levels)
        return spread

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how many coalitions there are in effect."""
        inside = self._masks[:, self._known] != 0
        gauge = inside - (self._sizes / self._n)[:, None]
        return effective_coalitions(self._spread(gauge).effective())
