"""What may enter a result: scores, ids and settings, checked once and then kept unchangeable."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError, NonFiniteError

CHUNK = 2**20
FLOAT_MARK = "$float"  # how the files write nan and infinity, which JSON does not have


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """Make an array read-only in place; only for arrays that nobody else holds."""
    array = np.asarray(array)
    array.flags.writeable = False
    return array


def owned(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array if nobody can change it, otherwise a read-only copy.

    A method hands a large matrix over without a copy by making it read-only first.
    """
    link: object = array
    while isinstance(link, np.ndarray):
        if link.flags.writeable:  # the array itself, or what it is a view of
            return frozen(array.copy(order="K"))
        link = link.base
    return array


def as_scores(values: object, name: str) -> NDArray[np.floating[Any]]:
    """Read ``values`` as a float32 or float64 array, without a copy where possible.

    Parameters
    ----------
    values : array-like of any shape
        float32 and float64 are kept, float16 becomes float32 and integers float64.
    name : str
        The argument, for the messages.

    Raises
    ------
    InvalidInputError
        If it is masked or cannot be read as real numbers.
    """
    if isinstance(values, np.ma.MaskedArray):
        raise InvalidInputError(
            f"{name} is a masked array, whose mask would be lost; "
            f"pass {name}.filled(numpy.nan), NaN means 'not scored'"
        )
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{name} cannot be read as an array: {error}") from error
    if array.dtype.kind in "iu":
        return array.astype(np.float64)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind == "f" and array.dtype.itemsize in (4, 8):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    raise InvalidInputError(
        f"{name} has dtype {array.dtype}; pass real numbers as float32 or float64"
    )


def surely_finite(array: NDArray[np.floating[Any]]) -> bool:
    """Tell in one pass, and without an array of flags, whether every number is finite.

    A sum of squares is not finite if a single one is not. False may mean that the sum overflowed,
    or that there are NaN: look at each number then.
    """
    flat = array.ravel(order="K")
    return all(
        math.isfinite(np.vdot(part, part))
        for part in (flat[start : start + CHUNK] for start in range(0, flat.size, CHUNK))
    )


def check_not_infinite(
    array: NDArray[np.floating[Any]],
    name: str,
    train_ids: NDArray[Any],
    test_ids: NDArray[Any] | None,
) -> None:
    """Refuse +-inf in scores of shape (n_test, n_train) or (n_train,), naming where it stands."""
    if surely_finite(array):
        return
    found: list[tuple[int, int]] = []
    total = 0
    matrix = array[None, :] if array.ndim == 1 else array
    step = max(1, CHUNK // max(1, matrix.shape[1]))
    for start in range(0, len(matrix), step):
        where = np.argwhere(np.isinf(matrix[start : start + step]))
        total += len(where)
        found += [(start + int(row), int(column)) for row, column in where[: 3 - len(found)]]
    if total:
        places = "; ".join(
            (f"test {test_ids[row]!s}, " if test_ids is not None else "")
            + f"train {train_ids[column]!s} (column {column})"
            for row, column in found
        )
        more = f" and {total - len(found):,} more" if total > len(found) else ""
        raise NonFiniteError(
            f"{name} is infinite at {places}{more}; find what overflowed there, "
            "or pass NaN where an instance could not be scored"
        )


def as_ids(ids: object, name: str, *, unique: bool = True) -> NDArray[Any]:
    """Read ``ids`` as a read-only 1-D array of int64 or of strings.

    Parameters
    ----------
    ids : array-like of shape (n,)
        All integers or all strings.
    name : str
        The argument, for the messages.
    unique : bool
        Whether an id may stand only once.

    Raises
    ------
    InvalidInputError
        If they are not 1-D, are of another kind, are of both kinds, or repeat.
    """
    advice = "pass one integer or one string for each instance"
    if isinstance(ids, (str, bytes, Mapping, set, frozenset)):
        raise InvalidInputError(f"{name} is of type {type(ids).__name__}; {advice}, in order")
    items: list[Any] = []
    if not isinstance(ids, np.ndarray) and not hasattr(ids, "__array__"):
        try:
            ids = items = list(ids)  # type: ignore[call-overload]
        except TypeError:
            raise InvalidInputError(f"{name} is of type {type(ids).__name__}; {advice}") from None
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{name} cannot be read as an array: {error}") from error
    if array.ndim != 1:
        raise InvalidInputError(f"{name} must be 1-D, but has shape {array.shape}; {advice}")
    if array.size == 0:
        array = array if array.dtype.kind == "U" else np.empty(0, dtype=np.int64)
    elif array.dtype.kind in "OT":
        items = list(array)
    # numpy would turn [1, "a"] into two strings, and drop null characters at the end.
    texts = [isinstance(item, str) for item in items]
    if any(texts):
        if not all(texts):
            other = items[texts.index(False)]
            raise InvalidInputError(
                f"{name} mixes strings with {type(other).__name__} "
                f"(position {texts.index(False)}); {advice}"
            )
        if any(item.endswith("\0") for item in items):
            raise InvalidInputError(f"{name} has a string that ends in a null character")
        array = np.array(items, dtype=np.str_)
    elif array.dtype.kind == "u" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise InvalidInputError(f"{name} has integers beyond 64 bits with sign; pass strings")
    elif array.dtype.kind in "iu":
        array = array.astype(np.int64, copy=False)
    elif array.dtype.kind != "U":
        raise InvalidInputError(f"{name} has dtype {array.dtype}; {advice}")
    array = owned(array.astype(array.dtype.newbyteorder("="), copy=False))
    if unique:
        _check_unique(array, name)
    return array


def _check_unique(ids: NDArray[Any], name: str) -> None:
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    if again.size:
        first, second = int(order[again[0]]), int(order[again[0] + 1])
        raise InvalidInputError(
            f"{name} must be unique, but {ids[first].item()!r} stands at "
            f"positions {first} and {second}"
        )


def as_count(k: object, name: str = "k") -> int:
    """Read ``k`` as an int of at least 1."""
    try:
        number = operator.index(k)  # type: ignore[arg-type]
    except TypeError:
        number = 0
    if isinstance(k, (bool, np.bool_)) or number < 1:
        raise InvalidInputError(f"{name} must be an integer of at least 1, not {k!r}")
    return number


def as_metadata(value: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Copy a mapping deeply, in the types that JSON knows (numpy's are converted).

    Raises
    ------
    InvalidInputError
        If something in it cannot be written to JSON; the message says which entry.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInputError(f"{name} must be a mapping, not {type(value).__name__}")
    return {str(key): item for key, item in _as_json(value, name).items()}


def _as_json(value: object, where: str) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (list, tuple)):
        return [_as_json(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key == FLOAT_MARK:
                raise InvalidInputError(
                    f"{where} has the key {key!r}; keys must be strings other than {FLOAT_MARK!r}"
                )
        return {
            str.__str__(key): _as_json(item, f"{where}[{key!r}]") for key, item in value.items()
        }
    raise InvalidInputError(
        f"{where} is of type {type(value).__name__}, which cannot be written to JSON; "
        "pass numbers, strings, booleans, None, lists and mappings"
    )


def strict_json(value: Any) -> Any:
    """Return the same metadata with nan and infinity marked, since JSON has no word for them."""
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT_MARK: repr(value)}
    if isinstance(value, list):
        return [strict_json(item) for item in value]
    if isinstance(value, dict):
        return {key: strict_json(item) for key, item in value.items()}
    return value


def from_strict_json(mapping: dict[str, Any]) -> Any:
    """Undo :func:`strict_json`, as the ``object_hook`` of ``json.loads``."""
    if set(mapping) == {FLOAT_MARK}:
        return float(mapping[FLOAT_MARK])
    return mapping
