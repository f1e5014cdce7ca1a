"""Coalitions that are uniform among those of their size."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Design
from proponent.retraining.designs.random import (
    BLOCK,
    blocks,
    fresh_seeds,
    generator,
    uniform_masks,
)

Sizes = NDArray[np.int64]

CYCLE = 60  # coalitions that are balanced together: many fractions of n are multiples of n / 60


class OfSizes(Design):
    """Base of the designs that draw a size, and then uniformly among the coalitions of that size.

    A subclass implements ``_sizes``.
    """

    @abstractmethod
    def _sizes(self, n: int, start: int, stop: int, seed: int) -> Sizes:
        """Return the sizes of the coalitions numbered ``start .. stop - 1``."""

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions, as :meth:`Design.draw` says."""
        parts = [np.zeros((0, n), dtype=np.bool_)]
        for number, some in blocks(start, stop):
            sizes = self._sizes(n, number * BLOCK, (number + 1) * BLOCK, seed)
            masks = uniform_masks(generator(seed, f"{self.name} {n}", number), sizes, n)
            parts.append(masks[some])
        return Coalitions(np.concatenate(parts), fresh_seeds(seed, self.name, start, stop))


def _check_size(size: int, n: int, least: int = 1) -> None:
    if not least <= size <= n:
        raise InvalidInputError(f"size: coalitions of {size} of {n} players; use {least} to {n}.")


@dataclass(frozen=True)
class UniformSize(OfSizes):
    """Independent coalitions of one size.

    Parameters
    ----------
    size : int
        Of each.
    """

    name: ClassVar[str] = "one size"
    size: int

    @override
    def _sizes(self, n: int, start: int, stop: int, seed: int) -> Sizes:
        _check_size(self.size, n)
        return np.full(stop - start, self.size)


@dataclass(frozen=True)
class TwoSizes(OfSizes):
    """Coalitions of size m and of size m - 1 in turns.

    Means over the former with a player and over the latter without it differ by the player's mean
    marginal contribution to ``m - 1`` others, without a bias.

    **Source** Feldman and Zhang, NeurIPS 2020, Lemma 2.1.

    Parameters
    ----------
    size : int
        The larger size, m.
    """

    name: ClassVar[str] = "two sizes"
    size: int

    @override
    def _sizes(self, n: int, start: int, stop: int, seed: int) -> Sizes:
        _check_size(self.size, n, least=2)
        return self.size - np.arange(start, stop) % 2


@dataclass(frozen=True)
class Ratios(OfSizes):
    """Coalitions of several sizes in turns.

    Parameters
    ----------
    sizes : tuple of int
        The sizes.
    """

    name: ClassVar[str] = "several sizes"
    sizes: tuple[int, ...]

    @override
    def _sizes(self, n: int, start: int, stop: int, seed: int) -> Sizes:
        if not self.sizes:
            raise InvalidInputError("sizes: give at least one size of a coalition.")
        for size in self.sizes:
            _check_size(size, n)
        return np.asarray(self.sizes)[np.arange(start, stop) % len(self.sizes)]


@dataclass(frozen=True)
class SizeStratified(OfSizes):
    """Nobody, everybody, and then all sizes between them equally often, in random order.

    Each run of ``n - 1`` coalitions has every size once.
    """

    name: ClassVar[str] = "all sizes"

    @override
    def _sizes(self, n: int, start: int, stop: int, seed: int) -> Sizes:
        if n < 2:
            return np.arange(start, stop) % 2
        found = np.empty(stop - start, dtype=np.int64)
        filled = max(0, min(stop, 2) - start)
        found[:filled] = np.array([0, n])[start : start + filled]
        first = max(start, 2) - 2
        for number, some in blocks(first, stop - 2, n - 1):
            order = generator(seed, f"order of {self.name}", number).permutation(n - 1) + 1
            found[filled : filled + len(order[some])] = order[some]
            filled += len(order[some])
        return found


@dataclass(frozen=True)
class GroupTesting(OfSizes):
    """Sizes k with probability proportional to ``1 / k + 1 / (n - k)``, after nobody and everybody.

    **Source** Jia et al., AISTATS 2019; the same law as Kernel SHAP's.
    """

    name: ClassVar[str] = "group testing"

    @override
    def _sizes(self, n: int, start: int, stop: int, seed: int) -> Sizes:
        if n < 2:
            return np.arange(start, stop) % 2
        k = np.arange(1, n)
        law = 1 / k + 1 / (n - k)
        parts = [
            generator(seed, f"order of {self.name}", number).choice(k, BLOCK, p=law / law.sum())[
                some
            ]
            for number, some in blocks(start, stop)
        ]
        found = np.concatenate(parts)
        for place, size in ((0, 0), (1, n)):
            if start <= place < stop:
                found[place - start] = size
        return found


@dataclass(frozen=True)
class Balanced(Design):
    """Coalitions of one size, with every player in equally many of them.

    Random orders of the players are laid end to end and cut into coalitions, 60 at a time: in each
    60 the players stand equally often where ``60 * size`` is a multiple of n, and else one more or
    less. Where a cut lies across two orders, the second begins with players who are not yet in.

    Parameters
    ----------
    size : int
        Of each.
    """

    name: ClassVar[str] = "balanced"
    size: int

    @override
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return some of the coalitions, as :meth:`Design.draw` says."""
        _check_size(self.size, n)
        parts = [np.zeros((0, n), dtype=np.bool_)]
        for number, some in blocks(start, stop, CYCLE):
            parts.append(self._cycle(n, generator(seed, f"{self.name} {n}", number))[some])
        return Coalitions(np.concatenate(parts), fresh_seeds(seed, self.name, start, stop))

    def _cycle(self, n: int, random: np.random.Generator) -> NDArray[np.bool_]:
        masks = np.zeros((CYCLE, n), dtype=np.bool_)
        order = random.permutation(n)
        for mask in masks:
            mask[order[: self.size]] = True
            missing = self.size - len(order)
            if missing <= 0:
                order = order[self.size :]
                continue
            others = random.permutation(np.flatnonzero(~mask))
            mask[others[:missing]] = True
            order = random.permutation(np.concatenate([others[missing:], order]))
        return masks
