"""Fitted scikit-learn linear models with an L1 part in their penalty, and what they minimised.

scikit-learn scales losses and penalties differently for each; here each becomes

    mean risk + strength (l1_ratio ||coef||_1 + (1 - l1_ratio) / 2 ||coef||^2)

with the library's risks. Only liblinear penalises the intercept: it is then the coefficient of a
constant feature of size ``intercept_scaling``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.sklearn_encoder import Encoder
from proponent.models.sklearn_parts import dense, pipeline_parts, scikit_learn_class
from proponent.static.high_dimensional.arrays import Array
from proponent.static.high_dimensional.losses import (
    ClassWeighted,
    Logistic,
    Loss,
    Softmax,
    SquaredError,
    SquaredHinge,
)
from proponent.static.high_dimensional.penalties import ElasticNet
from proponent.static.high_dimensional.sparse import SparseLinear
from proponent.static.high_dimensional.study import inputs_of


class UnsuitableEstimatorError(InvalidInputError):
    """An estimator that cannot be studied; the message is the reason alone."""


@dataclass(frozen=True)
class _Objective:
    """What was minimised; ``strength`` is of the mean risk and 0 where there is no penalty."""

    loss: Loss
    strength: float
    l1_ratio: float
    penalised_constant: float | None = None


def is_scikit_learn(model: object) -> bool:
    """Whether an object is scikit-learn's, or of a class that derives from one of its."""
    return scikit_learn_class(model).__module__.startswith("sklearn.")


def sparse_linear(estimator: Any, train: Instances) -> SparseLinear:
    """Return a fitted estimator, or a pipeline that ends in one, as a sparse linear model.

    Raises
    ------
    UnsuitableEstimatorError
        If it is not fitted, not one whose objective is known, or has no L1 penalty.
    """
    transformers, final = pipeline_parts(estimator)
    name = scikit_learn_class(final).__name__
    if name not in _OBJECTIVES:
        raise UnsuitableEstimatorError(
            f"{name} is not among the estimators that are known: {', '.join(_OBJECTIVES)}."
        )
    if not hasattr(final, "coef_"):
        raise UnsuitableEstimatorError(f"The {name} is not fitted; call its fit(X, y) first.")
    codes = _codes(final)
    labels = train.labels()
    objective = _OBJECTIVES[name](final, np.empty(0) if labels is None else labels)
    if objective.strength * objective.l1_ratio == 0:
        raise UnsuitableEstimatorError(
            f"The {name} has no L1 penalty; for the L2 penalty use RepresenterPoint."
        )
    encoder = Encoder(final, transformers, codes)
    constant = objective.penalised_constant or 1.0
    coefficients = np.atleast_2d(dense(final.coef_)).astype(np.float64)
    penalised = np.ones(coefficients.shape[1])
    if final.fit_intercept:
        intercept = np.broadcast_to(np.asarray(final.intercept_, float), len(coefficients))
        coefficients = np.column_stack([coefficients, intercept / constant])
        penalised = np.append(penalised, objective.penalised_constant is not None)
    penalty = ElasticNet.of(
        objective.strength,
        objective.l1_ratio,
        penalised,
        nonnegative=bool(getattr(final, "positive", False)),
    )

    def read(instances: Instances, role: str) -> tuple[Array, Array]:
        encoded = encoder(instances, role=role)
        targets = np.asarray(encoded.labels(), np.float64)
        return inputs_of(encoded), targets.reshape(len(encoded), -1)

    return SparseLinear(
        coefficients, penalty, constant if final.fit_intercept else None, objective.loss, read
    )


def _least_squares(estimator: Any, labels: NDArray[Any]) -> _Objective:
    """``(1/2n) sum_i ||y_i - f_i||^2 + alpha (...)``, also by stochastic gradients."""
    if getattr(estimator, "loss", "squared_error") != "squared_error":
        raise UnsuitableEstimatorError(f"loss={estimator.loss!r}: only 'squared_error' is known.")
    outputs = np.atleast_2d(dense(estimator.coef_)).shape[0]
    return _Objective(SquaredError(), 2 * _one(estimator, "alpha") / outputs, _l1_ratio(estimator))


def _sgd_classifier(estimator: Any, labels: NDArray[Any]) -> _Objective:
    """``(1/n) sum_i risk_i + alpha (...)`` for each class against the rest, or for two classes."""
    losses: dict[str, Loss] = {"log_loss": Logistic(), "squared_hinge": SquaredHinge()}
    if estimator.loss not in losses:
        raise UnsuitableEstimatorError(
            f"loss={estimator.loss!r}: expected one of {', '.join(losses)}; a representer needs "
            f"the derivative of the loss."
        )
    outputs = dense(estimator.coef_).shape[0]
    loss = _weighted(losses[estimator.loss], estimator, labels)
    return _Objective(loss, float(estimator.alpha) / outputs, _l1_ratio(estimator))


def _logistic(estimator: Any, labels: NDArray[Any]) -> _Objective:
    """``C sum_i risk_i + (...)``."""
    count = len(estimator.classes_)
    if getattr(estimator, "refit", True) is False:
        raise UnsuitableEstimatorError("refit=False averages the coefficients of the folds: refit.")
    apart = getattr(estimator, "multi_class", "auto")  # until scikit-learn 1.8
    if count == 2 and apart == "multinomial":
        raise UnsuitableEstimatorError("multi_class='multinomial' for two classes: use 'auto'.")
    liblinear = estimator.solver == "liblinear"
    loss: Loss = Logistic() if count == 2 or liblinear or apart == "ovr" else Softmax()
    outputs = 1 if isinstance(loss, Softmax) else len(estimator.coef_)
    strength = 1 / (_one(estimator, "C") * len(labels) * outputs) if estimator.penalty else 0.0
    constant = float(estimator.intercept_scaling) if liblinear else None
    return _Objective(_weighted(loss, estimator, labels), strength, _l1_ratio(estimator), constant)


def _linear_svc(estimator: Any, labels: NDArray[Any]) -> _Objective:
    """``C sum_i risk_i + ||coef||_1`` for each class against the rest, or for two classes."""
    loss = _weighted(SquaredHinge(), estimator, labels)
    strength = 1 / (float(estimator.C) * len(labels) * len(estimator.coef_))
    constant = float(estimator.intercept_scaling)
    return _Objective(loss, strength, float(estimator.penalty == "l1"), constant)


_OBJECTIVES: dict[str, Callable[[Any, NDArray[Any]], _Objective]] = {
    "Lasso": _least_squares,
    "LassoCV": _least_squares,
    "LassoLars": _least_squares,
    "LassoLarsCV": _least_squares,
    "LassoLarsIC": _least_squares,
    "ElasticNet": _least_squares,
    "ElasticNetCV": _least_squares,
    "SGDRegressor": _least_squares,
    "LogisticRegression": _logistic,
    "LogisticRegressionCV": _logistic,
    "SGDClassifier": _sgd_classifier,
    "LinearSVC": _linear_svc,
}


def _l1_ratio(estimator: Any) -> float:
    """Return the share of the L1 norm in a penalty."""
    penalty = getattr(estimator, "penalty", "elasticnet")
    if "Lasso" in scikit_learn_class(estimator).__name__ or penalty == "l1":
        return 1.0
    # Since scikit-learn 1.8 a logistic regression says it by l1_ratio alone.
    return _one(estimator, "l1_ratio") if penalty in ("elasticnet", "deprecated") else 0.0


def _one(estimator: Any, name: str) -> float:
    """Return a setting as given, or as cross-validation chose it, if it is one for all outputs."""
    value = getattr(estimator, f"{name}_", getattr(estimator, name, None))
    values = np.unique(np.asarray(value, float))
    if len(values) > 1:
        raise UnsuitableEstimatorError(
            f"{name} differs between the outputs; study one output at a time."
        )
    return float(values[0])


def _weighted(loss: Loss, estimator: Any, labels: NDArray[Any]) -> Loss:
    if estimator.class_weight is None:
        return loss
    from sklearn.utils.class_weight import compute_class_weight

    if len(estimator.classes_) > 2 and not isinstance(loss, Softmax):
        raise UnsuitableEstimatorError(
            "class_weight for classes against the rest weighs each model differently; leave it out."
        )
    found = compute_class_weight(estimator.class_weight, classes=estimator.classes_, y=labels)
    return ClassWeighted(loss, np.asarray(found, np.float64))


def _codes(estimator: Any) -> Array | None:
    """Return the targets that stand for the classes of a classifier."""
    if not hasattr(estimator, "classes_"):
        return None
    count = len(estimator.classes_)
    return np.array([0.0, 1.0]) if count == 2 else np.eye(count)
