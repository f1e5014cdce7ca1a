"""From predictions to risks, for every learner that does not need torch.

A :class:`Classification` or a :class:`Regression` is made from the labels of the whole training
set once. It turns test labels into targets, predictions into risks, and says what is predicted
without a single training instance. Arrays of predictions may have any axes in front, such as one
for K submodels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.models.labels import Classes, Positions, Values, labels_of, listed, targets_of

__all__ = [
    "Classes",
    "Classification",
    "ClassificationRisk",
    "Positions",
    "Regression",
    "RegressionRisk",
    "Values",
    "check_smoothing",
    "classification_risks",
    "labels_of",
    "one_of",
    "regression_risks",
    "targets_of",
]

ClassificationRisk = Literal["cross_entropy", "zero_one", "brier"]
RegressionRisk = Literal["squared", "absolute"]

SMOOTHING = 1e-3


@dataclass(frozen=True)
class Classification:
    """How predicted probabilities of classes are judged.

    Attributes
    ----------
    classes : Classes
        Of the whole training set.
    risk : {"cross_entropy", "zero_one", "brier"}
        See :func:`classification_risks`.
    smoothing : float
        See :func:`classification_risks`.
    """

    classes: Classes
    risk: ClassificationRisk = "cross_entropy"
    smoothing: float = SMOOTHING

    output: ClassVar[Literal["probabilities", "values"]] = "probabilities"

    def __post_init__(self) -> None:
        """Refuse settings that do not exist."""
        one_of(self.risk, get_args(ClassificationRisk), "risk of a classifier")
        check_smoothing(self.smoothing)

    def targets(self, instances: Instances, role: str = "test") -> Positions:
        """Return the position of each instance's class, ``(T,)``."""
        return self.classes.positions(labels_of(instances, role), role)

    def risks(self, outputs: Values, targets: NDArray[Any], ids: NDArray[Any]) -> Values:
        """Return risks ``(..., T)`` of probabilities ``(..., T, C)``."""
        return classification_risks(outputs, targets, ids, risk=self.risk, smoothing=self.smoothing)

    def constant(self, kind: str) -> Values:
        """Return the probabilities ``(C,)`` without a model, as ``Trainer.constant`` says."""
        if kind not in ("prior", "uniform"):
            raise _no_constant(kind, "'prior' or 'uniform'")
        return self.classes.prior if kind == "prior" else self.classes.uniform


@dataclass(frozen=True)
class Regression:
    """How predicted values are judged.

    Attributes
    ----------
    mean : ndarray of shape () or (outputs,)
        Mean target of the whole training set.
    risk : {"squared", "absolute"}
        See :func:`regression_risks`.
    """

    mean: Values
    risk: RegressionRisk = "squared"

    output: ClassVar[Literal["probabilities", "values"]] = "values"

    def __post_init__(self) -> None:
        """Refuse settings that do not exist."""
        one_of(self.risk, get_args(RegressionRisk), "risk of a regressor")

    @classmethod
    def of(cls, targets: Values, risk: RegressionRisk = "squared") -> Regression:
        """Return what the targets of a whole training set, ``(n,)`` or ``(n, outputs)``, make."""
        return cls(np.asarray(targets.mean(axis=0)), risk)

    def targets(self, instances: Instances, role: str = "test") -> Values:
        """Return the target of each instance, ``(T,)`` or ``(T, outputs)``."""
        targets = targets_of(instances, role)
        if targets.shape[1:] != self.mean.shape:
            raise InvalidInputError(
                f"{role}: targets of shape {targets.shape} do not fit the training set's, of "
                f"shape {('n', *self.mean.shape)}."
            )
        return targets

    def risks(self, outputs: Values, targets: NDArray[Any], ids: NDArray[Any]) -> Values:
        """Return risks ``(..., T)`` of values ``(..., T)`` or ``(..., T, outputs)``."""
        return regression_risks(outputs, targets, risk=self.risk)

    def constant(self, kind: str) -> Values:
        """Return the value ``()`` or ``(outputs,)`` without a model: the mean target."""
        if kind != "prior":
            raise _no_constant(kind, "'prior' (the mean target)")
        return self.mean


def classification_risks(
    probabilities: Values,
    targets: Positions,
    ids: NDArray[Any],
    *,
    risk: ClassificationRisk = "cross_entropy",
    smoothing: float = SMOOTHING,
) -> Values:
    """Return the risk of predicted probabilities, ``(..., T)``.

    Parameters
    ----------
    probabilities : ndarray of shape (..., T, C)
        NaN for a submodel that failed, whose risks are then NaN.
    targets : ndarray of shape (T,)
        Position of each instance's class.
    ids : ndarray of shape (T,)
        What the instances are called in messages.
    risk : {"cross_entropy", "zero_one", "brier"}
        ``-log((1 - smoothing) p_y + smoothing / C)`` in nats; ``1`` where another class has a
        larger probability (of equal ones the first counts); ``sum_c (p_c - 1[c = y])^2``.
    smoothing : float
        How much of the uniform distribution is mixed in for the cross-entropy, so that a class of
        probability 0, such as one that is missing in a subset, costs a finite amount.

    Raises
    ------
    NonFiniteError
        If a risk is infinite, which only ``smoothing=0`` allows.
    """
    if risk == "zero_one":
        wrong = (probabilities.argmax(axis=-1) != targets).astype(np.float64)
        return np.where(np.isnan(probabilities).any(axis=-1), np.nan, wrong)
    of_target = _of_class(probabilities, targets)
    if risk == "brier":
        return np.asarray(np.square(probabilities).sum(axis=-1) - 2.0 * of_target + 1.0)
    with np.errstate(divide="ignore"):
        mixed = (1.0 - smoothing) * of_target + smoothing / probabilities.shape[-1]
        risks = np.asarray(-np.log(mixed))
    infinite = np.isinf(risks).any(axis=tuple(range(risks.ndim - 1)))
    if infinite.any():
        raise NonFiniteError(
            f"the cross-entropy of the test instances {listed(ids[infinite].tolist())} is "
            f"infinite: a submodel gives their class probability 0. Set smoothing=1e-3, or "
            f"risk='brier'."
        )
    return risks


def regression_risks(
    values: Values, targets: Values, *, risk: RegressionRisk = "squared"
) -> Values:
    """Return the risk of predicted values, ``(..., T)``, summed over several outputs.

    Parameters
    ----------
    values : ndarray of shape (..., T) or (..., T, outputs)
    targets : ndarray of shape (T,) or (T, outputs)
    risk : {"squared", "absolute"}
        ``(f - y)^2`` or ``|f - y|``.
    """
    errors = values - targets
    risks = np.square(errors) if risk == "squared" else np.abs(errors)
    return np.asarray(risks if targets.ndim == 1 else risks.sum(axis=-1))


def one_of(value: Any, allowed: tuple[Any, ...], name: str) -> None:
    """Refuse what is not one of a few names."""
    if value not in allowed:
        listed = ", ".join(map(repr, allowed))
        raise InvalidInputError(f"{name}: expected one of {listed}; got {value!r}.")


def check_smoothing(smoothing: float) -> None:
    """Refuse a smoothing that is no share."""
    if isinstance(smoothing, bool) or not 0.0 <= smoothing < 1.0:
        raise InvalidInputError(
            f"smoothing: expected the share of the uniform distribution, at least 0 and below 1; "
            f"got {smoothing!r}."
        )


def _of_class(probabilities: Values, targets: Positions) -> Values:
    """Return the probability of each instance's class, ``(..., T)``."""
    return probabilities[..., np.arange(len(targets)), targets]


def _no_constant(kind: str, known: str) -> MethodCapabilityError:
    return MethodCapabilityError(
        f"empty={kind!r}: this model has no such form without training instances; choose "
        f"{known}, or give the utility of the empty set as a number."
    )
