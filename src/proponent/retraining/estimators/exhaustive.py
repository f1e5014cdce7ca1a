"""A semivalue from every coalition: exact."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Estimate, Estimated, Estimator, Table
from proponent.retraining.semivalues import Semivalue

Values = NDArray[np.float64]


class ExactSemivalue(Estimator):
    r"""A semivalue as a weighted sum over all coalitions, exact.

    .. math::

        \phi_i = \sum_{S \ni i} w_{|S| - 1} v(S) - \sum_{S \not\ni i} w_{|S|} v(S),
        \qquad w_s = p_s / \tbinom{n - 1}{s}

    Parameters
    ----------
    semivalue : Semivalue
        Its law of sizes p.
    """

    def __init__(self, semivalue: Semivalue) -> None:
        self.semivalue = semivalue

    @override
    def on(self, table: Table) -> Estimated:
        """Weigh the utilities.

        Raises
        ------
        InvalidInputError
            If a coalition is missing.
        """
        if len(table.coalitions) != 2**table.n:
            raise InvalidInputError(
                f"estimator='exact': {2**table.n - len(table.coalitions)} of the {2**table.n} "
                f"coalitions have no utility, as their training failed; use a sampled estimator."
            )
        return _Exact(table, self.semivalue)


class _Exact(Estimated):
    def __init__(self, table: Table, semivalue: Semivalue) -> None:
        n, sizes = table.n, table.coalitions.sizes
        ways = np.ones(n)
        for size in range(1, n):
            ways[size] = ways[size - 1] * (n - size) / size
        weights = semivalue.sizes(n) / ways
        # The weights of a player sum to zero, so that a common level of the utilities drops out.
        utilities = table.utilities - table.utilities.mean(axis=0)
        self._masks = table.coalitions.masks
        self._with = utilities * np.append(0.0, weights)[sizes, None]
        self._without = utilities * np.append(weights, 0.0)[sizes, None]

    @override
    def players(self, rows: range) -> Estimate:
        """Return the values of some players, ``(T, players)``."""
        inside = self._masks[:, rows.start : rows.stop].astype(np.float64)
        return Estimate(self._with.T @ inside - self._without.T @ (1 - inside), None)
