"""Marginal contributions along random orders."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Estimate, Estimated, Estimator, Table
from proponent.retraining.semivalues import Semivalue

Values = NDArray[np.float64]

NAMED = 5  # sizes that a message names
NEGLIGIBLE = 1e-12  # what the sizes may weigh that no step is known of
POOLED = 3  # orders' worth of the variance of all players that the variance of each takes in


class PermutationMarginals(Estimator):
    r"""Mean marginal contributions along random orders, weighted for any semivalue.

    .. math::

        \phi_i = E_\pi \left[ n\, p_{k}\, \bigl( v(S_\pi^i \cup i) - v(S_\pi^i) \bigr) \right],
        \qquad k = |S_\pi^i|

    as the number of players before a player is uniform on ``0 .. n - 1``. A step counts if both of
    its coalitions have a utility. Where trainings failed, or an order was not finished, it no
    longer is uniform, so that a step after k players counts ``1 / c_k`` times, with c_k the steps
    there are after k players: no size is favoured by those that are missing. Where there is none
    in any order, the values are means over the others, and a warning says so. A player without a
    step gets NaN.

    Standard errors are over orders, or over pairs of an order and its reverse. The marginals of
    many players are 0 in nearly all orders, and a few orders may show none of the others; so the
    variance of a player is averaged with that of all players, as if three more orders had it.

    **Source** Castro, Gomez and Tejada 2009; Ghorbani and Zou, ICML 2019; Kwon and Zou, AISTATS
    2022.

    Parameters
    ----------
    semivalue : Semivalue
        Its law of sizes p.
    """

    def __init__(self, semivalue: Semivalue) -> None:
        self.semivalue = semivalue

    @override
    def on(self, table: Table) -> Estimated:
        """Average the marginals.

        Raises
        ------
        InvalidInputError
            If there is no step that counts; or if nobody or everybody has no utility.
        """
        return _Marginals(table, self.semivalue)


class _Marginals(Estimated):
    def __init__(self, table: Table, semivalue: Semivalue) -> None:
        n, sizes = table.n, table.coalitions.sizes
        blocks = _blocks(table.coalitions)
        after, before, player, orders = steps(table)
        counts = np.bincount(sizes[before], minlength=n)
        law = np.where(counts > 0, semivalue.sizes(n), 0.0)
        if not law.sum() > 0:
            first = next(iter(table.failures.values()), "")
            raise InvalidInputError(
                f"n_models: no two coalitions differ by one player in an order; an order takes "
                f"{n - 1} models of its own."
                + (f" The first training that failed did with {first}" if first else "")
            )
        share = np.zeros(n)
        share[counts > 0] = counts.max() / counts[counts > 0]
        weights = share[sizes[before]]
        marginals = table.utilities[after] - table.utilities[before]
        marginals *= (law / law.sum() * np.count_nonzero(counts))[sizes[before], None]
        # The sum of each player in each block first: blocks are independent, steps in one not.
        keys, where = np.unique(
            np.maximum(blocks[after], blocks[before]) * n + player, return_inverse=True
        )
        sums = np.zeros((len(keys), table.n_tests))
        np.add.at(sums, where, weights[:, None] * marginals)
        weight = np.bincount(where, weights)
        owner = keys % n
        held = np.bincount(owner, minlength=n)
        total = np.bincount(owner, weight, minlength=n)[:, None]
        mean = np.zeros((n, table.n_tests))
        np.add.at(mean, owner, sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean /= total
            squares = np.zeros_like(mean)
            np.add.at(squares, owner, np.square(sums - mean[owner] * weight[:, None]))
            squares *= np.square(held[:, None] / total)
        errors = _errors(squares, held[:, None])
        self._values, self._errors = mean.T, errors.T
        self._noticed: dict[str, Any] = {"orders": int(held.max())}
        if len(after) < n * orders:
            self._noticed["steps_missing"] = n * orders - len(after)
        if 1 - law.sum() > NEGLIGIBLE:
            self._noticed["warnings"] = [
                f"no step is known after {_listed(np.flatnonzero(counts == 0))} players, as a "
                f"coalition has no utility in every order: the values are means over the other "
                f"steps, which weigh {law.sum():.3g} of 1"
            ]

    @override
    def players(self, rows: range) -> Estimate:
        """Return the means of some players, ``(T, players)``."""
        some = slice(rows.start, rows.stop)
        return Estimate(self._values[:, some].copy(), self._errors[:, some].copy())

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how many independent orders, or pairs, there are, and the steps they lack."""
        return self._noticed


def _listed(sizes: NDArray[np.intp]) -> str:
    named = ", ".join(map(str, sizes[:NAMED].tolist()))
    return named + (", ..." if len(sizes) > NAMED else "")


def _errors(squares: Values, counts: NDArray[np.int64]) -> Values:
    """Return standard errors of means ``(n, T)``, from sums of squares; NaN for fewer than two."""
    known = (counts > 1).ravel()
    free = counts[known] - 1
    pooled = POOLED * (squares[known] / free).mean(axis=0) if known.any() else 0.0
    errors = np.full_like(squares, np.nan)
    errors[known] = np.sqrt((squares[known] + pooled) / (free + POOLED) / counts[known])
    return errors


def _blocks(coalitions: Coalitions) -> NDArray[np.int64]:
    if coalitions.blocks is None:
        raise InvalidInputError("the coalitions are not those of orders (Permutations).")
    return coalitions.blocks


def steps(table: Table) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], int]:
    """Return the rows after and before each step of the orders, who steps in, and the orders.

    Parameters
    ----------
    table : Table
        Of coalitions as :class:`Permutations` draws them: nobody and everybody, then the orders
        one after the other, growing; some may be missing.

    Raises
    ------
    InvalidInputError
        If nobody or everybody is missing, who are in all orders.
    """
    coalitions = table.coalitions
    masks, sizes, n = coalitions.masks, coalitions.sizes, coalitions.n
    blocks = _blocks(coalitions)
    nobody, everybody = (int(table.end(size)[0]) for size in (0, n))
    if n == 1:
        only = np.zeros(1, dtype=np.intp)
        return only + everybody, only + nobody, only, 1
    inner = np.flatnonzero(blocks >= 0)
    below, above = inner[:-1], inner[1:]
    # An order goes on while it grows. Coalitions of an order and of its reverse, which share a
    # block, are never nested: the one has the first player, the other the last.
    goes_on = (blocks[above] == blocks[below]) & (sizes[above] > sizes[below])
    goes_on &= ~(masks[below] & ~masks[above]).any(axis=1)
    one_more = goes_on & (sizes[above] == sizes[below] + 1)
    first, last = inner[sizes[inner] == 1], inner[sizes[inner] == n - 1]
    after = np.concatenate([above[one_more], first, np.full(len(last), everybody)])
    before = np.concatenate([below[one_more], np.full(len(first), nobody), last])
    who = (masks[after] != masks[before]).argmax(axis=1)
    return after, before, who, len(inner) - int(np.count_nonzero(goes_on))
