"""A segment whose curvature is Kronecker-factored: its factors are averages over its states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from proponent.dynamic.segments import Segment
from proponent.dynamic.segments_propagation import Carried, Propagation, Spectrum
from proponent.dynamic.segments_rates import Pace
from proponent.exceptions import InvalidInputError
from proponent.gradients.kfac.blocks import Block
from proponent.gradients.kfac.covariances import Covariances, LayerSums
from proponent.gradients.kfac.factors import KroneckerFactors
from proponent.gradients.kfac.passes import (
    EigenvalueSums,
    FisherGradients,
    covariance_pass,
    eigenvalue_pass,
)
from proponent.gradients.space import ParameterSpace
from proponent.models.run import TrainingRun
from proponent.models.torch import TorchModel

# Sums over instances are weighted by whole numbers, as those of repeated instances are.
PARTS = 2**20

Sums = TypeVar("Sums", Covariances, EigenvalueSums)


@dataclass(frozen=True)
class _Part:
    """One layer of a segment."""

    block: Block
    rate: float
    spectrum: Spectrum


class FactoredPropagator:
    """A segment with Kronecker factors: every layer acts for itself, in its eigenbasis.

    Parameters
    ----------
    factors : KroneckerFactors
        The curvature, without weight decay and damping.
    pace : Pace
        Learning rates and weight decay; all parameters of a layer must have the same.
    damping : float
        Added to every eigenvalue.
    steps, propagation, where
        As in :class:`Spectrum`.

    Raises
    ------
    InvalidInputError
        If parameters of a layer have different learning rates or weight decays.
    """

    def __init__(
        self,
        factors: KroneckerFactors,
        pace: Pace,
        damping: float,
        steps: int,
        propagation: Propagation,
        where: str,
    ) -> None:
        self.factors = factors
        self._space: ParameterSpace = factors.space
        self._parts = []
        for block in factors.blocks:
            names = block.layer.parameters
            rate = _common(pace.rates, names, "learning rates", block.layer.name, where)
            decay = _common(pace.decays, names, "weight decays", block.layer.name, where)
            exponents = rate * (block.eigenvalues + (decay + damping))
            spectrum = Spectrum(exponents, steps, propagation, where)
            self._parts.append(_Part(block.to(self._space.dtype), rate, spectrum))

    def carry(self, vectors: Tensor) -> Carried:
        """Carry test gradients (k, p) over the segment."""
        parts = self._space.unflatten(vectors)
        met: dict[str, Tensor] = {}
        before: dict[str, Tensor] = {}
        for part in self._parts:
            coordinates = part.block.rotate(parts)
            gathered = part.rate * part.spectrum.gathered
            met |= part.block.unrotate(coordinates * gathered.to(coordinates))
            before |= part.block.unrotate(coordinates * part.spectrum.kept.to(coordinates))
        return Carried(self._space.flatten(met), self._space.flatten(before))

    def diagnostics(self) -> dict[str, Any]:
        """Return the extreme eigenvalues, times the learning rates."""
        exponents = [part.spectrum.eigenvalues for part in self._parts]
        return {
            "smallest_exponent": min(float(x.min()) for x in exponents),
            "largest_exponent": max(float(x.max()) for x in exponents),
            "notes": list(self.factors.notes),
        }

    def warnings(self) -> list[str]:
        """Return the layers in which what came before grows."""
        grown = {
            part.block.layer.name: float(part.spectrum.kept.abs().max()) for part in self._parts
        }
        layers = [name for name, factor in grown.items() if factor > 1 + 1e-6]
        if not layers:
            return []
        return [
            f"{self._parts[0].spectrum.where}: in {', '.join(layers)} the learning rate is above "
            f"2 / (largest eigenvalue), beyond which steps diverge; what came before is magnified "
            f"up to {max(grown.values()):.3g} times"
        ]


def factored(
    run: TrainingRun,
    segment: Segment,
    model: TorchModel,
    gradients: Callable[[int], FisherGradients],
    *,
    method: Literal["ekfac", "kfac"],
    dtype: torch.dtype,
) -> KroneckerFactors:
    """Return Kronecker factors of the mean curvature over a segment's states.

    Both passes are sums over the states: covariances first, then second moments in their common
    eigenbasis, each state weighted by its share.

    Parameters
    ----------
    run, segment, model
        What is studied.
    gradients : callable
        Returns the gradients whose second moment is the curvature, at the state of this position.
    method : "ekfac" or "kfac"
        Whether eigenvalues are corrected by the second pass.
    dtype : torch.dtype
        Precision of the factors.

    Raises
    ------
    FactorError
        If the gradients of some layers are not finite or an eigendecomposition fails.
    """
    with run.at(segment.states[0].checkpoint):
        layers, excluded = gradients(0).layers()
    covariances: list[Covariances] = []
    for position, state in enumerate(segment.states):
        with run.at(state.checkpoint):
            found = covariance_pass(gradients(position), layers, excluded)
        covariances.append(_weighted(found, _times(state.share)))
    sums = _total(covariances)
    factors = KroneckerFactors.from_covariances(model, sums, dtype=dtype)
    if method == "kfac":
        return factors
    moments: list[EigenvalueSums] = []
    for position, state in enumerate(segment.states):
        with run.at(state.checkpoint):
            part = eigenvalue_pass(gradients(position), factors.blocks)
        times = _times(state.share)
        scaled = {name: values * times for name, values in part.sums.items()}
        moments.append(EigenvalueSums(scaled, part.n * times, part.failed))
    return factors.corrected(_total(moments))


def _times(share: float) -> int:
    return max(1, round(share * PARTS))


def _weighted(sums: Covariances, times: int) -> Covariances:
    layers = {
        name: LayerSums(part.left * times, part.right * times, part.positions * times)
        for name, part in sums.sums.items()
    }
    return Covariances(sums.layers, layers, sums.n * times, sums.excluded, sums.failed)


def _total(parts: Sequence[Sums]) -> Sums:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _common(
    values: dict[str, float], names: Sequence[str], what: str, layer: str, where: str
) -> float:
    """Return the number that all parameters of a layer have."""
    found = {values[name] for name in names}
    if max(found) - min(found) > 1e-12 * max(found):
        raise InvalidInputError(
            f"{where}: the parameters of layer {layer!r} ({', '.join(names)}) have different "
            f"{what} ({', '.join(f'{values[name]:g}' for name in names)}), but Kronecker factors "
            f"need one number a layer; use solver='explicit', or choose parameters=."
        )
    return max(found)
