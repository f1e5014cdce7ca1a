r"""Shapley values as integrals over the probability of being in (the multilinear extension).

.. math:: \phi_i = \int_0^1 g_i(q) \, dq, \quad g_i(q) = E[v(S + i) - v(S)]

with every other player in S with probability q.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Estimate, Estimated, Estimator, Table
from proponent.retraining.estimators.marginal_effects import ChanceMeans

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """A rule of quadrature on [0, 1].

    Attributes
    ----------
    chances : tuple of float
        Its nodes, between 0 and 1, from the lowest on.
    weights : tuple of float
        Their weights.
    end : float
        The weight of 0 and of 1; 0: these are no nodes.
    """

    chances: tuple[float, ...]
    weights: tuple[float, ...]
    end: float = 0.0


def gauss_legendre(nodes: int) -> Rule:
    """Return the rule that is exact for polynomials of the degree ``2 nodes - 1``."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    return Rule(tuple(((1 + at) / 2).tolist()), tuple((weights / 2).tolist()))


def trapezoid(nodes: int) -> Rule:
    """Return the trapezoidal rule with so many nodes between 0 and 1, and both of these."""
    step = 1 / (nodes + 1)
    chances = tuple((np.arange(1, nodes + 1) * step).tolist())
    return Rule(chances, (step,) * nodes, step / 2)


class OwenMeans(Estimator):
    """The integral from means with and without a player, at the nodes of a rule.

    Parameters
    ----------
    rule : Rule
        Where the integrand is estimated, and what counts how much.
    antithetic : bool
        Whether every coalition comes with its complement: of such a pair, drawn with q and
        1 - q, the difference of the utilities says something on both nodes at once.
    adjust : bool
        As in :class:`~proponent.retraining.estimators.marginal_effects.ChanceMeans`.
    """

    def __init__(self, rule: Rule, antithetic: bool = False, *, adjust: bool = False) -> None:
        self.rule = rule
        self.antithetic = antithetic
        self.adjust = adjust

    @override
    def on(self, table: Table) -> Estimated:
        rule = self.rule
        inner = _inner(table)
        if not self.antithetic:
            means = ChanceMeans(rule.chances, rule.weights, adjust=self.adjust)
            return _Integral(rule, means.on(inner), table)
        half = (len(rule.chances) + 1) // 2
        weights = list(rule.weights[:half])
        if len(rule.chances) % 2:
            weights[-1] /= 2  # both of a pair are drawn with 1/2
        means = ChanceMeans(rule.chances[:half], weights, adjust=self.adjust)
        return _Integral(rule, means.on(differences(inner)), table)


def _inner(table: Table) -> Table:
    """Return the table of the coalitions that were drawn with neither 0 nor 1."""
    chances = table.coalitions.chances
    if chances is None:
        raise InvalidInputError(
            "Owen sampling needs coalitions that were drawn with a probability."
        )
    rows = np.flatnonzero((chances > 0) & (chances < 1))
    return replace(table, coalitions=table.coalitions.take(rows), utilities=table.utilities[rows])


def differences(table: Table) -> Table:
    """Return the table of the first of each pair, and what it is worth more than the other.

    A pair of which one failed is left out.
    """
    blocks, chances = table.coalitions.blocks, table.coalitions.chances
    if blocks is None or chances is None:
        raise InvalidInputError("Antithetic sampling needs coalitions that were drawn in pairs.")
    order = np.argsort(blocks, kind="stable")
    whole = np.flatnonzero(blocks[order][1:] == blocks[order][:-1])
    first, second = order[whole], order[whole + 1]
    # The one with the smaller probability comes first, whatever the order in the table.
    swap = chances[first] > chances[second]
    first, second = np.where(swap, second, first), np.where(swap, first, second)
    taken = table.coalitions.take(first)
    coalitions = Coalitions(taken.masks, taken.seeds, taken.chances)
    return replace(
        table, coalitions=coalitions, utilities=table.utilities[first] - table.utilities[second]
    )


class _Integral(Estimated):
    def __init__(self, rule: Rule, inner: Estimated, table: Table) -> None:
        self.rule = rule
        self.inner = inner
        self.ends: Values | None = None
        if rule.end:
            self.ends = end_marginals(table)

    @override
    def players(self, rows: range) -> Estimate:
        found = self.inner.players(rows)
        if self.ends is None:
            return found
        values = found.values + self.rule.end * self.ends[:, rows.start : rows.stop]
        return Estimate(values, found.std_errors)

    @override
    def noticed(self) -> dict[str, Any]:
        """Return the number of nodes."""
        found = self.inner.noticed()
        return found | {"nodes": len(self.rule.chances) + (2 if self.rule.end else 0)}


def end_marginals(table: Table) -> Values:
    """Return ``v({i}) - v(empty) + v(N) - v(N less i)``, ``(T, n)``; NaN: one is missing."""
    n, sizes = table.n, table.coalitions.sizes
    masks = table.coalitions.masks
    alone = np.full((n, table.n_tests), np.nan)
    without = np.full((n, table.n_tests), np.nan)
    ones, others = np.flatnonzero(sizes == 1), np.flatnonzero(sizes == n - 1)
    alone[masks[ones].argmax(axis=1)] = table.utilities[ones]
    without[(~masks[others].astype(bool)).argmax(axis=1)] = table.utilities[others]
    nobody, everybody = (table.utilities[table.end(size)].mean(axis=0) for size in (0, n))
    found = (alone - nobody) + (everybody - without)
    return np.asarray(found.T)
