"""How each torch function passes a risk's gradient to the parameters that it is given.

A rule takes the function's arguments and the gradient of the risk with respect to its output,
both with the instances on the first axis, and returns the per-instance gradient of each wanted
argument in factored form. Weight gradients are never computed here, only described.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from proponent.gradients.convolution import Convolution, Geometry
from proponent.gradients.forms import Dense, Form, Lookup, Outer

Arguments = Mapping[str, Any]


class Layout(Enum):
    """Where the instances may stand in a call."""

    ANYWHERE = "on any axis but the last"
    CHANNELS = "on the first axis, with channels on the second"
    BROADCAST = "on any axis of an elementwise call"


@dataclass(frozen=True)
class Rule:
    """A torch function's argument names, its data argument, and its gradient.

    ``gradient(arguments, output_gradient, name)`` returns the form of the argument ``name``, or
    None where the call is one that the rule does not cover.
    """

    names: tuple[str, ...]
    data: str | None
    gradient: Callable[[Arguments, Tensor, str], Form | None]
    layout: Layout = Layout.ANYWHERE

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the call's arguments by name."""
        return {**dict(zip(self.names, args, strict=False)), **kwargs}


def _linear(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    left = _positions(gradient)
    if name == "bias":
        return Dense(_over_positions(left))
    if name == "weight":
        return Outer(left, _positions(arguments["input"]), arguments["weight"].shape)
    return None


def _addmm(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    if arguments.get("alpha", 1) != 1 or arguments.get("beta", 1) != 1:
        return None
    if name == "mat2":
        return Outer(_positions(arguments["mat1"]), _positions(gradient), arguments["mat2"].shape)
    if name == "input" and arguments["input"].ndim == 1:
        return Dense(_over_positions(_positions(gradient)))
    return None


def _matmul(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    if name != "other" or arguments["other"].ndim != 2:
        return None
    return Outer(_positions(arguments["input"]), _positions(gradient), arguments["other"].shape)


def _convolution(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    if name == "bias":
        return Dense(gradient.flatten(2).sum(2))
    kernel = arguments["weight"].shape[2:]
    dilation = _per_axis(arguments.get("dilation", 1), len(kernel))
    padding = _padding(arguments.get("padding", 0), kernel, dilation)
    if name != "weight" or padding is None or gradient.ndim != len(kernel) + 2:
        return None
    geometry = Geometry(
        stride=_per_axis(arguments.get("stride", 1), len(kernel)),
        padding=padding,
        dilation=dilation,
        groups=int(arguments.get("groups", 1)),
    )
    return Convolution(arguments["input"], gradient, arguments["weight"].shape, geometry)


def _embedding(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    if name != "weight" or arguments.get("scale_grad_by_freq") or arguments.get("max_norm"):
        return None
    indices = (
        arguments["input"].flatten(1)
        if arguments["input"].ndim > 1
        else arguments["input"][:, None]
    )
    indices, right = indices.long(), _positions(gradient)
    padding = arguments.get("padding_idx")
    if padding is not None:
        padding = padding % len(arguments["weight"])
        right = right * (indices != padding)[:, :, None]
    return Lookup(indices, right, arguments["weight"].shape)


def _layer_norm(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    shape = tuple(arguments["normalized_shape"])
    if name == "weight":
        normalised = functional.layer_norm(
            arguments["input"], shape, eps=arguments.get("eps", 1e-5)
        )
        return Dense(_reduced(gradient * normalised, shape))
    return Dense(_reduced(gradient, shape)) if name == "bias" else None


def _rms_norm(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    shape = tuple(arguments["normalized_shape"])
    if name != "weight":
        return None
    normalised = functional.rms_norm(arguments["input"], list(shape), eps=arguments.get("eps"))
    return Dense(_reduced(gradient * normalised, shape))


def _group_norm(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    if name == "weight":
        gradient = gradient * functional.group_norm(
            arguments["input"], arguments["num_groups"], eps=arguments.get("eps", 1e-5)
        )
    elif name != "bias":
        return None
    return Dense(_over_channels(gradient))


def _batch_norm(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    mean, variance = arguments.get("running_mean"), arguments.get("running_var")
    if arguments.get("training") or mean is None or variance is None:
        return None  # statistics of the batch mix its instances
    if name == "weight":
        gradient = gradient * functional.batch_norm(
            arguments["input"], mean, variance, eps=arguments.get("eps", 1e-5)
        )
    elif name != "bias":
        return None
    return Dense(_over_channels(gradient))


def _add(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    if name == "other" and arguments.get("alpha", 1) != 1:
        return None
    return Dense(_reduced(gradient, arguments[name].shape))


def _multiply(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    factor = arguments["other" if name == "input" else "input"]
    return Dense(_reduced(gradient * factor, arguments[name].shape))


def _expand(arguments: Arguments, gradient: Tensor, name: str) -> Form | None:
    return Dense(_reduced(gradient, arguments["input"].shape)) if name == "input" else None


_CONVOLUTION = Rule(
    ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "input",
    _convolution,
    Layout.CHANNELS,
)
_ADD = Rule(("input", "other"), None, _add, Layout.BROADCAST)
_MULTIPLY = Rule(("input", "other"), None, _multiply, Layout.BROADCAST)
_MATMUL = Rule(("input", "other"), "input", _matmul)

RULES: dict[Callable[..., Any], Rule] = {
    functional.linear: Rule(("input", "weight", "bias"), "input", _linear),
    torch.addmm: Rule(("input", "mat1", "mat2"), "mat1", _addmm),
    **dict.fromkeys((torch.matmul, torch.Tensor.matmul), _MATMUL),
    **dict.fromkeys((functional.conv1d, functional.conv2d, functional.conv3d), _CONVOLUTION),
    functional.embedding: Rule(
        ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
        "input",
        _embedding,
    ),
    functional.layer_norm: Rule(
        ("input", "normalized_shape", "weight", "bias", "eps"), "input", _layer_norm
    ),
    functional.rms_norm: Rule(("input", "normalized_shape", "weight", "eps"), "input", _rms_norm),
    functional.group_norm: Rule(
        ("input", "num_groups", "weight", "bias", "eps"), "input", _group_norm, Layout.CHANNELS
    ),
    functional.batch_norm: Rule(
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
        "input",
        _batch_norm,
        Layout.CHANNELS,
    ),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.add_), _ADD),
    **dict.fromkeys((torch.mul, torch.Tensor.mul), _MULTIPLY),
    torch.Tensor.expand: Rule(("input",), None, _expand, Layout.BROADCAST),
}


def _positions(tensor: Tensor) -> Tensor:
    """View (n, ..., d) as (n, positions, d)."""
    return tensor.flatten(1, -2) if tensor.ndim > 2 else tensor.unsqueeze(1)


def _over_positions(tensor: Tensor) -> Tensor:
    return tensor.sum(1) if tensor.shape[1] > 1 else tensor[:, 0]


def _reduced(gradient: Tensor, shape: Sequence[int]) -> Tensor:
    """Sum a gradient (n, ...) over what ``shape`` was broadcast to; (n, *shape)."""
    n, axes = len(gradient), len(shape)
    trailing = gradient.shape[1:]
    if axes > len(trailing):
        # The parameter's own first axis stands where the instances are: it has length 1 there.
        return _reduced(gradient, shape[1:]).view(n, *shape)
    gradient = gradient.reshape(n, -1, *trailing[len(trailing) - axes :]).sum(1)
    kept = [
        axis + 1 for axis, size in enumerate(shape) if size == 1 and gradient.shape[axis + 1] > 1
    ]
    return gradient.sum(kept, keepdim=True) if kept else gradient


def _over_channels(gradient: Tensor) -> Tensor:
    return gradient.flatten(2).sum(2) if gradient.ndim > 2 else gradient


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    return (
        (int(value),) * axes
        if isinstance(value, int)
        else tuple(map(int, value)) * (axes if len(value) == 1 else 1)
    )


def _padding(value: Any, kernel: torch.Size, dilation: tuple[int, ...]) -> tuple[int, ...] | None:
    if value == "valid":
        return (0,) * len(kernel)
    if value == "same":
        totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
        return None if any(total % 2 for total in totals) else tuple(total // 2 for total in totals)
    return _per_axis(value, len(kernel))
