"""Cooperative games whose semivalues are known, by enumeration or in closed form.

A game is a function from masks ``(K, n)`` to utilities ``(K, T)``; values are ``(T, n)``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import comb
from scipy.stats import betabinom, binom

from proponent.retraining.coalitions import Coalitions, Design, Table

Vector = NDArray[np.float64]
Game = Callable[[NDArray[Any]], Vector]

# The specification's game of three players, by the bits of its coalitions.
FROZEN = np.array([0, 1, 2, 4, 0, 1, 3, 6], np.float64)[:, None]


def all_masks(n: int) -> NDArray[np.bool_]:
    """Return every coalition, ``(2^n, n)``; number j has the players whose bits are set in j."""
    return np.array([[bool(j >> i & 1) for i in range(n)] for j in range(2**n)]).reshape(-1, n)


def table_game(worth: Vector) -> Game:
    """Return the game with the utilities ``(2^n, T)`` of the coalitions by their bits."""
    n = int(np.log2(len(worth)))
    return lambda masks: worth[(masks != 0) @ 2 ** np.arange(n)]


def random_worth(n: int, n_tests: int, seed: int = 0) -> Vector:
    """Return utilities without structure, ``(2^n, T)``, the empty coalition's among them."""
    return np.random.default_rng(seed).normal(size=(2**n, n_tests))


def enumerated(worth: Vector, law: Vector) -> Vector:
    """Return the semivalue with a law of sizes ``p_0 .. p_{n-1}``, by all marginals, ``(T, n)``."""
    n = len(law)
    values = np.zeros((worth.shape[1], n))
    for i in range(n):
        for j in range(2**n):
            if not j >> i & 1:
                size = j.bit_count()
                values[:, i] += law[size] / comb(n - 1, size) * (worth[j | 1 << i] - worth[j])
    return values


def difference_at(worth: Vector, size: int) -> Vector:
    """Return the mean utility with each player less that without, over a size, ``(T, n)``."""
    n = int(np.log2(len(worth)))
    masks = all_masks(n)
    of_size = masks.sum(axis=1) == size
    return np.array(
        [
            worth[of_size & masks[:, i]].mean(axis=0) - worth[of_size & ~masks[:, i]].mean(axis=0)
            for i in range(n)
        ]
    ).T


def additive_game(weights: Vector, empty: float = 0.0) -> Game:
    """Return the game in which each player adds a weight, ``(T, n)``, to any coalition."""
    return lambda masks: empty + (masks != 0) @ weights.T


def smooth_game(n: int, n_tests: int, seed: int = 0) -> Game:
    """Return a game with effects of players and of pairs, and less to gain the more are in."""
    rng = np.random.default_rng(seed)
    single = rng.normal(size=(n, n_tests))
    pairs = rng.normal(size=(n_tests, n, n)) / n

    def game(masks: NDArray[Any]) -> Vector:
        inside = (masks != 0).astype(np.float64)
        portion = inside.mean(axis=1)
        curve = 3 * portion / (0.1 + portion)
        together = np.einsum("ki,tij,kj->kt", inside, pairs, inside)
        found: Vector = curve[:, None] + inside @ single / n + together / n
        return found

    return game


@dataclass
class NeighboursGame:
    """The matching labels among the k nearest members, divided by k.

    Attributes
    ----------
    right : ndarray of shape (T, n)
        Whether the neighbour at each rank has the label of the test.
    order : ndarray of shape (T, n)
        The players, nearest first.
    """

    right: Vector
    order: NDArray[np.intp]
    k: int

    @classmethod
    def random(cls, n: int, n_tests: int, k: int = 5, seed: int = 0) -> "NeighboursGame":
        rng = np.random.default_rng(seed)
        points, tests = rng.normal(size=(n, 4)), rng.normal(size=(n_tests, 4))
        labels, wanted = rng.integers(0, 2, n), rng.integers(0, 2, n_tests)
        order = np.argsort(((tests[:, None] - points) ** 2).sum(-1), axis=1)
        return cls((labels[order] == wanted[:, None]).astype(np.float64), order, k)

    def __call__(self, masks: NDArray[Any]) -> Vector:
        inside = (masks != 0)[:, self.order]
        nearest = inside & (np.cumsum(inside, axis=2) <= self.k)
        found: Vector = (nearest * self.right).sum(axis=2) / self.k
        return found

    def exact(self, few: Vector) -> Vector:
        """Return a semivalue ``(T, n)``, by :func:`few_nearer` for it.

        Neighbour i is counted or, if it has another label than the next one, missed where fewer
        than k of the nearer ones are in.
        """
        change = self.right.copy()
        change[:, :-1] -= self.right[:, 1:]
        by_rank = np.cumsum((change * few / self.k)[:, ::-1], axis=1)[:, ::-1]
        values = np.empty_like(by_rank)
        np.put_along_axis(values, self.order, by_rank, axis=1)
        return values


def few_nearer(name: str, n: int, k: int, *parameters: float) -> Vector:
    """Return with what probability fewer than k of 0 .. n - 1 given others are in, ``(n,)``."""
    m = np.arange(n)
    if name == "shapley":
        return np.minimum(k, m + 1) / (m + 1)
    if name == "banzhaf":
        return np.asarray(binom.cdf(k - 1, m, parameters[0]))
    if name == "beta":
        alpha, beta = parameters
        return np.asarray([betabinom.cdf(k - 1, j, beta, alpha) if j else 1.0 for j in m])
    return np.where(m < k, 1.0, 0.0)  # leave-one-out


def measured(game: Game, design: Design, n: int, rows: int, seed: int = 0) -> Table:
    """Return the table of the first coalitions of a design."""
    coalitions = design.draw(n, 0, rows, seed)
    return Table(coalitions, game(coalitions.masks))


def without(table: Table, rows: Any) -> Table:
    """Return the table as if the trainings of some rows had failed."""
    kept = np.ones(len(table.coalitions), np.bool_)
    kept[rows] = False
    return Table(table.coalitions.take(kept), table.utilities[kept])


def everything(n: int) -> Coalitions:
    """Return every coalition once, with the seed 0."""
    return Coalitions(all_masks(n), np.zeros(2**n, np.int64))
