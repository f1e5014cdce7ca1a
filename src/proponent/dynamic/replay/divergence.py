"""Where a replay departs from the states that were stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Divergence:
    """A stored state that a replay has not met bit for bit.

    Parameters
    ----------
    step : int
        The step that the state precedes; T + 1 for the final state.
    name : str
        The parameter or buffer that differs most.
    largest_difference : float
        Its largest absolute difference.
    relative_difference : float
        That, over the largest absolute value of the stored tensor.
    """

    step: int
    name: str
    largest_difference: float
    relative_difference: float


def compare(
    step: int, replayed: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> Divergence | None:
    """Return how the replayed tensors differ from the stored ones; None if they are the same."""
    worst: Divergence | None = None
    for name, value in replayed.items():
        expected = stored[name]
        if torch.equal(value, expected) or _same_bits(value, expected):
            continue
        gap = (value.double() - expected.double()).abs()
        size = float(expected.double().abs().max())
        largest = float(gap.max())
        if worst is None or not largest <= worst.largest_difference:
            worst = Divergence(step, name, largest, largest / size if size else float("inf"))
    return worst


class Comparisons:
    """What comparing a replay with the stored states has shown so far."""

    def __init__(self) -> None:
        self._found: dict[int, Divergence | None] = {}
        self.recomputed = 0

    def note(self, step: int, divergence: Divergence | None) -> None:
        """Take note of a comparison with the state stored before ``step``."""
        self._found[step] = self._found.get(step) or divergence

    @property
    def first(self) -> Divergence | None:
        """The earliest divergence."""
        found = [divergence for divergence in self._found.values() if divergence is not None]
        return min(found, key=lambda divergence: divergence.step, default=None)

    def report(self) -> dict[str, Any]:
        """Return everything as JSON; ``exact`` is None where no state was compared."""
        first = self.first
        return {
            "exact": first is None if self._found else None,
            "states_compared": len(self._found),
            "states_diverged": sum(found is not None for found in self._found.values()),
            "steps_recomputed": self.recomputed,
            "first_divergence": None
            if first is None
            else {
                "step": first.step,
                "parameter": first.name,
                "largest_difference": first.largest_difference,
                "relative_difference": first.relative_difference,
            },
        }


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors agree where both may hold undefined values, which are never equal."""
    if not one.is_floating_point():
        return False
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(
        one.nan_to_num(), other.nan_to_num()
    )
