"""Coalitions and all that differ from them by one player: a marginal contribution of each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.retraining.coalitions import Coalitions, Design
from proponent.retraining.designs.random import generator


class Strata(ABC):
    """By what laws the coalitions are drawn that players join, one stratum after the other."""

    @abstractmethod
    def mask(self, n: int, turn: int, random: np.random.Generator) -> NDArray[np.bool_]:
        """Return a coalition for the turn with a number."""

    @abstractmethod
    def chance(self, turn: int) -> float:
        """Return with what probability each player is in; NaN where they are drawn by size."""


@dataclass(frozen=True)
class ByChance(Strata):
    """Every player in with one of some probabilities, in turn."""

    chances: Sequence[float]

    @override
    def mask(self, n: int, turn: int, random: np.random.Generator) -> NDArray[np.bool_]:
        return random.random(n) < self.chance(turn)

    @override
    def chance(self, turn: int) -> float:
        return self.chances[turn % len(self.chances)]


@dataclass(frozen=True)
class BySize(Strata):
    """Coalitions of given sizes, in turn."""

    sizes: Sequence[int]

    @override
    def mask(self, n: int, turn: int, random: np.random.Generator) -> NDArray[np.bool_]:
        found = np.zeros(n, dtype=bool)
        found[random.permutation(n)[: self.sizes[turn % len(self.sizes)]]] = True
        return found

    @override
    def chance(self, turn: int) -> float:
        return np.nan


class Flips(Design):
    """Rounds of a coalition S, and n more: S without each of its members, and S with each other.

    All ``n + 1`` of a round share a seed, so that what they differ in is the player.

    Parameters
    ----------
    strata : Strata
        How S is drawn.
    """

    name: ClassVar[str] = "flips"

    def __init__(self, strata: Strata) -> None:
        self.strata = strata

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions; those of a round are a block."""
        rounds = np.arange(start, stop) // (n + 1)
        flipped = np.arange(start, stop) % (n + 1) - 1
        masks = np.empty((stop - start, n), dtype=bool)
        seeds, chances = np.empty(stop - start, dtype=np.int64), np.empty(stop - start)
        for turn in np.unique(rounds).tolist():
            rows = rounds == turn
            random = generator(seed, f"{self.name} {n}", turn)
            seeds[rows], chances[rows] = random.integers(2**63 - 1), self.strata.chance(turn)
            masks[rows] = self.strata.mask(n, turn, random)
        rows_ = np.flatnonzero(flipped >= 0)
        masks[rows_, flipped[rows_]] ^= True
        given: Any = None if np.isnan(chances).any() else chances
        return Coalitions(masks, seeds, given, rounds)
