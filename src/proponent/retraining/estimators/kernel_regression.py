"""A semivalue by kernel regression on coalitions of all sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.retraining.coalitions import Estimate, Estimated, Estimator, Table
from proponent.retraining.estimators.by_size import Sizes, common_part
from proponent.retraining.estimators.overlap_kernel import kernel, semivalues_of_kernel
from proponent.retraining.estimators.size_regression import SizeRegression
from proponent.retraining.semivalues import Semivalue

Values = NDArray[np.float64]

NOISE = 0.3  # the variance that the kernel does not explain; single players' is 0.6
ROWS_AT_ONCE = 3000  # coalitions in one regression, whose inverse takes 72 MB
MOST_ROWS = 12_000  # beyond, or beyond so many a player, the regression within sizes is as good
MOST_A_PLAYER = 40


class KernelRegression(Estimator):
    r"""A semivalue from coalitions of all sizes, by kernel regression of the utility.

    The utilities less a function of the size, in units of :math:`\sqrt{1 - k/n}` (what is left to
    vary shrinks as coalitions grow), are regressed on the coalitions with a kernel K of their
    overlap and sizes (:mod:`~proponent.retraining.estimators.overlap_kernel`). The semivalue is
    that of the function that is found, in closed form:

    .. math::

        \phi_i = c + A_i^\top w, \qquad w = (K + \lambda)^{-1} y

    with :math:`A_{ir}` the semivalue of :math:`K(\cdot, S_r)` for player i, and c what all players
    have in common. What a player does in coalitions of one size supports what it does in others,
    so that far fewer coalitions are needed than by regression within each size: in the neighbours'
    game the error is half as large with 6 coalitions a player, and a quarter with one.

    It pays with a bias towards c, which vanishes as the coalitions become more. The error

    .. math::

        \text{error}_i^2 = \sum_r L_{ir}^2 e_r^2
            + \sigma^2 \bigl( \phi_i \phi_i K - A_i^\top L_i - \lambda L_i^\top L_i \bigr),
            \qquad L_i = (K + \lambda)^{-1} A_i

    has a term for the noise, e the residual of each coalition under the regression without it, and
    one for the bias: its expected square if effects are as random as the kernel says, and of a
    variance :math:`\sigma^2` that is estimated for each test. It is too large rather than too small
    where effects are smoother than that. The kernel does not look at the utilities, so that values
    add up over tests.

    Beyond 3,000 coalitions, regressions on parts of them are averaged; beyond 40 a player, or
    12,000 in all, :class:`SizeRegression` is as good, takes less, and is used.

    **Source** Bayesian quadrature (O'Hagan, Journal of Statistical Planning and Inference 1991),
    with a kernel of this library; Rao, Journal of Multivariate Analysis 1971, for the variance.

    Parameters
    ----------
    semivalue : Semivalue
        Its law of sizes p.
    """

    def __init__(self, semivalue: Semivalue) -> None:
        self.semivalue = semivalue

    @override
    def on(self, table: Table) -> Estimated:
        """Fit the regressions.

        Raises
        ------
        InvalidInputError
            If the coalitions are too few.
        """
        if len(table.coalitions) > min(MOST_ROWS, MOST_A_PLAYER * table.n):
            return SizeRegression(self.semivalue).on(table)
        return _Fitted(table, self.semivalue)


@dataclass(frozen=True)
class _Part:
    """A regression on some of the coalitions.

    Attributes
    ----------
    rows : ndarray of shape (K,)
        Which.
    inside, outside : ndarray of shape (K,)
        The semivalue of the kernel with each of them, for its members and for others.
    inverse : ndarray of shape (K, K)
        Of the kernel with the noise.
    weights : ndarray of shape (K, T)
        Of the function that is found.
    squares : ndarray of shape (K, T)
        Of the residuals without each coalition.
    scale : ndarray of shape (T,)
        The variance of the function, in units of the kernel's.
    """

    rows: NDArray[np.intp]
    inside: Values
    outside: Values
    inverse: Values
    weights: Values
    squares: Values
    scale: Values


class _Fitted(Estimated):
    def __init__(self, table: Table, semivalue: Semivalue) -> None:
        sizes = Sizes(table)
        self._known = sizes.known
        self._masks = table.coalitions.masks
        self._common, self._common_error = common_part(table, semivalue, sizes)
        n = table.n
        law, k = semivalue.sizes(n), np.arange(1, n)
        portions = (law[:-1] * (1 - k / n) + law[1:] * k / n) * _unit(k, n)
        inner = np.flatnonzero((table.coalitions.sizes > 0) & (table.coalitions.sizes < n))
        of_rows = table.coalitions.sizes[inner]
        present = np.unique(of_rows)
        inside, outside = semivalues_of_kernel(portions, present.astype(np.float64))
        # The variance of the semivalue before anything is known. It is smooth in the size.
        self._prior = float(portions @ np.interp(k, present, inside - outside))
        deviations = sizes.deviations()[inner] / _unit(of_rows, n)[:, None]
        at = np.searchsorted(present, of_rows)
        self._parts = []
        self._left = 0.0
        count = -(-len(inner) // ROWS_AT_ONCE)
        for number in range(count):
            some = slice(number, None, count)
            masks = (self._masks[inner[some]] != 0).astype(np.float32)
            matrix = kernel(masks, of_rows[some].astype(np.float64))
            self._parts.append(
                _fit(matrix, deviations[some], inner[some], inside[at[some]], outside[at[some]])
            )
            self._left += float(self._parts[-1].squares.sum())
        total = float(np.square(deviations).sum())
        self._r2 = 1 - self._left / total if total else 0.0

    @override
    def players(self, rows: range) -> Estimate:
        """Return the values of some players, ``(T, players)``."""
        chosen = slice(rows.start, rows.stop)
        values = np.repeat(self._common[:, None], len(rows), axis=1)
        noise = np.repeat(np.square(self._common_error)[:, None], len(rows), axis=1)
        bias = np.zeros_like(values)
        count = len(self._parts)
        for part in self._parts:
            members = self._masks[part.rows, chosen] != 0
            pulled = np.where(members, part.inside[:, None], part.outside[:, None])
            values += part.weights.T @ pulled / count
            shares = part.inverse @ pulled
            squares = np.square(shares)
            noise += part.squares.T @ squares / count**2
            unknown = self._prior - (pulled * shares).sum(axis=0) - NOISE * squares.sum(axis=0)
            bias += np.outer(part.scale, np.maximum(unknown, 0)) / count
        errors = np.sqrt(noise + bias)
        values[:, ~self._known[chosen]] = errors[:, ~self._known[chosen]] = np.nan
        return Estimate(values, errors)

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how much of the variance within sizes is predicted, from the other coalitions."""
        return {"variance_explained": float(self._r2), "regressions": len(self._parts)}


def _unit(sizes: NDArray[Any], n: int) -> Values:
    return np.asarray(np.sqrt(1 - sizes / n))


def _fit(
    matrix: Values, utilities: Values, rows: NDArray[np.intp], inside: Values, outside: Values
) -> _Part:
    """Fit a regression; the matrix is overwritten."""
    from scipy.linalg import cholesky, lapack

    matrix[np.diag_indices(len(matrix))] += NOISE
    factor = cholesky(matrix, lower=True, overwrite_a=True, check_finite=False)
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    upper = np.triu_indices(len(inverse), 1)
    inverse[upper] = inverse.T[upper]
    weights = inverse @ utilities
    without = weights / np.diag(inverse)[:, None]
    return _Part(
        rows,
        inside,
        outside,
        inverse,
        weights,
        np.square(without),
        _scale(inverse, weights, utilities),
    )


def _scale(inverse: Values, weights: Values, utilities: Values) -> Values:
    """Return the variance of the function, ``(T,)``: two equations for it and for the noise's.

    Quadratic forms of the utilities are set equal to their expectation, which is linear in both.
    """
    trace, square = float(np.trace(inverse)), float(np.square(inverse).sum())
    function = len(inverse) - 2 * NOISE * trace + NOISE**2 * square
    mixed = trace - NOISE * square
    of_noise = np.square(weights).sum(axis=0)
    of_function = (weights * utilities).sum(axis=0) - NOISE * of_noise
    found = (of_function * square - of_noise * mixed) / (function * square - mixed**2)
    return np.asarray(np.maximum(found, 0))
