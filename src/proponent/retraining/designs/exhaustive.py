"""Every coalition once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Design
from proponent.retraining.designs.random import fresh_seeds

MOST_PLAYERS = 20  # a million coalitions


@dataclass(frozen=True)
class Exhaustive(Design):
    """Every coalition once; number j holds the players whose bits are set in j."""

    name: ClassVar[str] = "exhaustive"

    @override
    def total(self, n: int) -> int:
        """Return ``2^n``.

        Raises
        ------
        InvalidInputError
            If there are more than 20 players.
        """
        if n > MOST_PLAYERS:
            raise InvalidInputError(
                f"estimator='exact': {n} players have 2^{n} coalitions; beyond {MOST_PLAYERS} use "
                f"a sampled estimator, or fit(..., groups=names) with {MOST_PLAYERS} groups or "
                f"fewer."
            )
        return int(2**n)

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions, as :meth:`Design.draw` says."""
        numbers = np.arange(start, min(stop, self.total(n)))
        masks = (numbers[:, None] >> np.arange(n)) & 1 == 1
        return Coalitions(masks, fresh_seeds(seed, self.name, start, start + len(numbers)))
