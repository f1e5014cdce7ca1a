"""How much memory models take."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

SHARED = (type, ModuleType, FunctionType, BuiltinFunctionType, MethodType)  # not the models' own


def size_of(models: Any) -> int:
    """Return about how many bytes models take: as they are pickled, or else by their parts.

    Objects of a class that is defined inside a function cannot be pickled.
    """
    try:
        return len(pickle.dumps(models, protocol=5))
    except Exception:
        return _size_of_parts(models)


def _size_of_parts(whole: Any) -> int:
    """Return the bytes of an object and of what it refers to, each part once."""
    seen: set[int] = set()
    waiting, total = [whole], 0
    while waiting:
        part = waiting.pop()
        if id(part) in seen or isinstance(part, SHARED):
            continue
        seen.add(id(part))
        if isinstance(part, np.ndarray) and part.dtype != object:
            total += part.nbytes
            continue
        inner = list(_parts(part))
        waiting += inner
        total += sys.getsizeof(part, 64) if inner or type(part) in PLAIN else _opaque(part)
    return total


PLAIN = {int, float, bool, complex, str, bytes, bytearray, type(None), dict, list, tuple, set}


def _opaque(part: Any) -> int:
    """Return the bytes of an object without Python parts: those it holds itself are pickled."""
    try:
        return len(pickle.dumps(part, protocol=5))
    except Exception:
        return sys.getsizeof(part, 64)


def _parts(whole: Any) -> Iterator[Any]:
    """Yield what an object refers to."""
    if isinstance(whole, Mapping):
        yield from whole.keys()
        yield from whole.values()
    elif isinstance(whole, (list, tuple, set, frozenset)):
        yield from whole
    elif isinstance(whole, np.ndarray):
        yield from whole.ravel().tolist()
    yield from getattr(whole, "__dict__", {}).values()
    for kind in type(whole).__mro__:
        names = vars(kind).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(whole, name):
                yield getattr(whole, name)
