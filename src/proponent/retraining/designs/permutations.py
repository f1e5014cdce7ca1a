"""The coalitions that grow along random orders of the players."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from proponent.retraining.coalitions import Coalitions, Design
from proponent.retraining.designs.random import fresh_seeds, generator


@dataclass(frozen=True)
class Permutations(Design):
    """Nobody, everybody, and then the first ``1 .. n - 1`` players of each random order.

    Parameters
    ----------
    antithetic : bool
        Whether each order is followed by its reverse.
    """

    name: ClassVar[str] = "permutations"
    antithetic: bool = False

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions, as :meth:`Design.draw` says.

        Their blocks are the numbers of the orders; an order and its reverse share one. Nobody and
        everybody, which all orders share, have the block -1.
        """
        numbers = np.arange(start, stop)
        masks = np.zeros((len(numbers), n), dtype=np.bool_)
        masks[numbers == 1] = True
        walk, step = np.divmod(numbers - 2, max(n - 1, 1))
        for number in np.unique(walk[numbers >= 2]):
            rows = np.flatnonzero((walk == number) & (numbers >= 2))
            masks[rows] = self.ranks(n, int(number), seed)[None] <= step[rows, None]
        blocks = np.where(numbers >= 2, walk // 2 if self.antithetic else walk, -1)
        seeds = fresh_seeds(seed, self.name, start, stop)
        return Coalitions(masks, seeds, blocks=blocks.astype(np.int64))

    def ranks(self, n: int, number: int, seed: int) -> np.ndarray:
        """Return where each player stands in an order, ``(n,)``, from 0."""
        half, reverse = divmod(number, 2) if self.antithetic else (number, 0)
        ranks = generator(seed, f"{self.name} {n}", half).permutation(n)
        return np.asarray(n - 1 - ranks if reverse else ranks)
