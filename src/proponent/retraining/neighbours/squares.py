r"""Semivalues of the square of the k nearest neighbours' average, as squared errors need it.

The utility of a subset S is

.. math:: v(S) = \Big(\frac{1}{K(S)} \sum_{j \le \min(k, |S|)} y_{(j)}\Big)^2

with ``K(S) = k`` or ``K(S) = min(k, |S|)``. Two instances of neighbouring ranks i and i + 1
differ in value by

.. math:: \phi_i - \phi_{i+1} = (y_i - y_{i+1})\; E\left[\frac{y_i + y_{i+1} + 2 B}
    {K(S \cup i)^2}\right]

over the coalitions S of the n - 2 others in which fewer than k members are nearer than they are;
B is the sum of y over the other neighbours that count, the nearest k - 1 of S. A farther instance
is one of these where it is in S with fewer than k - 1 that are nearer than itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from proponent.retraining.neighbours.averages import Matrix, backward_sums
from proponent.retraining.neighbours.coalitions import Coalitions
from proponent.retraining.semivalues import Vector


@dataclass(frozen=True)
class SquareForm:
    """The closed form: from the scores of neighbours, by rank, to their values.

    Attributes
    ----------
    steps : ndarray of shape (n - 1,)
        ``E[1 / K^2]`` at the ranks i = 1 .. n - 1.
    pairs : ndarray of shape (n - 1,)
        ``E[1 / K^2]`` where, of m nearer ones, a given one is in the coalition too and fewer than
        k are, m = 0 .. n - 2.
    own, cross, others, others_pairs, constant : float
        The value of the farthest is ``own y_n^2 + 2 cross y_n s_1 - others s_2 - others_pairs
        (s_1^2 - s_2) + constant``, where s_1 and s_2 are the sums of y and of y^2 over the others.
    """

    steps: Vector
    pairs: Vector
    own: float
    cross: float
    others: float
    others_pairs: float
    constant: float

    @classmethod
    def of(cls, coalitions: Coalitions, *, soft: bool, empty: float) -> SquareForm:
        """Prepare the closed form.

        Parameters
        ----------
        coalitions : Coalitions
        soft : bool
            Divide by min(k, |S|), not by k.
        empty : float
            The average of the empty set.
        """
        n, k = coalitions.n, coalitions.k
        fewer, among = coalitions.fewer / k**2, coalitions.among_fewer / k**2
        steps, pairs, alone = fewer[:-1], among[:-1], coalitions.sizes[0]
        constant = float(-alone * empty**2)
        if not soft:
            return cls(steps, pairs, float(fewer[-1]), float(among[-1]), 0.0, 0.0, constant)
        # What is joined by the instance is divided by its size, where that is below k.
        size = np.arange(len(coalitions.sizes_of_two))
        less = coalitions.sizes_of_two * (1 / (size + 1) ** 2 - 1 / k**2)
        steps = steps + less.sum()
        pairs = pairs + less @ size / max(n - 2, 1)
        law, size = coalitions.sizes[1:], np.arange(1, len(coalitions.sizes))
        joined = law / (size + 1) ** 2
        left = law / size**2 - joined
        one, two = size / max(n - 1, 1), size * (size - 1) / max((n - 1) * (n - 2), 1)
        return cls(
            steps,
            pairs,
            own=float(alone + joined.sum()),
            cross=float(joined @ one),
            others=float(left @ one),
            others_pairs=float(left @ two),
            constant=constant,
        )

    def values(self, scores: Matrix) -> Matrix:
        """Return the values of the r nearest, ``(m, r)``.

        Parameters
        ----------
        scores : ndarray of shape (m, r)
            Of the nearest, nearest first. With r < n the value of the last counts as 0, as do
            those of all that are farther.
        """
        r = scores.shape[1]
        values = np.zeros(scores.shape)
        here, after, steps = scores[:, :-1], scores[:, 1:], values[:, :-1]
        pairs = 2 * self.pairs[1 : r - 1]
        steps += self.steps[: r - 1] * (here + after)
        steps[:, 1:] += pairs * np.cumsum(here[:, :-1], axis=1)  # those that are nearer
        steps[:, :-1] += backward_sums(pairs * after[:, 1:])  # those beyond both
        steps *= here - after
        if r == len(self.steps) + 1:
            last, total, squares = scores[:, -1], here.sum(axis=1), (here**2).sum(axis=1)
            values[:, -1] = (
                self.own * last**2
                + 2 * self.cross * last * total
                - self.others * squares
                - self.others_pairs * (total**2 - squares)
                + self.constant
            )
        return backward_sums(values)
