"""The mean risk of a training set as a function of linear parameters, with its derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.static.high_dimensional.arrays import Array
from proponent.static.high_dimensional.losses import Loss, Targets


class Risk(Protocol):
    """A mean risk that is convex in the parameters."""

    def value(self, theta: Array) -> float:
        """Return the mean risk."""

    def gradient(self, theta: Array) -> Array:
        """Return its gradient, in the shape of theta."""


@dataclass(frozen=True)
class LinearRisk(Risk):
    """``(1/n) sum_i loss(intercept + theta x_i, y_i)`` with theta ``(k, d)``.

    Attributes
    ----------
    features : array of shape (n, d)
        x.
    targets : array of shape (n, k)
        y, as the loss takes them.
    loss : Loss
        Of k outputs.
    intercept : float
        Added to the outputs, and held fixed.
    """

    features: Array
    targets: Targets
    loss: Loss
    intercept: float = 0.0

    @override
    def value(self, theta: Array) -> float:
        return float(self.loss.value(self._outputs(theta), self.targets).mean())

    @override
    def gradient(self, theta: Array) -> Array:
        slopes = self.loss.gradient(self._outputs(theta), self.targets)
        return slopes.T @ self.features / len(slopes)

    def product(self, theta: Array, directions: Array) -> Array:
        """Return the Hessian times directions ``(k, d)``."""
        turned = self.features @ directions.T
        bent = self.loss.product(self._outputs(theta), self.targets, turned)
        return bent.T @ self.features / len(bent)

    def _outputs(self, theta: Array) -> Array:
        return self.intercept + self.features @ theta.T


@dataclass(frozen=True)
class MatrixRisk(Risk):
    """``(1/n) sum_i loss(intercept + <X_i, theta>, y_i)`` with X_i and theta ``(a, b)``.

    Attributes
    ----------
    matrices : array of shape (n, a, b)
        X.
    targets : array of shape (n, 1)
        y, as the loss takes them.
    loss : Loss
        Of one output.
    intercept : float
        Added to the outputs, and held fixed.
    """

    matrices: Array
    targets: Targets
    loss: Loss
    intercept: float = 0.0

    @override
    def value(self, theta: Array) -> float:
        return self._flat.value(theta.reshape(1, -1))

    @override
    def gradient(self, theta: Array) -> Array:
        return self._flat.gradient(theta.reshape(1, -1)).reshape(theta.shape)

    @property
    def _flat(self) -> LinearRisk:
        features = self.matrices.reshape(len(self.matrices), -1)
        return LinearRisk(features, self.targets, self.loss, self.intercept)


@dataclass(frozen=True)
class EntryRisk(Risk):
    """``(1/n) sum_i loss(intercept + theta[u_i, v_i], y_i)``: each sees one entry of theta.

    Attributes
    ----------
    pairs : integer array of shape (n, 2)
        Rows u and columns v.
    targets : array of shape (n, 1)
        y, as the loss takes them.
    loss : Loss
        Of one output.
    intercept : float
        Added to the outputs, and held fixed.
    """

    pairs: NDArray[np.intp]
    targets: Targets
    loss: Loss
    intercept: float = 0.0

    @override
    def value(self, theta: Array) -> float:
        return float(self.loss.value(self._outputs(theta), self.targets).mean())

    @override
    def gradient(self, theta: Array) -> Array:
        slopes = self.loss.gradient(self._outputs(theta), self.targets)[:, 0]
        summed = np.zeros_like(theta)
        np.add.at(summed, (self.pairs[:, 0], self.pairs[:, 1]), slopes / len(slopes))
        return summed

    def _outputs(self, theta: Array) -> Array:
        return self.intercept + theta[self.pairs[:, 0], self.pairs[:, 1]][:, None]
