"""Random forms of every kind with the dense gradients that they stand for."""

import torch
from torch import Tensor

from proponent.gradients.convolution import Convolution, Geometry
from proponent.gradients.forms import Dense, Form, Lookup, Outer, Uses

SHAPE = torch.Size((4, 6))  # also read as (4, 2, 3): a kernel of two channels and width three
KERNEL = torch.Size((4, 2, 3))
GEOMETRY = Geometry((2,), (1,), (1,), 1)
GROUPED = Geometry((1,), (0,), (1,), 2)


def outer(n: int, positions: int = 3) -> Form:
    return Outer(torch.randn(n, positions, 4), torch.randn(n, positions, 6), SHAPE)


def lookup(n: int, positions: int = 3) -> Form:
    # Few rows, so that an instance looks the same one up twice.
    return Lookup(torch.randint(0, 4, (n, positions)), torch.randn(n, positions, 6), SHAPE)


def dense(n: int) -> Form:
    return Dense(torch.randn(n, *SHAPE))


def uses(n: int) -> Form:
    return Uses((outer(n, 2), lookup(n, 3), outer(n, 1)))


def uses_with_dense(n: int) -> Form:
    return Uses((dense(n), outer(n, 2), dense(n)))


def convolution(n: int) -> Form:
    return Convolution(torch.randn(n, 2, 6), torch.randn(n, 4, 3), KERNEL, GEOMETRY)


def grouped(n: int) -> Form:
    return Convolution(torch.randn(n, 4, 5), torch.randn(n, 4, 3), KERNEL, GROUPED)


def convolution_twice(n: int) -> Form:
    other = Convolution(torch.randn(n, 2, 8), torch.randn(n, 4, 4), KERNEL, GEOMETRY)
    return Uses((convolution(n), other))


def kernel_as_matrix(n: int) -> Form:
    return Outer(torch.randn(n, 2, 4), torch.randn(n, 2, 6), KERNEL)


def dense_kernel(n: int) -> Form:
    return Dense(torch.randn(n, *KERNEL))


MATRICES = (outer, lookup, dense, uses, uses_with_dense)
KERNELS = (convolution, grouped, convolution_twice, kernel_as_matrix, dense_kernel)
PAIRS = [(a, b) for kinds in (MATRICES, KERNELS) for a in kinds for b in kinds]


def written_out(form: Form) -> Tensor:
    """Return the gradients ``(n, *shape)`` by loops over instances and positions."""
    total = torch.zeros(form.n, *form.shape)
    for i in range(form.n):
        if isinstance(form, Dense):
            total[i] = form.gradients[i]
        elif isinstance(form, Outer):
            for left, right in zip(form.left[i], form.right[i], strict=True):
                total[i] += torch.outer(left, right).view(form.shape)
        elif isinstance(form, Lookup):
            for row, right in zip(form.indices[i], form.right[i], strict=True):
                total[i, row] += right
        elif isinstance(form, Convolution):
            total[i] = _kernel_gradient(form, i)
    if isinstance(form, Uses):
        total = sum((written_out(part) for part in form.forms), total)
    return total


def _kernel_gradient(form: Convolution, i: int) -> Tensor:
    """Sum input patches times output gradients, by the definition of a 1d convolution."""
    (stride,), (padding,), groups = (
        form.geometry.stride,
        form.geometry.padding,
        form.geometry.groups,
    )
    inputs = torch.nn.functional.pad(form.inputs[i], (padding, padding))
    total = torch.zeros(form.shape)
    out, inside, width = form.shape
    for channel in range(out):
        group = channel // (out // groups)
        own = inputs[group * inside : (group + 1) * inside]
        for position, gradient in enumerate(form.output_gradients[i, channel]):
            start = stride * position
            total[channel] += gradient * own[:, start : start + width]
    return total
