"""Submodels the slow way: scikit-learn fitted again in a loop, and learners that keep a log."""

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from retraining.games import all_masks
from sklearn.base import clone, is_classifier

Data = tuple[Any, Any]
Values = NDArray[np.float64]

SMOOTHING = 1e-3


class Logged:
    """Ridge regression without an intercept that notes what it was trained on, and its seed.

    As it takes a seed, no two trainings are the same, and each coalition has one line.
    """

    trainings: ClassVar[list[tuple[NDArray[np.intp], int]]] = []

    def fit(self, X, y, positions, seed):
        Logged.trainings.append((positions, seed))
        self.weights = np.linalg.solve(X.T @ X + np.eye(X.shape[1]), X.T @ y)
        return self

    def predict(self, X):
        return X @ self.weights

    def risk(self, X, y):
        return (self.predict(X) - y) ** 2


def logged_masks(n: int) -> NDArray[np.bool_]:
    """Return who was in each training since the log was cleared, ``(K, n)``."""
    masks = np.zeros((len(Logged.trainings), n), bool)
    for mask, (positions, _) in zip(masks, Logged.trainings, strict=True):
        mask[positions] = True
    return masks


class Noisy:
    """Predicts the mean label; the seed multiplies it, and adds far more than a label makes."""

    trainings: ClassVar[list[int]] = []
    added = 1000.0

    def fit(self, X, y, seed):
        Noisy.trainings.append(seed)
        self.mean = float(y.mean() * factor(seed) + self.added * factor(seed + 1))

    def risk(self, X, y):
        return self.mean - y


def factor(seed: int) -> float:
    return float(np.random.default_rng(seed).random())


class Failing:
    """Predicts the mean label; cannot be trained on too few, or where ``hates`` is in."""

    def __init__(self, least=1, hates=(), misses=()):
        self.least = least
        self.hates = hates
        self.misses = misses

    def fit(self, X, y, positions):
        held = set(positions.tolist())
        if len(held) < self.least or held & set(self.hates) or not held >= set(self.misses):
            raise ValueError("cannot be trained")
        self.mean = y.mean()

    def risk(self, X, y):
        return (y - self.mean) ** 2


def utilities(
    estimator: Any,
    train: Data,
    test: Data,
    masks: Iterable[Any],
    utility: str = "risk",
    empty: Values | None = None,
) -> Values:
    """Return what models fitted to subsets are worth, ``(K, T)``, one after the other."""
    X, y = (np.asarray(part) for part in train)
    classes = np.unique(y) if is_classifier(estimator) else None
    rows = []
    for mask in masks:
        if not np.any(mask):
            rows.append(prior(y, test[1], classes) if empty is None else empty)
            continue
        model = clone(estimator).fit(X[mask], y[mask])
        rows.append(worth(model, test, classes, utility))
    return np.array(rows)


def worth(model: Any, test: Data, classes: Any, utility: str) -> Values:
    X, y = (np.asarray(part) for part in test)
    if classes is None:
        return -((model.predict(X) - y) ** 2)
    if utility == "accuracy":
        return np.asarray(model.predict(X) == y, float)
    found = np.zeros((len(y), len(classes)))
    found[:, np.searchsorted(classes, model.classes_)] = model.predict_proba(X)
    return log_likelihood(found, classes, y)


def log_likelihood(probabilities: Values, classes: Any, y: Any) -> Values:
    of_label = probabilities[np.arange(len(y)), np.searchsorted(classes, y)]
    return np.log((1 - SMOOTHING) * of_label + SMOOTHING / len(classes))


def prior(y: Any, y_test: Any, classes: Any) -> Values:
    """Return what the mean target, or the classes' frequencies with one more each, are worth."""
    if classes is None:
        return -((y.mean() - y_test) ** 2)
    counts = np.array([(y == label).sum() + 1 for label in classes])
    return log_likelihood(np.tile(counts / counts.sum(), (len(y_test), 1)), classes, y_test)


def worth_of_all(estimator: Any, train: Data, test: Data, **settings: Any) -> Values:
    """Return what the models of all subsets are worth, ``(2^n, T)``, by the subsets' bits."""
    return utilities(estimator, train, test, all_masks(len(train[1])), **settings)


def in_less_out(masks: NDArray[np.bool_], found: Values) -> tuple[Values, Values]:
    """Return mean utilities with each player less those without, and Welch's errors, (T, n)."""
    values = np.full((found.shape[1], masks.shape[1]), np.nan)
    errors = values.copy()
    for i, column in enumerate(masks.T):
        inside, outside = found[column], found[~column]
        if len(inside) and len(outside):
            values[:, i] = inside.mean(axis=0) - outside.mean(axis=0)
        if len(inside) > 1 and len(outside) > 1:
            spread = inside.var(axis=0, ddof=1) / len(inside)
            errors[:, i] = np.sqrt(spread + outside.var(axis=0, ddof=1) / len(outside))
    return values, errors
