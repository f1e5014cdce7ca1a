"""Batches of a shuffled training set."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ShuffledBatches:
    """Batches of the shuffled positions, epoch after epoch; a remainder is left out."""

    def __init__(self, n: int, size: int, seed: tuple[int, ...]) -> None:
        self._random = np.random.default_rng(seed)
        self._n = n
        self._size = size
        self._left = np.empty(0, dtype=np.int64)

    def __next__(self) -> NDArray[np.int64]:
        """Return the positions of the next batch."""
        if len(self._left) < self._size:
            self._left = self._random.permutation(self._n)
        batch, self._left = self._left[: self._size], self._left[self._size :]
        return batch
