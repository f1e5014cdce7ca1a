"""Proof, on a few instances, that every parameter is counted once and no instance leaks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.gradients.fallback import instance_of, separate_gradients
from proponent.gradients.forms import Form
from proponent.models.torch import TorchModel

# Relative differences above these are no rounding: 3 % for bfloat16, 1e-4 for float32.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 3e-2}


@dataclass(frozen=True)
class Coverage:
    """How each chosen parameter's gradient is had.

    Attributes
    ----------
    captured : tuple of str
        From layer inputs and output gradients.
    differentiated : tuple of str
        By automatic differentiation of each instance, because no rule covers their use. Slower.
    """

    captured: tuple[str, ...]
    differentiated: tuple[str, ...]


def check_instances_apart(model: TorchModel, batch: Any, n: int) -> None:
    """Refuse a risk that depends on which other instances are in the batch.

    Raises
    ------
    InvalidInputError
        If an instance's risk in the batch is not its risk alone.
    """
    with torch.no_grad():
        together = model.batch_risk(batch, n)
        singles = [instance_of(batch, i, n) for i in range(n)]
        try:
            alone = torch.cat([model.batch_risk(single, 1) for single in singles])
        except (RuntimeError, ValueError) as error:
            raise InvalidInputError(
                f"the risk can be had of a batch of {n} but not of one instance alone ({error}). "
                "Influence needs a risk of each instance alone: look for a normalisation by batch "
                "statistics (BatchNorm without running statistics)."
            ) from error
    if not (torch.isfinite(together).all() and torch.isfinite(alone).all()):
        return  # reported, with the instances' ids, where the risks are used
    scale = together.abs().max() + alone.abs().max()
    if (together - alone).abs().max() > tolerance(model) * scale + 1e-12:
        raise InvalidInputError(
            "the risk of an instance changes with the other instances of its batch "
            f"({together.tolist()} together, {alone.tolist()} one by one). Influence needs a risk "
            "of each instance alone: look for a mean over the batch in the loss, or a "
            "normalisation by batch statistics (BatchNorm without running statistics)."
        )


def uncovered_by_value(
    model: TorchModel,
    parameters: Mapping[str, Tensor],
    captured: Mapping[str, Form],
    batch: Any,
    n: int,
) -> frozenset[str]:
    """Return the parameters whose captured gradient is not that of one pass an instance.

    A parameter that was not captured counts as one with gradient zero. A gradient is right when
    the difference is rounding, compared with itself or, where it cancels, with the whole
    gradient of the instance.
    """
    if not parameters:
        return frozenset()
    expected = separate_gradients(model, parameters, batch, n)
    whole = torch.stack([value.flatten(1).square().sum(1) for value in expected.values()]).sum(0)
    return frozenset(
        name
        for name, value in expected.items()
        if not _agrees(
            captured[name].materialise() if name in captured else torch.zeros_like(value),
            value,
            whole.sqrt(),
            tolerance(model),
        )
    )


def tolerance(model: TorchModel) -> float:
    """Return the relative difference that rounding can explain in the model's precision."""
    coarsest = max(TOLERANCE.get(p.dtype, 1e-4) for p in model.selected.values())
    return max(coarsest, TOLERANCE[torch.bfloat16] if torch.is_autocast_enabled() else 0.0)


def _agrees(found: Tensor, expected: Tensor, whole: Tensor, relative: float) -> bool:
    expected = expected.to(found.dtype)
    difference = (found - expected).flatten(1).norm(dim=1)
    own = expected.flatten(1).norm(dim=1)
    return bool((difference <= 10 * relative * own + relative * whole.to(found.dtype)).all())
