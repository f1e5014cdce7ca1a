"""Sums over arrays in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def row_sums(values: Array) -> Array:
    """Return the sums over the second axis."""
    return np.asarray(values.sum(axis=1))


def group_sums(groups: NDArray[np.intp], values: Array, count: int) -> Array:
    """Return for each of ``count`` groups the sum of the rows (n, r) in it, ``(count, r)``."""
    sums = [np.bincount(groups, column, minlength=count) for column in values.T]
    return np.stack(sums, axis=1)
