"""The k nearest neighbours in many subsets at once, from one order of the whole training set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.models.nearest_points import Neighbours

Values = NDArray[np.float64]
Orders = NDArray[np.int32]

AT_ONCE = 2**20  # entries (test, rank, subset) that are looked at together
TESTS_AT_ONCE = 64


def orders_of(points: Neighbours, tests: Values) -> Orders:
    """Return all training instances as each test instance sees them, ``(T, n)``, nearest first.

    Instances at the same distance go by position: the order is that of the neighbours' methods.
    """
    orders = np.empty((len(tests), len(points)), dtype=np.int32)
    for rows, positions in points.orders(tests, len(points)):
        orders[rows] = positions
    return orders


def blocks_of_tests(n_tests: int, n: int, n_subsets: int) -> Iterator[slice]:
    """Yield the tests some at a time, so that neither their orders nor their sums are large."""
    size = min(TESTS_AT_ONCE, AT_ONCE // max(n, n_subsets))
    size = max(1, size)
    return (slice(start, start + size) for start in range(0, n_tests, size))


def neighbour_means(orders: Orders, counts: NDArray[Any], marks: NDArray[Any], k: int) -> Values:
    """Return the average mark of the k nearest neighbours in each subset, ``(K, T, V)``.

    Parameters
    ----------
    orders : ndarray of shape (T, n)
        Positions of the training instances, nearest first.
    counts : ndarray of shape (K, n)
        How often each is in; an instance that is in twice is two neighbours.
    marks : ndarray of shape (n, V)
        What is averaged: one-hot labels, or targets.
    k : int
        Neighbours that count. A subset with fewer has only these.
    """
    sizes = counts.sum(axis=1, dtype=np.int64)
    largest = max(k, int(counts.max()) if len(counts) else 0)
    # Small types are faster: each entry is read some times.
    kind = np.min_scalar_type(largest)
    means = np.empty((len(counts), len(orders), marks.shape[1]))
    for depth, rows in _by_depth(sizes, orders.shape[1], k):
        width = max(1, AT_ONCE // (len(orders) * depth))
        for start in range(0, len(rows), width):
            chosen = rows[start : start + width]
            members = np.ascontiguousarray(counts[chosen].T, dtype=kind)
            sums = _sums(orders, members, marks, k, depth)
            means[chosen] = sums.transpose(2, 0, 1)
    means /= np.minimum(sizes, k)[:, None, None]
    return means


def _by_depth(sizes: NDArray[np.int64], n: int, k: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield subsets for which much the same number of neighbours has to be looked at.

    Among the first r instances a random subset of size m has m r / n members on average; with
    4 standard deviations to spare, hardly any test needs a second look.
    """
    needed = np.minimum(n, np.ceil(n / sizes * (k + 4 * np.sqrt(k) + 4))).astype(np.int64)
    levels = np.ceil(np.log2(n / needed)).astype(np.int64)
    for level in np.unique(levels):
        rows = np.flatnonzero(levels == level)
        yield int(needed[rows].max()), rows


def _sums(
    orders: Orders, members: NDArray[Any], marks: NDArray[Any], k: int, depth: int
) -> NDArray[Any]:
    """Return the sums of the marks of the k nearest, ``(T, V, K)``, of ``members (n, K)``.

    The first ``depth`` instances are looked at, and more where these hold fewer than k.
    """
    near = orders[:, :depth]
    counted = members.take(near, axis=0)  # (T, depth, K)
    left = np.full((len(orders), members.shape[1]), k, dtype=members.dtype)
    for rank in range(depth):
        entry = counted[:, rank]
        np.minimum(entry, left, out=entry)
        left -= entry
    weighted: NDArray[Any] = marks.take(near, axis=0).swapaxes(1, 2) @ counted.astype(marks.dtype)
    if depth < orders.shape[1]:
        unfinished = left > 0
        tests = np.flatnonzero(unfinished.any(axis=1))
        subsets = np.flatnonzero(unfinished.any(axis=0))
        if len(tests):
            deeper = min(4 * depth, orders.shape[1])
            again = _sums(orders[tests], members[:, subsets], marks, k, deeper)
            weighted[tests[:, None], :, subsets] = again.transpose(0, 2, 1)
    return weighted
