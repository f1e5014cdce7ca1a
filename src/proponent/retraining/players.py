"""Who is in or out: training instances, or groups of them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent._content import as_numpy
from proponent.data import Instances
from proponent.exceptions import InvalidInputError


class Players:
    """The players of a training set: its instances, or the groups that they belong to.

    Parameters
    ----------
    train : Instances
        The training set, n instances.
    groups : array-like of shape (n,), optional
        The name of the group of each instance: text or whole numbers.

    Attributes
    ----------
    instances : Instances
        The players: the training set, or the groups in ascending order of their names.
    members : ndarray of shape (n,), or None
        The position of each instance's group.

    Raises
    ------
    InvalidInputError
        If there is not one name for each instance.
    """

    def __init__(self, train: Instances, groups: Any = None) -> None:
        self.train = train
        self.instances = train
        self.members: NDArray[np.intp] | None = None
        if groups is None:
            return
        names = as_numpy(groups)
        if names.dtype == object and all(isinstance(name, str) for name in names.ravel()):
            names = names.astype(str)
        if names.shape != (len(train),) or names.dtype.kind not in "iubU":
            raise InvalidInputError(
                f"groups: expected the name of a group, text or a whole number, for each of the "
                f"{len(train):,} training instances; got {names.dtype} of shape {names.shape}."
            )
        kinds, members = np.unique(names, return_inverse=True)
        self.members = members.reshape(-1)
        kinds = kinds.astype(int) if kinds.dtype.kind == "b" else kinds
        self.instances = Instances.of((np.arange(len(kinds)),), ids=kinds)

    def __len__(self) -> int:
        """Return the number of players."""
        return len(self.instances)

    def expand(self, masks: NDArray[Any]) -> NDArray[Any]:
        """Return masks over the training instances, ``(K, n)``, for masks over the players."""
        return masks if self.members is None else masks[:, self.members]

    def check(self, masks: Any, seeds: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Return masks over the players, boolean or uint8, and the seeds that go with them.

        Raises
        ------
        InvalidInputError
            If they are of another kind or shape.
        """
        table, numbers = np.asarray(masks), np.asarray(seeds)
        if table.ndim != 2 or table.shape[1] != len(self) or table.dtype.kind not in "biu":
            raise InvalidInputError(
                f"masks: expected (K, {len(self)}), one column a player: boolean, or how often as "
                f"whole numbers; got {table.dtype} of shape {table.shape}."
            )
        if table.dtype.kind != "b" and table.dtype != np.uint8:
            if table.size and not 0 <= table.min() <= table.max() <= 255:
                raise InvalidInputError(
                    f"masks: a player is in 0 to 255 times; got {table.min()} to {table.max()}."
                )
            table = table.astype(np.uint8)
        if numbers.shape != (len(table),) or numbers.dtype.kind not in "iu":
            raise InvalidInputError(
                f"seeds: expected {len(table)} whole numbers, one a mask; got {numbers.dtype} of "
                f"shape {numbers.shape}."
            )
        return table, numbers.astype(np.int64)
