"""Instances in the leaves of an ensemble, and what places them there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.trees.losses import Values

Leaves = NDArray[Any]  # the smallest unsigned integers that hold the numbers of the leaves


@dataclass(frozen=True, eq=False)
class LeafRows:
    """Instances placed in the leaves of an ensemble.

    Attributes
    ----------
    leaves : unsigned integer array of shape (T, K, n)
        The leaf of each instance, numbered within the tree and output. Outputs that share a
        tree share memory.
    start : ndarray of shape (K, n)
        F_0, with base margins where there are any.
    targets : ndarray of shape (n,) or (K, n)
        0 or 1 (logistic), class positions (softmax), numbers (squared). A classification forest
        has one-hot rows, ``(K, n)``.
    ids : ndarray of shape (n,)
    labels : ndarray of shape (n,)
        Class positions (classifiers), or the targets as they are.
    """

    leaves: Leaves
    start: Values
    targets: NDArray[Any]
    ids: NDArray[Any]
    labels: NDArray[Any]

    def __len__(self) -> int:
        """Return n."""
        return int(self.leaves.shape[2])

    def leaf(self, tree: int, output: int) -> NDArray[np.intp]:
        """Return the leaf of each instance in one tree, ``(n,)``, as numpy indexes fastest."""
        return np.asarray(self.leaves[tree, output], dtype=np.intp)

    def select(self, positions: slice | NDArray[np.integer[Any]]) -> LeafRows:
        """Return the instances at ``positions``."""
        return LeafRows(
            self.leaves[:, :, positions],
            self.start[:, positions],
            self.targets[..., positions],
            self.ids[positions],
            self.labels[..., positions],
        )


@dataclass(frozen=True, eq=False)
class Round:
    """Trees that were fitted to the same scores: one, or more for XGBoost's parallel trees.

    Attributes
    ----------
    trees : range
        Their numbers.
    scores : ndarray of shape (K, n)
        ``F_{t-1}``, before the round.
    """

    trees: range
    scores: Values


class Source(Protocol):
    """What a reader keeps of the trained ensemble, to place further instances."""

    def leaves_of(self, features: Any) -> Leaves:
        """Return the leaves ``(T, K, n)`` of any rows, by the library's own call."""

    def start_of(self, features: Any, n: int) -> Values:
        """Return F_0 of any rows without base margins, ``(K, n)``."""

    def targets_of(self, instances: Instances, role: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return targets and labels as :class:`LeafRows` has them."""


def start_of(
    source: Source, features: Any, n: int, outputs: int, base_margin: Any, role: str
) -> Values:
    """Return F_0 ``(K, n)``: the base margins where given, else the ensemble's own start."""
    if base_margin is None:
        return source.start_of(features, n)
    margins = np.asarray(base_margin, dtype=np.float64)
    if margins.size != n * outputs or margins.shape[:1] != (n,):
        raise InvalidInputError(
            f"base_margin: expected shape {(n, outputs)} for {role}; got {margins.shape}."
        )
    if not np.isfinite(margins).all():
        raise InvalidInputError(f"base_margin: {role} has scores that are NaN or infinite.")
    return np.ascontiguousarray(margins.reshape(n, outputs).T)
