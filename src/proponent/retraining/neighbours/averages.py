r"""Semivalues of an average over the k nearest neighbours.

The utility of a subset S for a test instance is the average of a score c over the nearest k
members of S,

.. math:: v(S) = \frac{1}{K(S)} \sum_{j \le \min(k, |S|)} c_{(j)}

with ``K(S) = k`` (Jia et al., PVLDB 2019) or ``K(S) = min(k, |S|)`` (Wang and Jia 2023). Two
instances of neighbouring ranks i and i + 1 differ in value by

.. math:: \phi_i - \phi_{i+1} = (c_i - c_{i+1})\; E\left[\frac{1}{K(S \cup i)}\right]

over the coalitions S of the n - 2 others in which fewer than k members are nearer than they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.retraining.neighbours.coalitions import Coalitions
from proponent.retraining.semivalues import Vector

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class AverageForm:
    """The closed form: from the scores of neighbours, by rank, to their values.

    Attributes
    ----------
    steps : ndarray of shape (n - 1,)
        ``(phi_i - phi_{i+1}) / (c_i - c_{i+1})`` for the ranks i = 1 .. n - 1.
    own, others, constant : float
        The value of the farthest is ``own * c_n + others * mean(c_1 .. c_{n-1}) + constant``.
    bounds : ndarray of shape (n,)
        What no value at a rank exceeds in size, for scores between 0 and 1.
    """

    steps: Vector
    own: float
    others: float
    constant: float
    bounds: Vector

    @classmethod
    def of(cls, coalitions: Coalitions, *, soft: bool, empty: float) -> AverageForm:
        """Prepare the closed form.

        Parameters
        ----------
        coalitions : Coalitions
        soft : bool
            Divide by min(k, |S|), not by k.
        empty : float
            v of the empty set.
        """
        k, fewer = coalitions.k, coalitions.fewer
        steps, alone = fewer[:-1] / k, coalitions.sizes[0]
        bounds = fewer / k + alone * abs(empty)
        constant = float(-alone * empty)
        if not soft:
            return cls(steps, float(fewer[-1] / k), 0.0, constant, bounds)
        # What is joined by the instance is divided by its size, where that is below k.
        size = np.arange(len(coalitions.sizes))
        more = 1 / (size + 1) - 1 / k
        steps = steps + coalitions.sizes_of_two @ more[: len(coalitions.sizes_of_two)]
        bounds += coalitions.sizes @ more
        joined = float(coalitions.sizes[1:] @ (1 / (size[1:] + 1)))
        return cls(steps, float(alone) + joined, -joined, constant, bounds)

    def reach(self, k: int, error: float) -> int:
        """Return how many of the nearest suffice for values that are off by ``error`` at most.

        They are ``max(k, 1 / error)`` for the Shapley value with ``K(S) = k``; all, where it is
        not known that fewer suffice.
        """
        enough = self.bounds <= error
        return max(k, int(enough.argmax()) + 1) if enough.any() else len(enough)

    def error(self, r: int) -> float:
        """Return how far values can be off that are taken from the r nearest."""
        return float(self.bounds[r - 1]) if r < len(self.bounds) else 0.0

    def values(self, scores: NDArray[Any]) -> Matrix:
        """Return the values of the r nearest, ``(m, r)``.

        Parameters
        ----------
        scores : ndarray of shape (m, r)
            Scores of the nearest, nearest first, in a type with a sign. With r < n the value of
            the last counts as 0, as do those of all that are farther.
        """
        r = scores.shape[1]
        values = np.empty(scores.shape)
        values[:, -1] = 0
        np.multiply(scores[:, :-1] - scores[:, 1:], self.steps[: r - 1], out=values[:, :-1])
        if r == len(self.bounds):
            mean = scores[:, :-1].sum(axis=1) / max(r - 1, 1)
            values[:, -1] = self.own * scores[:, -1] + self.others * mean + self.constant
        return backward_sums(values)


def backward_sums(terms: Matrix) -> Matrix:
    """Sum each row up from its end, in place: a recursion from the farthest to the nearest."""
    backwards = terms[:, ::-1]
    np.cumsum(backwards, axis=1, out=backwards)
    return terms
