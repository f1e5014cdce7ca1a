r"""A kernel between coalitions, and the semivalues of the functions that it spans.

How alike two coalitions S and S' of k and k' among n players are is the correlation of who is in,

.. math::

    \rho(S, S') = \frac{|S \cap S'| - k k' / n}
                       {\sqrt{k (1 - k/n)\; k' (1 - k'/n)}},

and the kernel lets players act alone and in pairs, and differently the more the sizes differ:

.. math::

    K(S, S') = \bigl( a \rho + b \rho^2 \bigr)
        \Bigl( 1 + \frac{(x_k - x_{k'})^2}{\ell^2} \Bigr)^{-1/2},
        \qquad x_k = \log \frac{k}{n - k}.

A kernel of the overlap and the sizes alone has semivalues in closed form: given that player i is
in S, a uniform coalition of size k, or is not, the overlap with S' is hypergeometric, so that a
semivalue of :math:`K(\cdot, S')` for i is one number for all i in S', and one for all others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

ALONE = 0.6  # a: the share of the variance that is of single players
PAIRS = 0.1  # b: of pairs
LENGTH = 1.5  # l: sizes whose log odds are so far apart still have 0.7 in common
SIZES_AT_ONCE = 2**21  # pairs of sizes in memory


def kernel(masks: NDArray[np.float32], sizes: Values) -> Values:
    """Return the kernel between all coalitions.

    Parameters
    ----------
    masks : ndarray of shape (K, n)
        Who is in, as 0 and 1.
    sizes : ndarray of shape (K,)
        How many, between 1 and n - 1.

    Returns
    -------
    ndarray of shape (K, K)
    """
    n = masks.shape[1]
    alike: Values = (masks @ masks.T).astype(np.float64)  # exact below 2^24 players
    alike -= np.outer(sizes, sizes / n)
    spread = np.sqrt(sizes * (1 - sizes / n))
    alike /= np.outer(spread, spread)
    found = alike * (ALONE + PAIRS * alike)
    found *= _near(_log_odds(sizes, n)[:, None], _log_odds(sizes, n))
    return found


def semivalues_of_kernel(portions: Values, sizes: Values) -> tuple[Values, Values]:
    r"""Return the part that tells players apart of the semivalue of the kernel with a coalition.

    :math:`\sum_k a_k D_{ik}`, with :math:`D_{ik}` the mean of the function over the coalitions of
    size k with player i less that over those without.

    Parameters
    ----------
    portions : ndarray of shape (n - 1,)
        a_k, for k = 1 .. n - 1.
    sizes : ndarray of shape (m,)
        Of the coalitions.

    Returns
    -------
    inside, outside : ndarray of shape (m,)
        For the members of the coalition, and for all others.
    """
    n = len(portions) + 1
    used = np.flatnonzero(portions) + 1
    inside, outside = np.zeros(len(sizes)), np.zeros(len(sizes))
    step = max(1, SIZES_AT_ONCE // max(len(sizes), 1))
    for start in range(0, len(used), step):
        some = used[start : start + step]
        k = some[:, None].astype(np.float64)
        near = portions[some - 1, None] * _near(_log_odds(k, n), _log_odds(sizes, n))
        inside += (near * _difference(n, k, sizes, 1)).sum(axis=0)
        outside += (near * _difference(n, k, sizes, 0)).sum(axis=0)
    return inside, outside


def _difference(n: int, k: Values, other: Values, member: int) -> Values:
    """Return the mean of ``a rho + b rho^2`` with a player less that without, by two sizes.

    ``member`` says whether the player is in the other coalition.
    """
    spread = np.sqrt(k * (1 - k / n) * other * (1 - other / n))
    centre = k * other / n
    with_mean, with_variance = _overlap(n - 1, k - 1, other - member)
    without_mean, without_variance = _overlap(n - 1, k, other - member)
    with_mean = with_mean + member - centre
    without_mean = without_mean - centre
    alone = (with_mean - without_mean) / spread
    squares = with_variance + with_mean**2 - without_variance - without_mean**2
    return np.asarray(ALONE * alone + PAIRS * squares / spread**2)


def _overlap(players: int, drawn: Values, marked: Values) -> tuple[Values, Values]:
    """Return the mean and the variance of how many of the drawn are marked (hypergeometric)."""
    portion = marked / players
    mean = drawn * portion
    variance = mean * (1 - portion) * (players - drawn) / max(players - 1, 1)
    return mean, variance


def _log_odds(sizes: Values, n: int) -> Values:
    return np.asarray(np.log(sizes / (n - sizes)))


def _near(one: Values, other: Values) -> Values:
    return np.asarray(1 / np.sqrt(1 + np.square((one - other) / LENGTH)))
