"""The batches that a submodel is trained on: which instances, in what order, with what weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Parts the order of the batches from other draws that start from the same seed.
ORDER = 1


@dataclass(frozen=True)
class BatchPlan:
    """How batches are made of a subset of n training instances.

    Attributes
    ----------
    batch_size : int
        Instances a batch, B.
    epochs, steps : int or None
        How long to train; exactly one of them.
    common : bool
        False: each subset is shuffled and cut into batches of its own. True: the whole set is
        shuffled and cut into batches, in the same way for the same seed, and each subset takes
        what it has of them; batches of which it has nothing are passed over.
    """

    batch_size: int
    epochs: int | None
    steps: int | None
    common: bool

    def width(self, n: int) -> int:
        """Return the entries of a batch, padding included."""
        return min(self.batch_size, n)

    def orders(self, counts: NDArray[Any], seed: int) -> Iterator[Epoch]:
        """Return the batches of the subset with some counts ``(n,)``, epoch by epoch."""
        random = np.random.default_rng([seed % 2**64, ORDER])
        positions = np.repeat(np.arange(len(counts)), counts.astype(np.int64))
        source = np.arange(len(counts)) if self.common else positions
        width = self.width(len(counts))
        an_epoch = -(-len(source) // width)
        left = self.epochs * an_epoch if self.epochs is not None else int(self.steps or 0)
        while left > 0:
            order = random.permutation(source)
            weights = counts[order] if self.common else np.ones(len(order))
            yield _batches(order, weights, width).first(left)
            left -= an_epoch

    def length(self, counts: NDArray[Any], seed: int) -> int:
        """Return the number of batches that are trained on."""
        if self.common:
            return sum(len(epoch.positions) for epoch in self.orders(counts, seed))
        if self.steps is not None:
            return self.steps
        return int(self.epochs or 0) * -(-int(counts.sum()) // self.width(len(counts)))


@dataclass(frozen=True)
class Epoch:
    """The batches of one pass.

    Attributes
    ----------
    positions : ndarray of shape (batches, width)
        Positions of training instances.
    weights : ndarray of shape (batches, width)
        How often each counts; 0: not at all (it is padding, or not in the subset).
    numbers : ndarray of shape (batches,)
        Which batch of the pass each is: some may have been passed over.
    """

    positions: NDArray[np.int64]
    weights: NDArray[np.float64]
    numbers: NDArray[np.int64]

    def first(self, left: int) -> Epoch:
        """Return the batches, as far as ``left`` more (passed over or not) are wanted."""
        kept = (self.numbers < left) & (self.weights > 0).any(1)
        return Epoch(self.positions[kept], self.weights[kept], self.numbers[kept])


def _batches(order: NDArray[np.int64], weights: NDArray[Any], width: int) -> Epoch:
    """Cut an order into batches; the last is filled up with its first instance, at weight 0."""
    batches = -(-len(order) // width)
    positions = np.full(batches * width, order[(batches - 1) * width], np.int64)
    padded = np.zeros(batches * width)
    positions[: len(order)], padded[: len(order)] = order, weights
    shape = (batches, width)
    return Epoch(positions.reshape(shape), padded.reshape(shape), np.arange(batches))


class BatchTable:
    """The next batch of each of several submodels that are trained in step.

    Parameters
    ----------
    plan : BatchPlan
        How batches are made.
    counts : ndarray of shape (K, n)
        The subsets.
    seeds : list of int
        One for each.
    """

    def __init__(self, plan: BatchPlan, counts: NDArray[Any], seeds: list[int]) -> None:
        rows = zip(counts, seeds, strict=True)
        self._epochs = [plan.orders(row, seed) for row, seed in rows]
        n, width = counts.shape[1], plan.width(counts.shape[1])
        largest = n if plan.common else int(counts.sum(1, dtype=np.int64).max())
        shape = (len(seeds), -(-largest // width), width)
        self._positions = np.zeros(shape, np.int64)
        self._weights = np.zeros(shape)
        self._numbers = np.zeros(shape[:2], np.int64)
        self._sizes = np.zeros(len(seeds), np.int64)
        self._next = np.zeros(len(seeds), np.int64)
        self._pass = np.full(len(seeds), -1, np.int64)
        self._alike = plan.common and len(set(seeds)) == 1

    def next(self, active: int) -> tuple[NDArray[np.int64], NDArray[np.float64], bool]:
        """Return the next batch of the first ``active`` submodels.

        Returns
        -------
        positions, weights : ndarray of shape (active, width)
            As in :class:`Epoch`.
        shared : bool
            Whether the positions are the same for all.
        """
        for row in np.flatnonzero(self._next[:active] == self._sizes[:active]):
            self._refill(int(row))
        rows, columns = np.arange(active), self._next[:active]
        positions, weights = self._positions[rows, columns], self._weights[rows, columns]
        numbers, passes = self._numbers[rows, columns], self._pass[:active]
        shared = self._alike and bool((numbers == numbers[0]).all() and (passes == passes[0]).all())
        self._next[:active] += 1
        return positions, weights, shared

    def _refill(self, row: int) -> None:
        size = 0
        while not size:  # in a short pass a subset may have nothing
            epoch = next(self._epochs[row])
            size = len(epoch.positions)
            self._pass[row] += 1
        self._positions[row, :size] = epoch.positions
        self._weights[row, :size] = epoch.weights
        self._numbers[row, :size] = epoch.numbers
        self._sizes[row], self._next[row] = size, 0
