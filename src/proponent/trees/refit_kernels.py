"""Compiled loops of LeafRefit; imported where numba is installed, never needed for the numbers.

Removals are the lanes of each inner loop. What is followed is how far each removal has moved
every score, d, which is small: the gradient's change is a polynomial in d whose coefficients are
those of the instance, cut where what is left out is below the rounding of a gradient; where some
lane has moved far, it is the exact expression.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

LANES = 32
NEAR = 0.03  # seven terms leave out less than 1e-16: |c_8| d^8 < 2 d^8 / pi^9
FAR = 4.0  # beyond it the library's exponential is called

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
        How far scores have moved, without what is pending.
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
    trees, n = leaves.shape
    above = np.empty((pending.shape[0], LANES))
    below = np.empty((pending.shape[0], LANES))
    q = np.empty(LANES)
    for t in range(trees):
        first = offsets[t]
        count = offsets[t + 1] - first
        w_row = weights[t if weights.shape[0] > 1 else 0]
        for leaf in range(count):
            for r in range(LANES):
                above[leaf, r] = 0.0
                below[leaf, r] = 0.0
        # The removed instances do not count: they are held where they change nothing.
        for r in range(LANES):
            for at in range(pointers[r], pointers[r + 1]):
                moved[members[at], r] = -pending[last[members[at]], r]
        for j in range(n):
            d = moved[j]
            step = pending[last[j]]
            most = 0.0
            for r in range(LANES):
                x = d[r] + step[r]
                d[r] = x
                most += x * x
            # the root of the sum of squares, at least as large as the largest
            most = np.sqrt(most)
            last[j] = leaves[t, j]
            if most == 0.0:
                continue
            w = w_row[j]
            up = above[leaves[t, j]]
            if curved == 0:
                for r in range(LANES):
                    up[r] += w * d[r]
                continue
            p = linked[t, j]
            h = p * (1.0 - p)
            s = 1.0 - 2.0 * p
            down = below[leaves[t, j]]
            if most <= NEAR:
                c2 = 0.5 * h * s
                c3 = h * (1.0 - 6.0 * h) * (1.0 / 6.0)
                c4 = h * s * (1.0 - 12.0 * h) * (1.0 / 24.0)
                c5 = h * (1.0 - 30.0 * h + 120.0 * h * h) * (1.0 / 120.0)
                c6 = h * s * (1.0 - h * (60.0 - 360.0 * h)) * (1.0 / 720.0)
                c7 = h * (1.0 - h * (126.0 - h * (1680.0 - 5040.0 * h))) * (1.0 / 5040.0)
                for r in range(LANES):
                    x = d[r]
                    change = c4 + x * (c5 + x * (c6 + x * c7))
                    change = x * (h + x * (c2 + x * (c3 + x * change)))
                    wc = w * change
                    up[r] += wc
                    down[r] += wc * (s - change)
                continue
            if most <= FAR:
                for r in range(LANES):
                    x = d[r] * 0.125
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
                    e = (e * x + 1.0) * x
                    e = e * (2.0 + e)
                    e = e * (2.0 + e)
                    e = e * (2.0 + e)
                    change = h * e / (1.0 + p * e)
                    wc = w * change
                    up[r] += wc
                    down[r] += wc * (s - change)
                continue
            for r in range(LANES):
                # towards the smaller exponential, so that neither overflows
                if d[r] <= 0.0:
                    e = np.expm1(d[r])
                    q[r] = h * e / (1.0 + p * e)
                else:
                    e = np.expm1(-d[r])
                    q[r] = -h * e / (1.0 + (1.0 - p) * e)
            for r in range(LANES):
                wc = w * q[r]
                up[r] += wc
                down[r] += wc * (s - q[r])
        if curved != 2:
            for leaf in range(count):
                for r in range(LANES):
                    below[leaf, r] = 0.0
        for leaf in range(count):
            for r in range(LANES):
                above[leaf, r] += gradient[first + leaf]
                below[leaf, r] += hessian[first + leaf]
        _without(
            leaves[t], linked[t], targets, w_row, curved, members, pointers, moved,
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


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _without(
    leaf: Any,
    linked: Any,
    targets: Any,
    weights: Any,
    curved: int,
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
                    p = linked[j]
                    if curved != 0:
                        x = moved[j, r]
                        if x <= 0.0:
                            e = np.expm1(x)
                            p += p * (1.0 - p) * e / (1.0 + p * e)
                        else:
                            e = np.expm1(-x)
                            p -= p * (1.0 - p) * e / (1.0 + (1.0 - p) * e)
                    else:
                        p += moved[j, r]
                    g += weights[j] * (p - targets[j])
                    h += weights[j] * (p * (1.0 - p) if curved == 2 else 1.0)
            above[own, r] = g
            below[own, r] = h
        for at in range(pointers[r], pointers[r + 1]):
            removed[members[at]] = False
