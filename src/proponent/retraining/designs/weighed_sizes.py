"""Coalitions of all sizes, more of those that a semivalue depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.retraining.designs.random import BLOCK, blocks, generator
from proponent.retraining.designs.sizes import OfSizes
from proponent.retraining.semivalues import Semivalue


@dataclass(frozen=True)
class WeighedSizes(OfSizes):
    r"""Nobody, everybody, and then sizes as often as the errors of a semivalue call for.

    The difference that a player makes on the coalitions of size k, of which there are c_k, enters
    with the weight :math:`a_k = p_{k-1} (1 - k/n) + p_k\, k/n` and has a variance in proportion to
    :math:`1 / (c_k\, q (1 - q))`, with :math:`q = k / n`, if utilities vary alike at all sizes.
    The variance of the sum is then smallest with

    .. math:: c_k \propto a_k / \sqrt{q (1 - q)}.

    **Source** Neyman, "On the two different aspects of the representative method", 1934, for the
    allocation.

    Parameters
    ----------
    semivalue : Semivalue
        Its law of sizes p.
    """

    name: ClassVar[str] = "weighed sizes"
    semivalue: Semivalue

    @override
    def _sizes(self, n: int, start: int, stop: int, seed: int) -> NDArray[np.int64]:
        if n < 2:
            return np.arange(start, stop) % 2
        reached = np.cumsum(self.law(n))
        parts = [np.zeros(0, dtype=np.int64)]
        for number, some in blocks(start, stop):
            random = generator(seed, f"order of {self.name}", number)
            # One from each of 64 equal portions of the law: less noise in how often a size comes.
            portions = (random.permutation(BLOCK) + random.random(BLOCK)) / BLOCK
            sizes = np.searchsorted(reached, portions * reached[-1], side="right") + 1
            parts.append(np.minimum(sizes, n - 1)[some])
        found = np.concatenate(parts)
        for place, size in ((0, 0), (1, n)):
            if start <= place < stop:
                found[place - start] = size
        return found

    def law(self, n: int) -> NDArray[np.float64]:
        """Return how likely the sizes ``1 .. n - 1`` are, ``(n - 1,)``."""
        k = np.arange(1, n)
        q, sizes = k / n, self.semivalue.sizes(n)
        wanted = (sizes[k - 1] * (1 - q) + sizes[k] * q) / np.sqrt(q * (1 - q))
        return np.asarray(wanted / wanted.sum())
