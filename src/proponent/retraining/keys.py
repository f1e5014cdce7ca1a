"""Keys of submodels: a hash of who is in, how often, and of the seed."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16

# Keys are made in blocks of rows, so that a million of masks is never copied at once.
BLOCK_BYTES = 2**24


def row_keys(
    masks: NDArray[Any], seeds: NDArray[np.int64], members: NDArray[np.intp] | None = None
) -> tuple[list[bytes], NDArray[np.bool_]]:
    """Return the key of each submodel, and whether it has no training instance.

    A mask and counts that say the same have the same key.

    Parameters
    ----------
    masks : ndarray of shape (K, n)
        Boolean, or uint8: how often.
    seeds : ndarray of shape (K,)
        The seeds of the trainings.
    members : ndarray, optional
        The column of ``masks`` that each training instance stands in.
    """
    width = masks.shape[1] if members is None else len(members)
    step = max(1, BLOCK_BYTES // max(width, 1))
    keys: list[bytes] = []
    empty = np.empty(len(masks), np.bool_)
    for start in range(0, len(masks), step):
        rows = slice(start, start + step)
        counts = masks[rows] if members is None else masks[rows][:, members]
        packed = np.packbits(counts.astype(bool, copy=False), axis=1)
        empty[rows] = ~packed.any(axis=1)
        found = _hashes(b"\0", packed, seeds[rows])
        if counts.dtype != np.bool_:
            repeated = np.flatnonzero(counts.max(axis=1, initial=0) > 1)
            hashes = _hashes(b"\1", counts[repeated], seeds[rows][repeated])
            for row, key in zip(repeated.tolist(), hashes, strict=True):
                found[row] = key
        keys += found
    return keys, empty


def _hashes(kind: bytes, rows: NDArray[np.uint8], seeds: NDArray[np.int64]) -> list[bytes]:
    columns = [rows, seeds.astype("<i8")[:, None].view(np.uint8)]
    content = np.concatenate(columns, axis=1).tobytes()
    width = rows.shape[1] + 8
    return [
        blake2b(kind + content[start : start + width], digest_size=KEY_BYTES).digest()
        for start in range(0, len(content), width)
    ]
