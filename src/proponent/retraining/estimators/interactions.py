r"""Interactions of groups of players: sums of the discrete derivatives of the utility.

.. math:: \delta_A v(D) = \sum_{B \subseteq A} (-1)^{|A| - |B|} v(D \cup B)

over coalitions D of players that are not in A. An index is a law of the size of D.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Estimate, Estimated, Estimator, Table

Values = NDArray[np.float64]
Group = tuple[int, ...]  # positions of players, in order


class Index(ABC):
    """An interaction index: with which weight each derivative enters."""

    @abstractmethod
    def sizes(self, n: int, order: int) -> Values:
        """Return the law of the size of D for groups of a size, ``(n - order + 1,)``."""


@dataclass(frozen=True)
class ShapleyIndex(Index):
    """The Shapley interaction index: all sizes of D are equally likely.

    **Source** Grabisch and Roubens 1999; survey eq. (18).
    """

    @override
    def sizes(self, n: int, order: int) -> Values:
        return np.full(n - order + 1, 1 / (n - order + 1))


@dataclass(frozen=True)
class BanzhafIndex(Index):
    """The Banzhaf interaction index: all coalitions D are equally likely.

    **Source** Grabisch and Roubens 1999.
    """

    @override
    def sizes(self, n: int, order: int) -> Values:
        from scipy.stats import binom

        others = n - order
        return np.asarray(binom.pmf(np.arange(others + 1), others, 0.5))


@dataclass(frozen=True)
class TaylorIndex(Index):
    """The Shapley-Taylor index: D is empty below the top order.

    At the top order D holds those before the first member of A in a random order of all players.

    **Source** Sundararajan, Dhamdhere and Agarwal, ICML 2020; survey eq. (20), which has the top
    order only.

    Parameters
    ----------
    order : int
        The largest size of a group, 1 or more.
    """

    order: int

    @override
    def sizes(self, n: int, order: int) -> Values:
        from scipy.special import gammaln

        if order < self.order:
            return np.asarray(np.eye(n - order + 1)[0])
        # (k / n) C(n - k, s) / C(n - 1, s)
        s = np.arange(n - order + 1)
        log_law = gammaln(n - order + 1) - gammaln(n - order - s + 1)
        log_law += gammaln(n - s) - gammaln(n)
        return np.asarray(np.exp(log_law) * order / n)


def every_group(n: int, orders: Iterable[int]) -> list[Group]:
    """Return all groups of given sizes among n players."""
    return [group for order in orders for group in combinations(range(n), order)]


def signs(inside: NDArray[Any]) -> NDArray[np.float64]:
    """Return the sign with which v(D + B) enters, of rows that say who of A is in B."""
    missing = inside.shape[1] - np.count_nonzero(inside, axis=1)
    return np.asarray(1.0 - 2.0 * (missing % 2))


def complete(table: Table) -> Values:
    """Return the utilities of all coalitions, ``(2, ..., 2, T)``, an axis a player.

    Raises
    ------
    InvalidInputError
        If some are missing.
    """
    n = table.n
    codes = table.coalitions.masks.astype(np.int64) @ (1 << np.arange(n - 1, -1, -1))
    values = np.full((2**n, table.n_tests), np.nan)
    values[codes] = table.utilities
    missing = int(np.isnan(values).any(axis=1).sum())
    if missing:
        raise InvalidInputError(
            f"{missing:,} of the {2**n:,} coalitions are missing, and exact values need each: "
            f"their training failed, or they were not drawn."
        )
    return values.reshape((2,) * n + (-1,))


class ExactInteractions(Estimator):
    """Interactions from the utilities of all coalitions, each once.

    Parameters
    ----------
    groups : sequence of tuple of int
        Positions of the players of each group.
    index : Index
        With which weight each derivative enters.
    """

    def __init__(self, groups: Sequence[Group], index: Index) -> None:
        self.groups = groups
        self.index = index

    @override
    def on(self, table: Table) -> Estimated:
        return _ExactInteractions(self, complete(table))


class _ExactInteractions(Estimated):
    def __init__(self, estimator: ExactInteractions, values: Values) -> None:
        self.estimator = estimator
        self.values = values

    @override
    def players(self, rows: range) -> Estimate:
        columns = [self._value(self.estimator.groups[row]) for row in rows]
        return Estimate(np.stack(columns, axis=1), None)

    def _value(self, group: Group) -> Values:
        """Return the interaction of a group, ``(T,)``."""
        from scipy.special import comb

        derivative = self.values
        for player in group:
            derivative = np.diff(derivative, axis=player)
        derivative = derivative.reshape(-1, derivative.shape[-1])
        n = self.values.ndim - 1
        others = n - len(group)
        sizes = np.array([code.bit_count() for code in range(2**others)])
        law = self.estimator.index.sizes(n, len(group)) / comb(others, np.arange(others + 1))
        return np.asarray(law[sizes] @ derivative)


class SampledInteractions(Estimator):
    """Interactions as means of sampled derivatives.

    The table is one of a :class:`~proponent.retraining.designs.derivatives.Derivatives`.

    Parameters
    ----------
    columns : sequence of tuple of int
        The groups asked for: positions of the players of each.
    groups, alone : sequence of tuple of int
        Those of the design.
    """

    def __init__(
        self, columns: Sequence[Group], groups: Sequence[Group], alone: Sequence[Group] = ()
    ) -> None:
        self.columns = columns
        self.sampled = {group: number for number, group in enumerate(groups)}
        self.alone = {group: number - len(alone) for number, group in enumerate(alone)}

    @override
    def on(self, table: Table) -> Estimated:
        return _SampledInteractions(self, table)


class _SampledInteractions(Estimated):
    def __init__(self, estimator: SampledInteractions, table: Table) -> None:
        blocks = table.coalitions.blocks
        if blocks is None:
            raise InvalidInputError("Derivatives need coalitions that were drawn together.")
        self.estimator = estimator
        self.table = table
        # A block is a derivative. That of group g in sample j has the number j * groups + g; a
        # derivative that is taken once has a negative one.
        of_group = np.where(blocks < 0, blocks, blocks % max(1, len(estimator.sampled)))
        self.order = np.lexsort((blocks, of_group))
        self.blocks = blocks[self.order]
        self.of_group = of_group[self.order]

    @override
    def players(self, rows: range) -> Estimate:
        shape = self.table.n_tests, len(rows)
        values, errors = np.full(shape, np.nan), np.full(shape, np.nan)
        for column, row in enumerate(rows):
            group = self.estimator.columns[row]
            once = group in self.estimator.alone
            samples = self._samples(group)
            count = len(samples)
            if count:
                values[:, column] = samples.mean(axis=0)
            if count > 1:
                errors[:, column] = samples.std(axis=0, ddof=1) / np.sqrt(count)
            elif count and once:
                errors[:, column] = 0
        return Estimate(values, errors)

    def _samples(self, group: Group) -> Values:
        """Return the derivatives of a group that are complete, ``(samples, T)``."""
        alone, sampled = self.estimator.alone, self.estimator.sampled
        number = alone[group] if group in alone else sampled[group]
        first = np.searchsorted(self.of_group, number)
        last = np.searchsorted(self.of_group, number, side="right")
        _, counts = np.unique(self.blocks[first:last], return_counts=True)
        whole = np.repeat(counts == 2 ** len(group), counts)
        at = self.order[first:last][whole]
        signed = signs(self.table.coalitions.masks[at][:, group])[:, None]
        terms = signed * self.table.utilities[at]
        return np.asarray(terms.reshape(-1, 2 ** len(group), terms.shape[1]).sum(axis=1))


class CellMeans(Estimator):
    r"""Banzhaf interactions by maximum sample reuse.

    Coalitions in which every player is in with probability 1/2 are sorted by who of the group is
    in: the interaction is the signed sum of the mean utilities of the ``2^|A|`` cells.

    Parameters
    ----------
    groups : sequence of tuple of int
        Positions of the players of each group.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = groups

    @override
    def on(self, table: Table) -> Estimated:
        return _CellMeans(self.groups, table)


class _CellMeans(Estimated):
    def __init__(self, groups: Sequence[Group], table: Table) -> None:
        self.groups = groups
        self.masks = table.coalitions.masks.astype(bool)
        # About the mean, so that squares do not lose digits.
        self.utilities = table.utilities - table.utilities.mean(axis=0)
        self.squares = self.utilities**2

    @override
    def players(self, rows: range) -> Estimate:
        values = np.empty((self.utilities.shape[1], len(rows)))
        errors = np.empty_like(values)
        orders = np.array([len(self.groups[row]) for row in rows])
        for order in np.unique(orders):
            columns = np.flatnonzero(orders == order)
            chosen = np.array([self.groups[rows[column]] for column in columns])
            values[:, columns], errors[:, columns] = self._cells(chosen)
        return Estimate(values, errors)

    def _cells(self, groups: NDArray[np.int64]) -> tuple[Values, Values]:
        """Return interactions and errors of groups of one size, ``(T, groups)``."""
        width = groups.shape[1]
        codes = np.zeros((len(self.masks), len(groups)), dtype=np.int64)
        for member in range(width):
            codes |= self.masks[:, groups[:, member]].astype(np.int64) << member
        values = np.zeros((self.utilities.shape[1], len(groups)))
        variances = np.zeros_like(values)
        with np.errstate(divide="ignore", invalid="ignore"):
            for cell in range(2**width):
                inside = (codes == cell).astype(np.float64)
                count = inside.sum(axis=0)
                mean = self.utilities.T @ inside / count
                variance = (self.squares.T @ inside / count - mean**2) * count / (count - 1)
                values += mean if (width - cell.bit_count()) % 2 == 0 else -mean
                variances += np.maximum(variance, 0) / count
        variances[:, np.isnan(values).any(axis=0)] = np.nan
        return values, np.sqrt(variances)
