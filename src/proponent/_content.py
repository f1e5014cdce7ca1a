"""The content of columns and items: as numpy arrays, and fed to a hash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_numpy(column: Any) -> NDArray[Any]:
    """Return an array of anything array-like, torch tensors on any device included."""
    if hasattr(column, "detach"):
        column = column.detach().cpu()
        half = column.is_floating_point() and column.itemsize < 4
        column = (column.float() if half else column).numpy()  # numpy has no bfloat16
    return np.asarray(column)


def update_rounded(digest: Any, item: Any) -> None:
    """Feed the content of one instance to the hash, whatever it is made of."""
    if isinstance(item, Mapping):
        for key in sorted(item, key=str):
            digest.update(str(key).encode())
            update_rounded(digest, item[key])
    elif isinstance(item, Sequence) and not isinstance(item, (str, bytes)):
        for part in item:
            update_rounded(digest, part)
    elif isinstance(item, (str, bytes)):
        digest.update(item.encode() if isinstance(item, str) else item)
    else:
        array = as_numpy(item)
        digest.update(str(array.shape).encode())
        if array.dtype.kind in "biuf":
            # Rounded: float32 images and their float64 originals are the same instances.
            array = np.ascontiguousarray(array, np.float32)
        # The content of an object is not known; its address must not count.
        content = str(type(item)).encode() if array.dtype == object else array.tobytes()
        digest.update(content)


def update_exactly(digest: Any, item: Any) -> None:
    """Feed every bit of a column or an item to the hash."""
    if isinstance(item, Mapping):
        for key in sorted(item, key=str):
            digest.update(str(key).encode())
            update_exactly(digest, item[key])
    elif isinstance(item, (tuple, list)):
        for part in item:
            update_exactly(digest, part)
    elif isinstance(item, (str, bytes)):
        digest.update(item.encode() if isinstance(item, str) else item)
    else:
        array = as_numpy(item)
        digest.update(f"{array.dtype} {array.shape}".encode())
        if array.dtype == object:
            # Numbers and texts of a table; an object without a repr of its own hashes as another.
            digest.update("\x1f".join(map(repr, array.ravel().tolist())).encode())
        else:
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
