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

POOLED = 3  # orders' worth of the variance of all players that the variance of each takes in


class PermutationMarginals(Estimator):
    r"""Mean marginal contributions along random orders, weighted for any semivalue.

    .. math::

        \phi_i = E_\pi \left[ n\, p_{k}\, \bigl( v(S_\pi^i \cup i) - v(S_\pi^i) \bigr) \right],
        \qquad k = |S_\pi^i|

    as the number of players before a player is uniform on ``0 .. n - 1``. A player whose
    step is missing, in the last order or as a training failed, has fewer terms; one without any
    gets NaN.

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
            If there is no step from one coalition to the next.
        """
        return _Marginals(table, self.semivalue)


class _Marginals(Estimated):
    def __init__(self, table: Table, semivalue: Semivalue) -> None:
        n, coalitions = table.n, table.coalitions
        weights = semivalue.sizes(n) * n
        after, before, player = steps(coalitions)
        if not len(after):
            raise InvalidInputError(
                "n_models: no two coalitions differ by one player in an order; use more models."
            )
        marginals = table.utilities[after] - table.utilities[before]
        marginals *= weights[coalitions.sizes[before], None]
        blocks = np.maximum(_blocks(coalitions)[after], _blocks(coalitions)[before])
        # The mean of each player in each block first: blocks are independent, steps in one not.
        keys, where = np.unique(blocks * n + player, return_inverse=True)
        sums = np.zeros((len(keys), table.n_tests))
        np.add.at(sums, where, marginals)
        sums /= np.bincount(where)[:, None]
        owner = keys % n
        counts = np.bincount(owner, minlength=n)
        mean = np.zeros((n, table.n_tests))
        np.add.at(mean, owner, sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean /= counts[:, None]
        squares = np.zeros_like(mean)
        np.add.at(squares, owner, np.square(sums - mean[owner]))
        errors = _errors(squares, counts[:, None])
        self._values, self._errors, self._orders = mean.T, errors.T, int(counts.max())

    @override
    def players(self, rows: range) -> Estimate:
        """Return the means of some players, ``(T, players)``."""
        some = slice(rows.start, rows.stop)
        return Estimate(self._values[:, some].copy(), self._errors[:, some].copy())

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how many independent orders, or pairs of them, there are."""
        return {"orders": self._orders}


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


def steps(coalitions: Coalitions) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the rows after and before each step of the orders, and who steps in, ``(steps,)``.

    Coalitions come as :class:`Permutations` draws them: nobody and everybody, then the orders one
    after the other, growing; some may be missing.
    """
    sizes, n = coalitions.sizes, coalitions.n
    rows = np.arange(len(coalitions))
    blocks = _blocks(coalitions)
    walking = blocks >= 0
    nobody, everybody = (rows[~walking & (sizes == size)] for size in (0, n))
    inner = rows[walking]
    # From one row to the next of the same order: the same players and one more. Where rows are
    # missing, the next one can be of another order.
    below, above = inner[:-1], inner[1:]
    near = (sizes[above] == sizes[below] + 1) & (blocks[above] == blocks[below])
    below, above = below[near], above[near]
    nested = ~(coalitions.masks[below] & ~coalitions.masks[above]).any(axis=1)
    after, before = [above[nested]], [below[nested]]
    if n == 1 and len(nobody) and len(everybody):
        after, before = [everybody[:1]], [nobody[:1]]
    else:
        first, last = inner[sizes[inner] == 1], inner[sizes[inner] == n - 1]
        if len(nobody):
            after.append(first)
            before.append(np.full(len(first), nobody[0]))
        if len(everybody):
            after.append(np.full(len(last), everybody[0]))
            before.append(last)
    joined, left = np.concatenate(after), np.concatenate(before)
    who = (coalitions.masks[joined] != coalitions.masks[left]).argmax(axis=1)
    return joined, left, who
