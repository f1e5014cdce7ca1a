"""Shapley values by group testing: the covariance of being in with the utility."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Estimate, Estimated, Estimator, Table

Values = NDArray[np.float64]

KNOTS = 12  # of the curve of utilities by size
DELTA = 0.05  # with which probability the error may exceed its bound


def size_law(n: int) -> Values:
    """Return the law of the sizes 1 .. n - 1 of coalitions, ``1/k + 1/(n - k)`` normalised."""
    k = np.arange(1, n)
    weights = 1 / k + 1 / (n - k)
    return np.asarray(weights / weights.sum())


def ends(table: Table) -> tuple[Values, Values]:
    """Return the utility of no player and of all, each ``(T,)``.

    Raises
    ------
    InvalidInputError
        If one of them is missing.
    """
    nobody, everybody = (table.utilities[table.end(size)].mean(axis=0) for size in (0, table.n))
    return nobody, everybody


class GroupTestingMeans(Estimator):
    r"""Shapley values from coalitions whose size k has a law proportional to 1/(k (n - k)).

    With Z the normalising constant and g any function of the size,

    .. math:: \phi_i = \frac{v(N) - v(\emptyset)}{n}
        + Z \, E\bigl[(v(S) - g(|S|)) (1[i \in S] - |S| / n)\bigr].

    g is a piecewise linear curve through the utilities of the other coalitions, so that it takes
    out most of the variance and no expectation changes.

    **Source** Jia et al., AISTATS 2019, section 4, and the note by Wang and Jia, 2023.

    Parameters
    ----------
    adjust : bool
        Whether g is fitted; otherwise it is 0, as in the paper.
    """

    def __init__(self, adjust: bool = True) -> None:
        self.adjust = adjust

    @override
    def on(self, table: Table) -> Estimated:
        return _GroupTestingMeans(table, self.adjust)


class _GroupTestingMeans(Estimated):
    def __init__(self, table: Table, adjust: bool) -> None:
        empty, full = ends(table)
        n = self.n = table.n
        sizes = table.coalitions.sizes
        proper = np.flatnonzero((sizes > 0) & (sizes < n))
        self.masks, self.sizes = table.coalitions.masks[proper], sizes[proper]
        self.share = (full - empty) / n
        self.utilities = table.utilities[proper]
        if adjust and len(proper):
            self.utilities = without_curve(self.sizes, self.utilities - full, n)
        self.constant = 2 * float((1 / np.arange(1, n)).sum())
        if len(proper) < 2 and n > 1:
            raise InvalidInputError(
                f"n_models: group testing needs 2 coalitions beside the empty and the full one, "
                f"and far more to be of use; got {len(proper)}."
            )

    @override
    def players(self, rows: range) -> Estimate:
        shares = np.broadcast_to(self.share[:, None], (len(self.share), len(rows)))
        if self.n == 1:
            return Estimate(shares.copy(), np.zeros(shares.shape))
        count = len(self.masks)
        centred = self.masks[:, rows.start : rows.stop] - (self.sizes / self.n)[:, None]
        means = self.utilities.T @ centred / count
        squares = (self.utilities**2).T @ centred**2 / count
        variances = np.maximum(squares - means**2, 0) / (count - 1)
        return Estimate(shares + self.constant * means, self.constant * np.sqrt(variances))

    @override
    def noticed(self) -> dict[str, Any]:
        """Return the bound on the error, in units of the range of the utility."""
        if self.n < 3:
            return {}
        bound = error_bound(self.n, len(self.masks), DELTA)
        return {"l2_error_bound_over_range": bound, "bound_holds_with": 1 - DELTA}


def without_curve(sizes: NDArray[np.int64], utilities: Values, n: int) -> Values:
    """Return utilities less what the other coalitions say of one of this size, ``(K, T)``.

    What is taken off a coalition does not depend on its own utility or members. A ridge of next to
    nothing decides where no other coalition has nearly the same size.
    """
    at = np.log(sizes / (n - sizes))
    count = max(1, min(KNOTS, len(sizes) // 10))
    knots = np.unique(np.quantile(at, np.linspace(0, 1, count))) if count > 1 else at[:1]
    basis = np.stack([np.interp(at, knots, row) for row in np.eye(len(knots))], axis=1)
    gram = basis.T @ basis
    gram += 1e-6 * np.trace(gram) / len(gram) * np.eye(len(gram))
    smoother = np.linalg.solve(gram, basis.T)  # (knots, K)
    leverage = np.einsum("kj,jk->k", basis, smoother)
    return np.asarray((utilities - basis @ (smoother @ utilities)) / (1 - leverage)[:, None])


def needed_models(n: int, epsilon: float, delta: float = DELTA) -> float:
    """Return how many coalitions bound the error of all values together (Euclidean norm).

    With probability ``1 - delta`` it is then at most epsilon, in units of the range of the utility,
    for the plain estimate. The bound is far from tight.

    **Source** Wang and Jia, "A note on 'Towards efficient data valuation based on the Shapley
    value'", 2023, Theorem 4.

    Raises
    ------
    InvalidInputError
        If epsilon is not positive, delta not between 0 and 1, or n less than 3.
    """
    if not epsilon > 0 or not 0 < delta < 1 or n < 3:
        raise InvalidInputError(
            f"The bound is for epsilon > 0, delta between 0 and 1 and three players or more; got "
            f"epsilon={epsilon!r}, delta={delta!r} and {n} players."
        )
    k = np.arange(1, n)
    together = float(size_law(n) @ (1 + 2 * k * (k - n) / (n * (n - 1))))
    constant = 2 * float((1 / k).sum())
    u = epsilon / (2 * constant * np.sqrt(n) * (1 - together))
    exponent = (1 + u) * np.log1p(u) - u
    return float(np.log(n * (n - 1) / delta) / ((1 - together) * exponent))


def error_bound(n: int, models: int, delta: float = DELTA) -> float:
    """Return the epsilon for which so many coalitions are needed."""
    from scipy.optimize import brentq

    def excess(log_epsilon: float) -> float:
        return float(np.log(needed_models(n, np.exp(log_epsilon), delta) / models))

    return float(np.exp(brentq(excess, -5.0, 30.0)))
