"""What was asked for: submodels by key, each once, and the batches that they are trained in."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.models.learner import SerialTrainer, Trainer
from proponent.retraining.keys import BLOCK_BYTES, row_keys
from proponent.retraining.players import Players

# What a kill may lose is some submodels that take half a second together, or so many as take a
# twentieth: far more than it takes to hand a task over.
SOME, SECONDS_OF_SOME, SECONDS_OF_MANY = 32, 0.5, 0.05

REMEMBERED_BYTES = 2**26


class Pace:
    """How many submodels to take at a time where it makes no difference to the numbers."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def saw(self, seconds: float, size: int) -> None:
        """Count what a batch took."""
        self._seconds = seconds / size

    def width(self, most: int) -> int:
        """Return how many to take next: one at first, then by what they take."""
        if self._seconds is None:
            return 1
        each = max(self._seconds, 1e-9)
        return int(np.clip(max(min(SECONDS_OF_SOME / each, SOME), SECONDS_OF_MANY / each), 1, most))


class Request:
    """Submodels that were asked for, K of them.

    Parameters
    ----------
    players : Players
        Who is in or out.
    masks, seeds : array-like of shape (K, players) and (K,)
        The subsets, and what decides everything random about each training.
    trainer : Trainer
        Says whether the seeds count, and which subsets count as empty.

    Attributes
    ----------
    keys : list of bytes
        The key of each, K.
    empty : ndarray of shape (K,)
        Which have no training instance, or are worth as much as if they had none.
    rows : dict
        For each distinct key that is not empty its first row, in order.
    """

    def __init__(self, players: Players, masks: Any, seeds: Any, trainer: Trainer) -> None:
        self._players = players
        self._masks, self._seeds = players.check(masks, seeds)
        self._seeded = trainer.seeded
        if not self._seeded:
            self._seeds = np.zeros_like(self._seeds)
        self.keys, self.empty = row_keys(self._masks, self._seeds, players.members)
        self._hold_empty(trainer)
        small = self._masks.dtype == np.bool_ and self._masks.size <= 8 * REMEMBERED_BYTES
        self._packed = np.packbits(self._masks, axis=1) if small else None
        self.rows: dict[bytes, int] = {}
        for row, (key, empty) in enumerate(zip(self.keys, self.empty.tolist(), strict=True)):
            if not empty:
                self.rows.setdefault(key, row)

    def is_for(self, masks: Any, seeds: Any) -> bool:
        """Whether it is the request for these masks and seeds: it takes less than to hash them."""
        given, numbers = self._players.check(masks, seeds)
        if self._packed is None or given.dtype != np.bool_ or len(given) != len(self._masks):
            return False
        if self._seeded and not np.array_equal(numbers, self._seeds):
            return False
        if not np.array_equal(np.packbits(given, axis=1), self._packed):
            return False
        self._masks = given  # what was given before may have been written to since
        return True

    def _hold_empty(self, trainer: Trainer) -> None:
        step = max(1, BLOCK_BYTES // max(trainer.n, 1))
        for start in range(0, len(self._masks), step):
            rows = slice(start, start + step)
            held = trainer.holds_empty(self._players.expand(self._masks[rows]))
            if held is None:
                return
            self.empty[rows] |= held

    def batches(
        self, wanted: Container[bytes], trainer: Trainer, pace: Pace, most: int
    ) -> Iterator[tuple[list[bytes], NDArray[Any], NDArray[np.int64]]]:
        """Return the batches in which some of the submodels are trained: keys, counts, seeds.

        A trainer of one submodel after the other gets as many as its pace allows, up to ``most``.
        One that trains many at once may round by who is beside whom, so that its batches are those
        of the whole request, without the submodels that are there already: the same request,
        interrupted and repeated, is trained in the same batches.
        """
        if isinstance(trainer, SerialTrainer):
            yield from self._at_pace(wanted, pace, most)
            return
        keys = list(self.rows)
        for start in range(0, len(keys), trainer.at_once):
            batch = [key for key in keys[start : start + trainer.at_once] if key in wanted]
            if batch:
                yield self._batch(batch)

    def _at_pace(
        self, wanted: Container[bytes], pace: Pace, most: int
    ) -> Iterator[tuple[list[bytes], NDArray[Any], NDArray[np.int64]]]:
        batch: list[bytes] = []
        width = pace.width(most)
        for key in self.rows:
            if key in wanted:
                batch.append(key)
            if len(batch) >= width:
                yield self._batch(batch)
                batch, width = [], pace.width(most)
        if batch:
            yield self._batch(batch)

    def _batch(self, keys: list[bytes]) -> tuple[list[bytes], NDArray[Any], NDArray[np.int64]]:
        rows = [self.rows[key] for key in keys]
        return keys, self._players.expand(self._masks[rows]), self._seeds[rows]
