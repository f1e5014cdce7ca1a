"""A model's predictions as sums over its training set, and how near the sums come to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.static.high_dimensional.arrays import Array, row_sums
from proponent.static.high_dimensional.kernels import Form, Kernel
from proponent.static.high_dimensional.losses import Loss
from proponent.static.high_dimensional.study import Refinement, Study

Signed = Literal["logit", "loss", "prediction"]
# What the scores of a test instance sum to.
SUMS: dict[Signed, str] = {
    "logit": "the logit of the label's class",
    "loss": "the outputs times minus the derivatives of the loss by them",
    "prediction": "the prediction",
}

# Sums that miss predictions by more than this, relatively, are warned about: of a model as it
# was given, and of one that was refined.
LARGE_ERROR, LARGE_REFINED_ERROR = 1e-3, 1e-6
# By how much, relatively, a refinement may move predictions without a warning.
LARGE_SHIFT = 0.05
NAMED = 10  # instances that a message names


@dataclass(frozen=True)
class Asked:
    """What is asked of m instances: how much of each of their k outputs.

    Attributes
    ----------
    inputs : object
        What the kernel compares.
    weights : array of shape (m, k)
        How much of each output.
    represented : array of shape (m,)
        What all scores of an instance together should come to.
    intercept : array of shape (m,)
        What the intercept adds to that.
    """

    inputs: Any
    weights: Array
    represented: Array
    intercept: Array


@dataclass(frozen=True)
class Decomposition:
    """The predictions of a study as sums over a training set.

    Attributes
    ----------
    study : Study
        The model.
    kernel : Kernel
        Its kernel, with the training set.
    signed : "logit", "loss" or "prediction"
        What the sums are of.
    weights : array of shape (n, k)
        What is asked of the training set about itself.
    kkt_residual : float
        How far the model is from the optimum of its objective, relative to lambda.
    error : float
        How far the sums are from the predictions of the training set, relatively.
    is_constant : bool
        Whether nothing but the intercept is left of the model.
    shift : float, optional
        By how much, relatively, refining has moved these predictions.
    """

    study: Study
    kernel: Kernel
    signed: Signed
    weights: Array
    kkt_residual: float
    error: float
    is_constant: bool
    shift: float | None

    @classmethod
    def of(
        cls,
        study: Study,
        train: Instances,
        *,
        form: Form,
        signed: Signed | None,
        refinement: Refinement | None,
    ) -> Decomposition:
        """Decompose a model's predictions, where asked for after refining it.

        Raises
        ------
        InvalidInputError
            If the training set has no labels, or the model has not what is to be explained.
        NonFiniteError
            If a prediction or the derivative of a loss is not finite.
        """
        inputs, targets = study.read(train, "train")
        if targets is None:
            raise InvalidInputError("train: the set has no labels; pass an (X, y) pair.")
        given, shift = study.outputs(inputs), None
        _check_finite(given, train, "predictions")
        _check_finite(study.loss.gradient(given, targets), train, "derivatives of the loss")
        outputs = given
        if refinement is not None:
            study = study.refined(inputs, targets, refinement)
            outputs = study.outputs(inputs)
            shift = relative_distance(outputs, given)
        if signed is None:
            signed = "loss" if study.loss.label_directions(targets) is None else "logit"
        slopes = study.loss.gradient(outputs, targets) / len(outputs)
        kernel = study.kernel(inputs, slopes, form)
        asked = _asked(study, inputs, targets, signed)
        return cls(
            study,
            kernel,
            signed,
            asked.weights,
            study.kkt_residual(inputs, targets),
            relative_distance(kernel.total(inputs, asked.weights), asked.represented),
            not (outputs - study.intercept).any(),
            shift,
        )

    def ask(self, test: Instances) -> Asked:
        """Return what is asked of test instances.

        Raises
        ------
        InvalidInputError
            If they are not of the model's kind, or labels are needed and missing.
        """
        return _asked(self.study, *self.study.read(test, "test"), self.signed)

    def diagnostics(self, test: Asked | None) -> dict[str, Any]:
        """Return what there is to know about a decomposition, and about that of a test set."""
        without = ", without the intercept" * bool(self.study.intercept.any())
        noticed: dict[str, Any] = {
            "signed": self.signed,
            "sum_of_scores": SUMS[self.signed] + without,
            "kkt_residual": self.kkt_residual,
            "training_decomposition_error": self.error,
            "intercept": [float(part) for part in self.study.intercept],
            **self.study.size(),
        }
        if self.shift is not None:
            noticed["refined_shift"] = self.shift
        warnings = self._warnings()
        if test is not None:
            error = test.represented - self.kernel.total(test.inputs, test.weights)
            constant = float(np.abs(test.intercept).sum())
            whole = constant + float(np.abs(test.represented).sum())
            noticed["decomposition_error"] = float(np.abs(error).max())
            noticed["intercept_share"] = constant / whole if whole > 0 else 0.0
            warnings += self.kernel.warnings(test.inputs)
        return {**noticed, "warnings": warnings}

    def _warnings(self) -> list[str]:
        found = []
        if self.is_constant:
            found.append("the penalty has left nothing but a constant: all scores are zero.")
        how = f"The residual of its optimality conditions is {self.kkt_residual:.1e} of the penalty"
        if self.shift is None and self.error > LARGE_ERROR:
            found.append(
                f"the scores sum to the predictions only to within {self.error:.1%}, for the model "
                f"is not at the minimum of its objective. {how}. Pass refine=True, or fit it with "
                f"tol=1e-10 and more iterations. If neither helps, it was fitted to other data, "
                f"with sample weights, or with another penalty than is said."
            )
        if self.shift is not None and self.error > LARGE_REFINED_ERROR:
            found.append(
                f"refining ended before the minimum: the scores sum to the predictions to within "
                f"{self.error:.1e}. {how}; raise max_iterations."
            )
        if self.shift is not None and self.shift > LARGE_SHIFT:
            found.append(
                f"refining has moved the predictions by {self.shift:.0%}: it is the refined model "
                f"that is explained. If that is a surprise, check the penalty and the training set."
            )
        return found


def _asked(study: Study, inputs: Any, targets: Any, signed: Signed) -> Asked:
    outputs = study.outputs(inputs)
    weights = _directions(study.loss, outputs, targets, signed)
    constant = weights @ study.intercept
    return Asked(inputs, weights, row_sums(weights * outputs) - constant, constant)


def _directions(loss: Loss, outputs: Array, targets: Any, signed: Signed) -> Array:
    """Return how much of each output is asked for, ``(m, k)``."""
    if signed == "prediction":
        if len(outputs.T) > 1:
            raise InvalidInputError(
                f"signed='prediction': the model has {len(outputs.T)} outputs, not one; use "
                f"signed='logit' for the class of the label, or signed='loss'."
            )
        return np.ones_like(outputs)
    if targets is None:
        raise InvalidInputError(
            f"test: signed={signed!r} needs labels; pass an (X, y) pair, or choose "
            f"signed='prediction'."
        )
    if signed == "loss":
        return -loss.gradient(outputs, targets)
    found = loss.label_directions(targets)
    if found is None:
        raise InvalidInputError(
            "signed='logit': the outputs are no logits of classes. Use signed='loss', or "
            "signed='prediction' for the contributions to the number that is predicted."
        )
    return found


def relative_distance(values: Array, others: Array) -> float:
    """Return the distance of two arrays by the larger norm."""
    size = float(max(np.linalg.norm(values), np.linalg.norm(others)))
    return float(np.linalg.norm(values - others)) / size if size > 0 else 0.0


def _check_finite(values: Array, train: Instances, what: str) -> None:
    wrong = train.ids[~np.isfinite(values).all(axis=1)]
    if len(wrong):
        listed = ", ".join(map(str, wrong[:NAMED])) + (", ..." if len(wrong) > NAMED else "")
        raise NonFiniteError(
            f"train: the {what} of {len(wrong)} instance(s) are not finite: ids {listed}. Look at "
            f"their features and labels, or leave them out of the set."
        )
