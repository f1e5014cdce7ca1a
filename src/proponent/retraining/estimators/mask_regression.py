"""A weighted Banzhaf value by regression of the utility on who is in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Estimate, Estimated, Estimator, Table
from proponent.retraining.estimators.size_regression import ridge_without_each

Values = NDArray[np.float64]


class MaskRegression(Estimator):
    r"""A (weighted) Banzhaf value: maximum sample reuse, less what the other players explain.

    Where everyone is in with probability q, independently, the slope of player i in the linear
    regression of the utility on who is in is its weighted Banzhaf value. Here the regression, a
    ridge fitted without each coalition in turn, only takes out variance:

    .. math::

        \phi_i = \frac{1}{K} \sum_r \left[ \theta^{(-r)}_i
            + \frac{(b_{ri} - q) \bigl( v_r - f^{(-r)}(b_r) \bigr)}{q (1 - q)} \right]

    is unbiased with any function, and by least squares equals the slope up to terms of order
    1 / K.

    **Source** Wang and Jia, AISTATS 2023, for maximum sample reuse; regression adjustment as in
    Lin, Annals of Applied Statistics 2013.

    Parameters
    ----------
    q : float
        With what probability each player is in.
    """

    def __init__(self, q: float = 0.5) -> None:
        self.q = q

    @override
    def on(self, table: Table) -> Estimated:
        """Fit the functions.

        Raises
        ------
        InvalidInputError
            If there are fewer than 4 coalitions.
        """
        if len(table.coalitions) < 4:
            raise InvalidInputError(
                f"n_models: {len(table.coalitions)} coalitions say nothing about "
                f"{table.n} players; use a few times as many as there are players."
            )
        return _Regressed(table, self.q)


class _Regressed(Estimated):
    def __init__(self, table: Table, q: float) -> None:
        masks = table.coalitions.masks != 0
        rows = len(masks)
        level = np.full((rows, 1), 1 / np.sqrt(rows))
        gauge = masks - q
        fit = ridge_without_each(gauge, table.utilities, level)
        gauge /= q * (1 - q) * rows
        self._values = (fit.mean_slopes(np.full(rows, 1 / rows)) + gauge.T @ fit.left).T
        self._errors = np.sqrt(np.square(gauge).T @ np.square(fit.left)).T
        known = masks.any(axis=0) & ~masks.all(axis=0)
        self._values[:, ~known] = np.nan
        self._errors[:, ~known] = np.nan
        self._r2 = 1 - fit.explained / fit.total if fit.total else 0.0

    @override
    def players(self, rows: range) -> Estimate:
        """Return the values of some players, ``(T, players)``."""
        some = slice(rows.start, rows.stop)
        return Estimate(self._values[:, some].copy(), self._errors[:, some].copy())

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how much of the variance the functions predict."""
        return {"variance_explained": float(self._r2)}
