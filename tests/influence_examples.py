"""Results to test on, and the slow way to find the strongest."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from proponent.influence import Influence

NAN = float("nan")
TIED = st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.5, 1.0, NAN])
TIED_ROWS = st.tuples(st.integers(1, 4), st.integers(1, 25)).flatmap(
    lambda shape: st.lists(
        st.lists(TIED, min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    )
)


def matrix(seed: int = 0, shape: tuple[int, ...] = (4, 7), levels: int = 4) -> NDArray[np.float64]:
    """Scores with many ties."""
    generator = np.random.default_rng(seed)
    return generator.integers(-levels, levels + 1, size=shape) / levels


def plain_strongest(row: NDArray[Any], k: int, *, largest: bool) -> list[int]:
    """A full stable sort in plain Python."""
    scored = [position for position in range(len(row)) if not math.isnan(row[position])]
    sign = -1 if largest else 1
    return sorted(scored, key=lambda position: (sign * row[position], position))[:k]


def labelled() -> Influence:
    return Influence(
        matrix(8),
        std_error=np.abs(matrix(9)),
        train_ids=list("abcdefg"),
        test_ids=[10, 11, 12, 13],
        method="M",
        settings={"a": 1},
        diagnostics={"b": 2},
        additive=False,
    )
