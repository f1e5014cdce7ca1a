"""When a recorder stores the parameters: at epochs, every k steps, or at chosen steps."""

from __future__ import annotations

from collections.abc import Collection
from operator import index
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError

Every = Literal["epoch"] | int | Collection[int]


class Schedule:
    """Says before each step whether its parameters are to be stored.

    Parameters
    ----------
    every : "epoch", int or collection of ints
        Before the first step of each epoch; before steps 1, 1 + k, 1 + 2k, ...; or before the
        given steps, counted from 1.
    n_train : int or None
        Number of training instances where it is known.

    Raises
    ------
    InvalidInputError
        If ``every`` is none of those.

    Notes
    -----
    Where ``n_train`` is known an epoch ends once that many instances have been seen, or with an
    instance that comes back when another such batch would pass ``n_train``: loaders that drop
    the last batch and loaders that draw with replacement are both read rightly. Where it is not
    known, an epoch ends with the first instance that comes back.
    """

    def __init__(self, every: Every, n_train: int | None) -> None:
        self.every = _checked(every)
        self._n_train = n_train
        self._count = 0
        self._seen = np.zeros(n_train or 1, dtype=bool)

    def is_due(self, step: int, indices: NDArray[np.int64]) -> bool:
        """Take note of the batch of ``step`` and say whether to store the state before it."""
        if self.every == "epoch":
            return self._starts_epoch(indices)
        if isinstance(self.every, int):
            return (step - 1) % self.every == 0
        return step in self.every

    def _starts_epoch(self, indices: NDArray[np.int64]) -> bool:
        missing = int(indices.max()) + 1 - len(self._seen)
        if missing > 0:
            self._seen = np.pad(self._seen, (0, max(missing, len(self._seen))))
        comes_back = bool(self._seen[indices].any())
        if self._n_train is None:
            starts = comes_back
        else:
            too_few_left = self._count + len(indices) > self._n_train
            starts = self._count >= self._n_train or (comes_back and too_few_left)
        starts = starts or self._count == 0
        if starts:
            self._count = 0
            self._seen[:] = False
        self._count += len(indices)
        self._seen[indices] = True
        return starts


def _checked(every: Any) -> Literal["epoch"] | int | frozenset[int]:
    problem = InvalidInputError(
        f"every: expected 'epoch', a number of steps (1 stores the parameters at every step) or "
        f"the steps themselves, counted from 1; got {every!r}."
    )
    if isinstance(every, str) and every == "epoch":
        return "epoch"
    several = hasattr(every, "__iter__")
    try:
        steps = [index(step) for step in every] if several else [index(every)]
    except TypeError:
        raise problem from None
    if isinstance(every, bool) or not steps or min(steps) < 1:
        raise problem
    return frozenset(steps) if several else steps[0]
