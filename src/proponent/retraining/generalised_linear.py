r"""Generalised linear models at their minimum, as weighted least squares.

Near its minimum a generalised linear model with means :math:`\mu = g^{-1}(x^\top \theta)` and
variances :math:`\phi V(\mu)` is least squares with the weights
:math:`w = (d\mu / d\eta)^2 / V(\mu)` and the Pearson residuals
:math:`r = (y - \mu) / \sqrt{V(\mu)}`.

**Source** Pregibon, "Logistic regression diagnostics", Annals of Statistics 1981; McCullagh and
Nelder, Generalized Linear Models, 1989, section 12.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.labels import labels_of, listed, targets_of
from proponent.models.sklearn_parts import dense, pipeline_parts, scikit_learn_class
from proponent.retraining.closed_forms.reading import matrix_of

Values = NDArray[np.float64]


@dataclass(frozen=True)
class WeightedLeastSquares:
    """What a fitted model is near its minimum.

    Attributes
    ----------
    features : ndarray or sparse matrix of shape (n, d)
        Without the intercept.
    weights : ndarray of shape (n,)
        Of the instances in the least squares.
    residuals : ndarray of shape (n,)
        Pearson's, times the roots of the weights of classes where there are such weights.
    intercept : bool
    penalty : float
        In ``sum of losses + penalty / 2 ||coef||^2``.
    dispersion : float or None
        None: to be estimated from the residuals.
    notes : tuple of str
        What a reader of the numbers should know.
    """

    features: Any
    weights: Values
    residuals: Values
    linear: Values
    intercept: bool
    penalty: float
    dispersion: float | None
    notes: tuple[str, ...] = ()


def is_generalised_linear(model: object) -> bool:
    """Whether a model, or the last step of a pipeline, is one that is known here."""
    return scikit_learn_class(pipeline_parts(model)[1]).__name__ in _MODELS


def weighted_least_squares(model: Any, train: Instances) -> WeightedLeastSquares:
    """Return what a model is near its minimum; one that is not fitted is fitted first.

    Parameters
    ----------
    model : scikit-learn estimator, or a pipeline that ends in one
        Linear, ridge or logistic regression (two classes), or a Poisson, Gamma or Tweedie
        regressor.
    train : Instances
        (X, y) pairs; those that it was fitted to.

    Raises
    ------
    InvalidInputError
        If the model has more than one output or two classes, another penalty than L2, or was
        fitted to other features or classes.
    """
    _, final = pipeline_parts(model)
    notes: list[str] = []
    if not hasattr(final, "coef_"):
        from sklearn.base import clone

        model = clone(model).fit(train.features(), labels_of(train, "train"))
        notes.append("the model was not fitted: a clone of it was.")
    transformers, final = pipeline_parts(model)
    features: Any = train.features() if transformers else matrix_of(train, "train")
    for transformer in transformers:
        features = transformer.transform(features)
    if transformers:
        notes.append("the pipeline's transformers are held fixed, whatever is left out.")
    if not hasattr(features, "tocsc"):
        features = np.asarray(features, dtype=np.float64)
    outputs = np.atleast_2d(np.asarray(dense(final.coef_), dtype=np.float64))
    if len(outputs) != 1:
        raise _refused(final, "it has several outputs, or more than two classes")
    coefficients = outputs[0]
    if features.shape[1:] != coefficients.shape:
        raise InvalidInputError(
            f"train: features of shape {features.shape} do not fit the {type(final).__name__}, "
            f"which was fitted to {len(coefficients)} of them."
        )
    linear = np.asarray(features @ coefficients).ravel() + np.ravel(final.intercept_)[0]
    found = _MODELS[scikit_learn_class(final).__name__](final, linear, train)
    return WeightedLeastSquares(
        features,
        found.weights,
        found.residuals,
        linear,
        bool(final.fit_intercept),
        found.penalty,
        found.dispersion,
        (*notes, *found.notes),
    )


@dataclass(frozen=True)
class _Near:
    """What depends on the kind of model."""

    weights: Values
    residuals: Values
    penalty: float
    dispersion: float | None
    notes: tuple[str, ...] = ()


def _least_squares(model: Any, linear: Values, train: Instances) -> _Near:
    if getattr(model, "positive", False):
        raise _refused(model, "positive=True makes its minimum no stationary point")
    targets = targets_of(train, "train")
    penalty = float(np.ravel(getattr(model, "alpha", 0.0))[0])
    return _Near(np.ones(len(linear)), targets - linear, penalty, None)


def _logistic(model: Any, linear: Values, train: Instances) -> _Near:
    from scipy.special import expit

    penalty = model.penalty
    if penalty == "deprecated":  # since scikit-learn 1.8 l1_ratio alone says which penalty
        penalty = "elasticnet" if model.l1_ratio else "l2"
    if penalty not in ("l2", None):
        raise _refused(model, "the L1 penalty has no second derivative at coefficients of zero")
    if model.solver == "liblinear":
        raise _refused(model, "solver='liblinear' penalises the intercept too")
    labels = labels_of(train, "train").ravel()
    known = np.isin(labels, model.classes_)
    if not known.all():
        raise InvalidInputError(
            f"train: the labels {listed(np.unique(labels[~known]).tolist())} are none of the "
            f"classes that the {type(model).__name__} was fitted to "
            f"({listed(model.classes_.tolist())})."
        )
    second = labels == model.classes_[1]
    notes: tuple[str, ...] = ()
    counts = np.ones(len(labels))
    if model.class_weight is not None:
        from sklearn.utils.class_weight import compute_class_weight

        each = compute_class_weight(model.class_weight, classes=model.classes_, y=labels)
        counts = np.asarray(each, dtype=np.float64)[second.astype(np.intp)]
        notes = ("the weights of the classes are held fixed, whatever is left out.",)
    margins = np.where(second, linear, -linear)
    variances = expit(margins) * expit(-margins)
    # (y - p) / sqrt(p (1 - p)), with all its digits where p is almost 0 or 1.
    residuals = np.where(second, 1.0, -1.0) * np.sqrt(counts) * np.exp(-margins / 2)
    strength = 0.0 if penalty is None else 1 / float(model.C)
    return _Near(counts * variances, residuals, strength, 1.0, notes)


def _tweedie(model: Any, linear: Values, train: Instances) -> _Near:
    power = {"PoissonRegressor": 1.0, "GammaRegressor": 2.0}.get(
        scikit_learn_class(model).__name__, getattr(model, "power", 0.0)
    )
    link = getattr(model, "link", "auto")
    identity = link == "identity" or (link == "auto" and power <= 0)
    means = linear if identity else np.exp(linear)
    if identity and power != 0 and not (means > 0).all():
        raise _refused(model, "it predicts means that are not positive")
    slopes = np.ones(len(linear)) if identity else means
    variances = means**power
    residuals = (targets_of(train, "train") - means) / np.sqrt(variances)
    # scikit-learn minimises half the mean deviance and alpha / 2 ||coef||^2.
    penalty = float(model.alpha) * len(linear)
    return _Near(slopes**2 / variances, residuals, penalty, 1.0 if power == 1 else None)


def _refused(model: object, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"model: {type(model).__name__}: {why}; take another setting, or LeaveOneOut."
    )


_MODELS: Mapping[str, Callable[[Any, Values, Instances], _Near]] = {
    "LinearRegression": _least_squares,
    "Ridge": _least_squares,
    "LogisticRegression": _logistic,
    "PoissonRegressor": _tweedie,
    "GammaRegressor": _tweedie,
    "TweedieRegressor": _tweedie,
}
