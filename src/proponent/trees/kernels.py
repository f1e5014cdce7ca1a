"""Compiled loops; imported where numba is installed, and never needed for the numbers."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np


@numba.njit(cache=True, nogil=True)
def add_matching(
    train: Any, left: Any, test: Any, right: Any, counts: Any, scores: Any
) -> None:  # pragma: no cover
    """Add ``left[t, i] right[t, e]`` to ``scores[e, i]`` where i and e share the leaf of tree t.

    Parameters
    ----------
    train, test : unsigned integer arrays of shapes (trees, n) and (trees, m)
        Leaves.
    left, right : arrays of shapes (trees, n) and (trees, m)
    counts : integer array of shape (trees,)
        Number of leaves of each tree.
    scores : array of shape (m, n)
    """
    trees, n = train.shape
    m = test.shape[1]
    order = np.empty(n, np.int64)
    sorted_left = np.empty(n)
    start = np.empty(counts.max() + 1, np.int64)
    place = np.empty(counts.max(), np.int64)
    for t in range(trees):
        leaves = counts[t]
        start[: leaves + 1] = 0
        for i in range(n):
            start[train[t, i] + 1] += 1
        for leaf in range(leaves):
            start[leaf + 1] += start[leaf]
            place[leaf] = start[leaf]
        for i in range(n):
            leaf = train[t, i]
            order[place[leaf]] = i
            sorted_left[place[leaf]] = left[t, i]
            place[leaf] += 1
        for e in range(m):
            leaf = test[t, e]
            weight = right[t, e]
            row = scores[e]
            for at in range(start[leaf], start[leaf + 1]):
                row[order[at]] += weight * sorted_left[at]


@numba.njit(cache=True, nogil=True)
def pull_back(
    leaves: Any,
    own: Any,
    pull: Any,
    scale: Any,
    offsets: Any,
    test: Any,
    final: Any,
    column: Any,
    adjoint: Any,
    first: int,
    scores: Any,
) -> None:  # pragma: no cover
    """Pull the gradients of tests back through some trees, the last of them first.

    Parameters
    ----------
    leaves, own, pull : arrays of shape (trees, n)
        Leaves of the training instances, what their removal does to their own leaf, and what a
        move of their leaf does to their gradient.
    scale : array of shape (L,)
        ``-eta / (H_l + lam)`` of the leaves of these trees.
    offsets : integer array of shape (trees + 1,)
    test : array of shape (trees, m)
        Leaves of the tests.
    final : array of shape (m,)
        Their gradients at the final scores.
    column : integer array of shape (m,)
        Where each test is added to.
    adjoint : array of shape (n, columns)
        Of the scores of the training instances after these trees; made that before them.
    first : int
        The first training instance that is asked for.
    scores : array of shape (asked for, columns)
        Added to.
    """
    trees, n = leaves.shape
    columns = adjoint.shape[1]
    last = first + scores.shape[0]
    most = 0
    for t in range(trees):
        most = max(most, offsets[t + 1] - offsets[t])
    moves = np.empty((most, columns))
    for t in range(trees - 1, -1, -1):
        count = offsets[t + 1] - offsets[t]
        for leaf in range(count):
            for c in range(columns):
                moves[leaf, c] = 0.0
        for i in range(n):
            leaf = leaves[t, i]
            for c in range(columns):
                moves[leaf, c] += adjoint[i, c]
        for e in range(test.shape[1]):
            moves[test[t, e], column[e]] += final[e]
        for leaf in range(count):
            factor = scale[offsets[t] + leaf]
            for c in range(columns):
                moves[leaf, c] *= factor
        for i in range(n):
            leaf = leaves[t, i]
            back = pull[t, i]
            for c in range(columns):
                adjoint[i, c] += back * moves[leaf, c]
        for i in range(first, last):
            leaf = leaves[t, i]
            factor = own[t, i]
            for c in range(columns):
                scores[i - first, c] -= factor * moves[leaf, c]
