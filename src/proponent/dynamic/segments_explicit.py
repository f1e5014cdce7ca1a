"""A segment whose curvature is a matrix: exact, for some thousand parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from proponent.dynamic.segments import Segment
from proponent.dynamic.segments_propagation import Carried, Propagation, Spectrum
from proponent.dynamic.segments_rates import Pace
from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import Curvature
from proponent.gradients.space import ParameterSpace
from proponent.gradients.weight_decay import WeightDecay
from proponent.models.run import TrainingRun

# Rounding of an eigenvalue, relative to the largest.
ROUNDING = 1e-6
# Matrices of p x p that a segment keeps, and that are held while it is made.
MATRICES = 5


class ExplicitPropagator:
    r"""A segment with its curvature as a matrix H, and learning rates of each parameter.

    With :math:`P^{1/2} H P^{1/2} = Q \operatorname{diag}(x) Q^T`, test gradients u become
    :math:`v = P^{1/2} Q f(x) Q^T P^{1/2} u`, and :math:`u - H v` before the segment: parameters
    may have different learning rates, or none.

    Parameters
    ----------
    matrix : Tensor of shape (p, p)
        H, with weight decay and damping.
    rates : Tensor of shape (p,)
        The diagonal of P.
    steps, propagation, where
        As in :class:`Spectrum`.
    """

    def __init__(
        self, matrix: Tensor, rates: Tensor, steps: int, propagation: Propagation, where: str
    ) -> None:
        root = rates.sqrt()
        scaled = (root[:, None] * matrix * root).double()
        values, vectors = torch.linalg.eigh(scaled)
        self._spectrum = Spectrum(values, steps, propagation, where)
        self._gathered = self._spectrum.gathered.to(matrix.dtype)
        self._basis = root[:, None] * vectors.to(matrix.dtype)
        self._matrix = matrix

    def carry(self, vectors: Tensor) -> Carried:
        """Carry test gradients (k, p) over the segment."""
        met = (vectors @ self._basis * self._gathered) @ self._basis.T
        return Carried(met, vectors - met @ self._matrix)

    def diagnostics(self) -> dict[str, Any]:
        """Return the extreme eigenvalues, times the learning rates."""
        x = self._spectrum.eigenvalues
        return {"smallest_exponent": float(x.min()), "largest_exponent": float(x.max())}

    def warnings(self) -> list[str]:
        """Return what negative and too large eigenvalues do."""
        x, kept = self._spectrum.eigenvalues, self._spectrum.kept.abs()
        noise = ROUNDING * float(x.abs().max())
        negative = int((x < -noise).sum())
        found = []
        if negative:
            found.append(
                f"{self._spectrum.where}: {negative} of {len(x)} eigenvalues of the curvature are "
                f"negative; they are kept, and magnify what came before up to "
                f"{float(kept.max()):.3g} times"
            )
        elif float(kept.max()) > 1 + ROUNDING:
            found.append(
                f"{self._spectrum.where}: the learning rate is above 2 / (largest eigenvalue), "
                f"beyond which steps diverge; what came before is magnified up to "
                f"{float(kept.max()):.3g} times"
            )
        return found


def explicit_propagator(
    run: TrainingRun,
    segment: Segment,
    space: ParameterSpace,
    pace: Pace,
    curvature: Callable[[Segment], Curvature],
    *,
    damping: float,
    propagation: Propagation,
) -> ExplicitPropagator:
    """Return a segment with the mean matrix of its states."""
    total = torch.zeros(space.size, space.size, dtype=space.dtype, device=space.device)
    for state in segment.states:
        with run.at(state.checkpoint):
            total += state.share * curvature(segment).dense()
    total.diagonal().add_(WeightDecay(pace.decays).diagonal(space) + damping)
    rates = WeightDecay(pace.rates).diagonal(space)
    return ExplicitPropagator(total, rates, len(segment.steps), propagation, segment.label)


def check_size(space: ParameterSpace, segments: int, memory: int) -> None:
    """Refuse matrices that do not fit the memory.

    Raises
    ------
    InvalidInputError
        If they do not.
    """
    itemsize = torch.empty(0, dtype=space.dtype).element_size()
    needed = space.size**2 * (2 * segments * itemsize + MATRICES * 8)
    if needed > memory:
        raise InvalidInputError(
            f"solver='explicit': the curvature of {space.size:,} parameters in {segments} segments "
            f"takes {needed / 2**20:,.0f} MiB, more than memory={memory / 2**20:,.0f} MiB. Use "
            f"solver='ekfac', choose fewer parameters, or raise memory."
        )
