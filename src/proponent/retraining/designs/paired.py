"""Coalitions and their complements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from proponent.retraining.coalitions import Coalitions, Design
from proponent.retraining.designs.random import fresh_seeds


@dataclass(frozen=True)
class PairedComplements(Design):
    """Each coalition of another design, followed by everyone who is not in it.

    Parameters
    ----------
    design : Design
        Of the first of each pair.
    """

    name: ClassVar[str] = "pairs"
    design: Design

    @override
    def total(self, n: int) -> int | None:
        """Return twice as many as the other design has."""
        half = self.design.total(n)
        return None if half is None else 2 * half

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions; a coalition and its complement are a block."""
        total = self.total(n)
        stop = stop if total is None else max(start, min(stop, total))
        numbers = np.arange(start, stop)
        pairs = numbers // 2
        first = start // 2
        drawn = self.design.draw(n, first, -(-stop // 2), seed)
        second = numbers % 2 == 1
        masks = drawn.masks[pairs - first] ^ second[:, None]
        chances = drawn.chances
        if chances is not None:
            chances = np.where(second, 1 - chances[pairs - first], chances[pairs - first])
        return Coalitions(masks, fresh_seeds(seed, self.name, start, stop), chances, pairs)
