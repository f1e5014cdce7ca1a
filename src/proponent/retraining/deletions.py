"""What everyone is worth, less what everyone without some is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Estimate, Estimated, Estimator, Table

Values = NDArray[np.float64]
Members = Sequence[NDArray[np.intp]]


def deletions_of(members: Members, n: int, seeds: NDArray[np.int64]) -> Coalitions:
    """Return everyone, and everyone without each group, with every one of the seeds.

    Parameters
    ----------
    members : sequence of ndarray
        The positions of each group, G groups.
    n : int
        Players.
    seeds : ndarray of shape (R,)
        All coalitions of a repeat share its seed.
    """
    masks = np.ones((len(members) + 1, n), dtype=np.bool_)
    for mask, positions in zip(masks[1:], members, strict=True):
        mask[positions] = False
    return Coalitions(np.tile(masks, (len(seeds), 1)), np.repeat(seeds, len(masks)))


class Deletions(Estimator):
    """The mean over seeds of the utility of all, less that of all without a player or group.

    Parameters
    ----------
    members : sequence of ndarray, optional
        The positions of each group; None: every player is deleted alone.
    """

    def __init__(self, members: Members | None = None) -> None:
        self.members = members

    @override
    def on(self, table: Table) -> Estimated:
        """Pair the coalitions of each seed with everyone of that seed."""
        coalitions = table.coalitions
        everyone = coalitions.sizes == table.n
        if not everyone.any():
            raise InvalidInputError("the training with all instances failed: nothing to compare.")
        deleted = self._deleted(coalitions)
        size = table.n if self.members is None else len(self.members)
        steps: list[list[Values]] = [[] for _ in range(size)]
        wholes = dict(
            zip(coalitions.seeds[everyone].tolist(), table.utilities[everyone], strict=True)
        )
        for row in np.flatnonzero(deleted >= 0):
            whole = wholes.get(int(coalitions.seeds[row]))
            if whole is not None:
                steps[deleted[row]].append(whole - table.utilities[row])
        return _Means(steps, table.n_tests)

    def _deleted(self, coalitions: Coalitions) -> NDArray[np.intp]:
        """Return which deletion each coalition is, ``(K,)``; -1: none."""
        masks = coalitions.masks
        if self.members is None:
            return np.where(coalitions.sizes == masks.shape[1] - 1, masks.argmin(axis=1), -1)
        wanted = deletions_of(self.members, masks.shape[1], np.zeros(1, np.int64)).masks[1:]
        number = {row.tobytes(): at for at, row in enumerate(np.packbits(wanted, axis=1))}
        packed = np.packbits(masks, axis=1)
        return np.array([number.get(row.tobytes(), -1) for row in packed], dtype=np.intp)


class _Means(Estimated):
    """Differences of each deletion over the seeds: their mean and its standard error."""

    def __init__(self, steps: list[list[Values]], n_tests: int) -> None:
        missing = np.full(n_tests, np.nan)
        self._values = np.stack([np.mean(s, axis=0) if s else missing for s in steps], axis=1)
        self._errors: Values | None = None
        if max(map(len, steps), default=0) > 1:
            errors = [
                np.std(s, axis=0, ddof=1) / np.sqrt(len(s)) if len(s) > 1 else missing
                for s in steps
            ]
            self._errors = np.stack(errors, axis=1)

    @override
    def players(self, rows: range) -> Estimate:
        """Return the means of some deletions, ``(T, deletions)``."""
        some: Any = slice(rows.start, rows.stop)
        errors = None if self._errors is None else self._errors[:, some]
        return Estimate(self._values[:, some].copy(), errors)
