"""Which rows and columns are meant: by label, by position, by group."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent._results.checks import as_ids
from proponent.exceptions import InvalidInputError


def positions_of(wanted: object, ids: NDArray[Any], name: str) -> NDArray[np.intp]:
    """Find the positions in ``ids`` of the ids ``wanted`` (one or many), in their order."""
    if isinstance(wanted, (str, int, np.integer, np.str_)) and not isinstance(wanted, bool):
        wanted = [wanted]
    labels = as_ids(wanted, name)
    if labels.size == 0:
        return np.empty(0, dtype=np.intp)
    if ids.size == 0 or labels.dtype.kind != ids.dtype.kind:
        kinds = {"i": "integers", "U": "strings"}
        reason = f"there the ids are {kinds[ids.dtype.kind]}" if ids.size else "there are no ids"
        raise InvalidInputError(f"{name} has unknown ids, such as {labels[0].item()!r}: {reason}")
    order = np.argsort(ids, kind="stable")
    places = np.minimum(np.searchsorted(ids, labels, sorter=order), len(ids) - 1)
    found = order[places]
    unknown = labels[ids[found] != labels]
    if unknown.size:
        names = ", ".join(repr(label.item()) for label in unknown[:5])
        more = f" and {unknown.size - 5:,} more" if unknown.size > 5 else ""
        raise InvalidInputError(f"{name} has unknown ids: {names}{more}")
    return found


def axis_key(key: object, length: int, axis: str) -> slice | NDArray[np.intp]:
    """Read one part of ``influence[test, train]`` as a slice or as positions.

    An integer becomes a slice, which keeps its axis.

    Raises
    ------
    IndexError
        If a position is out of range, a mask has another length, or the key is of another kind.
    InvalidInputError
        If a position is asked for twice: labels must stay unique.
    """
    if isinstance(key, slice):
        return key
    if not isinstance(key, (bool, np.bool_)):
        try:
            position = operator.index(key)  # type: ignore[arg-type]
        except TypeError:
            pass
        else:
            start = int(_in_range(np.array([position]), length, axis)[0])
            return slice(start, start + 1)
    array = np.asarray(key)
    if array.ndim == 1 and array.size == 0 and not isinstance(key, np.ndarray):
        array = np.empty(0, dtype=np.intp)
    if array.ndim != 1 or array.dtype.kind not in "biu":
        raise IndexError(
            f"the {axis} axis takes an integer, a slice, a list of integers or a boolean mask, "
            f"not {key!r}; to select by id use select({axis}=...)"
        )
    if array.dtype.kind == "b":
        if len(array) != length:
            raise IndexError(f"the mask has length {len(array)}, but the {axis} axis {length}")
        return np.flatnonzero(array)
    positions = _in_range(array, length, axis)
    if len(np.unique(positions)) < len(positions):
        raise InvalidInputError(
            f"a position on the {axis} axis is asked for more than once; ids must stay unique"
        )
    return positions


def _in_range(positions: NDArray[Any], length: int, axis: str) -> NDArray[np.intp]:
    """Count negative positions counted from the end."""
    outside = positions[(positions < -length) | (positions >= length)]
    if outside.size:
        raise IndexError(
            f"position {outside[0]} is out of range for the {axis} axis, which has length {length}"
        )
    positions = positions.astype(np.intp)
    return np.where(positions < 0, positions + length, positions)


def group_positions(
    groups: object, train_ids: NDArray[Any]
) -> tuple[NDArray[Any], list[NDArray[np.intp]]]:
    """List the names of the groups, by first appearance, and the positions of each.

    Raises
    ------
    InvalidInputError
        If there is no group, a group is empty, has unknown ids or an id twice, or if there is
        not one label for each training instance.
    """
    if isinstance(groups, Mapping):
        names = as_ids(list(groups), "the names of groups")
        members = []
        for name, ids in groups.items():
            found = positions_of(
                list(ids) if isinstance(ids, Set) else ids,
                train_ids,
                f"groups[{name!r}]",
            )
            if not found.size:
                raise InvalidInputError(f"groups[{name!r}] is empty; leave it out")
            members.append(found)
    else:
        labels = as_ids(groups, "groups", unique=False)
        if len(labels) != len(train_ids):
            raise InvalidInputError(
                f"groups has {len(labels)} labels for {len(train_ids)} training instances; "
                "pass one label for each, or a mapping of names to train ids"
            )
        names, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        ordered = np.argsort(inverse, kind="stable")
        ends = np.cumsum(np.bincount(inverse, minlength=len(names)))
        parts = np.split(ordered, ends[:-1]) if len(names) else []
        appearance = np.argsort(first)
        names, members = names[appearance], [parts[number] for number in appearance]
    if not members:
        raise InvalidInputError("groups is empty; pass at least one group")
    return names, members
