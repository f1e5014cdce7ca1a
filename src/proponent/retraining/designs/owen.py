"""Coalitions for Owen sampling: every player is in with the probabilities of a rule."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.retraining.coalitions import Coalitions, Design
from proponent.retraining.designs.random import BLOCK, blocks, fresh_seeds, generator
from proponent.retraining.estimators.owen import Rule


class OwenNodes(Design):
    """The nodes of a rule of quadrature in turn, a coalition each, or with its complement.

    Where 0 and 1 are nodes, the coalitions of no player, all, one, and all but one come first.

    Parameters
    ----------
    rule : Rule
        The nodes.
    antithetic : bool
        Whether each coalition is followed by its complement; nodes then come in turn from the
        lower half, and the complements are drawn with those of the upper half.
    """

    name: ClassVar[str] = "owen"

    def __init__(self, rule: Rule, antithetic: bool) -> None:
        self.rule = rule
        self.antithetic = antithetic

    def first(self, n: int) -> int:
        """Return the number of coalitions that are not random."""
        return 2 * n + 2 if self.rule.end else 0

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions; a coalition and its complement are a block."""
        first, each = self.first(n), 2 if self.antithetic else 1
        ends = np.arange(min(start, first), min(stop, first))
        fixed = [_fixed(n, number) for number in ends.tolist()]
        numbers = np.arange(max(start, first), max(stop, first)) - first
        begin, end = max(start - first, 0) // each, -(-max(stop - first, 0) // each)
        masks = [np.zeros((0, n), dtype=bool)]
        for number, some in blocks(begin, end):
            random = generator(seed, f"{self.name} {n}", number)
            chance = self._chances(np.arange(number * BLOCK, (number + 1) * BLOCK))
            masks.append((random.random((BLOCK, n)) < chance[:, None])[some])
        units = numbers // each
        drawn = np.concatenate(masks)[units - begin]
        chances, other = self._chances(units), numbers % each == 1
        seeds = fresh_seeds(seed, self.name, begin, end)[units - begin]
        return Coalitions(
            np.concatenate([*(mask[None] for mask, _ in fixed), drawn ^ other[:, None]]),
            np.concatenate([fresh_seeds(seed, "owen, ends", 0, first)[ends], seeds]),
            np.concatenate(
                [[chance for _, chance in fixed], np.where(other, 1 - chances, chances)]
            ),
            np.concatenate([ends - first, units]),
        )

    def _chances(self, units: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the probabilities of some of the coalitions, complements aside."""
        nodes = len(self.rule.chances)
        turn = (nodes + 1) // 2 if self.antithetic else nodes
        return np.asarray(self.rule.chances)[units % turn]


def _fixed(n: int, number: int) -> tuple[NDArray[np.bool_], float]:
    """Return the coalition of no player, one, all, or all but one, and 0 or 1."""
    upper, place = divmod(number, n + 1)
    mask = np.zeros(n, dtype=bool)
    if place:
        mask[place - 1] = True
    return (~mask, 1.0) if upper else (mask, 0.0)
