"""Proof, on a few instances, that every parameter is counted once and no instance leaks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from proponent.exceptions import InvalidInputError
from proponent.gradients.fallback import Probe, instance_gradients
from proponent.gradients.forms import Form
from proponent.gradients.linear_calls import LinearCalls
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


def check_instances_apart(
    model: TorchModel, probe: Probe, compared: Sequence[int], relative: float
) -> None:
    """Refuse a risk that depends on which other instances are in the batch.

    The instances at the positions ``compared`` are looked at.

    Raises
    ------
    InvalidInputError
        If an instance's risk in the batch is not its risk alone.
    """
    chosen = list(compared)
    together = model.plain_risk(probe.batch(), probe.n)[chosen]
    try:
        alone = torch.cat([model.plain_risk(probe.single(i), 1) for i in chosen])
    except (RuntimeError, ValueError) as error:
        raise InvalidInputError(
            f"the risk can be had of a batch of {probe.n} but not of one instance alone ({error}). "
            "Influence needs a risk of each instance alone: look for a normalisation by batch "
            "statistics (BatchNorm without running statistics)."
        ) from error
    if not (torch.isfinite(together).all() and torch.isfinite(alone).all()):
        return  # reported, with the instances' ids, where the risks are used
    scale = together.abs().max() + alone.abs().max()
    if (together - alone).abs().max() > relative * scale + 1e-12:
        raise InvalidInputError(
            "the risk of an instance changes with the other instances of its batch "
            f"({together.tolist()} together, {alone.tolist()} one by one). Influence needs a risk "
            "of each instance alone: look for a mean over the batch in the loss, or a "
            "normalisation by batch statistics (BatchNorm without running statistics)."
        )


def check_last_layer(model: TorchModel, probe: Probe) -> None:
    """Refuse ``parameters="last"`` where the linear layer registered last does not run last.

    Raises
    ------
    InvalidInputError
        If another linear layer runs after it, or it does not run.
    """
    names = {
        id(layer.weight): name
        for name, layer in model.module.named_modules()
        if isinstance(layer, nn.Linear)
    }
    watch = LinearCalls()
    with watch:
        model.plain_risk(probe.batch(), probe.n)
    ran = [names[id(weight)] for weight in watch.weights if id(weight) in names]
    chosen = next(name.rpartition(".")[0] for name in model.selected)
    if not ran or ran[-1] != chosen:
        runs = f"{ran[-1]!r} runs last" if ran else "none was seen to run"
        raise InvalidInputError(
            f"parameters='last' takes {chosen!r}, the linear layer that was registered last, but "
            f"{runs}. Name the parameters of the layer, such as parameters='fc.*'."
        )


def uncovered_by_value(
    model: TorchModel,
    parameters: Mapping[str, Tensor],
    captured: Mapping[str, Form],
    probe: Probe,
    compared: Sequence[int],
    relative: float,
) -> frozenset[str]:
    """Return the parameters whose captured gradient is not that of one pass an instance.

    A parameter that was not captured counts as one with gradient zero. A gradient is right when
    the difference is rounding, compared with itself or, where it cancels, with the whole
    gradient of the instance.
    """
    wrong = set()
    for i in compared if parameters else ():
        expected = instance_gradients(model, parameters, probe.single(i))
        norms = {name: gradient.norm() for name, gradient in expected.items()}
        finite = [norm for norm in norms.values() if torch.isfinite(norm)]
        whole = torch.stack(finite).norm() if finite else 0.0
        for name, gradient in expected.items():
            if not torch.isfinite(norms[name]):
                continue  # nothing to compare with; refused, by its id, where it is used
            form = captured.get(name)
            found = 0.0 if form is None else form[i : i + 1].materialise()[0].to(gradient.dtype)
            rounding = 10 * relative * norms[name] + relative * whole
            if not (gradient - found).norm() <= rounding:
                wrong.add(name)
    return frozenset(wrong)


def tolerance(model: TorchModel, precisions: Collection[torch.dtype]) -> float:
    """Return the relative difference that rounding can explain.

    Parameters
    ----------
    model : TorchModel
        Whose parameters' precision counts.
    precisions : collection of dtypes
        Those of intermediate results, which are coarser under autocast.
    """
    # Of all parameters: those that are not chosen round too.
    dtypes = {*precisions, *(p.dtype for p in model.module.parameters())}
    return max(TOLERANCE.get(dtype, 0.0) for dtype in dtypes) or TOLERANCE[torch.float32]
