r"""Semivalues of a weighted vote of the k nearest neighbours.

Votes are integers from -L to L: the weight of a neighbour, with a minus where its label is wrong.
The utility of a subset S depends on the votes of its k nearest members alone, through their
number and a total, a sum of non-negative integers. Then

.. math:: \phi_i = \sum_{s < k} \frac{p_s}{\binom{n-1}{s}} \sum_{|T| = s} [v(T \cup i) - v(T)]
    + \sum_{m > i} \frac{P(k\ \text{of}\ m - 1)}{\binom{m-1}{k}} \sum_{|T| = k - 1}
    [v(T \cup i) - v(T \cup m)]

where T goes over the sets of others, in the second sum of those nearer than m: the neighbour that
i pushes out. Subsets are counted by size and total, from the nearest outwards, which is Wang,
Mittal and Jia's (AISTATS 2024) dynamic programme. It is shared by all instances here: the counts
without i are those with it less those that have i, by inclusion and exclusion

.. math:: N_{-i}(l, x) = \sum_{r \ge 0} (-1)^r N(l - r, x - r x_i),

a function of the vote of i only, so that a test instance takes O(n), not O(n^2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError
from proponent.retraining.semivalues import Semivalue, Vector

MOST_NEIGHBOURS = 25  # inclusion and exclusion lose too many digits beyond
MOST_ENTRIES = 2**25  # of a table: 256 MB
COUNTS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Vote:
    """What k neighbours with votes -L .. L decide.

    Attributes
    ----------
    steps : ndarray of int, shape (2 L + 1,)
        What each vote adds to the total.
    utility : ndarray of shape (k + 1, X)
        v by the number of votes and their total.
    """

    steps: NDArray[np.int64]
    utility: NDArray[np.float64]

    @classmethod
    def majority(cls, k: int, levels: int, empty: float) -> Vote:
        """Return 1 where at least half of the weight is right, 0 otherwise."""
        size, total = np.ogrid[: k + 1, : 2 * k * levels + 1]
        utility = (total - size * levels >= 0).astype(np.float64)
        utility[0] = empty
        return cls(np.arange(2 * levels + 1), utility)

    @classmethod
    def share(cls, k: int, levels: int, empty: float) -> Vote:
        """Return the share of the weight that is right; ``empty`` where there is no weight."""
        vote, base = np.arange(-levels, levels + 1), k * levels + 1
        weight, right = np.divmod(np.arange(base**2), base)
        shares = np.where(weight > 0, right / np.maximum(weight, 1), empty)
        utility = np.broadcast_to(shares, (k + 1, base**2))
        return cls(np.abs(vote) * base + np.maximum(vote, 0), utility)


@dataclass(frozen=True)
class WeightedForm:
    """The closed form: from the votes of all neighbours, by rank, to their values.

    Attributes
    ----------
    steps : ndarray of int, shape (V,)
        What each vote adds to the total.
    joining : ndarray of shape (V, k X)
        For each vote, what the counts of all subsets are multiplied with to give the first sum.
    replacing : ndarray of shape (V, V, k X)
        For the vote of m and each vote of i, the same of the second sum's inner sum.
    pushed_out : ndarray of shape (n,)
        The factor before it, by m - 1.
    """

    k: int
    steps: NDArray[np.int64]
    joining: NDArray[np.float64]
    replacing: NDArray[np.float64]
    pushed_out: Vector

    @classmethod
    def of(cls, semivalue: Semivalue, n: int, k: int, vote: Vote) -> WeightedForm:
        """Prepare the closed form for n training instances."""
        from scipy.special import comb

        kinds, totals = len(vote.steps), vote.utility.shape[1]
        entries = kinds**2 * k * totals
        if k > MOST_NEIGHBOURS or entries > MOST_ENTRIES:
            raise InvalidInputError(
                f"k={k} with {kinds // 2} levels of weights takes a table of {entries:,} entries; "
                f"{MOST_ENTRIES:,} are the most, and k={MOST_NEIGHBOURS}. Lower levels or k."
            )
        laws = list(semivalue.counts(n, min(k + 1, n)))
        coefficients = [laws[s][n - 1] / comb(n - 1, s) for s in range(min(k, n))]
        pushed_out = np.zeros(n)
        if k < n:
            pushed_out[k:] = laws[k][k:] / comb(np.arange(k, n), k)

        start = np.arange(totals)
        step = vote.steps[:, None]

        def utility(size: int, total: NDArray[np.int64]) -> NDArray[np.float64]:
            # Totals beyond the last do not occur: their counts are 0.
            found: NDArray[np.float64] = vote.utility[size, np.minimum(total, totals - 1)]
            return found

        joining = np.zeros((kinds, k, totals))
        replacing = np.zeros((kinds, kinds, k, totals))
        for size in range(k):
            for s in range(size, len(coefficients)):
                r = s - size
                gain = utility(s + 1, start + (r + 1) * step) - utility(s, start + r * step)
                joining[:, size] += (-1) ** r * coefficients[s] * gain
            r = k - 1 - size
            with_i = utility(k, start + (r + 1) * step)
            with_m = utility(k, start + r * step + step[:, :, None])
            replacing[:, :, size] = (-1) ** r * (with_i - with_m)
        shape = (kinds, kinds, k * totals)
        return cls(k, vote.steps, joining.reshape(shape[1:]), replacing.reshape(shape), pushed_out)

    def values(self, votes: NDArray[np.int64]) -> Vector:
        """Return the values of all training instances for one test instance, ``(n,)``.

        Parameters
        ----------
        votes : ndarray of int, shape (n,)
            Positions in ``steps``, nearest first.
        """
        n, totals = len(votes), self.joining.shape[1] // self.k
        counts = np.zeros((self.k, totals))
        counts[0, 0] = 1
        replaced = np.zeros((n, len(self.steps)))
        block = max(1, COUNTS_AT_ONCE // counts.size)
        for start in range(0, n, block):
            nearer = np.empty((min(block, n - start), counts.size))
            for row, vote in enumerate(votes[start : start + block]):
                nearer[row] = counts.ravel()
                step = self.steps[vote]
                counts[1:, step:] += counts[:-1, : totals - step]
            for vote in np.unique(votes[start : start + block]):
                rows = np.flatnonzero(votes[start : start + block] == vote)
                replaced[start + rows] = nearer[rows] @ self.replacing[vote].T
        replaced *= self.pushed_out[:, None]
        farther = np.cumsum(replaced[::-1], axis=0)[::-1] - replaced
        joined = self.joining @ counts.ravel()
        return joined[votes] + farther[np.arange(n), votes]
