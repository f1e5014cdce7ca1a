"""What the closed forms have to know of the coalition that an instance joins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from proponent.retraining.semivalues import Semivalue, Vector


@dataclass(frozen=True)
class Coalitions:
    """How many neighbours a random coalition of the others has.

    All that a semivalue is to k nearest neighbours: an instance counts only where fewer than k
    nearer ones are in the coalition.

    Attributes
    ----------
    n, k : int
        Training instances, and neighbours that count; k may exceed n.
    fewer : ndarray of shape (n,)
        The probability that fewer than k of m given others are in the coalition, m = 0 .. n - 1.
    among_fewer : ndarray of shape (n,)
        The probability that, besides, the first of these m is in; 0 for m = 0.
    sizes : ndarray of shape (min(k, n),)
        The probability that the coalition of the n - 1 others has s members, s < k.
    sizes_of_two : ndarray of shape (min(k, n - 1),)
        The same of the n - 2 others of two instances.
    """

    n: int
    k: int
    fewer: Vector
    among_fewer: Vector
    sizes: Vector
    sizes_of_two: Vector

    @classmethod
    def of(cls, semivalue: Semivalue, n: int, k: int) -> Coalitions:
        """Prepare the closed forms of a semivalue, in O(n min(k, n))."""
        fewer, members = np.zeros(n), np.zeros(n)
        sizes, sizes_of_two = [], []
        for j, law in enumerate(semivalue.counts(n, min(k, n))):
            fewer += law
            members += j * law
            sizes.append(law[n - 1])
            sizes_of_two.append(law[n - 2])
        # Each of the m is as likely to be in as another.
        among_fewer = members / np.maximum(np.arange(n), 1)
        return cls(n, k, fewer, among_fewer, np.array(sizes), np.array(sizes_of_two[: n - 1]))
