"""Linear functions of who is in: least squares and ridge, for many tests at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError

Values = NDArray[np.float64]

PENALTIES = np.geomspace(1e-6, 1e3, 28)  # of a ridge, in units of the largest eigenvalue


@dataclass(frozen=True)
class LinearFit:
    """Linear functions of the features, one a test.

    Attributes
    ----------
    weights : ndarray of shape (T, n)
        The slopes.
    intercepts : ndarray of shape (T,)
        What is predicted where all features are 0.
    std_errors : ndarray of shape (T, n)
        Of the slopes.
    noticed : dict
        What there is to say about the fit, as JSON knows it.
    """

    weights: Values
    intercepts: Values
    std_errors: Values
    noticed: dict[str, Any] = field(default_factory=dict)

    def scaled(self, factor: float) -> LinearFit:
        """Return the functions of features that are so many times smaller."""
        return replace(
            self, weights=factor * self.weights, std_errors=abs(factor) * self.std_errors
        )

    def predict(self, features: NDArray[Any]) -> Values:
        """Return what is predicted for rows of features ``(K, n)``: ``(T, K)``."""
        return np.asarray(self.intercepts[:, None] + self.weights @ features.T)


@dataclass(frozen=True)
class _Decomposed:
    """Features without their means, by singular values that are not 0."""

    mean: Values  # (n,)
    left: Values  # (K, rank)
    singular: Values  # (rank,)
    right: Values  # (rank, n)

    @classmethod
    def of(cls, features: Values) -> _Decomposed:
        mean = features.mean(axis=0)
        left, singular, right = np.linalg.svd(features - mean, full_matrices=False)
        least = singular[0] * max(features.shape) * np.finfo(np.float64).eps
        rank = int(np.count_nonzero(singular > least))
        return cls(mean, left[:, :rank], singular[:rank], right[:rank])


def least_squares(features: Values, utilities: Values, *, means: int = 1) -> LinearFit:
    """Fit by least squares; of all solutions the one with the smallest norm.

    Where all coalitions are of one size their masks sum to a constant, and slopes are defined but
    for a common term: the smallest norm is where they sum to 0.

    Parameters
    ----------
    features : ndarray of shape (K, n)
        Without the intercept.
    utilities : ndarray of shape (K, T)
        Fitted one by one.
    means : int
        How many means were taken off both, that of all rows (which is taken off here) included.

    Returns
    -------
    LinearFit
        Standard errors are robust to unequal variances (HC1).

    Raises
    ------
    InvalidInputError
        If there are not more rows than slopes and intercept.
    """
    parts = _Decomposed.of(features)
    rows, rank = len(features), len(parts.singular)
    needed = features.shape[1] + means + 1
    if rows < needed:
        raise InvalidInputError(
            f"n_models: least squares on {features.shape[1]} players needs at least {needed} "
            f"coalitions, and far more to be of use; got {rows}."
        )
    level = utilities.mean(axis=0)
    inverse = (parts.left / parts.singular) @ parts.right  # (K, n)
    weights = (utilities - level).T @ inverse
    residuals = utilities - level - (features - parts.mean) @ weights.T
    errors = np.sqrt((residuals**2).T @ inverse**2 * (rows / (rows - means - rank)))
    return LinearFit(weights, level - weights @ parts.mean, errors)


def ridge(features: Values, utilities: Values) -> LinearFit:
    """Fit with a penalty on the squared slopes, chosen for each test by leave-one-out.

    Parameters
    ----------
    features : ndarray of shape (K, n)
        Without the intercept, which is not penalised.
    utilities : ndarray of shape (K, T)
        Fitted one by one.

    Returns
    -------
    LinearFit
        Standard errors are of the variance alone, from residuals without the row itself (HC3);
        the penalty's bias towards 0 comes on top.

    Raises
    ------
    InvalidInputError
        If there are fewer than 3 rows.
    """
    rows = len(features)
    if rows < 3:
        raise InvalidInputError(f"n_models: ridge needs 3 coalitions or more; got {rows}.")
    parts = _Decomposed.of(features)
    means = utilities.mean(axis=0)
    centred = utilities - means
    rotated = parts.left.T @ centred  # (rank, T)
    if not len(parts.singular):
        flat = np.zeros((utilities.shape[1], features.shape[1]))
        return LinearFit(flat, means, np.full_like(flat, np.nan))
    penalties = PENALTIES * parts.singular[0] ** 2
    best = np.full(len(means), np.inf)
    chosen = np.zeros(len(means), dtype=np.intp)
    for index, penalty in enumerate(penalties):
        left_out = _left_out(parts, centred, rotated, penalty)
        errors = (left_out**2).mean(axis=0)
        better = errors < best
        best[better], chosen[better] = errors[better], index
    weights = np.empty((len(means), features.shape[1]))
    errors_ = np.empty_like(weights)
    for index in np.unique(chosen):
        some, penalty = chosen == index, penalties[index]
        shrunk = parts.singular / (parts.singular**2 + penalty)
        weights[some] = (rotated[:, some].T * shrunk) @ parts.right
        inverse = (parts.left * shrunk) @ parts.right
        left_out = _left_out(parts, centred[:, some], rotated[:, some], penalty)
        errors_[some] = np.sqrt((left_out**2).T @ inverse**2)
    noticed = {"median_penalty": float(np.median(penalties[chosen]))}
    return LinearFit(weights, means - weights @ parts.mean, errors_, noticed)


def _left_out(parts: _Decomposed, centred: Values, rotated: Values, penalty: float) -> Values:
    """Return the residual of each row under the fit to the others, ``(K, T)``."""
    kept = parts.singular**2 / (parts.singular**2 + penalty)
    leverage = parts.left**2 @ kept + 1 / len(centred)
    residuals = centred - (parts.left * kept) @ rotated
    return np.asarray(residuals / np.maximum(1 - leverage, 1e-10)[:, None])
