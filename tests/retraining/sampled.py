"""How well the intervals of a sampled method hold: over seeds, against the truth."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from retraining.games import Game

from proponent.retraining.game import Game as UserGame


def user_game(game: Game, n: int) -> UserGame:
    return UserGame(n, game, vectorized=True)


def deviations(
    method: Callable[[int], Any], game: UserGame, truth: NDArray[Any], repeats: int = 20
) -> NDArray[np.float64]:
    """Return how many standard errors the values are off, ``(repeats, T, n)``."""
    found = []
    for seed in range(repeats):
        result = method(seed).fit(game).influence()
        found.append((result.values - truth) / result.std_error)
    return np.array(found)


def assert_calibrated(z: NDArray[np.float64]) -> None:
    """Check that nominal 95 % intervals hold in 90 to 98 % or so of all cases, without a bias."""
    assert np.isfinite(z).all()
    covered = float((np.abs(z) < 1.96).mean())
    assert 0.90 <= covered < 0.99, covered
    # The mean over independent repeats, for each value, is normal with the error 1 / sqrt(repeats).
    means = z.mean(axis=0) * np.sqrt(len(z))
    assert np.abs(means).max() < 5, np.abs(means).max()
