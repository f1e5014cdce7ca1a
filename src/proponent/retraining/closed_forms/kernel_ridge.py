"""Kernel ridge regression without some instances, from one inverse of the kernel matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from proponent.data import Instances
from proponent.models.labels import targets_of
from proponent.models.prediction_risk import Regression, RegressionRisk
from proponent.retraining.closed_forms.closed_form import (
    BLOCK,
    ClosedForm,
    NoClosedForm,
    Positions,
    Tests,
    Values,
)
from proponent.retraining.closed_forms.cooks import residual_variance
from proponent.retraining.closed_forms.differences import ByOutput, Differences, Full
from proponent.retraining.closed_forms.dual_fit import DualFit
from proponent.retraining.closed_forms.reading import matrix_of, penalties_of, weights_of

Kernel = Callable[..., Any]  # kernel(X) of the training set, kernel(T, X) of test instances

ILL = 1e10  # a condition number that leaves six digits or fewer


class KernelRegression(ClosedForm):
    """Kernel ridge regression, with any number of outputs.

    Parameters
    ----------
    train : Instances
        (X, y) pairs; the columns of a precomputed kernel are the training instances.
    kernel : callable
        ``kernel(X)`` returns the kernel matrix of the training set, ``(n, n)``, and
        ``kernel(T, X)`` that of test instances and it, ``(T, n)``.
    alpha : float or array-like of shape (outputs,)
        What is added to the diagonal of the kernel matrix, in all or for each output.
    risk : {"squared", "absolute"}
        Of a prediction, summed over the outputs.
    sample_weight : array-like of shape (n,), optional
        How much each instance counts in the training.
    noise : ndarray of shape (n,), optional
        What is added to the diagonal, in place of ``alpha``.

    Raises
    ------
    InvalidInputError
        If the training set is not one of numbers, or a setting makes no sense.
    NoClosedForm
        If there are fewer than two instances, or the kernel matrix is singular.
    """

    def __init__(
        self,
        train: Instances,
        kernel: Kernel,
        *,
        alpha: Any = 1.0,
        risk: RegressionRisk = "squared",
        sample_weight: Any = None,
        noise: Values | None = None,
    ) -> None:
        targets = targets_of(train, "train")
        self.n = len(train)
        self.judge: Regression = Regression.of(targets, risk)
        self.weights = weights_of(sample_weight, self.n)
        if np.count_nonzero(self.weights) < 2:
            raise NoClosedForm("without the only instance there is no model.")
        self._train = train
        self._kernel = kernel
        self._targets = targets.reshape(self.n, -1)
        self._features = matrix_of(train, "train")
        outputs = self._targets.shape[1]
        gram = np.asarray(kernel(self._features), dtype=np.float64)
        diagonals = [
            (columns, np.full(self.n, value)) for columns, value in penalties_of(alpha, outputs)
        ]
        if noise is not None:
            diagonals = [(np.arange(outputs), noise)]
        self._fits = [
            (columns, DualFit.of(gram, diagonal, self.weights)) for columns, diagonal in diagonals
        ]
        self._solved = np.empty((self.n, outputs))  # u
        for columns, fit in self._fits:
            self._solved[:, columns] = fit.solve(self._targets[:, columns])

    # The frame's hooks

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how well the kernel matrix is conditioned."""
        condition = max(fit.condition for _, fit in self._fits)
        noticed = super().noticed() | {"condition number": condition}
        if condition > ILL:
            noticed["warnings"] = [
                f"the kernel matrix has the condition number {condition:.1g}: neither these "
                f"numbers nor those of training again have more than "
                f"{max(0, int(16 - np.log10(condition)))} digits; a larger alpha helps."
            ]
        return noticed

    @override
    def _read(self, instances: Instances, role: str) -> Tests:
        given = matrix_of(instances, role, self._features.shape[1])
        features = self._cross(given)
        targets = self.judge.targets(instances, role)
        return Tests(features, features @ self._all, targets, instances.ids)

    @override
    def _train_at(self, positions: Positions) -> Instances:
        return self._train.select(positions)

    @override
    def _each(self, rows: Positions) -> Differences:
        return ByOutput.of(
            [(columns, fit.each(rows, self._solved[:, columns])) for columns, fit in self._fits]
        )

    @override
    def _groups(self, groups: Sequence[Positions]) -> Differences:
        found = np.empty((len(groups), *self._solved.shape))
        for place, group in enumerate(groups):
            for columns, fit in self._fits:
                found[place][:, columns] = fit.without(group, self._solved[:, columns])
        return Full(found)

    @override
    def _parameters(self, differences: Differences) -> Values:
        return np.swapaxes(differences.parameters(), 1, 2)

    @override
    def _squares(self, differences: Differences) -> Values:
        total: Any = 0.0
        for some, features in self._own_features():
            moved = differences.outputs(features)
            total = total + np.einsum("j,jrm->rm", self.weights[some], np.square(moved))
        return np.asarray(total)

    @override
    def _scale(self) -> tuple[Values, Values]:
        taken = np.zeros(self._solved.shape[1])
        fitted = np.empty_like(self._targets)
        roots, every = np.sqrt(self.weights), np.arange(self.n)
        for some, features in self._own_features():
            fitted[some] = features @ self._all
            for columns, fit in self._fits:
                hat = fit.directions(every[some]) * features[:, : self.n]
                taken[columns] += float(roots[some] @ hat.sum(axis=1))
        errors = self._targets - fitted
        return taken, residual_variance(errors, self._targets, self.weights, taken)

    @override
    def _rows_at_once(self) -> int:
        return max(1, BLOCK // self.n)

    # Kernels

    @property
    def _all(self) -> Values:
        """The parameters with all instances: dual coefficients, ``(n, m)``."""
        return np.sqrt(self.weights)[:, None] * self._solved

    def _cross(self, given: Values) -> Values:
        """Return the kernel of instances and the training set, ``(T, n)``."""
        return np.asarray(self._kernel(given, self._features), dtype=np.float64)

    def _own_features(self) -> Iterator[tuple[slice, Values]]:
        """Yield some training instances at a time, as if they were test instances."""
        size = self._rows_at_once()
        for start in range(0, self.n, size):
            some = slice(start, start + size)
            yield some, self._cross(self._features[some])
