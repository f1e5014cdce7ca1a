"""A data set read once and held as arrays, so that rows of it can be taken for many models."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from proponent.data import Instances
from proponent.models.risk import LABEL_NAMES
from proponent.models.torch_recipe import draws, seeded

LARGEST = 2**31  # bytes of a set that is held; a larger one is read batch by batch
LOOKED_AT = 16  # instances that must be the same alone and among the others


class HeldRows(Instances):
    """Instances whose batches are rows of arrays; the arrays travel to workers as they are.

    Parameters
    ----------
    leaves : list of ndarray
        The arrays, each with the instances on its first axis.
    structure : object
        A batch with the position of an array in the place of each tensor.
    ids : ndarray of shape (n,)
        The labels of the instances.
    """

    def __init__(self, leaves: list[NDArray[Any]], structure: Any, ids: NDArray[Any]) -> None:
        super().__init__((leaves[0],), ids)
        self._leaves = leaves
        self._structure = structure

    def batch(self, indices: slice | NDArray[np.integer[Any]]) -> Any:
        """Return the instances at ``indices`` as a batch of tensors, copies."""
        leaves = [np.array(leaf[indices]) for leaf in self._leaves]
        return tree_map(lambda position: torch.from_numpy(leaves[position]), self._structure)

    def labels(self) -> NDArray[Any] | None:
        """Return the labels: the last column, or the one that is called so."""
        place: Any = None
        if isinstance(self._structure, dict):
            place = next(
                (self._structure[name] for name in LABEL_NAMES if name in self._structure), None
            )
        elif isinstance(self._structure, (tuple, list)) and len(self._structure) > 1:
            place = self._structure[-1]
        return self._leaves[place] if isinstance(place, int) else None

    def select(self, indices: slice | NDArray[np.integer[Any]]) -> HeldRows:
        """Return the instances at ``indices``, with their ids."""
        leaves = [leaf[indices] for leaf in self._leaves]
        return HeldRows(leaves, self._structure, self.ids[indices])

    def tensors(self) -> Any:
        """Return all instances as one batch that shares the memory of the arrays: read only."""
        with warnings.catch_warnings():
            # What a worker maps from a file cannot be written, and is not.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            leaves = [torch.from_numpy(leaf) for leaf in self._leaves]
        return tree_map(lambda position: leaves[position], self._structure)


def held(instances: Instances, dtype: torch.dtype) -> Instances:
    """Return a set as rows of arrays, or as it is where it has to be read batch by batch.

    That is where instances are not tensors of one shape each, depend on the others of their
    batch, are drawn at random when they are read (augmentation), or are too large together.

    Parameters
    ----------
    instances : Instances
        The set.
    dtype : torch.dtype
        The floating type that the module takes.
    """
    n = len(instances)
    first = _cast(instances.batch(np.zeros(1, np.intp)), dtype)
    leaves, _ = tree_flatten(first)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.ndim]
    size = sum(leaf.numel() * leaf.element_size() for leaf in tensors)
    if not tensors or len(tensors) < len(leaves) or size * n > LARGEST:
        return instances
    if draws(lambda: instances.batch(np.zeros(1, np.intp))):
        return instances
    try:
        with seeded(0):
            whole = _cast(instances.batch(slice(0, n)), dtype)
    except (RuntimeError, TypeError, ValueError):
        return instances  # its instances do not fit into one batch
    leaves, _ = tree_flatten(whole)
    if any(not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != n for leaf in leaves):
        return instances
    for position in np.unique(np.linspace(0, n - 1, LOOKED_AT).astype(np.intp)):
        alone, _ = tree_flatten(_cast(instances.batch(np.array([position])), dtype))
        rows = [leaf[position : position + 1] for leaf in leaves]
        if len(alone) != len(rows) or not all(map(_equal, alone, rows)):
            return instances
    arrays = [_as_array(leaf) for leaf in leaves]
    places = iter(range(len(leaves)))
    structure = tree_map_only(Tensor, lambda tensor: next(places), whole)
    return HeldRows(arrays, structure, instances.ids)


def _cast(batch: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(
        Tensor, lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, batch
    )


def _equal(left: Any, right: Tensor) -> bool:
    if not isinstance(left, Tensor) or left.shape != right.shape or left.dtype != right.dtype:
        return False
    # NaN is not equal to itself; what it does is seen later.
    return bool(((left == right) | ((left != left) & (right != right))).all())


def _as_array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.detach().cpu()
    half = tensor.is_floating_point() and tensor.element_size() < 4
    return np.ascontiguousarray((tensor.float() if half else tensor).numpy())  # no bfloat16 there
