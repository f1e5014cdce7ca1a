"""What a reader hands over, and what several readers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.labels import Classes, Positions, labels_of, targets_of
from proponent.trees.losses import Loss, Values
from proponent.trees.view import LeafRows, Leaves, Source

BLOCK_LEAVES = 2**23  # leaf numbers that a library is asked for at once: 64 MB in float64


@dataclass(frozen=True, eq=False)
class Reading:
    """A trained ensemble as its library describes it, not yet checked.

    Attributes are those of :class:`~proponent.trees.view.LeafView`, and

    Attributes
    ----------
    learning_rates, l2 : ndarray of shape (T,) and (L,)
        As the settings say.
    calibrate : bool
        Whether they may be found from the leaves where the settings do not fit.
    other_l2 : ndarray of shape (L,) or None
        A second candidate for each leaf, of which the one that fits is taken (LightGBM's
        ``cat_l2``); NaN for none.
    fixed : ndarray of shape (L,) or None
        Leaves that were not fitted: the only ones of trees that were not grown.
    single_precision : {"none", "gradients", "scores"}
        What the library keeps in float32, for the tolerance.
    suspects : tuple of str
        Settings that break the formula of a leaf.
    """

    library: str
    kind: Literal["boosting", "forest"]
    train: LeafRows
    weights: Values
    loss: Loss
    offsets: NDArray[np.intp]
    values: Values
    learning_rates: Values
    l2: Values
    source: Source
    counts: NDArray[Any] | None = None
    l1: float = 0.0
    estimation: Literal["newton", "gradient"] = "newton"
    steps: int = 1
    parallel: int = 1
    classes: NDArray[Any] | None = None
    calibrate: bool = False
    other_l2: Values | None = None
    fixed: NDArray[np.bool_] | None = None
    single_precision: Literal["none", "gradients", "scores"] = "none"
    suspects: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class ClassLabels:
    """Labels of a classifier, in the order of the model's outputs.

    Attributes
    ----------
    names : ndarray of shape (C,)
    """

    names: NDArray[Any]
    _sorted: Classes = field(init=False, repr=False)
    _order: Positions = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Sort the names once."""
        object.__setattr__(self, "_sorted", Classes.of(np.asarray(self.names), "model"))
        positions = self._sorted.positions(np.asarray(self.names), "model")
        object.__setattr__(self, "_order", np.argsort(positions))

    def __len__(self) -> int:
        """Return C."""
        return len(self.names)

    def positions(self, instances: Instances, role: str) -> Positions:
        """Return the output of each instance's label, ``(n,)``."""
        return self._order[self._sorted.positions(labels_of(instances, role), role)]


def check_classes(positions: Positions, classes: int, role: str = "train") -> None:
    """Refuse a training set that has not every class of the model."""
    missing = np.setdiff1d(np.arange(classes), positions)
    if len(missing):
        raise InvalidInputError(
            f"{role}: the model has {classes} classes, but no instance has the label of the "
            f"output(s) {missing.tolist()}; pass the training set that the model was trained on."
        )


def regression_targets(instances: Instances, role: str, dtype: type = np.float64) -> Values:
    """Return targets as the library saw them, ``(n,)`` or ``(outputs, n)``."""
    targets = targets_of(instances, role)
    return np.ascontiguousarray(targets.T.astype(dtype).astype(np.float64))


def place_rows(
    features: Any, trees: int, outputs: int, largest: int, read: Callable[[Any], NDArray[Any]]
) -> Leaves:
    """Return the leaves ``(T, K, n)`` of any rows, a block of rows at a time.

    Parameters
    ----------
    features : array or DataFrame of n rows
    trees, outputs : int
        T, and K of the trees that are stored: 1 where outputs share them.
    largest : int
        Leaves of the largest tree.
    read : callable
        From some rows to their leaves, ``(rows, T * K)``.
    """
    n = len(features)
    leaves = np.empty((trees, outputs, n), np.min_scalar_type(max(largest - 1, 0)))
    flat = leaves.reshape(trees * outputs, n)
    size = max(1, BLOCK_LEAVES // max(1, trees * outputs))
    for first in range(0, n, size):
        block = slice(first, first + size)
        whole = first == 0 and size >= n
        rows = features if whole else _rows(features, block)
        found = np.asarray(read(rows)).reshape(-1, trees * outputs)
        flat[:, block] = found.T
    return leaves


def shared_by(leaves: Leaves, outputs: int) -> Leaves:
    """Return leaves ``(T, 1, n)`` as ``(T, K, n)``, without copies."""
    return np.broadcast_to(leaves, (len(leaves), outputs, leaves.shape[2]))


def offsets_of(sizes: Any) -> NDArray[np.intp]:
    """Return where the leaves of each tree and output begin, ``(T * K + 1,)``."""
    return np.concatenate([[0], np.cumsum(np.asarray(sizes, dtype=np.intp))]).astype(np.intp)


def sample_weights(given: Any, n: int, dtype: type = np.float64) -> Values:
    """Return the weight of each training instance, ``(n,)``."""
    if given is None:
        return np.ones(n)
    weights = np.asarray(given, dtype=dtype).astype(np.float64)
    if weights.shape != (n,):
        raise InvalidInputError(
            f"sample_weight: expected shape ({n},), one weight a training instance; got "
            f"{weights.shape}."
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise InvalidInputError(
            "sample_weight: expected finite weights, none negative and not all 0."
        )
    return weights


def sample_counts(given: Any, trees: int, n: int) -> NDArray[Any] | None:
    """Return how often each instance was drawn for each tree, ``(T, n)``, from a sampling mask."""
    if given is None:
        return None
    counts = np.asarray(given)
    if counts.shape != (trees, n):
        raise InvalidInputError(
            f"sample_mask: expected shape {(trees, n)}, one row a tree: which training instances "
            f"it was fitted to; got {counts.shape}."
        )
    if counts.dtype.kind not in "biuf" or not np.isfinite(counts).all() or (counts < 0).any():
        raise InvalidInputError(
            "sample_mask: expected booleans, or how often each instance was drawn."
        )
    return counts.astype(np.uint8) if counts.dtype == bool else counts


def _rows(features: Any, block: slice) -> Any:
    return features.iloc[block] if hasattr(features, "iloc") else features[block]
