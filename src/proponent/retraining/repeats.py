"""Influence in expectation over seeds of the training (survey section 2, expected influence)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError
from proponent.retraining.stopping import rank_correlation

Values = NDArray[np.float64]

GOLDEN = 0x9E3779B97F4A7C15  # the increment of SplitMix64


def reseeded(seeds: NDArray[np.int64], repeat: int) -> NDArray[np.int64]:
    """Return other seeds, equal where the given ones are equal; repeat 0 leaves them.

    Coalitions that share a seed, and with it the random numbers of their training, share the new
    one. Mixed as in SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    if not repeat:
        return seeds
    with np.errstate(over="ignore"):
        mixed = seeds.astype(np.uint64) + np.uint64((GOLDEN * repeat) % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return (mixed >> np.uint64(1)).astype(np.int64)


def expectation(
    values: Callable[[int], Values], repeats: int
) -> tuple[Values, Values, dict[str, Any]]:
    """Return the mean of the values over repeats, its standard error, and what to report.

    Parameters
    ----------
    values : callable
        The influence ``(T, n)`` of a repeat, by its number.
    repeats : int
        How many, 2 or more.

    Raises
    ------
    InvalidInputError
        If there are fewer.
    """
    if not isinstance(repeats, (int, np.integer)) or repeats < 2:
        raise InvalidInputError(f"repeats: expected an integer of 2 or more; got {repeats!r}.")
    mean, squares = np.zeros(()), np.zeros(())
    halves: list[Values] = [np.zeros(()), np.zeros(())]
    for repeat in range(repeats):
        found = values(repeat)
        halves[repeat % 2] = halves[repeat % 2] + found
        # Welford's update: a difference of large sums of squares would lose the digits.
        step = found - mean
        mean = mean + step / (repeat + 1)
        squares = squares + step * (found - mean)
    deviation = np.sqrt(squares / (repeats - 1))
    noticed = {
        "repeats": int(repeats),
        "influence_std": float(np.nanmean(deviation)),
        "rank_stability": _agreement(halves[0].sum(axis=0), halves[1].sum(axis=0)),
    }
    return mean, deviation / np.sqrt(repeats), noticed


def _agreement(one: Values, other: Values) -> float | None:
    """Return Spearman's correlation over the players that are known; None where there is none."""
    known = ~(np.isnan(one) | np.isnan(other))
    found = rank_correlation(one[known], other[known]) if known.sum() > 1 else np.nan
    return None if np.isnan(found) else found
