"""What the outputs of a module mean, where its loss is one that is known by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.models.learner import Empty, Output

MODULES = {
    nn.CrossEntropyLoss: "cross_entropy",
    nn.BCEWithLogitsLoss: "bce_with_logits",
    nn.MSELoss: "mse",
}


@dataclass(frozen=True)
class Outputs:
    """The outputs of a module for one instance, as its loss reads them.

    Attributes
    ----------
    loss : str or None
        The name of the loss; None: it is not one of those that are known.
    shape : tuple of int
        The shape of the output.
    classes : int
        How many classes; 0: the targets are not classes.
    """

    loss: str | None
    shape: tuple[int, ...] = ()
    classes: int = 0

    @property
    def kind(self) -> Output | None:
        """What a trainer says of them."""
        if self.classes:
            return "logits"
        return "values" if self.loss == "mse" and len(self.shape) < 2 else None

    def read(self, outputs: Tensor) -> Tensor:
        """Return the logits of all classes, ``(T, C)``, or the values, ``(T,)`` or ``(T, o)``."""
        if self.loss == "bce_with_logits":
            logit = outputs.reshape(-1, 1)
            return nn.functional.pad(logit, (1, 0))  # against a logit of 0
        return outputs.squeeze(1) if self.shape == (1,) else outputs

    def targets(self, labels: NDArray[Any] | None, role: str) -> NDArray[Any] | None:
        """Return the classes, ``(T,)``, or the targets of a regression; None: there are none.

        Raises
        ------
        InvalidInputError
            If a label is not one of the classes.
        """
        if labels is None or self.kind is None:
            return None
        if not self.classes:
            values = np.asarray(labels, np.float64).reshape(len(labels), *self.shape)
            return values[:, 0] if self.shape == (1,) else values
        classes = labels.reshape(len(labels)).astype(np.int64)
        wrong = (classes != labels.reshape(len(labels))) | (classes < 0)
        wrong |= classes >= self.classes
        if wrong.any():
            raise InvalidInputError(
                f"{role}: label {labels[wrong].ravel()[0]} is not a class of the module, which "
                f"has {self.classes}, from 0 to {self.classes - 1}."
            )
        return classes

    def constant(self, kind: Empty, labels: NDArray[Any] | None) -> NDArray[np.float64]:
        """Return the output of a model that knows no features, in the shape of an output.

        Raises
        ------
        MethodCapabilityError
            If the loss does not tell which one that is.
        """
        if self.loss == "cross_entropy" and self.classes and labels is not None:
            if kind == "uniform":
                return np.zeros(self.shape)
            found = np.bincount(labels.ravel().astype(np.int64), minlength=self.classes) + 1.0
            return np.asarray(np.log(found / found.sum()))
        if self.loss == "bce_with_logits" and labels is not None:
            if kind == "uniform":
                return np.zeros(self.shape)
            of_ones = (labels.reshape(len(labels), -1).sum(0) + 1.0) / (len(labels) + 2.0)
            return np.asarray(np.log(of_ones / (1 - of_ones)).reshape(self.shape))
        if self.loss == "mse" and kind == "prior" and labels is not None:
            mean = labels.reshape(len(labels), -1).mean(0, dtype=np.float64)
            return np.asarray(mean.reshape(self.shape))
        raise MethodCapabilityError(
            f"empty={kind!r}: this learner's risk does not tell which constant output stands for "
            f"no training instance; use empty='init' (the untrained network) or a number."
        )


def outputs_of(loss: Any, output: Any, labels: NDArray[Any] | None) -> Outputs:
    """Return what outputs mean to a loss.

    Parameters
    ----------
    loss : object
        What the user gave: a name, a loss module, or something else.
    output : Tensor, optional
        The module's output for a few training instances.
    labels : ndarray, optional
        The labels of the training set.
    """
    name = loss if isinstance(loss, str) else MODULES.get(type(loss))
    if name not in MODULES.values() or not isinstance(output, Tensor) or labels is None:
        return Outputs(None)
    shape = tuple(output.shape[1:])
    single = labels.size == len(labels)
    if (
        name == "cross_entropy"
        and len(shape) == 1
        and single
        and (labels == np.floor(labels)).all()
    ):
        return Outputs(name, shape, shape[0])
    if name == "bce_with_logits" and single and output.numel() == len(output):
        return Outputs(name, shape, 2 if np.isin(labels, (0, 1)).all() else 0)
    return Outputs(None if name == "cross_entropy" else name, shape)
