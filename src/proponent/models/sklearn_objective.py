"""What fitted scikit-learn linear models minimise, written as ``mean risk + weight decay``.

scikit-learn scales losses and penalties differently for each estimator; here each becomes

    (1/n) sum_i risk_i + (lambda / 2) ||coef||^2        (the intercept has a decay of its own)

with the library's risks: the squared error ``(y - f)^2``, its mean over several outputs, or the
cross-entropy. scikit-learn itself is not imported: a fitted estimator says all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.models.risk import LOSSES, Loss
from proponent.models.sklearn_parts import scikit_learn_class

CROSS_VALIDATED = "{} was chosen by cross-validation: it is held fixed, whatever is left out."
REFIT = "a refit with the same {} without an instance is what loo_convention={!r} means."
BALANCED = "the balanced class weights are held fixed, whatever is left out."
WEIGHTED = "risks, those of test instances too, are multiplied by the class weights."


@dataclass(frozen=True)
class Objective:
    """The minimised function of a linear model.

    Attributes
    ----------
    loss : str or callable
        The risk of outputs and targets, as :class:`~proponent.models.torch.TorchModel` takes it.
    weight_decay, intercept_decay : float
        lambda of the coefficients and of the intercept.
    codes : array of shape (classes,) or (classes, outputs), optional
        The target that stands for each class, in the order of ``classes_``; None: regression.
    softmax : bool
        Whether the outputs matter only relative to each other.
    notes : tuple of str
        What a reader of the numbers should know.
    """

    loss: str | Loss
    weight_decay: float
    intercept_decay: float = 0.0
    codes: NDArray[Any] | None = None
    softmax: bool = False
    notes: tuple[str, ...] = ()

    def risk(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the risk of each instance, ``(n,)``, of outputs ``(n, outputs)``."""
        loss = LOSSES[self.loss] if isinstance(self.loss, str) else self.loss
        return loss(outputs, targets)


def objective_of(estimator: Any, labels: NDArray[Any]) -> Objective:
    """Return what a fitted linear model minimises.

    Parameters
    ----------
    estimator : scikit-learn linear model
        Fitted.
    labels : array of shape (n, ...)
        Its training labels.

    Raises
    ------
    InvalidInputError
        If the objective has no second derivative, is not one sum over the instances, or is not
        known.
    """
    name = scikit_learn_class(estimator).__name__
    if name not in _OBJECTIVES:
        raise InvalidInputError(
            f"model: {name} is not among the linear models whose objective is known "
            f"({', '.join(_OBJECTIVES)}); measure leave-one-out by retraining it instead."
        )
    if getattr(estimator, "positive", False):
        raise refused(
            estimator, "positive=True makes the minimum no stationary point", "fit without it"
        )
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    return _OBJECTIVES[name](estimator, labels)


def refused(estimator: object, why: str, instead: str) -> InvalidInputError:
    """Return the error, to be raised, for an estimator that cannot be studied."""
    return InvalidInputError(f"model: {type(estimator).__name__}: {why}; {instead}.")


def _least_squares(estimator: Any, labels: NDArray[Any]) -> Objective:
    """``sum_i ||y_i - f_i||^2``."""
    return Objective("mse", 0.0)


def _ridge(estimator: Any, labels: NDArray[Any]) -> Objective:
    """``sum_i ||y_i - f_i||^2 + alpha ||coef||^2``, so lambda = 2 alpha / (n outputs)."""
    alpha, notes = _chosen(estimator, "alpha")
    different = np.unique(np.asarray(alpha, float))
    if len(different) > 1:
        raise refused(
            estimator, "its outputs have different alpha", "fit and study a model for each output"
        )
    outputs = np.atleast_2d(estimator.coef_).shape[0]
    decay = 2 * float(different[0]) / (len(labels) * outputs)
    return Objective("mse", decay, notes=(REFIT.format("alpha", "fixed_divisor"), *notes))


def _ridge_classifier(estimator: Any, labels: NDArray[Any]) -> Objective:
    """Ridge regression on targets 1 for an instance's class and -1 for the others."""
    if labels.ndim > 1:
        raise refused(
            estimator, "it was fitted to several labels an instance", "fit one for each label"
        )
    ridge, count = _ridge(estimator, labels), len(estimator.classes_)
    codes = np.array([-1.0, 1.0]) if count == 2 else 2 * np.eye(count) - 1
    loss, notes = _weighted("mse", estimator, labels, _class_of_sign)
    return Objective(loss, ridge.weight_decay, codes=codes, notes=(*ridge.notes, *notes))


def _logistic(estimator: Any, labels: NDArray[Any]) -> Objective:
    """``C sum_i risk_i + (1/2) ||coef||^2``, so lambda = 1 / (n C)."""
    count, liblinear = len(estimator.classes_), estimator.solver == "liblinear"
    scheme = getattr(estimator, "multi_class", "auto")  # until scikit-learn 1.8
    if count > 2 and (liblinear or scheme == "ovr"):
        raise refused(
            estimator,
            "its classes are fitted one against the rest, each with a risk of its own",
            "fit it with the solver 'lbfgs', or study a model for each class",
        )
    if count == 2 and scheme == "multinomial":
        raise refused(
            estimator, "multi_class='multinomial' for two classes", "fit with multi_class='auto'"
        )
    if getattr(estimator, "refit", True) is False:
        raise refused(
            estimator, "refit=False averages the coefficients of the folds", "use refit=True"
        )
    penalty = estimator.penalty
    if penalty == "deprecated":  # since scikit-learn 1.8 l1_ratio alone says which penalty
        penalty = "elasticnet"
    _refuse_l1(estimator, penalty, _chosen(estimator, "l1_ratio")[0])
    strength, notes = _chosen(estimator, "C")
    # Cross-validation repeats the one C for each class.
    decay = 0.0 if penalty is None else 1 / (len(labels) * float(np.ravel(strength)[0]))
    loss, weighting = _cross_entropy(estimator, labels)
    return Objective(
        loss,
        decay,
        # liblinear penalises the weight of a constant feature of this size.
        decay / estimator.intercept_scaling**2 if liblinear else 0.0,
        codes=np.arange(count),
        softmax=count > 2,
        notes=(REFIT.format("C", "fixed_divisor"), *notes, *weighting),
    )


def _sgd_classifier(estimator: Any, labels: NDArray[Any]) -> Objective:
    """``(1/n) sum_i risk_i + (alpha/2) ||coef||^2``."""
    if estimator.loss != "log_loss":
        raise refused(estimator, f"loss={estimator.loss!r}", "only 'log_loss' is known")
    if len(estimator.classes_) > 2:
        raise refused(
            estimator,
            "its classes are fitted one against the rest, each with a risk of its own",
            "use LogisticRegression, or study a model for each class",
        )
    _refuse_l1(estimator, estimator.penalty, estimator.l1_ratio)
    loss, notes = _cross_entropy(estimator, labels)
    decay = 0.0 if estimator.penalty is None else float(estimator.alpha)
    notes = (REFIT.format("alpha", "renormalised"), *notes)
    return Objective(loss, decay, codes=np.arange(2), notes=notes)


def _sgd_regressor(estimator: Any, labels: NDArray[Any]) -> Objective:
    """``(1/n) sum_i (y_i - f_i)^2 / 2 + (alpha/2) ||coef||^2``, so lambda = 2 alpha."""
    if estimator.loss != "squared_error":
        raise refused(estimator, f"loss={estimator.loss!r}", "only 'squared_error' is known")
    _refuse_l1(estimator, estimator.penalty, estimator.l1_ratio)
    decay = 0.0 if estimator.penalty is None else 2 * float(estimator.alpha)
    return Objective("mse", decay, notes=(REFIT.format("alpha", "renormalised"),))


_OBJECTIVES: Mapping[str, Callable[[Any, NDArray[Any]], Objective]] = {
    "LinearRegression": _least_squares,
    "Ridge": _ridge,
    "RidgeCV": _ridge,
    "RidgeClassifier": _ridge_classifier,
    "RidgeClassifierCV": _ridge_classifier,
    "LogisticRegression": _logistic,
    "LogisticRegressionCV": _logistic,
    "SGDClassifier": _sgd_classifier,
    "SGDRegressor": _sgd_regressor,
}


def _chosen(estimator: Any, name: str) -> tuple[Any, tuple[str, ...]]:
    """Return a setting, as given or as cross-validation chose it, and a note if it did."""
    if hasattr(estimator, f"{name}_"):
        return getattr(estimator, f"{name}_"), (CROSS_VALIDATED.format(name),)
    return getattr(estimator, name), ()


def _refuse_l1(estimator: Any, penalty: str | None, l1_ratio: Any) -> None:
    share = {"l1": 1.0, "elasticnet": l1_ratio}.get(penalty or "", 0.0)
    if np.ravel(share).any():  # None is no share
        raise refused(
            estimator,
            "the L1 penalty has no second derivative where coefficients are zero",
            "fit with the l2 penalty, or measure leave-one-out by retraining",
        )


def _cross_entropy(estimator: Any, labels: NDArray[Any]) -> tuple[str | Loss, tuple[str, ...]]:
    name = "bce_with_logits" if len(estimator.classes_) == 2 else "cross_entropy"
    return _weighted(name, estimator, labels, Tensor.long)


def _weighted(
    name: str,
    estimator: Any,
    labels: NDArray[Any],
    class_of: Callable[[Tensor], Tensor],
) -> tuple[str | Loss, tuple[str, ...]]:
    """Return the named loss, times the weight of the target's class where classes have weights."""
    if estimator.class_weight is None:
        return name, ()
    from sklearn.utils.class_weight import compute_class_weight

    found = compute_class_weight(estimator.class_weight, classes=estimator.classes_, y=labels)
    weights, plain = torch.as_tensor(np.asarray(found, float)), LOSSES[name]

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return weights.to(output)[class_of(target)] * plain(output, target)

    balanced = isinstance(estimator.class_weight, str)
    return loss, (WEIGHTED, BALANCED) if balanced else (WEIGHTED,)


def _class_of_sign(target: Tensor) -> Tensor:
    """Return the class of targets -1 and 1, ``(batch,)``."""
    return target.argmax(1) if target.ndim > 1 else (target > 0).long()
