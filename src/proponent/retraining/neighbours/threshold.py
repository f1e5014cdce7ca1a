r"""Semivalues of the average over all neighbours within a radius.

The utility of a subset S for a test instance is the average score of the members of S that are
near enough, and ``v(empty)`` where there is none. Those that are farther have the value 0. Of the
t that are near enough,

.. math:: \phi_i = P(0)\, (c_i - v(\emptyset)) + (c_i - \bar c_{-i}) \sum_{j \ge 1}
    \frac{P(j)}{j + 1}

where P(j) is the probability that j of the t - 1 others among them are in the coalition, and
:math:`\bar c_{-i}` the mean score of these others. (Wang, Zhu, Wang, Jia and Mittal 2023 for the
Shapley value.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proponent.retraining.neighbours.averages import Matrix
from proponent.retraining.semivalues import Semivalue, Vector


@dataclass(frozen=True)
class ThresholdForm:
    """The closed form: from the scores of those within the radius to the values of all.

    Attributes
    ----------
    alone : ndarray of shape (n,)
        The probability P(0) that none of m others is in the coalition, m = 0 .. n - 1.
    joined : ndarray of shape (n,)
        The sum over j >= 1 of P(j) / (j + 1).
    empty : float
        v of the empty set.
    """

    alone: Vector
    joined: Vector
    empty: float

    @classmethod
    def of(cls, semivalue: Semivalue, n: int, *, empty: float) -> ThresholdForm:
        """Prepare the closed form for n training instances."""
        alone = next(semivalue.counts(n, 1))
        # E[1 / (1 + J)] over the m is the mean chance that none of 0, 1, ... m of them is in.
        joined = np.cumsum(alone) / np.arange(1, n + 1) - alone
        return cls(alone, joined, empty)

    def values(self, right: NDArray[np.bool_], near: NDArray[np.bool_]) -> Matrix:
        """Return the values of all training instances, ``(m, n)``.

        Parameters
        ----------
        right, near : boolean ndarray of shape (m, n)
            Whether the label is right (a score of 1, else 0), and whether it is within the radius.
        """
        others = np.maximum(near.sum(axis=1, keepdims=True) - 1, 0)  # of one that is near
        found = (right & near).sum(axis=1, keepdims=True)
        alone, joined = self.alone[others], self.joined[others] / np.maximum(others, 1)
        of_right = alone * (1 - self.empty) + (others + 1 - found) * joined
        of_wrong = alone * -self.empty - found * joined
        return np.where(near, np.where(right, of_right, of_wrong), 0.0)
