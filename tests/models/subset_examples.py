"""Subsets and bootstrap samples of a training set, for the learners that train many at once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def subsets(n: int, K: int, seed: int = 0, *, smallest: int = 1) -> NDArray[np.bool_]:
    """Return subsets of every size from ``smallest`` to n."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((K, n), dtype=bool)
    for mask in masks:
        mask[rng.choice(n, rng.integers(smallest, n + 1), replace=False)] = True
    return masks


def bootstraps(n: int, K: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return how often each instance is drawn, n times with replacement."""
    rng = np.random.default_rng(seed)
    draws = [np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(K)]
    return np.array(draws, dtype=np.uint8)


def members(counts: NDArray[Any]) -> NDArray[np.intp]:
    """Return the positions in a row of counts, as often as they are in."""
    return np.repeat(np.arange(len(counts)), counts.astype(int))


def seeds(counts: NDArray[Any]) -> NDArray[np.int64]:
    return np.zeros(len(counts), dtype=np.int64)
