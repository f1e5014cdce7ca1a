"""Everyone, and everyone but one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from proponent.retraining.coalitions import Coalitions, Design
from proponent.retraining.designs.random import fresh_seeds


@dataclass(frozen=True)
class LeaveOneOutDesign(Design):
    """Everyone, then everyone without each player, with a common seed; and so for each repeat.

    Parameters
    ----------
    repeats : int
        Seeds.
    """

    name: ClassVar[str] = "leave-one-out"
    repeats: int = 1

    @override
    def total(self, n: int) -> int:
        """Return ``(n + 1) * repeats``."""
        return (n + 1) * self.repeats

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions, as :meth:`Design.draw` says."""
        repeat, position = np.divmod(np.arange(start, min(stop, self.total(n))), n + 1)
        masks = np.ones((len(position), n), dtype=np.bool_)
        without = np.flatnonzero(position)
        masks[without, position[without] - 1] = False
        return Coalitions(masks, fresh_seeds(seed, self.name, 0, self.repeats)[repeat])
