"""Shapley values as the weighted least squares of utilities on who is in (KernelSHAP)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Estimate, Estimated, Estimator, Table
from proponent.retraining.estimators.group_testing import ends

Values = NDArray[np.float64]


class KernelShap(Estimator):
    r"""Shapley values that explain the utilities best as a sum over the members.

    .. math:: \min_\phi \sum_S w(S) \Bigl( v(S) - v(\emptyset) - \sum_{i \in S} \phi_i \Bigr)^2
        \quad \text{with} \quad \sum_i \phi_i = v(N) - v(\emptyset)

    and ``w(S) = (n - 1) / (C(n, k) k (n - k))`` for a coalition of size k. Standard errors are
    robust to unequal variances (HC1); coalitions drawn together count as one.

    **Source** Lundberg and Lee, NeurIPS 2017, Theorem 2; Covert and Lee, AISTATS 2021, for the
    constraint.

    Parameters
    ----------
    drawn_by_weight : bool
        Whether coalitions were drawn with probabilities proportional to w, and count alike;
        otherwise each coalition is there once and gets its weight, and the values are exact.
    """

    def __init__(self, drawn_by_weight: bool = True) -> None:
        self.drawn_by_weight = drawn_by_weight

    @override
    def on(self, table: Table) -> Estimated:
        return _KernelShap(table, self.drawn_by_weight)


class _KernelShap(Estimated):
    def __init__(self, table: Table, drawn: bool) -> None:
        empty, full = ends(table)
        n, sizes = table.n, table.coalitions.sizes
        proper = np.flatnonzero((sizes > 0) & (sizes < n))
        sizes = sizes[proper]
        share = (full - empty) / n
        scale = np.ones(len(proper)) if drawn else np.sqrt(_weights(sizes, n))
        # With a share for each player taken off, the rest sums to 0 over them.
        left = table.utilities[proper] - empty - sizes[:, None] * share
        centred = table.coalitions.masks[proper] - (sizes / n)[:, None]
        inverse = _inverse(centred * scale[:, None], n) * scale[:, None]
        rest = left.T @ inverse
        self.values = share[:, None] + rest
        self.errors: Values | None = None
        if drawn:
            residuals = left - centred @ rest.T
            self.errors = _errors(residuals, inverse, table.coalitions.take(proper))

    @override
    def players(self, rows: range) -> Estimate:
        some = slice(rows.start, rows.stop)
        errors = None if self.errors is None else self.errors[:, some]
        return Estimate(self.values[:, some], errors)


def _weights(sizes: NDArray[np.int64], n: int) -> Values:
    from scipy.special import gammaln

    log = gammaln(n + 1) - gammaln(sizes + 1) - gammaln(n - sizes + 1)
    return np.asarray((n - 1) * np.exp(-log) / (sizes * (n - sizes)))


def _inverse(rows: Values, n: int) -> Values:
    """Return what turns utilities into values, ``(K, n)``.

    Raises
    ------
    InvalidInputError
        If the coalitions do not tell all players apart.
    """
    if n == 1:
        return np.zeros(rows.shape)
    rank = 0
    if len(rows):
        left, singular, right = np.linalg.svd(rows, full_matrices=False)
        least = singular[0] * max(rows.shape) * np.finfo(np.float64).eps
        rank = int(np.count_nonzero(singular > least))
    if rank < n - 1:
        raise InvalidInputError(
            f"n_models: the regression needs coalitions that tell all {n} players apart, {n + 1} "
            f"at the very least and a few times as many to be of use; got {len(rows)}."
        )
    return np.asarray((left[:, :rank] / singular[:rank]) @ right[:rank])


def _errors(residuals: Values, inverse: Values, coalitions: Coalitions) -> Values:
    """Return the standard errors, ``(T, n)``, of rows that are independent between blocks."""
    count, n = inverse.shape
    if n == 1:
        return np.zeros((residuals.shape[1], 1))
    if count <= n - 1:
        return np.full((residuals.shape[1], n), np.nan)
    correction = count / (count - n + 1)
    blocks = coalitions.blocks
    if blocks is None:
        return np.asarray(np.sqrt((residuals**2).T @ inverse**2 * correction))
    order = np.argsort(blocks, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(blocks[order]) != 0])
    errors = np.empty((residuals.shape[1], n))
    for test, residual in enumerate(residuals.T):
        parts = np.add.reduceat((inverse * residual[:, None])[order], starts, axis=0)
        errors[test] = np.sqrt((parts**2).sum(axis=0) * correction)
    return errors
