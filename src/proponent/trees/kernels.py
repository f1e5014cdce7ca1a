"""Compiled loops; imported where numba is installed, and never needed for the numbers."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

GROUPED = 2**17  # instances over the trees that are grouped by leaf at once: 1.5 MB


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
    # Some trees at a time, so that a row of the scores is fetched once for all of them.
    size = min(trees, max(1, GROUPED // n))
    order = np.empty((size, n), np.uint32)
    grouped = np.empty((size, n))
    start = np.empty((size, counts.max() + 1), np.int64)
    for first in range(0, trees, size):
        last = min(first + size, trees)
        for t in range(first, last):
            own = start[t - first]
            _group(train[t], left[t], counts[t], order[t - first], grouped[t - first], own)
        for e in range(test.shape[1]):
            row = scores[e]
            for t in range(first, last):
                leaf, weight = test[t, e], right[t, e]
                members, values, own = order[t - first], grouped[t - first], start[t - first]
                for at in range(own[leaf], own[leaf + 1]):
                    row[members[at]] += weight * values[at]


@numba.njit(cache=True, nogil=True)
def add_pairs(
    leaf: Any, first: Any, second: Any, first_sums: Any, second_sums: Any
) -> None:  # pragma: no cover
    """Add two values of each instance, ``(n,)`` each, to the sums of its leaf."""
    for i in range(len(leaf)):
        first_sums[leaf[i]] += first[i]
        second_sums[leaf[i]] += second[i]


@numba.njit(cache=True, nogil=True)
def step(
    leaf: Any,
    linked: Any,
    targets: Any,
    weights: Any,
    curved: int,
    values: Any,
    gradient: Any,
    hessian: Any,
    scores: Any,
) -> None:  # pragma: no cover
    """Add the derivatives of instances to the sums of their leaves, and the tree to their scores.

    Parameters
    ----------
    leaf, linked, targets, weights, scores : arrays of shape (n,)
    curved : int
        As :func:`equations` has it, and ``linked``.
    values, gradient, hessian : arrays of shape (leaves of the tree,)
    """
    for i in range(len(leaf)):
        at, p, w = leaf[i], linked[i], weights[i]
        gradient[at] += w * (p - targets[i])
        hessian[at] += w * (p * (1.0 - p)) if curved == 2 else w
        scores[i] += values[at]


@numba.njit(cache=True, nogil=True)
def _group(
    leaf: Any, values: Any, leaves: int, order: Any, grouped: Any, start: Any
) -> None:  # pragma: no cover
    """Group instances and their values by leaf; leaf l's are at ``start[l] .. start[l + 1]``."""
    start[: leaves + 1] = 0
    for i in range(len(leaf)):
        start[leaf[i] + 1] += 1
    for at in range(leaves):
        start[at + 1] += start[at]
    place = start.copy()
    for i in range(len(leaf)):
        at = place[leaf[i]]
        place[leaf[i]] = at + 1
        order[at] = i
        grouped[at] = values[i]


@numba.njit(cache=True, nogil=True)
def equations(
    leaves: Any,
    offsets: Any,
    linked: Any,
    targets: Any,
    weights: Any,
    curved: int,
    theta: Any,
    factors: Any,
    scale: Any,
    own: Any,
    pull: Any,
) -> None:  # pragma: no cover
    """Set what instances add to the equations of their leaves.

    Parameters
    ----------
    leaves : array of shape (trees, n)
    offsets : integer array of shape (trees + 1,)
    linked : array of shape (trees, n)
        Probabilities (logistic), or scores (squared).
    targets : array of shape (n,)
    weights : array of shape (trees or 1, n)
    curved : int
        0 for the squared loss, 1 for the logistic with gradient steps, 2 with Newton steps.
    theta, scale : arrays of shape (leaves of these trees,)
    factors : array of shape (trees,)
    own : array of shape (trees, n)
        Made ``scale w (g + factor theta h)``.
    pull : array of shape (trees, n) or (0, n)
        Made ``w (1 + theta s) l''``.
    """
    for t in range(leaves.shape[0]):
        weight = weights[t if weights.shape[0] > 1 else 0]
        for i in range(leaves.shape[1]):
            at = offsets[t] + leaves[t, i]
            p, step = linked[t, i], theta[at]
            curve = p * (1.0 - p) if curved else 1.0
            hessian = curve if curved == 2 else 1.0
            equation = p - targets[i] + factors[t] * step * hessian
            own[t, i] = weight[i] * equation * scale[at]
            if pull.shape[0]:
                slope = 1.0 - 2.0 * p if curved == 2 else 0.0
                pull[t, i] = weight[i] * (1.0 + step * slope) * curve


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
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
    most = 0
    for t in range(trees):
        most = max(most, offsets[t + 1] - offsets[t])
    sums = np.zeros((most, columns))  # of the adjoint over the instances of each leaf
    moves = np.empty((offsets[trees], columns))
    for i in range(n):
        total, back = sums[leaves[trees - 1, i]], adjoint[i]
        for c in range(columns):
            total[c] += back[c]
    for t in range(trees - 1, -1, -1):
        for e in range(test.shape[1]):
            sums[test[t, e], column[e]] += final[e]
        for leaf in range(offsets[t + 1] - offsets[t]):
            at = offsets[t] + leaf
            for c in range(columns):
                moves[at, c] = scale[at] * sums[leaf, c]
        sums[:] = 0.0
        before = leaves[max(t - 1, 0)]
        for i in range(n):
            factor, move = pull[t, i], moves[offsets[t] + leaves[t, i]]
            total, back = sums[before[i]], adjoint[i]
            for c in range(columns):
                value = back[c] + factor * move[c]
                back[c] = value
                total[c] += value
    # Apart from the above, and four trees at once, so that scores are fetched seldom.
    for block in range(0, trees, 16):
        stop = min(block + 16, trees)
        fours = stop - (stop - block) % 4
        for i in range(scores.shape[0]):
            score, j = scores[i], first + i
            for t in range(block, fours, 4):
                a, move_a = own[t, j], moves[offsets[t] + leaves[t, j]]
                b, move_b = own[t + 1, j], moves[offsets[t + 1] + leaves[t + 1, j]]
                d, move_d = own[t + 2, j], moves[offsets[t + 2] + leaves[t + 2, j]]
                e, move_e = own[t + 3, j], moves[offsets[t + 3] + leaves[t + 3, j]]
                for c in range(columns):
                    score[c] -= a * move_a[c] + b * move_b[c] + d * move_d[c] + e * move_e[c]
            for t in range(fours, stop):
                a, move_a = own[t, j], moves[offsets[t] + leaves[t, j]]
                for c in range(columns):
                    score[c] -= a * move_a[c]
