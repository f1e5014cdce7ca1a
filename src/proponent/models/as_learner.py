"""Whatever a user has that can be trained, as a learner."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from proponent.exceptions import InvalidInputError
from proponent.models.learner import Learner
from proponent.models.sklearn_learner import SklearnLearner
from proponent.models.sklearn_template import kind_of
from proponent.models.user_learner import UserLearner

FULL_RUN = 100  # scikit-learn's default max_iter; fewer iterations are meant to stop early


def as_learner(model: Any) -> Learner:
    """Return the learner that trains what was given, on any subset.

    - A learner is returned as it is.
    - An object (or its class) with ``fit`` and ``risk`` becomes a :class:`UserLearner`.
    - scikit-learn's ``LinearRegression``, ``Ridge``, ``LogisticRegression``,
      ``KNeighborsClassifier``, ``KNeighborsRegressor`` and ``GaussianNB`` become a learner that
      trains many subsets at once and finds the same model, where it has all the parameters that
      are set. Tolerances do not count: it finds the minimum itself. k larger than a subset is a
      failure in scikit-learn, and there a vote of all.
    - Other estimators and pipelines become a :class:`SklearnLearner`, as do the estimators of
      XGBoost, LightGBM and CatBoost.

    Parameters
    ----------
    model : Learner, estimator, or object with ``fit`` and ``risk``

    Returns
    -------
    Learner

    Raises
    ------
    InvalidInputError
        If it cannot be trained as it is; the message says what is needed instead.

    Examples
    --------
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> as_learner(DecisionTreeClassifier(max_depth=2))
    SklearnLearner(estimator=DecisionTreeClassifier(max_depth=2))
    """
    if isinstance(model, Learner):
        return model
    _refuse_fitted_kinds(model)
    if _has(model, "fit", "risk"):
        return UserLearner(model)
    if isinstance(model, type):
        raise InvalidInputError(
            f"model: got the class {model.__name__}; pass an instance, such as {model.__name__}()."
        )
    if _has(model, "fit", "predict", "get_params"):
        kind_of(model)  # refuses a clustering
        return _many_at_once(model) or SklearnLearner(model)
    raise InvalidInputError(
        f"model: {type(model).__name__} cannot be trained on subsets. Give a scikit-learn "
        f"estimator (or one of XGBoost, LightGBM or CatBoost), an object with fit(X, y) and "
        f"risk(X, y) -> (T,), pp.UserLearner(function that makes one), or pp.TorchLearner."
    )


def _refuse_fitted_kinds(model: Any) -> None:
    """Refuse what is trained already, or hides how it is."""
    if "torch" in sys.modules:
        from torch import nn

        from proponent.models.torch import TorchModel

        module = isinstance(model, (nn.Module, TorchModel))
        if module or (isinstance(model, type) and issubclass(model, nn.Module)):
            name = model.__name__ if isinstance(model, type) else type(model).__name__
            raise InvalidInputError(
                f"model: {name} does not say how it is trained. Use "
                f"pp.TorchLearner(module_factory, optimizer_factory, loss=..., epochs=...), where "
                f"module_factory() makes an untrained module and optimizer_factory(parameters) "
                f"its optimizer."
            )
    if type(model).__name__ in ("Booster", "CatBoost") and not _has(model, "fit", "predict_proba"):
        package = type(model).__module__.partition(".")[0]
        if package in ("xgboost", "lightgbm", "catboost"):
            raise InvalidInputError(
                f"model: this {package} model does not say whether it is a classifier or a "
                f"regressor; pass the scikit-learn estimator of {package}, such as XGBClassifier, "
                f"LGBMRegressor or CatBoostClassifier."
            )


@dataclass(frozen=True)
class _Rule:
    """When a learner that trains many subsets at once finds the same model as an estimator.

    Attributes
    ----------
    make : callable
        From the parameters to the learner; None: it has not these.
    needed : mapping
        Values that parameters must have.
    free : frozenset
        Parameters that ``make`` reads, or that do not change the model. Any other one, of a
        version of scikit-learn that is not known yet, must stand at its default.
    """

    make: Callable[[Mapping[str, Any]], Learner | None]
    needed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    free: frozenset[str] = frozenset()


def _many_at_once(estimator: Any) -> Learner | None:
    """Return the learner that trains many subsets of an estimator at once, if there is one."""
    kind = type(estimator)  # a subclass may do anything
    if not kind.__module__.startswith("sklearn.") or kind.__name__ not in _RULES:
        return None
    rule, parameters = _RULES[kind.__name__], estimator.get_params(deep=False)
    defaults = inspect.signature(kind).parameters
    for name, value in parameters.items():
        if name in rule.free:
            continue
        allowed = rule.needed.get(name, (defaults[name].default,))
        if not any(_equal(value, one) for one in allowed):
            return None
    return rule.make(parameters)


def _linear(parameters: Mapping[str, Any]) -> Learner | None:
    from proponent.models.linear_learner import LinearLearner

    alpha = parameters.get("alpha", 0.0)
    if not _is_number(alpha) or not 0.0 <= alpha < np.inf:
        return None
    return LinearLearner(float(alpha), fit_intercept=bool(parameters["fit_intercept"]))


def _logistic(parameters: Mapping[str, Any]) -> Learner | None:
    from proponent.models.logistic_learner import LogisticLearner

    C = parameters["C"]
    plain = _is_number(C) and 0.0 < C < np.inf and _is_number(parameters["max_iter"])
    if not plain or parameters["max_iter"] < FULL_RUN:
        return None
    return LogisticLearner(float(C), fit_intercept=bool(parameters["fit_intercept"]))


def _nearest(parameters: Mapping[str, Any], task: Any) -> Learner | None:
    from proponent.models.nearest_learner import NearestNeighboursLearner

    euclidean = parameters["metric"] == "euclidean" or (
        parameters["metric"] == "minkowski" and parameters["p"] == 2
    )
    k = parameters["n_neighbors"]
    if not euclidean or not _is_number(k) or k < 1 or k != int(k):
        return None
    return NearestNeighboursLearner(int(k), task=task)


def _bayes(parameters: Mapping[str, Any]) -> Learner | None:
    from proponent.models.bayes_learner import GaussianNaiveBayesLearner

    return GaussianNaiveBayesLearner(parameters["var_smoothing"], priors=parameters["priors"])


_NEIGHBOURS = frozenset({"n_neighbors", "metric", "p", "algorithm", "leaf_size", "n_jobs"})

_RULES: dict[str, _Rule] = {
    "LinearRegression": _Rule(_linear, free=frozenset({"fit_intercept", "copy_X", "n_jobs"})),
    "Ridge": _Rule(
        _linear,
        free=frozenset(
            {"alpha", "fit_intercept", "copy_X", "solver", "tol", "max_iter", "random_state"}
        ),
    ),
    # liblinear penalises the intercept too.
    "LogisticRegression": _Rule(
        _logistic,
        needed={
            "penalty": ("l2", "deprecated"),
            "l1_ratio": (None, 0.0),
            "solver": ("lbfgs", "newton-cg", "newton-cholesky", "sag", "saga"),
            "multi_class": ("auto", "deprecated"),
        },
        free=frozenset(
            {"C", "fit_intercept", "max_iter", "tol", "random_state"}
            | {"n_jobs", "verbose", "warm_start", "intercept_scaling"}
        ),
    ),
    "KNeighborsClassifier": _Rule(
        lambda parameters: _nearest(parameters, "classification"), free=_NEIGHBOURS
    ),
    "KNeighborsRegressor": _Rule(
        lambda parameters: _nearest(parameters, "regression"), free=_NEIGHBOURS
    ),
    "GaussianNB": _Rule(_bayes, free=frozenset({"var_smoothing", "priors"})),
}


def _has(model: Any, *methods: str) -> bool:
    return all(callable(getattr(model, name, None)) for name in methods)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def _equal(value: Any, other: Any) -> bool:
    """Whether two settings are the same; an array is none of the known ones."""
    if value is other:
        return True
    return type(value) in (bool, int, float, str) and bool(value == other)
