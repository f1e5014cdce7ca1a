"""Coalitions of players, what was measured on them, and what is estimated from that."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Coalitions:
    """Some coalitions of n players, each with the seed of its training.

    Attributes
    ----------
    masks : ndarray of shape (K, n)
        Who is in: boolean, or how often (uint8) where a design draws with replacement.
    seeds : ndarray of shape (K,)
        The seed of each training.
    chances : ndarray of shape (K,), optional
        With what probability each player was to be in, where the design draws one a coalition.
    blocks : ndarray of shape (K,), optional
        Coalitions with the same number were drawn together and are not independent: those of one
        permutation, or of one pair.
    """

    masks: NDArray[Any]
    seeds: NDArray[np.int64]
    chances: Values | None = None
    blocks: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Return the number of coalitions, K."""
        return len(self.masks)

    @property
    def n(self) -> int:
        """The number of players."""
        return int(self.masks.shape[1])

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """The size of each coalition, ``(K,)``."""
        return np.asarray(np.count_nonzero(self.masks, axis=1))

    def take(self, rows: Any) -> Coalitions:
        """Return the coalitions at some rows."""
        return Coalitions(
            self.masks[rows],
            self.seeds[rows],
            None if self.chances is None else self.chances[rows],
            None if self.blocks is None else self.blocks[rows],
        )


def join(parts: list[Coalitions]) -> Coalitions:
    """Return coalitions of the same design, one part after the other."""

    def column(name: str) -> Any:
        columns = [getattr(part, name) for part in parts]
        return None if any(part is None for part in columns) else np.concatenate(columns)

    return Coalitions(*(column(name) for name in ("masks", "seeds", "chances", "blocks")))


class Design(ABC):
    """Which coalitions are evaluated, and by what law.

    Coalition j depends on the design, the seed and j alone, so that a longer draw begins with the
    shorter one, and what a store holds of it is used again.
    """

    name: ClassVar[str]

    @abstractmethod
    def draw(self, n: int, start: int, stop: int, seed: int) -> Coalitions:
        """Return the coalitions numbered ``start .. stop - 1`` of n players.

        Raises
        ------
        InvalidInputError
            If the design does not suit n players.
        """

    def total(self, n: int) -> int | None:
        """Return how many coalitions the design has; None: as many as one likes."""
        return None


@dataclass(frozen=True)
class Table:
    """Coalitions and what was measured on them.

    Attributes
    ----------
    coalitions : Coalitions
        Those whose submodels did not fail, K.
    utilities : ndarray of shape (K, T)
        Finite; larger is better.
    noticed : dict
        What there is to say about the measuring, as JSON knows it.
    failures : dict
        Of each size of which submodels failed, why the first one did.
    """

    coalitions: Coalitions
    utilities: Values
    noticed: dict[str, Any] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def n(self) -> int:
        """The number of players."""
        return self.coalitions.n

    @property
    def n_tests(self) -> int:
        """The number of tests, T."""
        return int(self.utilities.shape[1])

    def total(self) -> Table:
        """Return the table of the sum over the tests, as a single one."""
        return replace(self, utilities=self.utilities.sum(axis=1, keepdims=True))

    def tests(self, columns: slice) -> Table:
        """Return the table of some of the tests."""
        return replace(self, utilities=self.utilities[:, columns])

    def end(self, size: int) -> NDArray[np.intp]:
        """Return the rows of nobody (the size 0) or of everybody (n).

        Raises
        ------
        InvalidInputError
            If there is none; the message says why.
        """
        rows = np.flatnonzero(self.coalitions.sizes == size)
        if len(rows):
            return rows
        if size in self.failures:
            why = f"its training failed: {self.failures[size]}"
        else:
            why = "the design left it out"
        raise InvalidInputError(
            f"The coalition of {'all players' if size else 'no player'} has no utility, and the "
            f"values depend on it: {why}."
        )


@dataclass(frozen=True)
class Estimate:
    """Estimated values of some players for every test, and how sure they are.

    Attributes
    ----------
    values : ndarray of shape (T, players)
        NaN marks a player about whom the coalitions say nothing.
    std_errors : ndarray of shape (T, players), or None
        Standard errors; None: the values are exact, or no error is known.
    """

    values: Values
    std_errors: Values | None


class Estimated(ABC):
    """An estimator with its table: what all players share is computed, theirs is asked for."""

    @abstractmethod
    def players(self, rows: range) -> Estimate:
        """Return the estimate for the players at some positions."""

    def noticed(self) -> dict[str, Any]:
        """Return what there is to say about the estimate, as JSON knows it."""
        return {}


class Estimator(ABC):
    """From a table of utilities to values of the players.

    Attributes
    ----------
    linear : bool
        Whether the value for a sum of tests is the sum of the values.
    """

    linear: ClassVar[bool] = True

    @abstractmethod
    def on(self, table: Table) -> Estimated:
        """Compute what all players share.

        Raises
        ------
        InvalidInputError
            If there are too few coalitions; the message says how many are needed.
        """
