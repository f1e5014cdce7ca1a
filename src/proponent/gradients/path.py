"""Where along training gradients are compared, and how training instances are batched there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proponent.data import Instances


@dataclass(frozen=True)
class Metric:
    """The metric of inner products at a point: ``<g, h> = sum_p factor_p g_p^T diagonal_p h_p``.

    Attributes
    ----------
    factors : mapping
        One number for each parameter; 1 where none is named.
    diagonals : mapping
        One number for each entry of a parameter, in its shape; 1 where none is named.
    """

    factors: Mapping[str, float] = field(default_factory=dict)
    diagonals: Mapping[str, Tensor] = field(default_factory=dict)


EUCLIDEAN = Metric()


@dataclass(frozen=True)
class PathPoint:
    """A point of the training path, and the weight of the gradients' products there.

    Attributes
    ----------
    label : str
        What the point is called in messages and diagnostics.
    weight : float
        ``eta_c``: the learning rate, or 1.
    enter : callable
        Returns a context in which the module has the parameters of the point.
    scales : mapping
        Relative learning rates of the parameters, where they differ; 1 where none is named.
    members : integer array, optional
        Positions of the training instances that count at the point, as often as they stand
        there; None: each of them once.
    member_weights : array of the same shape, optional
        A further weight for each of the members; 1 where not given.
    step : int
        The step of training that is taken from the point, counted from 1; 0 where there is none.
    metric : callable, optional
        Returns the metric of the inner products, within ``enter``; None: the plain one.
    """

    label: str
    weight: float
    enter: Callable[[], AbstractContextManager[Any]]
    scales: Mapping[str, float] = field(default_factory=dict)
    members: NDArray[np.int64] | None = None
    member_weights: NDArray[np.float64] | None = None
    step: int = 0
    metric: Callable[[], Metric] | None = None

    @property
    def unmoved(self) -> dict[str, float]:
        """Scales by which the parameters that do not move are left out and the others kept."""
        return {name: 0.0 for name, scale in self.scales.items() if scale == 0.0}

    def batches(self, rows: range, size: int) -> list[Batch]:
        """Cut the training instances at ``rows`` that count at the point into batches."""
        if self.members is None:
            return batches(len(rows), size, rows.start)
        inside = (self.members >= rows.start) & (self.members < rows.stop)
        positions, which = np.unique(self.members[inside], return_inverse=True)
        each = None if self.member_weights is None else self.member_weights[inside]
        weights = np.bincount(which, weights=each, minlength=len(positions)).astype(np.float64)
        return [
            Batch(positions[i : i + size], weights[i : i + size])
            for i in range(0, len(positions), size)
        ]


@dataclass(frozen=True)
class Batch:
    """Training instances that are compared together, and the weight of each (None: 1)."""

    positions: NDArray[np.int64]
    weights: NDArray[np.float64] | None

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.positions)

    def add(self, products: Tensor, weight: float, scores: Tensor, first: int) -> None:
        """Add weighted products (batch, ...) to the batch's columns of ``scores`` (..., rows)."""
        products = products.to(scores)
        if self.weights is not None:
            weights = torch.as_tensor(self.weights, dtype=products.dtype)
            products = products * weights.view(-1, *[1] * (products.ndim - 1))
        products = products.mT if products.ndim > 1 else products
        start = int(self.positions[0]) - first
        if int(self.positions[-1]) - first - start + 1 == len(self):
            scores[..., start : start + len(self)].add_(products, alpha=weight)
        else:
            index = torch.as_tensor(self.positions - first)
            scores.index_add_(scores.ndim - 1, index, products, alpha=weight)


@dataclass(frozen=True)
class TestSet:
    """A test set, whether the sum over it is asked for, and where it is compared."""

    instances: Instances
    joint: bool
    points: tuple[PathPoint, ...]


def batches(n: int, size: int, start: int = 0) -> list[Batch]:
    """Cut n consecutive instances into batches."""
    positions = np.arange(start, start + n)
    return [Batch(positions[i : i + size], None) for i in range(0, n, size)]
