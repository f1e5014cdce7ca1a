"""Linear models under an L1 or elastic-net penalty: their representer kernel and their optimum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from typing_extensions import override

from proponent.data import Instances
from proponent.static.high_dimensional.active_set import newton_on_support
from proponent.static.high_dimensional.arrays import Array
from proponent.static.high_dimensional.kernels import FeatureKernel, Form, Kernel, ProjectedKernel
from proponent.static.high_dimensional.losses import Loss, Targets
from proponent.static.high_dimensional.penalties import ElasticNet
from proponent.static.high_dimensional.proximal import accelerated_descent
from proponent.static.high_dimensional.risks import LinearRisk
from proponent.static.high_dimensional.study import TOLERANCE, Refinement, Study

# Proximal steps that find most of the support before Newton's do the rest.
FIRST_STEPS = 50


@dataclass(frozen=True)
class SparseLinear(Study):
    """``f(x) = Theta x`` at the minimum of ``mean risk + l1 ||Theta||_1 + (l2 / 2) ||Theta||^2``.

    With ``l1 = lambda rho`` and ``l2 = lambda (1 - rho)``, and alpha the survey's, the optimum has
    ``lambda sum_i alpha_i x_i = l1 sign(Theta) + l2 Theta`` on its support, so that

        Theta = sum_i alpha_i x_i diag(kappa),    kappa = |Theta| / (rho + (1 - rho) |Theta|)

    and ``f(x) = sum_i alpha_i x_i^T diag(kappa) x``: for the L1 norm alone kappa is ``|Theta|``.

    Attributes
    ----------
    coefficients : array of shape (k, d)
        Theta; where there is an intercept, it is the last column, divided by ``constant``.
    penalty : ElasticNet
        Zero on an intercept that was not penalised.
    constant : float, optional
        The feature that the intercept belongs to; None without an intercept.
    loss : Loss
        Of k outputs.
    reader : callable
        ``reader(instances, role)`` gives features without the constant, and targets.
    """

    coefficients: Array
    penalty: ElasticNet
    constant: float | None
    loss: Loss
    reader: Callable[[Instances, str], tuple[Array, Targets]]

    @property
    @override
    def intercept(self) -> Array:
        """What the unpenalised column contributes."""
        if self.constant is None or not self._has_free_intercept:
            return np.zeros(len(self.coefficients))
        return self.coefficients[:, -1] * self.constant

    @property
    def _has_free_intercept(self) -> bool:
        return self.constant is not None and self.penalty.l1[-1] == 0

    @override
    def read(self, instances: Instances, role: str) -> tuple[Array, Targets]:
        features, targets = self.reader(instances, role)
        if self.constant is not None:
            features = np.column_stack([features, np.full(len(features), self.constant)])
        return features, targets

    @override
    def outputs(self, inputs: Array) -> Array:
        return inputs @ self.coefficients.T

    @override
    def kkt_residual(self, inputs: Array, targets: Targets) -> float:
        slope = LinearRisk(inputs, targets, self.loss).gradient(self.coefficients)
        return self.penalty.distance(self.coefficients, slope)

    @override
    def refined(self, inputs: Array, targets: Targets, how: Refinement) -> SparseLinear:
        # In columns of size 1, and of mean 0 where a free intercept takes up the means.
        constant = 1.0 if self.constant is None else self.constant
        means = np.zeros(inputs.shape[1])
        if self._has_free_intercept:
            means[:-1] = inputs[:, :-1].mean(axis=0)
        features = inputs - means
        sizes = np.sqrt(np.square(features).mean(axis=0))
        flat = sizes <= len(inputs) * np.finfo(float).eps * np.abs(inputs).max(axis=0)
        features, sizes = np.where(flat, 0.0, features), np.where(flat, 1.0, sizes)
        start = self.coefficients.copy()
        start[:, -1] += start @ means / constant
        theta = _minimised(
            LinearRisk(features / sizes, targets, self.loss),
            self.penalty.scaled(sizes),
            start * sizes,
            how,
        )
        coefficients = theta / sizes
        coefficients[:, -1] -= coefficients @ means / constant
        return replace(self, coefficients=coefficients)

    @override
    def kernel(self, inputs: Array, slopes: Array, form: Form) -> Kernel:
        diagonals = self.penalty.kernel(self.coefficients)
        support = np.flatnonzero(diagonals.any(axis=0))

        def features(inputs: Array) -> Array:
            return np.take(inputs, support, axis=1)

        alphas = -slopes / self.penalty.unit[0]
        kernel = FeatureKernel(features(inputs), alphas, diagonals[:, support])
        return ProjectedKernel(features, kernel)

    @override
    def size(self) -> dict[str, int]:
        return {"nonzero": int(np.count_nonzero(self.coefficients[:, self.penalty.l1 > 0]))}


def _minimised(risk: LinearRisk, penalty: ElasticNet, start: Array, how: Refinement) -> Array:
    theta, step = accelerated_descent(
        risk,
        penalty,
        start,
        tolerance=TOLERANCE,
        max_iterations=min(FIRST_STEPS, how.max_iterations),
        progress=False,
    )
    return newton_on_support(
        risk,
        penalty,
        theta,
        curvature=1 / step,
        tolerance=TOLERANCE,
        max_iterations=how.max_iterations,
    )
