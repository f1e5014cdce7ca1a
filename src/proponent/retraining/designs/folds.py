"""Everyone but a fold, and samples with replacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Design
from proponent.retraining.designs.random import BLOCK, blocks, fresh_seeds, generator


@dataclass(frozen=True)
class KFold(Design):
    """All folds but one of random splits; every player is out once a split.

    Parameters
    ----------
    folds : int
        Parts of a split, 2 or more.
    """

    name: ClassVar[str] = "folds"
    folds: int = 10

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions; those of a split are a block."""
        if not 2 <= self.folds <= n:
            raise InvalidInputError(f"folds: {self.folds} folds of {n} players; use 2 to {n}.")
        split, fold = np.divmod(np.arange(start, stop), self.folds)
        masks = np.empty((len(split), n), dtype=np.bool_)
        for number in np.unique(split):
            rows = np.flatnonzero(split == number)
            order = generator(seed, f"{self.name} {n}", int(number)).permutation(n)
            masks[rows] = order[None] % self.folds != fold[rows, None]
        return Coalitions(masks, fresh_seeds(seed, self.name, start, stop), blocks=split)


@dataclass(frozen=True)
class Bootstrap(Design):
    """n draws of the n players with replacement; masks count how often each was drawn."""

    name: ClassVar[str] = "bootstrap"

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions, as :meth:`Design.draw` says."""
        parts = [np.zeros((0, n), dtype=np.uint8)]
        for number, some in blocks(start, stop):
            random = generator(seed, f"{self.name} {n}", number)
            drawn = random.integers(0, n, size=(BLOCK, n)) + np.arange(BLOCK)[:, None] * n
            counts = np.bincount(drawn.ravel(), minlength=BLOCK * n).reshape(BLOCK, n)
            parts.append(counts[some].astype(np.uint8))
        return Coalitions(np.concatenate(parts), fresh_seeds(seed, self.name, start, stop))
