"""Coalitions of some sizes, of each as often as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.retraining.designs.sizes import OfSizes

MOST_OFTEN = 1000  # times that a size comes for one that comes once


def often(sizes: Sequence[int], decay: float) -> list[int]:
    """Return sizes one after the other, each about ``size ** -decay`` as often, spread evenly.

    Parameters
    ----------
    sizes : sequence of int
        Not negative, all different; 0 counts as 1.
    decay : float
        0: all alike.
    """
    wanted = np.maximum(np.asarray(sizes, dtype=np.float64), 1.0) ** -decay
    times = np.clip(np.rint(wanted / wanted.min()), 1, MOST_OFTEN).astype(np.int64)
    where = np.concatenate([(np.arange(count) + 0.5) / count for count in times.tolist()])
    turns = np.repeat(np.asarray(sizes), times)[np.argsort(where, kind="stable")]
    return [int(size) for size in turns]


@dataclass(frozen=True)
class ChosenSizes(OfSizes):
    """Coalitions of some sizes in turn; nobody and everybody, where these are sizes, come once.

    Parameters
    ----------
    sizes : tuple of int
        Between 0 and n; one that stands there several times comes as much more often.
    """

    name: ClassVar[str] = "chosen sizes"
    sizes: tuple[int, ...]

    @override
    def _sizes(self, n: int, start: int, stop: int, seed: int) -> NDArray[np.int64]:
        ends = [size for size in (0, n) if size in self.sizes]
        inner = [size for size in self.sizes if 0 < size < n] or ends
        numbers = np.arange(start, stop)
        turns = np.asarray(inner)[(numbers - len(ends)) % len(inner)]
        if ends:
            once = np.asarray(ends)[np.minimum(numbers, len(ends) - 1)]
            turns = np.where(numbers < len(ends), once, turns)
        return np.asarray(turns)
