"""Weight gradients of convolutions, one for each instance, in any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import override

from proponent.gradients.forms import Form, column, largest
from proponent.gradients.tokens import Tokens

# Above this many entries a kernel's gradients are formed one instance at a time: a grouped
# convolution over the whole batch is faster for small kernels and slower for large ones.
GROUPED_KERNEL_ENTRIES = 200_000


@dataclass(frozen=True)
class Geometry:
    """How a convolution moves over its input, one entry an axis."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def unfold(self, inputs: Tensor, kernel: Sequence[int]) -> Tensor:
        """Return the patches that the kernel meets, ``(n, positions, channels * kernel)``."""
        axes = len(kernel)
        pads = [pad for padding in reversed(self.padding) for pad in (padding, padding)]
        patches = functional.pad(inputs, pads)
        for axis in range(axes):
            span = self.dilation[axis] * (kernel[axis] - 1) + 1
            patches = patches.unfold(2 + axis, span, self.stride[axis])
        for axis in range(axes):
            patches = patches[
                (*[slice(None)] * (2 + axes + axis), slice(None, None, self.dilation[axis]))
            ]
        # (n, channels, *positions, *kernel) -> (n, *positions, channels, *kernel)
        return patches.movedim(1, 1 + axes).flatten(1, axes).flatten(2)


def convolution_weight_gradients(
    inputs: Tensor, output_gradients: Tensor, shape: torch.Size, geometry: Geometry
) -> Tensor:
    """Return each instance's gradient of a convolution's kernel, ``(n, *shape)``.

    One grouped convolution backward, in which each instance is a group of its own, costs hardly
    more than the batch's summed gradient.

    Parameters
    ----------
    inputs : Tensor of shape (n, channels_in, ...)
        Input of the convolution.
    output_gradients : Tensor of shape (n, channels_out, ...)
        Gradient of the risk with respect to its output.
    shape : torch.Size
        Shape of the kernel, (channels_out, channels_in / groups, ...).
    geometry : Geometry
        Stride, padding, dilation and groups.
    """
    n = len(inputs)
    if n > 1 and shape.numel() > GROUPED_KERNEL_ENTRIES and inputs.device.type == "cpu":
        parts = [
            _grouped(inputs[i : i + 1], output_gradients[i : i + 1], shape, geometry)
            for i in range(n)
        ]
        return torch.cat(parts)
    return _grouped(inputs, output_gradients, shape, geometry)


def _grouped(
    inputs: Tensor, output_gradients: Tensor, shape: torch.Size, geometry: Geometry
) -> Tensor:
    n, axes = len(inputs), len(shape) - 2
    stacked = torch.Size((n * shape[0], *shape[1:]))
    # Only the shape of the weight enters its gradient.
    weight = inputs.new_empty(1).expand(stacked)
    _, gradients, _ = torch.ops.aten.convolution_backward(
        output_gradients.reshape(1, n * shape[0], *output_gradients.shape[2:]),
        inputs.reshape(1, n * inputs.shape[1], *inputs.shape[2:]),
        weight,
        None,
        geometry.stride,
        geometry.padding,
        geometry.dilation,
        False,
        [0] * axes,
        n * geometry.groups,
        [False, True, False],
    )
    result: Tensor = gradients.view(n, *shape)
    return result


@dataclass(frozen=True)
class Convolution(Form):
    """Gradients of a convolution's kernel from its input and its output gradient."""

    inputs: Tensor
    output_gradients: Tensor
    shape: torch.Size
    geometry: Geometry

    @property
    @override
    def n(self) -> int:
        return len(self.inputs)

    @property
    @override
    def positions(self) -> int:
        return math.prod(self.output_gradients.shape[2:]) if self.geometry.groups == 1 else 0

    @property
    @override
    def width(self) -> int:
        return self.shape[0] + math.prod(self.shape[1:])

    @property
    @override
    def like(self) -> Tensor:
        return self.output_gradients

    @override
    def __getitem__(self, rows: slice) -> Convolution:
        return replace(self, inputs=self.inputs[rows], output_gradients=self.output_gradients[rows])

    @override
    def materialise(self) -> Tensor:
        return convolution_weight_gradients(
            self.inputs, self.output_gradients, self.shape, self.geometry
        )

    @property
    @override
    def magnitude(self) -> Tensor:
        return largest(self.inputs) * largest(self.output_gradients)

    @override
    def scaled(self, weights: Tensor) -> Convolution:
        shaped = column(weights, self.output_gradients.ndim)
        return replace(self, output_gradients=self.output_gradients * shaped)

    @property
    @override
    def materialise_cost(self) -> float:
        return float(math.prod(self.output_gradients.shape[2:]) * self.numel)

    @override
    def tokens(self) -> list[Tokens] | None:
        if self.geometry.groups > 1:
            return None
        patches = self.geometry.unfold(self.inputs, self.shape[2:])
        return [Tokens(self.output_gradients.flatten(2).mT, patches)]
