"""The least core: values that leave no coalition much reason to go its own way."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError, SolveError
from proponent.retraining.coalitions import Estimate, Estimated, Estimator, Table
from proponent.retraining.estimators.group_testing import ends

Values = NDArray[np.float64]

SLACK = 1e-9  # by which a constraint may be missed, relative to the largest utility


class LeastCoreValues(Estimator):
    r"""The least core, and in it the values with the smallest norm.

    .. math:: \min_{x, e} e \quad \text{with} \quad \sum_i x_i = v(N) - v(\emptyset), \quad
        \sum_{i \in S} x_i + e \ge v(S) - v(\emptyset)

    for the coalitions S of the table, neither empty nor full; then the smallest sum of squares
    of x for this e.

    **Source** Yan and Procaccia, AAAI 2021.
    """

    linear: ClassVar[bool] = False

    @override
    def on(self, table: Table) -> Estimated:
        return _LeastCoreValues(table)


class _LeastCoreValues(Estimated):
    def __init__(self, table: Table) -> None:
        empty, full = ends(table)
        n, sizes = table.n, table.coalitions.sizes
        proper = (sizes > 0) & (sizes < n)
        masks = table.coalitions.masks[proper].astype(bool)
        masks, where = np.unique(masks, axis=0, return_inverse=True)
        utilities = np.full((len(masks), table.n_tests), -np.inf)
        np.maximum.at(utilities, where.reshape(-1), table.utilities[proper] - empty)
        self.constraints = len(masks)
        self.values = np.empty((table.n_tests, n))
        self.subsidies = np.empty(table.n_tests)
        for test, total in enumerate(full - empty):
            self.values[test], self.subsidies[test] = least_core(masks, utilities[:, test], total)

    @override
    def players(self, rows: range) -> Estimate:
        return Estimate(self.values[:, rows.start : rows.stop], None)

    @override
    def noticed(self) -> dict[str, Any]:
        """Return the subsidies that the least core takes, one a test."""
        return {"subsidy": self.subsidies[:100].tolist(), "constraints": self.constraints}


def least_core(masks: NDArray[np.bool_], utilities: Values, total: float) -> tuple[Values, float]:
    """Return the values of the players ``(n,)``, and the subsidy.

    Parameters
    ----------
    masks : ndarray of shape (K, n)
        The coalitions, neither empty nor full.
    utilities : ndarray of shape (K,)
        What they are worth more than the empty one.
    total : float
        What all players are worth more than none.

    Raises
    ------
    InvalidInputError
        If the subsidy could be as low as one likes: there are too few coalitions.
    SolveError
        If the linear program was not solved.
    """
    from scipy.optimize import linprog

    count, n = masks.shape
    if n == 1:
        return np.array([total]), 0.0
    scale = max(abs(total), float(np.abs(utilities).max(initial=0.0))) or 1.0
    members = masks.astype(np.float64)
    found = linprog(
        np.r_[np.zeros(n), 1.0],
        A_ub=-np.c_[members, np.ones(count)],
        b_ub=-utilities / scale,
        A_eq=np.r_[np.ones(n), 0.0][None],
        b_eq=[total / scale],
        bounds=(None, None),
        method="highs",
    )
    if not count or found.status == 3:
        raise InvalidInputError(
            f"n_models: {count} coalitions do not bound what {n} players could give up; draw more "
            f"of them, a few times as many as players."
        )
    if found.status != 0:
        raise SolveError(f"The linear program of the least core was not solved: {found.message}")
    subsidy = float(found.x[-1])
    values = smallest(members, utilities / scale - subsidy, total / scale)
    return scale * values, scale * subsidy


def smallest(members: Values, least: Values, total: float) -> Values:
    """Return the vector of the smallest norm that sums to a total and gives each row its least.

    It is a problem of the least distance, solved by way of non-negative least squares (Lawson and
    Hanson 1974, chapter 23); then once more on the constraints that are met exactly.

    Parameters
    ----------
    members : ndarray of shape (K, n)
        The constraints ``members @ x >= least``, which some x meets.
    least : ndarray of shape (K,)
        Their bounds, of the order of 1.
    total : float
        The sum of x.

    Raises
    ------
    SolveError
        If no x was found that meets the constraints.
    """
    from scipy.optimize import nnls

    n = members.shape[1]
    mean = total / n
    # About its mean x sums to 0, which takes care of the total: x = mean + w.
    centred = members - members.mean(axis=1, keepdims=True)
    bounds = least - members.sum(axis=1) * mean
    if (bounds <= 0).all():
        return np.full(n, mean)
    problem = np.vstack([centred.T, bounds - SLACK])
    multipliers, _ = nnls(problem, np.r_[np.zeros(n), 1.0], maxiter=50 * len(bounds))
    residual = problem @ multipliers
    residual[-1] -= 1.0
    if residual[-1] > -1e-14:
        raise SolveError("The smallest vector of the least core was not found.")
    w = -residual[:-1] / residual[-1]
    tight = multipliers > 0
    exact = np.linalg.pinv(centred[tight]) @ bounds[tight]
    if (centred @ exact - bounds >= -10 * SLACK).all():
        w = exact
    missed = float((bounds - centred @ w).max())
    if missed > 1e-6:
        raise SolveError(f"The smallest vector of the least core misses a bound by {missed:.1g}.")
    return np.asarray(mean + w - w.mean())
