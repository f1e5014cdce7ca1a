"""Nobody and everybody, and then the coalitions of another design."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from proponent.retraining.coalitions import Coalitions, Design
from proponent.retraining.designs.random import fresh_seeds


@dataclass(frozen=True)
class WithEnds(Design):
    """The empty and the full coalition before those of another design.

    Parameters
    ----------
    design : Design
        Of the others; with what probability it draws them is not kept.
    """

    name: ClassVar[str] = "ends"
    design: Design

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions; the two ends are blocks of their own."""
        ends = np.array([False, True])[start:stop]
        drawn = self.design.draw(n, max(0, start - 2), max(0, stop - 2), seed)
        masks = np.concatenate([np.repeat(ends[:, None], n, axis=1), drawn.masks != 0])
        own = fresh_seeds(seed, self.name, min(start, 2), min(stop, 2))
        blocks = None
        if drawn.blocks is not None:
            blocks = np.concatenate([np.arange(-2, 0)[start:stop], drawn.blocks])
        return Coalitions(masks, np.concatenate([own, drawn.seeds]), None, blocks)
