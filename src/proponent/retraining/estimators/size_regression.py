"""A semivalue by regression within sizes, corrected by means of what it leaves."""

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


class SizeRegression(Estimator):
    r"""A semivalue from coalitions of all sizes, by regression of the utility on who is in.

    As :class:`StratifiedMeans`, but the deviations of the utilities are first explained, bin of
    sizes by bin of sizes, by a linear function :math:`\theta^T (b - k/n)` of who is in, fitted by
    ridge regression. The difference that a player makes is that of the function,
    :math:`\frac{n}{n - 1} \theta_i`, plus the means of what it leaves unexplained:

    .. math::

        \phi_i = c + \sum_r \frac{a_{k_r}}{c_{k_r}} \left[ \frac{n}{n - 1} \theta^{(-r)}_i
            + \frac{(b_{ri} - q_r) \bigl( v_r - f^{(-r)}(b_r) \bigr)}{q_r (1 - q_r)} \right]

    with the function that is fitted without coalition r itself, in closed form. The second term
    makes it unbiased whatever the function; the better the function, the smaller its variance,
    which is estimated by :class:`~proponent.retraining.estimators.spread.Spread`. As there, a
    player about whom the coalitions say nothing gets NaN.

    **Source** the identity of semivalues with the differences by size, and regression adjustment
    as in Lin, Annals of Applied Statistics 2013.

    Parameters
    ----------
    semivalue : Semivalue
        Its law of sizes p.
    """

    def __init__(self, semivalue: Semivalue) -> None:
        self.semivalue = semivalue

    @override
    def on(self, table: Table) -> Estimated:
        """Fit the functions.

        Raises
        ------
        InvalidInputError
            If the coalitions are too few.
        """
        return _Regressed(table, self.semivalue)


class _Regressed(Estimated):
    def __init__(self, table: Table, semivalue: Semivalue) -> None:
        n = table.n
        sizes = Sizes(table, rows_a_bin=min(3 * n, max(20, len(table.coalitions) // 4)))
        q = table.coalitions.sizes / n
        weights = player_weights(semivalue, sizes)
        self._common, common_error = common_part(table, semivalue, sizes)
        explained = total = 0.0
        values = np.zeros((n, table.n_tests))
        left = np.zeros_like(table.utilities)
        for rows in sizes.bins:
            gauge = (table.coalitions.masks[rows] != 0) - q[rows, None]
            fit = ridge_without_each(gauge, table.utilities[rows], sizes.line(rows))
            weight = weights[rows]
            portion = weight * q[rows] * (1 - q[rows])
            values += n / (n - 1) * fit.mean_slopes(portion)
            weighted = gauge * weight[:, None]
            values += weighted.T @ fit.left
            left[rows] = np.square(fit.left)
            explained += fit.explained
            total += fit.total
        self._values = values.T + self._common[:, None]
        spread, levels = Spread(table.n_tests, n), Sizes(table).means(left)
        for rows in sizes.bins:
            weighted = (table.coalitions.masks[rows] != 0) - q[rows, None]
            weighted *= weights[rows, None]
            spread.add(np.square(weighted), left[rows], levels[rows])
        self._errors = np.sqrt(spread.variances() + np.square(common_error)[:, None])
        self._effective = spread.effective()[:, sizes.known]
        self._values[:, ~sizes.known] = self._errors[:, ~sizes.known] = np.nan
        self._r2 = 1 - explained / total if total else 0.0
        self._bins = len(sizes.bins)

    @override
    def players(self, rows: range) -> Estimate:
        """Return the values of some players, ``(T, players)``."""
        some = slice(rows.start, rows.stop)
        return Estimate(self._values[:, some].copy(), self._errors[:, some].copy())

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how much of the variance within sizes the functions predict, and from how many."""
        noticed = {"variance_explained": float(self._r2), "bins": self._bins}
        return noticed | effective_coalitions(self._effective)


class Ridge:
    """A ridge regression, and what it says of each row when fitted without it.

    Attributes
    ----------
    left : ndarray of shape (K, T)
        Utilities less what is predicted from the other rows.
    explained, total : float
        The sums of squares of what is left, by the function and by the line alone.
    """

    def __init__(
        self,
        slopes: Values,
        scores: Values,
        basis: Values,
        inverse: Values,
        left: Values,
        total: float,
    ) -> None:
        self._slopes = slopes  # (n, T)
        self._scores = scores  # (K, rank): rows in the basis
        self._basis = basis  # (n, rank)
        self._inverse = inverse  # (rank,)
        self.left = left
        self.explained = float(np.square(left).sum())
        self.total = total

    def mean_slopes(self, weights: Values) -> Values:
        """Return the weighted sum over rows of the slopes without each, ``(n, T)``."""
        pulled = (self._scores * weights[:, None]).T @ self.left
        changes = self._basis @ (self._inverse[:, None] * pulled)
        return np.asarray(self._slopes * weights.sum() - changes)


def ridge_without_each(features: Values, utilities: Values, line: Values) -> Ridge:
    """Fit a line in the size, not penalised, and slopes, penalised.

    Parameters
    ----------
    features : ndarray of shape (K, n)
        Who is in, less the portion that is.
    utilities : ndarray of shape (K, T)
        Fitted one by one, with one penalty.
    line : ndarray of shape (K, 1 or 2)
        An orthonormal basis.
    """
    rows, n = features.shape
    least = 1e-12 * np.square(features).sum()  # what is smaller, is rounding
    features = features - line @ (line.T @ features)
    centred = utilities - line @ (line.T @ utilities)
    own = np.square(line).sum(axis=1)
    if rows >= n:
        eigenvalues, basis = np.linalg.eigh(features.T @ features)
        kept = eigenvalues > least
        eigenvalues, basis = eigenvalues[kept], basis[:, kept]
    else:
        eigenvalues, left = np.linalg.eigh(features @ features.T)
        kept = eigenvalues > least
        eigenvalues = eigenvalues[kept]
        basis = features.T @ left[:, kept] / np.sqrt(eigenvalues)
    scores = features @ basis
    squares = np.square(scores)
    projected = scores.T @ centred
    # Right where players explain half of the variance. It must not look at the utilities: values
    # would no longer add up over tests.
    penalty = eigenvalues.sum() / max(len(eigenvalues), 1) * n / rows
    inverse = 1 / (eigenvalues + penalty)
    leverage = squares @ inverse + own
    left_out = centred - scores @ (inverse[:, None] * projected)
    left_out /= (1 - leverage)[:, None]
    slopes = basis @ (inverse[:, None] * projected)
    plain = centred / (1 - own)[:, None]
    return Ridge(slopes, scores, basis, inverse, left_out, float(np.square(plain).sum()))
