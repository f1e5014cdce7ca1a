"""The losses that tree ensembles are fitted with, and their derivatives.

Instances are on the last axis everywhere: scores are ``(K, n)``, one row an output (a class, or
one target of a regression), and so are derivatives.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Derivatives:
    """Derivatives of the loss of n instances at their scores.

    Attributes
    ----------
    gradient : ndarray of shape (K, n)
        ``g = dl/dF``.
    hessian : ndarray of shape (K, n)
        ``h`` as it enters a leaf's denominator: the diagonal of the Hessian times the library's
        factor, or ones where leaves are estimated by gradient steps.
    slope : ndarray of shape (K, n)
        How ``h`` moves along with the gradient: ``dh_c = slope_c dg_c``; zeros where it is
        constant. For one output the third derivative is ``slope * hessian``.
    probabilities : ndarray of shape (K, n) or None
        Of each class for the softmax, of the positive class for the logistic loss, else None.
    """

    gradient: Values
    hessian: Values
    slope: Values
    probabilities: Values | None

    def curve(self, moves: Values) -> Values:
        """Return how gradients change with the scores: the full Hessian times a vector each.

        Parameters
        ----------
        moves : ndarray of shape (K, n) or (K, n, ...)
            Changes of the scores.

        Returns
        -------
        ndarray
            ``dg_c = sum_d (d2l / dF_c dF_d) moves_d``, in the shape of ``moves``. The Hessian is
            symmetric, so this is its own adjoint.
        """
        if self.probabilities is None:
            return moves
        p = self.probabilities.reshape(self.probabilities.shape + (1,) * (moves.ndim - 2))
        if len(p) == 1:
            return np.asarray(p * (1.0 - p) * moves)
        return np.asarray(p * (moves - (p * moves).sum(axis=0)))

    def bend(self, along: Values, moves: Values) -> Values:
        """Return how ``full Hessian @ along`` changes with the scores, for coupled classes.

        Parameters
        ----------
        along : ndarray of shape (K, n) or (K, n, ...)
            What the Hessian of each instance is applied to: the steps of its leaf.
        moves : ndarray of shape (K, n, ...)
            Changes of the scores.

        Returns
        -------
        ndarray
            ``sum_de (d3l / dF_c dF_d dF_e) along_d moves_e``, symmetric in ``along`` and ``moves``.
        """
        if self.probabilities is None:
            return np.zeros_like(moves)
        extra = (1,) * (moves.ndim - 2)
        p = self.probabilities.reshape(self.probabilities.shape + extra)
        if along.ndim < moves.ndim:
            along = along.reshape(along.shape + (1,) * (moves.ndim - along.ndim))
        changes = self.curve(moves)  # of the probabilities
        if len(p) == 1:
            return np.asarray((1.0 - 2.0 * p) * changes * along)
        inner = (p * along).sum(axis=0)
        return np.asarray(changes * (along - inner) - p * (changes * along).sum(axis=0))


@dataclass(frozen=True)
class Loss(ABC):
    """A loss of scores ``(K, n)``.

    Attributes
    ----------
    outputs : int
        K.
    factor : float
        By which the library multiplies the Hessian's diagonal.
    coupled : bool
        Whether a leaf solves with the full K x K Hessian (CatBoost's MultiClass).
    """

    outputs: int = 1
    factor: float = 1.0
    coupled: bool = False

    @property
    @abstractmethod
    def name(self) -> str:
        """What the loss is called: "squared", "logistic" or "softmax"."""

    @abstractmethod
    def link(self, scores: Values) -> Values:
        """Return what all derivatives are made of: probabilities, or the scores themselves."""

    @abstractmethod
    def gradient_of(self, linked: Values, targets: NDArray[Any]) -> Values:
        """Return g, ``(K, n)``, of linked scores."""

    @abstractmethod
    def derivatives_of(self, linked: Values, targets: NDArray[Any]) -> Derivatives:
        """Return first, second and third derivatives of linked scores."""

    def hessian_of(self, linked: Values) -> Values:
        """Return h, ``(K, n)``, of linked scores."""
        hessian = 1.0 - linked
        hessian *= linked
        if self.factor != 1.0:
            hessian *= self.factor
        return hessian

    def gradient(self, scores: Values, targets: NDArray[Any]) -> Values:
        """Return g, ``(K, n)``, at the scores."""
        return self.gradient_of(self.link(scores), targets)

    def gradient_hessian(self, scores: Values, targets: NDArray[Any]) -> tuple[Values, Values]:
        """Return g and h, ``(K, n)`` each, at the scores."""
        linked = self.link(scores)
        return self.gradient_of(linked, targets), self.hessian_of(linked)

    def derivatives(self, scores: Values, targets: NDArray[Any]) -> Derivatives:
        """Return first, second and third derivatives at the scores."""
        return self.derivatives_of(self.link(scores), targets)

    @abstractmethod
    def risk(self, scores: Values, targets: NDArray[Any]) -> Values:
        """Return the loss of each instance, ``(n,)``."""


@dataclass(frozen=True)
class Squared(Loss):
    """``l = 1/2 sum_k (F_k - y_k)^2``; targets ``(K, n)``, or ``(n,)`` for one output."""

    @property
    def name(self) -> str:
        """Return "squared"."""
        return "squared"

    def link(self, scores: Values) -> Values:
        """Return the scores."""
        return scores

    def gradient_of(self, linked: Values, targets: NDArray[Any]) -> Values:
        """Return ``F - y``."""
        return np.asarray(linked - targets)

    def hessian_of(self, linked: Values) -> Values:
        """Return ones."""
        return np.ones_like(linked)

    def derivatives_of(self, linked: Values, targets: NDArray[Any]) -> Derivatives:
        """Return ``F - y``, ones, zeros."""
        return Derivatives(linked - targets, np.ones_like(linked), np.zeros_like(linked), None)

    def risk(self, scores: Values, targets: NDArray[Any]) -> Values:
        """Return ``1/2 (F - y)^2``, summed over outputs."""
        return np.asarray(0.5 * np.square(scores - targets).sum(axis=0))


@dataclass(frozen=True)
class Logistic(Loss):
    """``l = log(1 + e^F) - y F``; scores ``(1, n)``, targets 0 or 1, ``(n,)``."""

    @property
    def name(self) -> str:
        """Return "logistic"."""
        return "logistic"

    def link(self, scores: Values) -> Values:
        """Return p, the probability of 1."""
        return sigmoid(scores)

    def gradient_of(self, linked: Values, targets: NDArray[Any]) -> Values:
        """Return ``p - y``."""
        return np.asarray(linked - targets)

    def derivatives_of(self, linked: Values, targets: NDArray[Any]) -> Derivatives:
        """Return ``p - y``, ``p (1 - p)``, ``1 - 2 p``."""
        gradient = self.gradient_of(linked, targets)
        return Derivatives(gradient, self.hessian_of(linked), 1.0 - 2.0 * linked, linked)

    def risk(self, scores: Values, targets: NDArray[Any]) -> Values:
        """Return the cross-entropy in nats."""
        return np.asarray(np.logaddexp(0.0, scores[0]) - targets * scores[0])


@dataclass(frozen=True)
class Softmax(Loss):
    """``l = log sum_c e^F_c - F_y``; scores ``(K, n)``, targets class positions, ``(n,)``."""

    @property
    def name(self) -> str:
        """Return "softmax"."""
        return "softmax"

    def link(self, scores: Values) -> Values:
        """Return p, the probabilities."""
        return softmax(scores)

    def gradient_of(self, linked: Values, targets: NDArray[Any]) -> Values:
        """Return ``p_c - 1[c = y]``."""
        gradient = linked.copy()
        gradient[targets, np.arange(linked.shape[1])] -= 1.0
        return gradient

    def derivatives_of(self, linked: Values, targets: NDArray[Any]) -> Derivatives:
        """Return ``p_c - 1[c = y]``, ``factor p_c (1 - p_c)``, ``factor (1 - 2 p_c)``."""
        return Derivatives(
            self.gradient_of(linked, targets),
            self.hessian_of(linked),
            self.factor * (1.0 - 2.0 * linked),
            linked,
        )

    def risk(self, scores: Values, targets: NDArray[Any]) -> Values:
        """Return the cross-entropy in nats."""
        largest = scores.max(axis=0)
        total = np.log(np.exp(scores - largest).sum(axis=0)) + largest
        return np.asarray(total - scores[targets, np.arange(scores.shape[1])])


def sigmoid(scores: Values) -> Values:
    """Return ``1 / (1 + e^-F)``."""
    p = np.negative(scores)
    with np.errstate(over="ignore"):  # 1 / inf is the right limit
        np.exp(p, out=p)
    p += 1.0
    return np.reciprocal(p, out=p)


def softmax(scores: Values) -> Values:
    """Return ``e^F_c / sum_d e^F_d`` over the first axis, in a new array."""
    p = np.exp(scores - scores.max(axis=0))
    p /= p.sum(axis=0)
    return np.asarray(p)
