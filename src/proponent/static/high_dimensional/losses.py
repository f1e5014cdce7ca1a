"""Losses of the outputs of a linear or bilinear model, with the derivatives that are needed.

Targets are arrays of the outputs' shape (n, k): numbers for regression; for classification 1 for
the label's class and 0 for the others, or 1 and 0 for the two classes of a single output. The
losses are the library's risks of the same names (a mean over the outputs where there are several).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from typing_extensions import override

from proponent.static.high_dimensional.arrays import Array, row_sums

Targets = Any  # an array (n, k), or what the loss of a torch module takes; None without labels


class Loss(Protocol):
    """A loss that is convex and differentiable in the outputs."""

    def value(self, outputs: Array, targets: Targets) -> Array:
        """Return the loss of each instance, ``(n,)``."""

    def gradient(self, outputs: Array, targets: Targets) -> Array:
        """Return its derivative by the outputs, ``(n, k)``."""

    def product(self, outputs: Array, targets: Targets, directions: Array) -> Array:
        """Return its second derivative times directions ``(n, k)``, ``(n, k)``."""

    def label_directions(self, targets: Targets) -> Array | None:
        """Return in which direction the logit of the label's class grows, ``(n, k)``.

        1 at the label's class; for a single output of two classes 1 or -1. None if the outputs
        are no logits.
        """


class SquaredError(Loss):
    """``(y - f)^2``, mean over the outputs."""

    bound = 2.0  # of the second derivative of a single output

    @override
    def value(self, outputs: Array, targets: Array) -> Array:
        return row_sums(np.square(outputs - targets)) / len(outputs.T)

    @override
    def gradient(self, outputs: Array, targets: Array) -> Array:
        return (outputs - targets) * (2 / len(outputs.T))

    @override
    def product(self, outputs: Array, targets: Array, directions: Array) -> Array:
        return directions * (2 / len(outputs.T))

    @override
    def label_directions(self, targets: Array) -> None:
        return None


class Logistic(Loss):
    """Cross-entropy of two classes from one logit; of classes one against the rest, their mean."""

    bound = 0.25

    @override
    def value(self, outputs: Array, targets: Array) -> Array:
        return row_sums(np.logaddexp(0, outputs) - targets * outputs) / len(outputs.T)

    @override
    def gradient(self, outputs: Array, targets: Array) -> Array:
        return (_sigmoid(outputs) - targets) / len(outputs.T)

    @override
    def product(self, outputs: Array, targets: Array, directions: Array) -> Array:
        bend: Array = _sigmoid(outputs) * _sigmoid(-outputs) / len(outputs.T)
        return bend * directions

    @override
    def label_directions(self, targets: Array) -> Array:
        return _of_class(targets)


class Softmax(Loss):
    """Cross-entropy of several classes from their logits."""

    @override
    def value(self, outputs: Array, targets: Array) -> Array:
        highest: Array = outputs.max(axis=1, keepdims=True)
        normaliser: Array = highest[:, 0] + np.log(row_sums(np.exp(outputs - highest)))
        return normaliser - row_sums(targets * outputs)

    @override
    def gradient(self, outputs: Array, targets: Array) -> Array:
        return _probabilities(outputs) - targets

    @override
    def product(self, outputs: Array, targets: Array, directions: Array) -> Array:
        p = _probabilities(outputs)
        bent: Array = p * (directions - row_sums(p * directions)[:, None])
        return bent

    @override
    def label_directions(self, targets: Array) -> Array:
        return _of_class(targets)


class SquaredHinge(Loss):
    """``max(0, 1 - s f)^2`` with s = 1 for the label's class and -1 else, mean over the outputs."""

    @override
    def value(self, outputs: Array, targets: Array) -> Array:
        return row_sums(np.square(self._missing(outputs, targets))) / len(outputs.T)

    @override
    def gradient(self, outputs: Array, targets: Array) -> Array:
        return -2 / len(outputs.T) * (2 * targets - 1) * self._missing(outputs, targets)

    @override
    def product(self, outputs: Array, targets: Array, directions: Array) -> Array:
        return 2 / len(outputs.T) * (self._missing(outputs, targets) > 0) * directions

    @override
    def label_directions(self, targets: Array) -> Array:
        return _of_class(targets)

    def _missing(self, outputs: Array, targets: Array) -> Array:
        missing: Array = np.maximum(0, 1 - (2 * targets - 1) * outputs)
        return missing


@dataclass(frozen=True)
class ClassWeighted(Loss):
    """A loss times the weight of the label's class.

    Parameters
    ----------
    loss : Loss
        Of classification.
    weights : array of shape (classes,)
        One of each class.
    """

    loss: Loss
    weights: Array

    @override
    def value(self, outputs: Array, targets: Array) -> Array:
        return self._of(targets) * self.loss.value(outputs, targets)

    @override
    def gradient(self, outputs: Array, targets: Array) -> Array:
        return self._of(targets)[:, None] * self.loss.gradient(outputs, targets)

    @override
    def product(self, outputs: Array, targets: Array, directions: Array) -> Array:
        return self._of(targets)[:, None] * self.loss.product(outputs, targets, directions)

    @override
    def label_directions(self, targets: Array) -> Array | None:
        return self.loss.label_directions(targets)

    def _of(self, targets: Array) -> Array:
        single = targets.shape[1] == 1
        classes = (targets[:, 0] > 0).astype(int) if single else targets.argmax(axis=1)
        found: Array = self.weights[classes]
        return found


def _sigmoid(outputs: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0, -outputs)))


def _probabilities(outputs: Array) -> Array:
    shifted: Array = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return shifted / row_sums(shifted)[:, None]


def _of_class(targets: Array) -> Array:
    return 2 * targets - 1 if len(targets.T) == 1 else targets
