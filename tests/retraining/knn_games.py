"""Games of nearest neighbours and their semivalues, by going through all coalitions."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import beta as beta_function
from scipy.special import comb

from proponent.retraining.semivalues import (
    AMEWeights,
    BanzhafWeights,
    BetaWeights,
    SizeWeights,
)

Vector = NDArray[np.float64]
# The members of a coalition, as positions in the training set.
Game = Callable[[Sequence[int]], float]


def binomial_law(n: int, q: float) -> Vector:
    s = np.arange(n)
    law: Vector = comb(n - 1, s) * q**s * (1 - q) ** (n - 1 - s)
    return law


def beta_law(n: int, alpha: float, beta: float) -> Vector:
    """On a coalition of size s, B(s + beta, n - 1 - s + alpha) / B."""
    s = np.arange(n)
    weights = beta_function(s + beta, n - 1 - s + alpha) / beta_function(alpha, beta)
    law: Vector = comb(n - 1, s) * weights
    return law


def uneven_law(n: int) -> Vector:
    law = np.random.default_rng(n).random(n)
    return law / law.sum()


# What is given as `semivalue`, and the law of the coalition's size that it stands for.
SEMIVALUES: dict[str, tuple[Callable[[int], Any], Callable[[int], Vector]]] = {
    "Shapley": (lambda n: "shapley", lambda n: np.full(n, 1 / n)),
    "leave-one-out": (lambda n: "leave_one_out", lambda n: np.eye(n)[-1]),
    "Banzhaf": (lambda n: "banzhaf", lambda n: binomial_law(n, 0.5)),
    "weighted Banzhaf": (lambda n: BanzhafWeights(0.7), lambda n: binomial_law(n, 0.7)),
    "Beta(4, 1)": (lambda n: BetaWeights(4, 1), lambda n: beta_law(n, 4, 1)),
    "Beta(1, 16)": (lambda n: BetaWeights(1, 16), lambda n: beta_law(n, 1, 16)),
    "Beta(0.5, 0.3)": (lambda n: BetaWeights(0.5, 0.3), lambda n: beta_law(n, 0.5, 0.3)),
    "AME": (
        lambda n: AMEWeights(),
        lambda n: np.mean([binomial_law(n, q) for q in (0.2, 0.4, 0.6, 0.8)], axis=0),
    ),
    "any": (lambda n: SizeWeights(uneven_law(n)), uneven_law),
    "an array": (uneven_law, uneven_law),
}


def semivalues(game: Game, n: int, law: Vector) -> Vector:
    """Return the mean marginal contribution of each player, by enumeration."""
    worth = {
        frozenset(members): game(members)
        for size in range(n + 1)
        for members in combinations(range(n), size)
    }
    values = np.zeros(n)
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            gains = [
                worth[frozenset(S) | {i}] - worth[frozenset(S)] for S in combinations(others, size)
            ]
            values[i] += law[size] * np.mean(gains)
    return values


def by_distance(X: NDArray[Any], x: NDArray[Any]) -> list[int]:
    """Return all positions, nearest first, equal distances by position."""
    squares = [float(((row - x) ** 2).sum()) for row in X]
    return sorted(range(len(X)), key=lambda i: (squares[i], i))


def nearest_members(ranking: list[int], members: Sequence[int], k: int) -> list[int]:
    return [i for i in ranking if i in set(members)][:k]


def average_game(
    scores: Sequence[float], ranking: list[int], k: int, *, divide_by: str, empty: float
) -> Game:
    """The average score of the nearest k members, divided by k or by their number."""

    def game(members: Sequence[int]) -> float:
        if not members:
            return empty
        counted = nearest_members(ranking, members, k)
        return sum(scores[i] for i in counted) / (k if divide_by == "k" else len(counted))

    return game


def squared_error_game(
    targets: Sequence[float],
    target: float,
    ranking: list[int],
    k: int,
    *,
    divide_by: str,
    empty: float,
) -> Game:
    predict = average_game(targets, ranking, k, divide_by=divide_by, empty=empty)
    return lambda members: -((predict(members) - target) ** 2)
