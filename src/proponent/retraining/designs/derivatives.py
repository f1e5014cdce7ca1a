"""Coalitions for interactions: all that the discrete derivatives of groups take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Design, join
from proponent.retraining.designs.random import generator
from proponent.retraining.estimators.interactions import Group

Place = Literal["slot", "first"]


class Derivatives(Design):
    r"""For every group A in turn a coalition D of the others, and ``D + B`` for all B within A.

    D holds those that come before A in a random order of the players, the same for all groups of
    a sample; all coalitions of a sample share a seed. One that several groups need is the same for
    each of them, so that a store trains it once.

    Parameters
    ----------
    groups : sequence of tuple of int
        Positions of the players of each group.
    place : {"slot", "first"}
        What comes before A: all that come before a moment that is drawn uniformly (the order of
        players with A merged to one), or all before the first member of A.
    alone : sequence of tuple of int
        Groups whose derivative is needed at the empty coalition only. They come first, once.
    """

    name: ClassVar[str] = "derivatives"

    def __init__(self, groups: Sequence[Group], place: Place, alone: Sequence[Group] = ()) -> None:
        self.groups = groups
        self.place = place
        self.alone = alone

    @property
    def first(self) -> int:
        """The number of coalitions that are not random."""
        return sum(2 ** len(group) for group in self.alone)

    @property
    def a_sample(self) -> int:
        """The number of coalitions of a sample."""
        return sum(2 ** len(group) for group in self.groups)

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions; those of one derivative are a block."""
        nobody = np.zeros((len(self.alone), n), dtype=bool)
        parts = [self._sample(self.alone, nobody, generator(seed, f"{self.name}, alone", 0), -1)]
        first, last = (max(0, number - self.first) for number in (start, stop))
        begun = first // self.a_sample if self.groups else 0
        ended = -(-last // self.a_sample) if self.groups else 0
        for sample in range(begun, ended):
            random = generator(seed, f"{self.name} {n}", sample)
            parts.append(self._sample(self.groups, self._places(n, random), random, sample))
        # All of the alone come first, and then the samples from the first that is asked for on.
        skipped = begun * self.a_sample
        rows = np.arange(start, stop)
        return join(parts).take(np.where(rows < self.first, rows, rows - skipped))

    def _places(self, n: int, random: np.random.Generator) -> NDArray[np.bool_]:
        """Return who comes before each group, ``(groups, n)``, members of the group aside."""
        moments = random.random(n)
        if self.place == "slot":
            return np.broadcast_to(moments < random.random(), (len(self.groups), n))
        return np.stack([moments < moments[list(group)].min() for group in self.groups])

    def _sample(
        self,
        groups: Sequence[Group],
        places: NDArray[np.bool_],
        random: np.random.Generator,
        number: int,
    ) -> Coalitions:
        """Return the coalitions of a sample; a block is a derivative, numbered on and on."""
        masks = np.repeat(places, [2 ** len(group) for group in groups], axis=0)
        blocks = np.repeat(np.arange(len(groups)), [2 ** len(group) for group in groups])
        row = 0
        for group in groups:
            codes = np.arange(2 ** len(group))
            for member, player in enumerate(group):
                masks[row : row + len(codes), player] = codes >> member & 1
            row += len(codes)
        seeds = np.full(len(masks), random.integers(2**63 - 1))
        return Coalitions(masks, seeds, None, blocks + number * len(groups))


def whole_samples(design: Derivatives, models: int) -> int:
    """Return how many coalitions make whole samples, and no more than ``models``.

    Raises
    ------
    InvalidInputError
        If these are fewer than 2 samples.
    """
    if not design.groups:
        return design.first
    samples = (models - design.first) // design.a_sample
    if samples < 2:
        raise InvalidInputError(
            f"n_models: {models:,} coalitions are less than 2 samples of {len(design.groups):,} "
            f"tuples, {design.first + 2 * design.a_sample:,}; give more of the former or fewer of "
            f"the latter."
        )
    return design.first + samples * design.a_sample
