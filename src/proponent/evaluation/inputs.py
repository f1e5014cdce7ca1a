"""What the evaluations accept, turned into arrays, and refused with a reason where it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError, NonFiniteError

# How many offending positions a message lists before it only counts them.
LISTED = 5


def listed(items: Sequence[Any] | NDArray[Any]) -> str:
    """Write the first few items, and how many more there are."""
    first = ", ".join(str(item) for item in items[:LISTED])
    more = len(items) - LISTED
    return f"{first} and {more} more" if more > 0 else first


def to_array(value: Any) -> NDArray[Any]:
    """Return an array of anything array-like, torch tensors on any device included."""
    if hasattr(value, "detach"):
        tensor = value.detach().cpu()
        # NumPy has no bfloat16, so floating tensors are widened first.
        return np.asarray(tensor.double() if tensor.is_floating_point() else tensor)
    return np.asarray(value)


def real_array(value: Any, name: str, dimensions: tuple[int, ...]) -> NDArray[np.float64]:
    """Return a float64 array with an allowed number of dimensions.

    A column of shape (n, 1) is not a vector: it is refused, because ranking along its last
    axis would rank nothing.

    Raises
    ------
    InvalidInputError
        The value is not numeric, or has another number of dimensions.
    """
    try:
        array = to_array(value)
    except ValueError as error:
        raise InvalidInputError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.kind not in "biuf":
        raise InvalidInputError(
            f"{name} must be an array of real numbers, got {type(value).__name__} with element "
            f"type {array.dtype}."
        )
    if array.ndim not in dimensions:
        wanted = " or ".join(f"{d}-D" for d in dimensions)
        hint = " Pass it as one dimension: x[:, 0]." if 1 in array.shape and array.ndim == 2 else ""
        raise InvalidInputError(f"{name} must be {wanted}, got shape {array.shape}.{hint}")
    return array.astype(np.float64)


def refuse_non_finite(values: NDArray[np.float64], name: str, ids: NDArray[Any]) -> None:
    """Refuse values that are NaN or infinite; the ids label the last axis.

    Raises
    ------
    NonFiniteError
        Lists the ids.
    """
    bad = ~np.isfinite(values).reshape(-1, values.shape[-1]).all(axis=0)
    if bad.any():
        raise NonFiniteError(
            f"{name} is not finite for instance {listed(ids[bad])} ({bad.sum()} of {bad.size}). "
            "Score every instance, or leave these out of all arguments."
        )


def boolean_mask(value: Any, name: str, length: int | None = None) -> NDArray[np.bool_]:
    """Return a boolean vector.

    Raises
    ------
    InvalidInputError
        Not boolean, not one-dimensional or of another length.
    """
    mask = to_array(value)
    if mask.dtype != np.bool_:
        raise InvalidInputError(
            f"{name} must be a boolean mask with one entry an instance, got element type "
            f"{mask.dtype}. From positions: mask = np.zeros(n, dtype=bool); mask[positions] = True."
        )
    if mask.ndim != 1:
        raise InvalidInputError(f"{name} must be of shape (n,), got {mask.shape}.")
    if length is not None and len(mask) != length:
        raise InvalidInputError(f"{name} has {len(mask)} entries for {length} instances.")
    return mask


def subset_positions(subsets: Any, n_train: int | None = None) -> list[NDArray[np.intp]]:
    """Return the positions in each subset, from boolean masks or lists of positions.

    Parameters
    ----------
    subsets : boolean array of shape (m, n_train), or sequence of m position lists
        Position lists may differ in length.
    n_train : int, optional
        Number of training instances, to check against.

    Raises
    ------
    InvalidInputError
        A subset is empty, repeats an instance, or names one that is not there.
    """
    if len(subsets) == 0:
        raise InvalidInputError("subsets is empty.")
    return [_positions(subset, index, n_train) for index, subset in enumerate(subsets)]


def _positions(subset: Any, index: int, n_train: int | None) -> NDArray[np.intp]:
    name = f"subsets[{index}]"
    array = to_array(subset)
    if array.dtype == np.bool_:
        array = np.flatnonzero(boolean_mask(array, name, n_train))
    if array.ndim != 1 or array.size == 0:
        raise InvalidInputError(f"{name} must hold at least one position, got {array.shape}.")
    if array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"{name} must be a boolean mask or integer positions, got {array.dtype}."
        )
    if array.min() < 0 or (n_train is not None and array.max() >= n_train):
        last = "the last one" if n_train is None else str(n_train - 1)
        raise InvalidInputError(
            f"{name} names positions from {array.min()} to {array.max()}; training instances are "
            f"counted from 0 to {last}."
        )
    if len(np.unique(array)) != len(array):
        raise InvalidInputError(
            f"{name} names an instance twice; subsets are without repetition. A 0/1 matrix must "
            "be boolean: subsets.astype(bool)."
        )
    return array.astype(np.intp)


def positive_integer(value: Any, name: str, least: int = 1) -> int:
    """Return the integer.

    Raises
    ------
    InvalidInputError
        It is not an integer, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InvalidInputError(f"{name} must be an integer of at least {least}, got {value!r}.")
    return int(value)


def open_fraction(value: float, name: str) -> float:
    """Return a number strictly between 0 and 1.

    Raises
    ------
    InvalidInputError
        It is not.
    """
    if not 0.0 < value < 1.0:
        raise InvalidInputError(f"{name} must lie between 0 and 1, both excluded, got {value!r}.")
    return float(value)
