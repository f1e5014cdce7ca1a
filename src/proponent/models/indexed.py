"""A data set whose items tell their positions, for training loops that are recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils.data import Dataset

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.step_seeds import announce_item

INDEX = "index"


def indexed(data: Any) -> Dataset[Any]:
    """Return the data set with each item's position put first.

    A loader over it may shuffle as it likes: every batch starts with the positions that
    :meth:`Recorder.step` takes.

    Parameters
    ----------
    data : (X, y), dict, Dataset or Instances
        A training set.

    Returns
    -------
    torch.utils.data.Dataset
        Map-style: its items are ``(position, *item)``, or ``{"index": position, **item}`` where
        the items are dicts.

    Examples
    --------
    >>> import numpy as np
    >>> from torch.utils.data import DataLoader
    >>> X, y = np.eye(4, dtype="float32"), np.array([0, 1, 0, 1])
    >>> for indices, inputs, targets in DataLoader(indexed((X, y)), batch_size=2):
    ...     print(indices.tolist(), targets.tolist())
    [0, 1] [0, 1]
    [2, 3] [0, 1]
    """
    return _Indexed(Instances.of(data))


class _Indexed(Dataset[Any]):
    """The items of a set, each with its position."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances

    def __len__(self) -> int:
        return len(self._instances)

    def __getitem__(self, position: int) -> tuple[Any, ...] | dict[str, Any]:
        if not -len(self) <= position < len(self):
            raise IndexError(f"position {position} of {len(self)} instances")
        position = int(position) % len(self)
        announce_item()
        item = self._instances.item(position)
        if isinstance(item, Mapping):
            if INDEX in item:
                raise InvalidInputError(
                    f"data: its items already have an entry {INDEX!r}; rename that first."
                )
            return {INDEX: position, **item}
        if isinstance(item, (tuple, list)):
            return (position, *item)
        return (position, item)
