"""The LASSO of utilities on who is in, for many tests, with penalties chosen on held-out rows."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError
from proponent.retraining.estimators.linear_fit import LinearFit

Values = NDArray[np.float64]
Rows = NDArray[np.intp]

TOLERANCE = 1e-4  # of the duality gap, relative to the variance of the utilities
MOST_SWEEPS = 1000
# What the standard errors are of, for the diagnostics.
ONE_STEP = (
    "of the one-step estimates, on which no selection was made; the choice of the penalty is not "
    "in them"
)
PENALISED = (
    "of the one-step estimates, not of the values, which the penalty pulls towards 0: their bias "
    "and the selection are not in them"
)
REFITTED = (
    "of least squares as if the instances that it is on had been chosen beforehand: the selection "
    "is not in them, so that intervals of selected instances are too narrow; select() controls "
    "the share of false ones, and debias='one_step' has errors that need no selection"
)
PATIENCE = 10  # smaller penalties that may fail to lower the held-out error


@dataclass(frozen=True)
class Selection:
    """How the penalty of each test is chosen.

    The path of penalties ends once ten smaller ones have not lowered the held-out error: the small
    ones are those that take time.

    Attributes
    ----------
    splits : sequence of (ndarray, ndarray)
        Rows to fit on, and rows held out.
    penalties : int
        How many are tried, from the smallest that leaves every slope at 0 downwards.
    ratio : float
        Of the smallest penalty to the largest.
    """

    splits: Sequence[tuple[Rows, Rows]]
    penalties: int = 30
    ratio: float = 1e-3

    @classmethod
    def by_folds(cls, n_rows: int, number: int, penalties: int, ratio: float) -> Selection:
        """Return a cross-validation on consecutive folds."""
        if n_rows < 2 * number:
            raise InvalidInputError(
                f"n_models: {number} folds need {2 * number} coalitions or more; got {n_rows}."
            )
        every = np.arange(n_rows)
        held = np.array_split(every, number)
        splits = [(np.setdiff1d(every, part), part) for part in held]
        return cls(splits, penalties, ratio)

    @classmethod
    def held_out(cls, n_rows: int, share: float, penalties: int, ratio: float) -> Selection:
        """Return one split that holds the last rows out."""
        cut = n_rows - max(1, round(share * n_rows))
        if cut < 2:
            raise InvalidInputError(
                f"n_models: {n_rows} coalitions are too few to hold some out; draw more."
            )
        split = np.arange(cut), np.arange(cut, n_rows)
        return cls([split], penalties, ratio)


def lasso(
    features: Values,
    utilities: Values,
    selection: Selection,
    *,
    one_step: bool = False,
    means: int = 1,
) -> LinearFit:
    r"""Fit a sparse linear function to the utilities of each test.

    With the centred features x and utilities u of K rows it minimises

    .. math:: \frac{1}{2K} \sum_k (u_k - x_k^T \beta)^2 + \lambda \|\beta\|_1

    for a path of penalties on the splits, and then on all rows for the penalty with the smallest
    held-out error.

    Parameters
    ----------
    features : ndarray of shape (K, n)
        Without the intercept, which is not penalised.
    utilities : ndarray of shape (K, T)
        Fitted one by one, on the same products of features.
    selection : Selection
        How the penalty is chosen.
    one_step : bool
        Whether to add to every slope its covariance with the residuals over its variance, which
        takes out the bias of the penalty where the features do not correlate.
    means : int
        As in :func:`~proponent.retraining.estimators.linear_fit.least_squares`.

    Returns
    -------
    LinearFit
        Standard errors are those of the one-step estimate, also where a slope is 0, robust to
        unequal variances.
    """
    whole = _Part(features)
    parts = [_Split(features, utilities, *split) for split in selection.splits]
    level = utilities.mean(axis=0)
    centred = utilities - level
    weights = np.zeros((utilities.shape[1], features.shape[1]))
    unfinished = 0
    for test, y in enumerate(centred.T):
        largest = float(np.abs(whole.centred.T @ y).max()) / len(y)
        if largest <= np.finfo(np.float64).eps * np.abs(utilities[:, test]).max():
            continue  # the utility does not depend on who is in
        penalties = largest * np.geomspace(1, selection.ratio, selection.penalties)
        best = _best(parts, test, penalties)
        slopes, failed = whole.path(y, penalties[[best]])
        weights[test], unfinished = slopes[:, 0], unfinished + failed
    supports = np.count_nonzero(weights, axis=1)
    noticed: dict[str, Any] = {
        "median_support": float(np.median(supports)),
        "std_errors": ONE_STEP if one_step else PENALISED,
    }
    if unfinished:
        noticed["unconverged"] = unfinished
    steps, errors = _one_step(whole.centred, centred, weights, means)
    if one_step:
        weights = weights + np.where(np.isfinite(steps), steps, 0.0)
    return LinearFit(weights, level - weights @ whole.mean, errors, noticed)


class _Part:
    """Rows of the features as coordinate descent takes them, shared by all tests."""

    def __init__(self, features: Values) -> None:
        rows, columns = features.shape
        self.mean = features.mean(axis=0)
        self.centred = np.asfortranarray(features - self.mean)
        # With more rows than columns a step is cheaper on the products of the columns.
        self.products: Any = False
        if rows > columns:
            self.products = np.ascontiguousarray(self.centred.T @ self.centred)

    def path(self, y: Values, penalties: Values, start: Values | None = None) -> tuple[Values, int]:
        """Return the slopes for falling penalties, ``(n, penalties)``, and how many failed."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import lasso_path

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # they are counted
            _, slopes, gaps = lasso_path(
                self.centred,
                np.ascontiguousarray(y),
                alphas=penalties,
                precompute=self.products,
                Xy=np.ascontiguousarray(self.centred.T @ y),
                copy_X=False,
                check_input=False,  # as it should be, and checked for each penalty otherwise
                coef_init=start,
                tol=TOLERANCE,
                max_iter=MOST_SWEEPS,
                random_state=0,  # it would draw from the global generator
            )
        return slopes, int(np.count_nonzero(gaps > 2 * TOLERANCE * float(y @ y) / len(y)))


class _Split:
    """Rows to fit on and rows held out."""

    def __init__(self, features: Values, utilities: Values, fit: Rows, held: Rows) -> None:
        self.part = _Part(features[fit])
        means = utilities[fit].mean(axis=0)
        self.fitted = utilities[fit] - means
        self.unseen = features[held] - self.part.mean
        self.held = utilities[held] - means

    def errors(self, test: int, penalties: Values, start: Values | None) -> tuple[Values, Values]:
        """Return the mean squared held-out errors, and the slopes for the last penalty."""
        slopes, _ = self.part.path(self.fitted[:, test], penalties, start)
        missed = self.held[:, [test]] - self.unseen @ slopes
        return (missed**2).mean(axis=0), slopes[:, -1]


def _best(parts: Sequence[_Split], test: int, penalties: Values) -> int:
    """Return the position of the penalty with the smallest mean of the held-out errors."""
    errors = np.full(len(penalties), np.inf)
    starts: list[Values | None] = [None] * len(parts)
    for first in range(0, len(penalties), PATIENCE):
        some = slice(first, first + PATIENCE)
        total = np.zeros(len(penalties[some]))
        for number, part in enumerate(parts):
            found, starts[number] = part.errors(test, penalties[some], starts[number])
            total += found
        errors[some] = total / len(parts)
        if first + len(total) - 1 - int(np.argmin(errors)) >= PATIENCE:
            break
    return int(np.argmin(errors))


def _one_step(
    centred: Values, utilities: Values, weights: Values, means: int
) -> tuple[Values, Values]:
    """Return one step towards the unpenalised slopes and its standard errors, ``(T, n)``."""
    rows = len(centred)
    residuals = utilities - centred @ weights.T
    free = np.maximum(rows - means - np.count_nonzero(weights, axis=1), 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = (centred**2).sum(axis=0)
        steps = residuals.T @ centred / spread
        errors = np.sqrt((residuals**2).T @ centred**2 * (rows / free)[:, None]) / spread
    return steps, errors
