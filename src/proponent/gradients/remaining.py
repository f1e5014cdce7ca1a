"""Curvature of some training instances alone, and of those that remain without them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from proponent.gradients.curvature import Curvature, Positions


class Restricted(Curvature):
    """The average over some of the training instances, ``(1/|U|) sum_{i in U} C_i``.

    Parameters
    ----------
    curvature : Curvature
        The average over all of them.
    positions : integer array
        U, each instance once.
    """

    def __init__(self, curvature: Curvature, positions: Positions) -> None:
        self._curvature = curvature
        self._positions = positions
        self.space = curvature.space
        self.n = len(positions)
        self.progress = curvature.progress

    @property
    @override
    def name(self) -> str:  # type: ignore[override]
        return f"{self._curvature.name} of {self.n} instances"

    @property
    @override
    def positive(self) -> bool:  # type: ignore[override]
        return self._curvature.positive

    @override
    def _average(self, vectors: Tensor, positions: Positions | None) -> Tensor:
        chosen = self._positions if positions is None else self._positions[positions]
        return self._curvature.matvec_on(vectors, chosen)


class Remaining(Curvature):
    """What the rest adds to the average over all instances, ``(1/n) sum_{i not in U} C_i``.

    It is an average over all n in which the instances of U count as zero.

    Parameters
    ----------
    curvature : Curvature
        The average over all instances.
    removed : integer array
        U, each instance once.
    dense : callable
        Returns the matrix of ``curvature``, ``(p, p)``, which is asked for once a group.
    """

    def __init__(
        self, curvature: Curvature, removed: Positions, dense: Callable[[], Tensor]
    ) -> None:
        self._curvature = curvature
        self._removed = Restricted(curvature, removed)
        self._positions = removed
        self._dense = dense
        self.space = curvature.space
        self.n = curvature.n
        self.progress = curvature.progress

    @property
    @override
    def name(self) -> str:  # type: ignore[override]
        return f"{self._curvature.name} of the remaining instances"

    @property
    @override
    def positive(self) -> bool:  # type: ignore[override]
        return self._curvature.positive

    @property
    def _share(self) -> float:
        return self._removed.n / self.n

    @override
    def _average(self, vectors: Tensor, positions: Positions | None) -> Tensor:
        if positions is None:
            all_of_them = self._curvature.matvec(vectors)
            return all_of_them.sub_(self._removed.matvec(vectors), alpha=self._share)
        rest = positions[~np.isin(positions, self._positions)]
        if not len(rest):
            return torch.zeros_like(vectors)
        return self._curvature.matvec_on(vectors, rest).mul_(len(rest) / len(positions))

    @override
    def dense(self) -> Tensor:
        return self._dense().sub(self._removed.dense(), alpha=self._share)
