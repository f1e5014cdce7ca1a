"""How far the values of players may be off, also where few coalitions decide them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

POOLED = 3  # coalitions' worth of the variance of all that the variance of each player takes in
FEW = 10  # effective coalitions below which intervals may be too short


class Spread:
    r"""The variances of the values of players, from few coalitions as from many.

    The variance of a player is :math:`\sum_r g_r^2 e_r^2`, with g_r what coalition r weighs and e_r
    what is left of its utility. Where few coalitions weigh much, as for a player and the small
    sizes that it is seldom in, they may show none of the spread. So it is averaged with what it
    would be if all coalitions of a bin were as spread, :math:`\sum_r g_r^2 \sigma_r^2`, as if three
    more coalitions had it. There are in effect

    .. math:: \Bigl( \sum_r g_r^2 \sigma_r^2 \Bigr)^2 \Big/ \sum_r g_r^4 \sigma_r^4

    coalitions: the degrees of freedom.

    **Source** Satterthwaite, "An approximate distribution of estimates of variance components",
    1946.

    Parameters
    ----------
    n_tests, players : int
        Of the values.
    """

    def __init__(self, n_tests: int, players: int) -> None:
        self._own = np.zeros((n_tests, players))
        self._alike = np.zeros((n_tests, players))
        self._fourth = np.zeros((n_tests, players))

    def add(self, squares: Values, left: Values, level: Values) -> None:
        """Add some coalitions.

        Parameters
        ----------
        squares : ndarray of shape (K, players)
            The squares of what they weigh.
        left : ndarray of shape (K, T)
            The squares of what is left of their utilities.
        level : ndarray of shape (K, T)
            The mean of these squares over the bin of each.
        """
        self._own += left.T @ squares
        self._alike += level.T @ squares
        self._fourth += np.square(level).T @ np.square(squares)

    def effective(self) -> Values:
        """Return how many coalitions there are in effect for each value, ``(T, players)``."""
        with np.errstate(invalid="ignore", divide="ignore"):
            found = np.square(self._alike) / self._fourth
        return np.asarray(np.nan_to_num(found, nan=np.inf))  # nothing varies

    def variances(self) -> Values:
        """Return the variances, ``(T, players)``."""
        share = 1 / (1 + self.effective() / POOLED)
        return np.asarray((1 - share) * self._own + share * self._alike)


def effective_coalitions(found: Values) -> dict[str, Any]:
    """Return what there is to say of effective coalitions, one a value, as JSON knows it."""
    known = found[np.isfinite(found)]
    if not len(known):
        return {}
    median, least = float(np.median(known)), float(known.min())
    noticed: dict[str, Any] = {"effective_coalitions": {"fewest": least, "median": median}}
    if median < FEW:
        noticed["warnings"] = [
            f"half of the values rest on {median:.1f} coalitions or fewer in effect: intervals of "
            f"1.96 standard errors hold the largest values less often than in 95 of 100 cases; "
            f"raise n_models, or draw more coalitions of the sizes that count"
        ]
    return noticed
