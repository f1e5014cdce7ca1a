"""Values from single marginal contributions, averaged stratum by stratum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Estimate, Estimated, Estimator, Table

Values = NDArray[np.float64]


class FlipMarginals(Estimator):
    """Weighted means over strata of the mean marginal contribution ``v(S + i) - v(S)`` in each.

    The table is one of a :class:`~proponent.retraining.designs.flips.Flips`. A stratum is what S
    was drawn with, or how large S is without i; marginals of other strata do not count.

    Parameters
    ----------
    weights : mapping from float to float
        Of each stratum: a probability, or a size.
    by_size : bool
        Whether strata are sizes.
    """

    def __init__(self, weights: Mapping[float, float], by_size: bool) -> None:
        self.weights = weights
        self.by_size = by_size

    @override
    def on(self, table: Table) -> Estimated:
        return _FlipMarginals(self, table)


class _FlipMarginals(Estimated):
    def __init__(self, estimator: FlipMarginals, table: Table) -> None:
        self.table = table
        pairs = marginals(table.coalitions)
        self.lower, self.upper, self.players_of = pairs
        coalitions = table.coalitions
        if estimator.by_size:
            at = coalitions.sizes[self.lower].astype(np.float64)
        elif coalitions.chances is not None:
            at = coalitions.chances[self.lower]
        else:
            raise InvalidInputError("These coalitions were not drawn with a probability.")
        levels = np.array(sorted(estimator.weights))
        self.weights = np.array([estimator.weights[level] for level in levels.tolist()])
        stratum = np.searchsorted(levels, at - 1e-12)
        known = stratum < len(levels)
        known &= np.abs(levels[np.minimum(stratum, len(levels) - 1)] - at) < 1e-9
        self.cells = np.where(known, self.players_of * len(levels) + stratum, -1)
        self.order = np.argsort(self.cells, kind="stable")

    @override
    def players(self, rows: range) -> Estimate:
        strata = len(self.weights)
        sorted_cells = self.cells[self.order]
        first, last = np.searchsorted(sorted_cells, [rows.start * strata, rows.stop * strata])
        at, cells = self.order[first:last], sorted_cells[first:last] - rows.start * strata
        gains = self.table.utilities[self.upper[at]] - self.table.utilities[self.lower[at]]
        shape = len(rows) * strata
        counts = np.bincount(cells, minlength=shape)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            means = _sums(gains, cells, shape) / counts
            spread = _sums((gains - means[cells]) ** 2, cells, shape)
            variances = spread / (counts - 1) / counts
        weights = self.weights[None, :, None]
        by_stratum = (len(rows), strata, gains.shape[1])
        values = (weights * means.reshape(by_stratum)).sum(axis=1)
        errors = np.sqrt((weights**2 * variances.reshape(by_stratum)).sum(axis=1))
        return Estimate(values.T, errors.T)

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how many marginals there are for a player."""
        counted = int((self.cells >= 0).sum())
        return {"marginals_a_player": counted / self.table.n}


def _sums(values: Values, cells: NDArray[np.int64], size: int) -> Values:
    """Return the sums of rows by cell, which is in order, ``(size, T)``."""
    sums = np.zeros((size, values.shape[1]))
    if len(cells):
        starts = np.flatnonzero(np.r_[True, cells[1:] != cells[:-1]])
        sums[cells[starts]] = np.add.reduceat(values, starts, axis=0)
    return sums


def marginals(
    coalitions: Coalitions,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]:
    """Return the rows of coalitions without and with a player, and the player.

    The coalition that a block is about is who is in most of its coalitions; if it failed, the
    block says nothing.
    """
    masks, blocks = coalitions.masks.astype(bool), coalitions.blocks
    if blocks is None:
        raise InvalidInputError("Marginal contributions need coalitions that were drawn together.")
    lower, upper, players = [], [], []
    order = np.argsort(blocks, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1):
        centre = 2 * masks[rows].sum(axis=0) > len(rows)
        apart = masks[rows] != centre
        distance = apart.sum(axis=1)
        found = np.flatnonzero(distance == 0)
        if not len(found):
            continue
        base, others = rows[found[0]], np.flatnonzero(distance == 1)
        flipped = apart[others].argmax(axis=1)
        joined = ~centre[flipped]
        lower.append(np.where(joined, base, rows[others]))
        upper.append(np.where(joined, rows[others], base))
        players.append(flipped)
    if not lower:
        empty = np.empty(0, dtype=np.intp)
        return empty, empty, empty.astype(np.int64)
    return np.concatenate(lower), np.concatenate(upper), np.concatenate(players)
