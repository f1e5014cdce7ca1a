"""Coalitions in which every player is with a probability, independently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.checks import check_fraction
from proponent.retraining.coalitions import Coalitions, Design
from proponent.retraining.designs.random import (
    BLOCK,
    blocks,
    coin_tosses,
    fresh_seeds,
    generator,
)


@dataclass(frozen=True)
class Bernoulli(Design):
    """Every player is in with probability q.

    Parameters
    ----------
    q : float
        Between 0 and 1.
    """

    name: ClassVar[str] = "independent"
    q: float = 0.5

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions, as :meth:`Design.draw` says."""
        check_fraction("q", self.q)
        return _drawn(self, n, start, stop, seed, (self.q,))


@dataclass(frozen=True)
class AMEGrid(Design):
    """A probability is drawn from a grid for each coalition, and every player is in with it.

    **Source** Lin et al., ICML 2022.

    Parameters
    ----------
    probabilities : tuple of float
        Between 0 and 1, all equally likely.
    """

    name: ClassVar[str] = "independent, several probabilities"
    probabilities: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions, as :meth:`Design.draw` says."""
        if not self.probabilities:
            raise InvalidInputError("probabilities: give at least one between 0 and 1.")
        for q in self.probabilities:
            check_fraction("probabilities", q)
        return _drawn(self, n, start, stop, seed, self.probabilities)


def _drawn(
    design: Design, n: int, start: int, stop: int, seed: int, probabilities: tuple[float, ...]
) -> Coalitions:
    masks = np.empty((stop - start, n), dtype=np.bool_)
    chances = np.empty(stop - start)
    filled = 0
    for number, some in blocks(start, stop):
        random = generator(seed, f"{design.name} {n}", number)
        rows = slice(filled, filled + some.stop - some.start)
        if probabilities == (0.5,):
            masks[rows], chances[rows] = coin_tosses(random, BLOCK, n)[some], 0.5
        else:
            chance = random.choice(np.asarray(probabilities, np.float64), BLOCK)
            np.less(random.random((BLOCK, n))[some], chance[some, None], out=masks[rows])
            chances[rows] = chance[some]
        filled = rows.stop
    return Coalitions(masks, fresh_seeds(seed, design.name, start, stop), chances=chances)
