"""Compiled loops of LeafRefit; imported where numba is installed, never needed for the numbers.

Removals are the lanes of each inner loop. With the logistic loss the odds of an instance are
followed, not its score: a leaf that moves by x multiplies them by e^x, so that e^d - 1 of a score
that has moved by d is carried on without an exponential, and changes of probabilities are a
fraction of it. That keeps to rounding while no score has moved far; what moves further is
followed as d.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

LANES = 32
FAR = 4.0  # e^-4: the rounding of odds is still 1e-14 of them
SMALL = 0.5  # fourteen terms of e^x - 1 leave out less than 1e-16

# LLVM may reassociate and fuse, and nothing here depends on NaN.
FAST = {"contract", "nsz", "reassoc", "nnan", "ninf"}


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def refit(
    leaves: Any,
    linked: Any,
    targets: Any,
    weights: Any,
    gradient: Any,
    hessian: Any,
    offsets: Any,
    values: Any,
    l2: Any,
    fixed: Any,
    l1: float,
    rates: Any,
    curved: int,
    members: Any,
    pointers: Any,
    tests: Any,
    moved: Any,
    reach: Any,
    own: Any,
    pending: Any,
    last: Any,
    changed: Any,
    raised: Any,
) -> None:  # pragma: no cover
    """Refit the leaves of some trees of one output without the instances of each lane.

    Parameters
    ----------
    leaves : array of shape (trees, n)
    linked : array of shape (trees, n)
        Probabilities (logistic) with nothing removed, or scores (squared).
    targets : array of shape (n,)
    weights : array of shape (trees or 1, n)
    gradient, hessian, values, l2, fixed : arrays of shape (leaves of these trees,)
        With nothing removed: sums and leaf values; and which leaves stay.
    offsets : integer array of shape (trees + 1,)
    l1 : float
    rates : array of shape (trees,)
    curved : int
        0 for the squared loss, 1 for the logistic with gradient steps, 2 with Newton steps.
    members, pointers : integer arrays
        Of each lane.
    tests : array of shape (trees, m)
    moved : array of shape (n, LANES)
        How far scores have moved, d, without what is pending; ``e^d - 1`` for the logistic loss
        while ``reach`` is not negative.
    reach : array of shape (LANES,)
        At least as far as any score of a lane has moved; negative once that is too far.
    own : array of shape (members,)
        How far those of the removed instances have, all in.
    pending : array of shape (most leaves, LANES)
        Moves of the leaves of the tree before.
    last : array of shape (n,)
        The leaves of that tree.
    changed : array of shape (L, LANES) or (0, LANES)
        Moves of leaf values, where they are asked for.
    raised : array of shape (m, LANES)
        How far the scores of tests have moved.
    """
    trees = leaves.shape[0]
    above = np.empty((pending.shape[0], LANES))
    below = np.empty((pending.shape[0], LANES))
    factor = np.empty((pending.shape[0], LANES))
    before = pending.shape[0]
    for t in range(trees):
        first = offsets[t]
        count = offsets[t + 1] - first
        w_row = weights[t if weights.shape[0] > 1 else 0]
        for leaf in range(count):
            for r in range(LANES):
                above[leaf, r] = 0.0
                below[leaf, r] = 0.0
        near = curved != 0 and _is_near(pending[:before], moved, reach)
        if near:
            for leaf in range(before):
                _odds(pending[leaf], factor[leaf])
        # The removed instances do not count: they are held where they change nothing.
        for r in range(LANES):
            for at in range(pointers[r], pointers[r + 1]):
                j = members[at]
                moved[j, r] = -pending[last[j], r]
                if near:
                    moved[j, r] = -factor[last[j], r] / (1.0 + factor[last[j], r])
        if near:
            _follow_odds(leaves[t], last, linked[t], w_row, moved, factor, above, below)
        elif curved:
            _follow_scores(leaves[t], last, linked[t], w_row, moved, pending, above, below)
        else:
            _follow_squared(leaves[t], last, w_row, moved, pending, above)
        for leaf in range(count):
            for r in range(LANES):
                above[leaf, r] += gradient[first + leaf]
                below[leaf, r] = hessian[first + leaf] + (below[leaf, r] if curved == 2 else 0.0)
        _without(
            leaves[t], linked[t], targets, w_row, curved, near, members, pointers, moved,
            hessian[first : first + count], above, below,
        )  # fmt: skip
        for leaf in range(count):
            at = first + leaf
            for r in range(LANES):
                g = above[leaf, r]
                if l1 > 0.0:
                    g = np.sign(g) * max(abs(g) - l1, 0.0)
                denominator = below[leaf, r] + l2[at]
                move = -values[at]
                if denominator > 0.0:
                    move = -rates[t] * g / denominator - values[at]
                if fixed[at]:
                    move = 0.0
                pending[leaf, r] = move
            if changed.shape[0]:
                for r in range(LANES):
                    changed[at, r] = pending[leaf, r]
        for r in range(LANES):
            for at in range(pointers[r], pointers[r + 1]):
                own[at] += pending[leaves[t, members[at]], r]
        for e in range(tests.shape[1]):
            leaf = tests[t, e]
            for r in range(LANES):
                raised[e, r] += pending[leaf, r]
        for j in range(len(last)):
            last[j] = leaves[t, j]
        before = count


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _is_near(pending: Any, moved: Any, reach: Any) -> bool:  # pragma: no cover
    """Whether no score moves too far by what is pending; else leave ``moved`` as scores."""
    if reach[0] < 0.0:
        return False
    step = np.zeros(LANES)
    for leaf in range(pending.shape[0]):
        for r in range(LANES):
            step[r] = max(step[r], abs(pending[leaf, r]))
    if (reach + step).max() > FAR:
        # What each tree moves at most adds up to more than any score has moved: look.
        lowest, highest = np.zeros(LANES), np.zeros(LANES)
        for j in range(moved.shape[0]):
            for r in range(LANES):
                lowest[r] = min(lowest[r], moved[j, r])
                highest[r] = max(highest[r], moved[j, r])
        for r in range(LANES):
            reach[r] = max(-np.log1p(lowest[r]), np.log1p(highest[r]))
        if (reach + step).max() > FAR:
            for j in range(moved.shape[0]):
                for r in range(LANES):
                    moved[j, r] = np.log1p(moved[j, r])
            reach[:] = -1.0
            return False
    for r in range(LANES):
        reach[r] += step[r]
    return True


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _odds(moves: Any, factor: Any) -> None:  # pragma: no cover
    """Set ``factor = e^moves - 1``."""
    most = 0.0
    for r in range(LANES):
        most = max(most, abs(moves[r]))
    if most > SMALL:
        for r in range(LANES):
            factor[r] = np.expm1(moves[r])
        return
    for r in range(LANES):
        x = moves[r]
        e = x * (1.0 / 87178291200.0) + 1.0 / 6227020800.0
        e = e * x + 1.0 / 479001600.0
        e = e * x + 1.0 / 39916800.0
        e = e * x + 1.0 / 3628800.0
        e = e * x + 1.0 / 362880.0
        e = e * x + 1.0 / 40320.0
        e = e * x + 1.0 / 5040.0
        e = e * x + 1.0 / 720.0
        e = e * x + 1.0 / 120.0
        e = e * x + 1.0 / 24.0
        e = e * x + 1.0 / 6.0
        e = e * x + 0.5
        factor[r] = (e * x + 1.0) * x


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _follow_odds(
    leaf: Any, last: Any, linked: Any, weights: Any, moved: Any, factor: Any, above: Any, below: Any
) -> None:  # pragma: no cover
    """Move the odds by the tree before, and add up what that changes in this tree's leaves."""
    for j in range(len(leaf)):
        u, step = moved[j], factor[last[j]]
        up, down = above[leaf[j]], below[leaf[j]]
        p = linked[j]
        h = p * (1.0 - p)
        s = 1.0 - 2.0 * p
        wh = weights[j] * h
        for r in range(LANES):
            c = step[r]
            x = u[r] * (1.0 + c) + c
            u[r] = x
            x = x / (1.0 + p * x)  # the probability changes by h times this
            wx = wh * x
            up[r] += wx
            down[r] += wx * (s - h * x)


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _follow_scores(
    leaf: Any,
    last: Any,
    linked: Any,
    weights: Any,
    moved: Any,
    pending: Any,
    above: Any,
    below: Any,
) -> None:  # pragma: no cover
    """Do the same with scores that may have moved far."""
    for j in range(len(leaf)):
        d, step = moved[j], pending[last[j]]
        up, down = above[leaf[j]], below[leaf[j]]
        p, w = linked[j], weights[j]
        s = 1.0 - 2.0 * p
        for r in range(LANES):
            d[r] += step[r]
            change = _change(p, d[r])
            up[r] += w * change
            down[r] += w * change * (s - change)


@numba.njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _follow_squared(
    leaf: Any, last: Any, weights: Any, moved: Any, pending: Any, above: Any
) -> None:  # pragma: no cover
    """Do the same for the squared loss, whose gradient changes as the score does."""
    for j in range(len(leaf)):
        d, step, up = moved[j], pending[last[j]], above[leaf[j]]
        w = weights[j]
        for r in range(LANES):
            x = d[r] + step[r]
            d[r] = x
            up[r] += w * x


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _change(p: Any, d: Any) -> Any:  # pragma: no cover
    """Return how a probability changes as its score moves by d."""
    # towards the smaller exponential, so that neither overflows
    if d <= 0.0:
        e = np.expm1(d)
        return p * (1.0 - p) * e / (1.0 + p * e)
    e = np.expm1(-d)
    return -p * (1.0 - p) * e / (1.0 + (1.0 - p) * e)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _without(
    leaf: Any,
    linked: Any,
    targets: Any,
    weights: Any,
    curved: int,
    near: bool,
    members: Any,
    pointers: Any,
    moved: Any,
    whole: Any,
    above: Any,
    below: Any,
) -> None:  # pragma: no cover
    """Take the removed instances out of the sums, by a new sum where little would be left."""
    n = len(leaf)
    removed = np.zeros(n, np.bool_)
    for r in range(LANES):
        for at in range(pointers[r], pointers[r + 1]):
            removed[members[at]] = True
        for at in range(pointers[r], pointers[r + 1]):
            j = members[at]
            w, p = weights[j], linked[j]
            above[leaf[j], r] -= w * (p - targets[j])
            below[leaf[j], r] -= w * (p * (1.0 - p) if curved == 2 else 1.0)
        for at in range(pointers[r], pointers[r + 1]):
            own = leaf[members[at]]
            if below[own, r] > 1e-2 * whole[own]:
                continue
            g = 0.0
            h = 0.0
            for j in range(n):
                if leaf[j] == own and not removed[j] and weights[j] > 0.0:
                    p, x = linked[j], moved[j, r]
                    if near:
                        p += p * (1.0 - p) * x / (1.0 + p * x)
                    else:
                        p += _change(p, x) if curved else x
                    g += weights[j] * (p - targets[j])
                    h += weights[j] * (p * (1.0 - p) if curved == 2 else 1.0)
            above[own, r] = g
            below[own, r] = h
        for at in range(pointers[r], pointers[r + 1]):
            removed[members[at]] = False
