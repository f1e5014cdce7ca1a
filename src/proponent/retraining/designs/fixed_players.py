"""A design for a number of players that is not that of the columns of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from proponent.retraining.coalitions import Coalitions, Design


@dataclass(frozen=True)
class FixedPlayers(Design):
    """Another design, always for the same number of players.

    Parameters
    ----------
    design : Design
        What is drawn.
    players : int
        For how many.
    """

    name: ClassVar[str] = "fixed players"
    design: Design
    players: int

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions of the other design, whatever n is."""
        return self.design.draw(self.players, start, stop, seed)
