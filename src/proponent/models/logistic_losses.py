"""The logistic losses of many models at once: gradients and curvatures.

Logits are those of the classes after the first, relative to the first: ``(q - 1, m, K)`` for q
classes, m instances and K models. How often an instance is in, ``(m, K)``, weights its loss.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
SAFE = 300.0  # the exponential of a logit up to this is far from overflowing
Curvature = tuple[int, int, Values]  # a, b and the weights (m, K)


class Loss(Protocol):
    """The weighted loss of each instance as a function of its logits."""

    penalty: Values
    """How the squared coefficients of the classes after the first enter the penalty:
    ``sum_ab penalty_ab theta_a . theta_b / 2C``, ``(q - 1, q - 1)``."""

    def total(self, logits: Values) -> Values:
        """Return the sum over the instances, ``(K,)``."""

    def gradient(self, logits: Values) -> tuple[Values, Values]:
        """Return the derivative by the logits, ``(q - 1, m, K)``, and what ``curvature`` takes."""

    def curvature(self, chances: Values) -> list[Curvature]:
        """Return the second derivatives: by logits a and b, for a >= b.

        None of the weights ``(m, K)`` is negative: the second derivative is the weights where
        a = b, and minus them elsewhere.
        """

    def mean_curvature(self, chances: Values) -> Values:
        """Return the weights ``(m, K)`` that, times ``penalty``, are like the second derivatives.

        They have the same mean over the directions of the logits.
        """

    def bend(self, chances: Values, change: Values) -> Values:
        """Return the second derivatives times a change of the logits, ``(q - 1, m, K)``."""

    def spread(self, change: Values) -> Values:
        """Return the largest change of a difference of two logits of an instance, ``(K,)``."""

    def select(self, subsets: NDArray[Any]) -> Loss:
        """Return the losses of some of the models."""


class BinaryLoss:
    """log(1 + exp(-s z)) with s = 1 for the second class and -1 for the first.

    Parameters
    ----------
    counts : ndarray of shape (m, K)
        How often each instance is in.
    classes : ndarray of shape (m, K) or (m, 1)
        0 or 1.
    """

    # scikit-learn penalises the difference of the two classes as a softmax would its half.
    penalty = np.ones((1, 1))

    def __init__(self, counts: Values, classes: NDArray[Any]) -> None:
        self._counts = counts
        self._signs = np.where(classes == 1, 1.0, -1.0)
        self._signed = counts * self._signs
        self._inside = np.minimum(counts, 1.0)

    def total(self, logits: Values) -> Values:
        """Return the sum over the instances."""
        margins = self._signs * logits[0]
        losses = np.log1p(np.exp(-np.abs(margins))) + np.maximum(-margins, 0.0)
        return np.asarray(np.einsum("ik,ik->k", self._counts, losses))

    def gradient(self, logits: Values) -> tuple[Values, Values]:
        """Return the derivative by the logit, and the probability of the wrong class."""
        # With all its digits, however small it is.
        wrong = self._signs * logits[0]
        with np.errstate(over="ignore"):
            np.exp(wrong, out=wrong)
        wrong += 1.0
        np.reciprocal(wrong, out=wrong)
        gradient = self._signed * wrong
        np.negative(gradient, out=gradient)
        return gradient[None], wrong

    def curvature(self, chances: Values) -> list[Curvature]:
        """Return the second derivative."""
        weights = 1.0 - chances
        weights *= chances
        weights *= self._counts
        return [(0, 0, weights)]

    def mean_curvature(self, chances: Values) -> Values:
        """Return the second derivative."""
        return self.curvature(chances)[0][2]

    def bend(self, chances: Values, change: Values) -> Values:
        """Return the second derivative times a change of the logit."""
        return self.mean_curvature(chances) * change

    def spread(self, change: Values) -> Values:
        """Return the largest change of the logit of an instance that is in."""
        moved = np.abs(change[0])
        moved *= self._inside
        return np.asarray(moved.max(axis=0))

    def select(self, subsets: NDArray[Any]) -> BinaryLoss:
        """Return the losses of some of the models."""
        chosen = BinaryLoss.__new__(BinaryLoss)
        chosen._counts = self._counts[:, subsets]
        shared = self._signs.shape[1] == 1
        chosen._signs = self._signs if shared else self._signs[:, subsets]
        chosen._signed = self._signed[:, subsets]
        chosen._inside = self._inside[:, subsets]
        return chosen


class SoftmaxLoss:
    """Minus the logarithm of the softmax at the class of an instance, for three or more classes.

    Parameters
    ----------
    counts : ndarray of shape (m, K)
        How often each instance is in.
    classes : ndarray of shape (m, K) or (m, 1)
        In ``0 .. q - 1``; any for an instance that is not in.
    number : int
        How many classes, q.
    """

    def __init__(self, counts: Values, classes: NDArray[Any], number: int) -> None:
        self._counts = counts
        self._inside = np.minimum(counts, 1.0)
        own = np.stack([classes == position for position in range(number)])
        self._mine = own.astype(np.float64)
        self._others = 1.0 - self._mine
        # The sum of squares of q coefficients that sum to zero, by their differences to the first.
        self.penalty = np.eye(number - 1) - 1.0 / number

    def total(self, logits: Values) -> Values:
        """Return the sum over the instances."""
        powers, largest = _exponentials(logits)
        own = np.einsum("aik,aik->ik", self._mine[1:], logits)
        losses = np.log(powers.sum(axis=0)) + largest - own
        return np.asarray(np.einsum("ik,ik->k", self._counts, losses))

    def gradient(self, logits: Values) -> tuple[Values, Values]:
        """Return the derivative by the logits, and the probabilities times the counts."""
        chances, _ = _exponentials(logits)
        chances *= self._counts / chances.sum(axis=0)
        # One minus the probability of the own class, with all its digits however small it is.
        wrong = np.einsum("aik,aik->ik", chances, self._others)
        residuals = chances[1:] * self._others[1:]
        residuals -= wrong * self._mine[1:]
        return residuals, chances

    def curvature(self, chances: Values) -> list[Curvature]:
        """Return the second derivatives."""
        shares = chances[1:] / np.maximum(self._counts, 1.0)
        return [
            (a, b, chances[a + 1] * (1.0 - shares[b] if a == b else shares[b]))
            for a in range(len(shares))
            for b in range(a + 1)
        ]

    def mean_curvature(self, chances: Values) -> Values:
        """Return weights that, times ``penalty``, are like the second derivatives."""
        counts = np.maximum(self._counts, 1.0)
        squares = np.einsum("aik,aik->ik", chances, chances) / counts
        return np.asarray((self._counts - squares) / len(self.penalty))

    def bend(self, chances: Values, change: Values) -> Values:
        """Return the second derivatives times a change of the logits."""
        weighted = chances[1:] * change
        mean = weighted.sum(axis=0)
        mean /= np.maximum(self._counts, 1.0)
        weighted -= chances[1:] * mean
        return weighted

    def spread(self, change: Values) -> Values:
        """Return the largest change of a difference of two logits of an instance that is in."""
        moved = np.maximum(change.max(axis=0), 0.0) - np.minimum(change.min(axis=0), 0.0)
        moved *= self._inside
        return np.asarray(moved.max(axis=0))

    def select(self, subsets: NDArray[Any]) -> SoftmaxLoss:
        """Return the losses of some of the models."""
        chosen = SoftmaxLoss.__new__(SoftmaxLoss)
        chosen._counts = self._counts[:, subsets]
        chosen._inside = self._inside[:, subsets]
        shared = self._mine.shape[2] == 1
        chosen._mine = self._mine if shared else self._mine[:, :, subsets]
        chosen._others = self._others if shared else self._others[:, :, subsets]
        chosen.penalty = self.penalty
        return chosen


def _exponentials(logits: Values) -> tuple[Values, Values | float]:
    """Return exp(logits - largest), the first class's among them, and the largest."""
    powers = np.empty((len(logits) + 1, *logits.shape[1:]))
    if logits.max() < SAFE:
        powers[0] = 1.0
        np.exp(logits, out=powers[1:])
        return powers, 0.0
    largest = np.maximum(logits.max(axis=0), 0.0)
    np.negative(largest, out=powers[0])
    np.subtract(logits, largest, out=powers[1:])
    return np.exp(powers, out=powers), largest
