"""Compiled loops of the tree kernels; imported where numba is installed.

Both add in the order of the trees, and sums of a leaf in the order of its instances, as numpy
does in their place.
"""

from __future__ import annotations

from typing import Any

import numba


@numba.njit(cache=True, nogil=True)
def gather(leaves: Any, first: Any, flat: Any, total: Any) -> None:  # pragma: no cover
    """Add ``sum_t flat[c, first[t] + leaves[t, i]]`` to ``total[c, i]``.

    Parameters
    ----------
    leaves : unsigned integer array of shape (trees, n)
    first : integer array of shape (trees + 1,)
        Where the leaves of each tree begin.
    flat : array of shape (C, L)
    total : array of shape (C, n)
    """
    for t in range(leaves.shape[0]):
        for c in range(flat.shape[0]):
            for i in range(leaves.shape[1]):
                total[c, i] += flat[c, first[t] + leaves[t, i]]


@numba.njit(cache=True, nogil=True)
def scatter(leaves: Any, first: Any, values: Any, sums: Any) -> None:  # pragma: no cover
    """Add ``values[c, i]`` to ``sums[c, first[t] + leaves[t, i]]`` for every tree.

    Parameters
    ----------
    leaves : unsigned integer array of shape (trees, n)
    first : integer array of shape (trees + 1,)
        Where the leaves of each tree begin.
    values : array of shape (C, n)
    sums : array of shape (C, L)
    """
    for t in range(leaves.shape[0]):
        for c in range(values.shape[0]):
            for i in range(leaves.shape[1]):
                sums[c, first[t] + leaves[t, i]] += values[c, i]
