"""Linear models of matrices under the nuclear norm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.static.high_dimensional.arrays import Array
from proponent.static.high_dimensional.kernels import (
    FeatureKernel,
    Form,
    Kernel,
    ProjectedKernel,
    chosen_form,
)
from proponent.static.high_dimensional.losses import Loss
from proponent.static.high_dimensional.penalties import NuclearNorm, compact_svd
from proponent.static.high_dimensional.proximal import accelerated_descent
from proponent.static.high_dimensional.ratings import pair_kernels, pairs_of
from proponent.static.high_dimensional.risks import EntryRisk, MatrixRisk, Risk
from proponent.static.high_dimensional.study import (
    TOLERANCE,
    Refinement,
    Study,
    inputs_of,
    numbers_of,
)


@dataclass(frozen=True, eq=False)
class LowRank(Study):
    """``f(X) = intercept + <Theta, X>`` at the minimum of ``mean risk + lambda ||Theta||_*``.

    With ``Theta = U S V^T`` and alpha the survey's, the optimum has ``sum_i alpha_i X_i =
    U V^T + W`` with ``U^T W = 0`` and ``W V = 0``, so that

        Theta = sum_i alpha_i U S U^T X_i = sum_i alpha_i X_i V S V^T.

    The first compares matrices by their columns in the row space of Theta (the users), the second
    by their rows in its column space (the items). With matrices of a single 1 they are the forms
    of collaborative filtering with factors ``U S^(1/2)`` and ``V S^(1/2)``.

    Attributes
    ----------
    theta : array of shape (a, b)
        Theta.
    penalty : NuclearNorm
        With lambda.
    loss : Loss
        Of one output.
    constant : float
        The intercept.
    """

    theta: Array
    penalty: NuclearNorm
    loss: Loss
    constant: float

    @property
    @override
    def intercept(self) -> Array:
        return np.array([self.constant])

    @override
    def read(self, instances: Instances, role: str) -> tuple[NDArray[Any], Array | None]:
        inputs, targets = inputs_of(instances), numbers_of(instances, role)
        if inputs.ndim == 2 and inputs.shape[1] == 2:
            return pairs_of(inputs, self.theta.shape, role), targets
        if inputs.shape[1:] != self.theta.shape:
            raise InvalidInputError(
                f"{role}: inputs of shape {inputs.shape} do not fit Theta; pass matrices "
                f"(n, {self.theta.shape[0]}, {self.theta.shape[1]}), or pairs (n, 2) of its rows "
                f"and columns."
            )
        return inputs.astype(np.float64), targets

    @override
    def outputs(self, inputs: NDArray[Any]) -> Array:
        if inputs.ndim == 2:
            found: Array = self.theta[inputs[:, 0], inputs[:, 1]][:, None]
        else:
            found = inputs.reshape(len(inputs), -1) @ self.theta.reshape(-1, 1)
        return found + self.constant

    @override
    def kkt_residual(self, inputs: NDArray[Any], targets: Array) -> float:
        return self.penalty.distance(self.theta, self._risk(inputs, targets).gradient(self.theta))

    @override
    def refined(self, inputs: NDArray[Any], targets: Array, how: Refinement) -> LowRank:
        theta, _ = accelerated_descent(
            self._risk(inputs, targets),
            self.penalty,
            self.theta,
            tolerance=TOLERANCE,
            max_iterations=how.max_iterations,
            progress=how.progress,
        )
        return replace(self, theta=theta)

    @override
    def kernel(self, inputs: NDArray[Any], slopes: Array, form: Form) -> Kernel:
        left, sizes, right = compact_svd(self.theta)
        rows, columns = left * np.sqrt(sizes), right.T * np.sqrt(sizes)
        alphas = -slopes[:, 0] / self.penalty.strength
        if inputs.ndim == 2:
            return pair_kernels(inputs, (rows, columns), (alphas, alphas), form)
        by_rows = _projected(inputs, alphas, lambda x: rows.T @ x)
        by_columns = _projected(inputs, alphas, lambda x: x @ columns)
        return chosen_form({"users": by_rows, "items": by_columns}, form)

    @override
    def size(self) -> dict[str, int]:
        return {"rank": len(compact_svd(self.theta)[1])}

    def _risk(self, inputs: NDArray[Any], targets: Array) -> Risk:
        if inputs.ndim == 2:
            return EntryRisk(inputs, targets, self.loss, self.constant)
        return MatrixRisk(inputs, targets, self.loss, self.constant)


def _projected(matrices: Array, alphas: Array, project: Callable[[Array], Array]) -> Kernel:
    """Return the inner product of matrices (n, a, b) that have fewer rows or columns."""

    def features(inputs: Array) -> Array:
        return project(inputs).reshape(len(inputs), -1)

    known = features(matrices)
    kernel = FeatureKernel(known, alphas[:, None], np.ones((1, known.shape[1])))
    return ProjectedKernel(features, kernel)
