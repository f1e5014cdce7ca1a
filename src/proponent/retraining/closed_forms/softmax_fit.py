r"""Penalised logistic regression, binary or multinomial, in coordinates without a spare direction.

With an instance's features x (1 appended for an intercept) and parameters V, ``(q, m)``, the logits
are :math:`T V^\top x`. Two classes have one coordinate, the second's logit; C classes have C - 1,
along an orthonormal basis T of the logits that sum to zero, so that the norm of V is that of the
coefficients and every direction counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proponent.retraining.closed_forms.closed_form import NoClosedForm

Values = NDArray[np.float64]
Positions = NDArray[np.intp]

STEPS = 100  # Newton's method takes about ten
ROUNDING = 1e-12  # of the objective, in which the last steps make no difference
SMALL = 1e-10  # a step, relative to the parameters, after which the next one is rounding


@dataclass(frozen=True)
class SoftmaxProblem:
    """The objective ``sum_i w_i l_i + (penalty / 2) ||coef||^2``.

    Attributes
    ----------
    features : ndarray of shape (n, q)
        With a last column of ones where there is an intercept.
    classes : ndarray of shape (n,)
        Positions of the classes.
    weights : ndarray of shape (n,)
    contrasts : ndarray of shape (C, m)
        T.
    penalty : float
    intercept : bool
    """

    features: Values
    classes: Positions
    weights: Values
    contrasts: Values
    penalty: float
    intercept: bool

    @property
    def penalties(self) -> Values:
        """The penalty of each parameter, ``(q * m,)``."""
        found = np.full((self.features.shape[1], self.contrasts.shape[1]), self.penalty)
        if self.intercept:
            found[-1] = 0.0
        return found.ravel()

    def probabilities(self, outputs: Values) -> Values:
        """Return the probabilities ``(..., C)`` of outputs ``(..., m)``."""
        from scipy.special import softmax

        return np.asarray(softmax(outputs @ self.contrasts.T, axis=-1))

    def slopes(self, outputs: Values) -> Values:
        """Return the slopes of the losses by the outputs, ``(n, m)``."""
        errors = self.probabilities(outputs)
        errors[np.arange(len(errors)), self.classes] -= 1.0
        return np.asarray(errors @ self.contrasts)

    def curvatures(self, outputs: Values) -> Values:
        """Return the curvatures of the losses by the outputs, ``(n, m, m)``."""
        likely = self.probabilities(outputs)
        mean = likely @ self.contrasts
        second = np.einsum("nc,ca,cb->nab", likely, self.contrasts, self.contrasts)
        return np.asarray(second - mean[:, :, None] * mean[:, None, :])

    def value(self, parameters: Values) -> float:
        """Return the objective."""
        from scipy.special import log_softmax

        logits = self.features @ parameters @ self.contrasts.T
        own = log_softmax(logits, axis=1)[np.arange(len(logits)), self.classes]
        squares = self.penalties @ np.square(parameters.ravel())
        return float(squares / 2 - self.weights @ own)

    def gradient(self, parameters: Values) -> Values:
        """Return the gradient, ``(q * m,)``."""
        slopes = self.weights[:, None] * self.slopes(self.features @ parameters)
        return (self.features.T @ slopes).ravel() + self.penalties * parameters.ravel()

    def information(self, parameters: Values) -> Values:
        """Return the curvature of the losses by the parameters, ``(q * m, q * m)``."""
        curvatures = self.curvatures(self.features @ parameters)
        width, outputs = parameters.shape
        found = np.empty((width, outputs, width, outputs))
        for a in range(outputs):
            for b in range(a + 1):
                weights = self.weights * curvatures[:, a, b]
                found[:, a, :, b] = self.features.T @ (weights[:, None] * self.features)
                found[:, b, :, a] = found[:, a, :, b]
        return found.reshape(width * outputs, width * outputs)

    def newton_step(self, parameters: Values) -> Values:
        """Return the step that Newton's method takes, ``(q, m)``.

        Raises
        ------
        LinAlgError
            If the curvature is singular.
        """
        from scipy.linalg import cho_factor, cho_solve

        curvature = self.information(parameters)
        curvature[np.diag_indices_from(curvature)] += self.penalties
        step = cho_solve(cho_factor(curvature), -self.gradient(parameters))
        return np.asarray(step).reshape(parameters.shape)

    def solve(self) -> Values:
        """Return the parameters at the minimum, ``(q, m)``.

        Raises
        ------
        NoClosedForm
            If there is no minimum: the classes are separable, and there is no penalty.
        """
        from scipy.linalg import LinAlgError

        parameters = np.zeros((self.features.shape[1], self.contrasts.shape[1]))
        value = self.value(parameters)
        for _ in range(STEPS):
            try:
                step = self.newton_step(parameters)
            except LinAlgError:
                break
            size = np.abs(step).max()
            if size <= SMALL * max(1.0, np.abs(parameters).max()):
                return parameters + step
            length = 1.0
            while length > 1e-10:
                moved = self.value(parameters + length * step)
                if moved <= value + ROUNDING * (1 + abs(value)):
                    break
                length /= 2
            parameters, value = parameters + length * step, moved
        raise NoClosedForm("logistic regression has no minimum here: lower C adds a penalty.")

    def without(self, group: Positions) -> SoftmaxProblem:
        """Return the problem without a group."""
        weights = self.weights.copy()
        weights[group] = 0.0
        return SoftmaxProblem(
            self.features, self.classes, weights, self.contrasts, self.penalty, self.intercept
        )


def contrasts_of(classes: int) -> Values:
    """Return T, ``(C, m)``."""
    from scipy.linalg import helmert

    if classes == 2:
        return np.array([[0.0], [1.0]])
    return np.asarray(helmert(classes).T)
