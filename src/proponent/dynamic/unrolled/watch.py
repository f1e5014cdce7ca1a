"""Watching whether derivatives of long products of steps explode."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from proponent.exceptions import NonFiniteError

BOUND = 1e3
LOOKS = 12


class Watch:
    r"""Follows the norms of vectors that are multiplied by a step's Jacobian at every step.

    A norm that grows by a factor at every step is a sign that the training was unstable there
    (:math:`\eta \lambda_{\max}(H) > 2`, or strong negative curvature): the linearisation then
    says little about the removal of an instance.

    Parameters
    ----------
    what : str
        What is followed, in words.
    steps : int
        T; some ``LOOKS`` of the steps are looked at, the last one always.
    by : str
        The method that asks, for messages.
    remedy : str
        What else to try where they explode; may be empty.
    """

    def __init__(self, what: str, steps: int, *, by: str, remedy: str = "") -> None:
        self._what = what
        self._by = by
        self._remedy = f"{remedy}, " if remedy else ""
        self._every = max(1, steps // LOOKS)
        self._looks = 0
        self._start: Tensor | None = None
        self._largest = 1.0
        self._largest_at: int | None = None
        self._left_at: int | None = None
        self._through = 0

    def look(self, vectors: Iterable[Tensor], step: int, *, last: bool = False) -> None:
        """Look at vectors, each tensor (k, *shape), after a step; ``last`` looks in any case.

        Raises
        ------
        NonFiniteError
            If one is not finite.
        """
        self._looks += 1
        if not last and (self._looks - 1) % self._every:
            return
        norms = _norms(vectors)
        if not bool(torch.isfinite(norms).all()):
            raise self.exploded(step)
        if self._start is None or self._start.shape != norms.shape:
            self._start = norms
            return
        ratios = torch.where(self._start > 0, norms / self._start, 0)
        ratio = float(ratios.max())
        if ratio > self._largest:
            self._largest, self._largest_at = ratio, step
            self._through = self._looks - 1
        if ratio > BOUND and self._left_at is None:
            self._left_at = step

    def exploded(self, step: int) -> NonFiniteError:
        """Return the error, to be raised, for vectors that left the range of numbers."""
        return NonFiniteError(
            f"{self._by}: the {self._what} is not finite at step {step}: the products of the "
            f"steps' Jacobians explode. The training was unstable along the path (a learning "
            f"rate times the largest curvature above 2?); count only the last steps with "
            f"horizon=, {self._remedy}or train with a smaller learning rate."
        )

    def begin(self) -> None:
        """Begin with other vectors."""
        self._start, self._looks = None, 0

    def report(self) -> dict[str, Any]:
        """Return what was seen, as JSON knows it."""
        seen: dict[str, Any] = {
            "growth": {
                "of": self._what,
                "largest": self._largest,
                "at_step": self._largest_at,
                "factor_per_step": self._largest ** (1 / max(1, self._through)),
                "bound": BOUND,
                "left_bound_at_step": self._left_at,
            }
        }
        if self._left_at is not None:
            seen["warnings"] = [
                f"the {self._what} grew to {self._largest:.3g} times its size (beyond {BOUND:g} "
                f"at step {self._left_at}): the training was unstable there, and the influence "
                f"of the steps beyond may mean little; see horizon="
            ]
        return seen


def _norms(vectors: Iterable[Tensor]) -> Tensor:
    norms = torch.stack([torch.linalg.vector_norm(part.flatten(1), dim=1) for part in vectors])
    total: Tensor = torch.linalg.vector_norm(norms, dim=0)
    return total
