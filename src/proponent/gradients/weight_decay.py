"""Weight decay of the training objective, ``mean risk + sum_p (lambda_p / 2) ||theta_p||^2``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import Curvature, Positions
from proponent.gradients.space import ParameterSpace


@dataclass(frozen=True)
class WeightDecay:
    """``lambda_p`` of each chosen parameter.

    Attributes
    ----------
    each : dict
        By the parameter's name.
    """

    each: Mapping[str, float]

    @classmethod
    def of(cls, value: float | Mapping[str, float], space: ParameterSpace) -> WeightDecay:
        """Return the weight decay of the parameters: one number, or one a parameter by its name.

        Raises
        ------
        InvalidInputError
            If a number is negative or not finite, or a mapping does not name each parameter.
        """
        if not isinstance(value, Mapping):
            return cls(dict.fromkeys(space.names, check_amount("weight_decay", value)))
        wrong = sorted(set(value) ^ set(space.names))
        if wrong:
            raise InvalidInputError(
                f"weight_decay: a mapping must name each chosen parameter "
                f"({', '.join(space.names)}); missing or unknown: {', '.join(wrong)}."
            )
        return cls({name: check_amount("weight_decay", value[name]) for name in space.names})

    @property
    def everywhere(self) -> float | None:
        """The one number that all parameters have, or None where they differ."""
        numbers = set(self.each.values())
        return numbers.pop() if len(numbers) == 1 else None

    @property
    def setting(self) -> float | dict[str, float]:
        """The one number, or one a parameter by its name."""
        everywhere = self.everywhere
        return dict(self.each) if everywhere is None else everywhere

    @property
    def is_zero(self) -> bool:
        """Whether there is none."""
        return not any(self.each.values())

    def of_layer(self, layer: str, parameters: Sequence[str]) -> float:
        """Return the number that all parameters of a layer have.

        Raises
        ------
        InvalidInputError
            If they differ, as Kronecker factors cannot have it.
        """
        numbers = {self.each[name] for name in parameters}
        if len(numbers) > 1:
            raise InvalidInputError(
                f"weight_decay: layer {layer!r} has {sorted(numbers)} for "
                f"{', '.join(parameters)}, but Kronecker factors need one number a layer; use "
                f"solver='cg' or 'explicit'."
            )
        return numbers.pop()

    def diagonal(self, space: ParameterSpace) -> Tensor:
        """Return ``lambda`` of each entry, ``(p,)``."""
        counts = (math.prod(shape) for shape in space.shapes)
        parts = [
            torch.full((count,), self.each[name], dtype=space.dtype, device=space.device)
            for name, count in zip(space.names, counts, strict=True)
        ]
        return torch.cat(parts)


class Penalised(Curvature):
    """A curvature plus the Hessian of the weight decay, where parameters' decays differ.

    Parameters
    ----------
    curvature : Curvature
        C.
    decay : WeightDecay
        ``lambda_p``; the matrix is ``C + diag(lambda)``.
    """

    def __init__(self, curvature: Curvature, decay: WeightDecay) -> None:
        self._curvature = curvature
        self._decay = decay.diagonal(curvature.space)
        self.space = curvature.space
        self.n = curvature.n
        self.progress = curvature.progress

    @property
    @override
    def name(self) -> str:  # type: ignore[override]
        return self._curvature.name

    @property
    @override
    def positive(self) -> bool:  # type: ignore[override]
        return self._curvature.positive

    @override
    def _average(self, vectors: Tensor, positions: Positions | None) -> Tensor:
        return self._curvature._average(vectors, positions) + self._decay * vectors

    @override
    def dense(self) -> Tensor:
        matrix = self._curvature.dense()
        matrix.diagonal().add_(self._decay)
        return matrix

    @override
    def diagonal(self) -> Tensor | None:
        diagonal = self._curvature.diagonal()
        return None if diagonal is None else diagonal + self._decay


def check_amount(name: str, value: float) -> float:
    """Refuse what is not a finite number of at least 0."""
    if isinstance(value, Real) and 0 <= float(value) < math.inf:
        return float(value)
    raise InvalidInputError(f"{name} must be a finite number of at least 0; got {value!r}.")
