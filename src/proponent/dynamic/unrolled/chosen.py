"""Training instances that are named by their ids or positions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError


def positions_of(ids: Any, instances: Instances, argument: str) -> NDArray[np.int64]:
    """Return the positions of the instances with the given ids, in the order given.

    Raises
    ------
    InvalidInputError
        If none is given, one is not there, or one stands twice.
    """
    wanted = np.atleast_1d(np.asarray(ids))
    if wanted.ndim != 1 or not len(wanted):
        raise InvalidInputError(f"{argument}: expected a list of training ids; got {ids!r}.")
    if len(np.unique(wanted)) != len(wanted):
        raise InvalidInputError(f"{argument}: an id stands twice in {wanted[:10].tolist()}.")
    known = {label: place for place, label in enumerate(instances.ids.tolist())}
    missing = [label for label in wanted.tolist() if label not in known]
    if missing:
        raise InvalidInputError(
            f"{argument}: no training instance has the id {missing[0]!r}"
            f"{f' (nor {len(missing) - 1} others)' if len(missing) > 1 else ''}."
        )
    return np.array([known[label] for label in wanted.tolist()], dtype=np.int64)


def checked_positions(instances: Any, n: int) -> NDArray[np.int64]:
    """Return positions in a training set of n, if they are some, each once.

    Raises
    ------
    InvalidInputError
        If they are not.
    """
    positions = np.atleast_1d(np.asarray(instances))
    if positions.ndim != 1 or not len(positions) or positions.dtype.kind not in "iu":
        raise InvalidInputError(
            f"instances: expected a list of positions in the training set; got {instances!r}."
        )
    if positions.min() < 0 or positions.max() >= n:
        raise InvalidInputError(f"instances: positions must be in 0 .. {n - 1}.")
    if len(np.unique(positions)) != len(positions):
        raise InvalidInputError("instances: a position stands twice.")
    return positions.astype(np.int64)
