"""Kernels: a prediction as a sum over the training instances, asked for in four ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from typing_extensions import override

from proponent.static.high_dimensional.arrays import Array, row_sums

# Which training instances speak for a prediction of a matrix: those of the same user (row), by
# comparing items; those of the same item (column), by comparing users; or half of each.
Form = Literal["both", "items", "users"]


class Kernel(Protocol):
    """Scores ``sum_c w_c alpha_ic K_c(x_i, x_te)`` of n training instances.

    ``inputs`` are what the kernel compares of m test instances; ``weights`` (m, k) say how much
    of each of the k outputs is asked for.
    """

    def values(self) -> Array:
        """Return the representer values alpha, ``(n, k)``."""

    def scores(self, inputs: Any, weights: Array, rows: range) -> Array:
        """Return the scores of the training instances at ``rows``, ``(m, len(rows))``."""
        scores = np.zeros((len(weights), len(rows)))
        self.add_scores(scores, inputs, weights, rows)
        return scores

    def add_scores(self, scores: Array, inputs: Any, weights: Array, rows: range) -> None:
        """Add them to an array: most of it is left alone where few instances share anything."""

    def joint(self, inputs: Any, weights: Array, rows: range) -> Array:
        """Return their sums over the test instances, ``(len(rows),)``."""

    def own(self, weights: Array, rows: range) -> Array:
        """Return the scores of training instances on themselves, ``(len(rows),)``."""

    def total(self, inputs: Any, weights: Array) -> Array:
        """Return the sums over all training instances, ``(m,)``, without the scores."""

    def warnings(self, inputs: Any) -> list[str]:
        """Return what is to be said of test instances that share nothing with the training set."""
        return []


@dataclass(frozen=True)
class FeatureKernel(Kernel):
    """``K_c(x_i, x_te) = x_i^T diag(kappa_c) x_te``.

    Attributes
    ----------
    features : array of shape (n, d)
        x.
    alphas : array of shape (n, k)
        alpha.
    diagonals : array of shape (k, d)
        kappa; the kernel of a sparse model is zero off its support.
    """

    features: Array
    alphas: Array
    diagonals: Array

    @override
    def values(self) -> Array:
        return self.alphas

    @override
    def add_scores(self, scores: Array, inputs: Array, weights: Array, rows: range) -> None:
        features = self.features[rows.start : rows.stop]
        alphas = self.alphas[rows.start : rows.stop]
        for c, diagonal in enumerate(self.diagonals):
            tests, support = np.flatnonzero(weights[:, c]), np.flatnonzero(diagonal)
            asked = weights[tests, c, None] * inputs[np.ix_(tests, support)] * diagonal[support]
            scores[tests] += asked @ (alphas[:, c, None] * features[:, support]).T

    @override
    def joint(self, inputs: Array, weights: Array, rows: range) -> Array:
        asked = self.diagonals * (weights.T @ inputs)
        outputs = self.features[rows.start : rows.stop] @ asked.T
        return row_sums(self.alphas[rows.start : rows.stop] * outputs)

    @override
    def own(self, weights: Array, rows: range) -> Array:
        norms = self.features[rows.start : rows.stop] ** 2 @ self.diagonals.T
        return row_sums(weights * self.alphas[rows.start : rows.stop] * norms)

    @override
    def total(self, inputs: Array, weights: Array) -> Array:
        rebuilt = self.diagonals * (self.alphas.T @ self.features)
        return row_sums(weights * (inputs @ rebuilt.T))


@dataclass(frozen=True)
class ProjectedKernel(Kernel):
    """A kernel of less than the inputs hold.

    Attributes
    ----------
    project : callable
        Takes inputs of instances to features ``(n, d)``.
    kernel : FeatureKernel
        Of these features.
    """

    project: Callable[[Array], Array]
    kernel: FeatureKernel

    @override
    def values(self) -> Array:
        return self.kernel.values()

    @override
    def add_scores(self, scores: Array, inputs: Array, weights: Array, rows: range) -> None:
        self.kernel.add_scores(scores, self.project(inputs), weights, rows)

    @override
    def joint(self, inputs: Array, weights: Array, rows: range) -> Array:
        return self.kernel.joint(self.project(inputs), weights, rows)

    @override
    def own(self, weights: Array, rows: range) -> Array:
        return self.kernel.own(weights, rows)

    @override
    def total(self, inputs: Array, weights: Array) -> Array:
        return self.kernel.total(self.project(inputs), weights)


@dataclass(frozen=True)
class MeanKernel(Kernel):
    """The mean of kernels, each of which sums to the prediction: so does it."""

    kernels: Sequence[Kernel]

    @override
    def values(self) -> Array:
        return _mean([kernel.values() for kernel in self.kernels])

    @override
    def add_scores(self, scores: Array, inputs: Any, weights: Array, rows: range) -> None:
        for kernel in self.kernels:
            kernel.add_scores(scores, inputs, weights / len(self.kernels), rows)

    @override
    def joint(self, inputs: Any, weights: Array, rows: range) -> Array:
        return _mean([kernel.joint(inputs, weights, rows) for kernel in self.kernels])

    @override
    def own(self, weights: Array, rows: range) -> Array:
        return _mean([kernel.own(weights, rows) for kernel in self.kernels])

    @override
    def total(self, inputs: Any, weights: Array) -> Array:
        return _mean([kernel.total(inputs, weights) for kernel in self.kernels])

    @override
    def warnings(self, inputs: Any) -> list[str]:
        return [warning for kernel in self.kernels for warning in kernel.warnings(inputs)]


def _mean(parts: Sequence[Array]) -> Array:
    total: Array = sum(parts[1:], start=parts[0])
    return total / len(parts)


def chosen_form(kernels: Mapping[str, Kernel], form: Form) -> Kernel:
    """Return the kernel of a form; ``"both"`` is the mean of the two."""
    return MeanKernel(tuple(kernels.values())) if form == "both" else kernels[form]
