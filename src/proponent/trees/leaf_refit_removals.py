"""Which training instances are removed together, and what their removal changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from proponent.trees.losses import Values
from proponent.trees.view import LeafRows

Positions = NDArray[np.intp]


@dataclass(frozen=True, eq=False)
class Removals:
    """R sets of training instances, each removed while all others stay.

    Attributes
    ----------
    members : integer array of shape (total,)
        Positions in the training set, removal after removal.
    pointers : integer array of shape (R + 1,)
        Removal r has ``members[pointers[r] : pointers[r + 1]]``.
    """

    members: Positions
    pointers: Positions

    @staticmethod
    def single(rows: range | Positions) -> Removals:
        """Return the removals of one instance each."""
        members = np.asarray(rows, dtype=np.intp)
        return Removals(members, np.arange(len(members) + 1))

    @staticmethod
    def groups(members: Sequence[NDArray[Any]]) -> Removals:
        """Return the removals of groups; an instance that is named twice is removed once."""
        parts = [np.unique(part).astype(np.intp) for part in members]
        sizes = np.array([len(part) for part in parts], dtype=np.intp)
        pointers = np.concatenate([[0], np.cumsum(sizes)]).astype(np.intp)
        return Removals(np.concatenate(parts) if parts else np.empty(0, np.intp), pointers)

    def __len__(self) -> int:
        """Return R."""
        return len(self.pointers) - 1

    @property
    def lanes(self) -> Positions:
        """The removal that each of ``members`` belongs to, ``(total,)``."""
        return np.repeat(np.arange(len(self)), np.diff(self.pointers))

    def part(self, start: int, stop: int) -> Removals:
        """Return some of the removals, one after the other."""
        pointers = self.pointers[start : stop + 1]
        return Removals(self.members[pointers[0] : pointers[-1]], pointers - pointers[0])


@dataclass(frozen=True, eq=False)
class Changes:
    """What R removals change, or None where it was not asked for.

    Attributes
    ----------
    tests : ndarray of shape (K, m, R) or None
        Final scores of the test instances: without the removed ones, less with all.
    train : ndarray of shape (K, n, R) or None
        Final scores of the training instances, the removed ones too.
    leaves : ndarray of shape (L, R) or None
        Leaf values.
    """

    tests: Values | None = None
    train: Values | None = None
    leaves: Values | None = None


class Refits(Protocol):
    """Leaves of an ensemble that are fitted again without some instances."""

    @property
    def lanes(self) -> int:
        """Removals that are best refitted at once."""

    @property
    def values(self) -> Values:
        """Leaf values with nothing removed, ``(L,)``."""

    def changes(
        self,
        removals: Removals,
        tests: LeafRows | None = None,
        *,
        train: bool = False,
        leaves: bool = False,
    ) -> Changes:
        """Return what removals change."""

    def own(self, removals: Removals) -> Values:
        """Return the change of the final scores of each removed instance, ``(K, R)``."""
