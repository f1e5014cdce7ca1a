"""Convolutions of every geometry: kernels' gradients against autograd, an instance at a time."""

import pytest
import torch
from gradient_checks import N, check_gradients, labels
from hypothesis import given, settings
from hypothesis import strategies as st
from references import relative_error
from torch import nn
from torch.nn import functional

from proponent.gradients import convolution
from proponent.gradients.convolution import Convolution, Geometry, convolution_weight_gradients

CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


@st.composite
def geometries(draw):
    axes = draw(st.integers(1, 3))
    largest = 3 if axes == 3 else 4

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel, stride, dilation = per_axis(1, largest), per_axis(1, 3), per_axis(1, 2)
    padding, groups = per_axis(0, 2), draw(st.integers(1, 3))
    spans = [step * (size - 1) + 1 for size, step in zip(kernel, dilation, strict=True)]
    # Often larger than the kernel needs, so that a stride leaves part of the input unused.
    sizes = tuple(
        max(1, span - 2 * pad) + draw(st.integers(0, 3))
        for span, pad in zip(spans, padding, strict=True)
    )
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    return Geometry(stride, padding, dilation, groups), kernel, sizes, channels


def drawn(geometry, kernel, sizes, channels, n=3):
    """Return inputs, output gradients and the truth: one backward pass an instance."""
    before, after = channels
    inputs = torch.randn(n, before, *sizes)
    weight = torch.randn(after, before // geometry.groups, *kernel, requires_grad=True)
    options = vars(geometry)
    convolve = CONVOLVE[len(kernel)]
    output_gradients = torch.randn_like(convolve(inputs, weight, **options))
    truth = torch.stack(
        [
            torch.autograd.grad(convolve(inputs[i : i + 1], weight, **options), weight, g[None])[0]
            for i, g in enumerate(output_gradients)
        ]
    )
    return inputs, output_gradients, truth


@settings(max_examples=60)
@given(geometries(), st.integers(0, 2**32))
def test_any_geometry(drawn_geometry, seed):
    torch.manual_seed(seed)
    geometry, kernel, _, _ = drawn_geometry
    inputs, output_gradients, truth = drawn(*drawn_geometry)
    shape = truth.shape[1:]
    found = convolution_weight_gradients(inputs, output_gradients, shape, geometry)
    assert found.shape == truth.shape
    assert relative_error(found, truth) < 1e-12
    if geometry.groups == 1:
        patches = geometry.unfold(inputs, kernel)
        factors = output_gradients.flatten(2) @ patches
        assert relative_error(factors.view(truth.shape), truth) < 1e-12


@settings(max_examples=30)
@given(geometries(), st.integers(0, 2**32))
def test_form_by_pairs_and_materialised(drawn_geometry, seed):
    torch.manual_seed(seed)
    geometry = drawn_geometry[0]
    inputs, output_gradients, truth = drawn(*drawn_geometry)
    form = Convolution(inputs, output_gradients, truth.shape[1:], geometry)
    assert relative_error(form.materialise(), truth) < 1e-12
    tokens = form.tokens()
    if geometry.groups > 1:
        assert tokens is None
        assert form.positions == 0
        return
    (only,) = tokens
    assert form.positions == only.left.shape[1]
    expected = truth.flatten(1) @ truth.flatten(1).T
    assert relative_error(only.inner(only), expected) < 1e-12
    assert relative_error(only.dot_rowwise(only), expected.diagonal()) < 1e-12


def test_patches_are_those_of_torch():
    geometry = Geometry((2, 1), (1, 2), (1, 2), 1)
    inputs = torch.randn(3, 2, 6, 7)
    expected = functional.unfold(inputs, (3, 2), padding=(1, 2), dilation=(1, 2), stride=(2, 1))
    assert torch.equal(geometry.unfold(inputs, (3, 2)), expected.mT)


def test_large_kernels_one_instance_at_a_time(monkeypatch):
    geometry = Geometry((1, 2), (1, 0), (1, 1), 2)
    arguments = drawn(geometry, (3, 2), (5, 6), (4, 6))
    inputs, output_gradients, truth = arguments
    shape = truth.shape[1:]
    together = convolution_weight_gradients(inputs, output_gradients, shape, geometry)
    monkeypatch.setattr(convolution, "GROUPED_KERNEL_ENTRIES", 1)
    alone = convolution_weight_gradients(inputs, output_gradients, shape, geometry)
    assert relative_error(alone, truth) < 1e-12
    assert relative_error(together, truth) < 1e-12


LAYERS = {
    "1d": (lambda: nn.Conv1d(2, 3, 3), (2, 7)),
    "1d strided": (lambda: nn.Conv1d(2, 3, 2, stride=3), (2, 7)),
    "1d dilated": (lambda: nn.Conv1d(2, 3, 3, dilation=2, padding=1), (2, 7)),
    "1d depthwise": (lambda: nn.Conv1d(3, 6, 3, groups=3), (3, 7)),
    "1d without bias": (lambda: nn.Conv1d(2, 3, 3, bias=False), (2, 7)),
    "2d": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 6)),
    "2d even kernel": (lambda: nn.Conv2d(2, 3, (2, 4), padding=(1, 2)), (2, 5, 6)),
    "2d all at once": (
        lambda: nn.Conv2d(4, 6, (3, 2), (2, 1), (2, 1), (1, 2), groups=2),
        (4, 5, 6),
    ),
    "2d one by one": (lambda: nn.Conv2d(2, 3, 1), (2, 4, 4)),
    "2d whole image": (lambda: nn.Conv2d(2, 3, 4), (2, 4, 4)),
    "2d same": (lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 5, 5)),
    "2d valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 5, 5)),
    "2d circular": (
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular", stride=2),
        (2, 5, 5),
    ),
    "2d reflected": (
        lambda: nn.Conv2d(2, 3, 3, padding="same", padding_mode="reflect"),
        (2, 5, 5),
    ),
    "3d": (lambda: nn.Conv3d(2, 3, 2), (2, 3, 4, 3)),
    "3d all at once": (
        lambda: nn.Conv3d(2, 4, (2, 1, 3), (1, 2, 1), (1, 0, 1), (2, 1, 1), groups=2),
        (2, 4, 3, 4),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    make, shape = LAYERS[name]
    first = nn.Conv2d(shape[0], shape[0], 1) if len(shape) == 3 else nn.Tanh()
    module = nn.Sequential(first, make(), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(4))
    module(torch.randn(2, *shape))
    check_gradients(module, (torch.randn(N, *shape), labels()))


@pytest.mark.parametrize("kernel, dilation", [(2, 1), (4, 1), (4, 3)])
def test_same_padding_of_an_even_kernel_is_uneven(kernel, dilation):
    module = nn.Sequential(
        nn.Conv1d(2, 3, kernel, padding="same", dilation=dilation), nn.Tanh(), nn.Flatten(),
        nn.Linear(21, 4),
    )  # fmt: skip
    data = torch.randn(N, 2, 7), labels()
    check_gradients(module, data, differentiated=None)


def test_functional_with_keywords_and_lists():
    from gradient_checks import Written, parameter

    def forward(self, x):
        x = functional.conv2d(x, weight=self.weight, stride=[2, 1], padding=[1], bias=self.bias)
        return self.last(torch.tanh(x).flatten(1))

    module = Written(
        forward,
        weight=parameter(3, 2, 3, 3),
        bias=parameter(3),
        last=nn.Linear(45, 4),
    )
    check_gradients(module, (torch.randn(N, 2, 5, 5), labels()))


def test_empty_rows_of_zero_output_gradient():
    """An instance whose output gradient is zero has a gradient of exactly zero."""
    geometry = Geometry((1,), (0,), (1,), 1)
    inputs, gradients = torch.randn(3, 2, 5), torch.randn(3, 4, 3)
    gradients[1] = 0
    form = Convolution(inputs, gradients, torch.Size((4, 2, 3)), geometry)
    assert not form.materialise()[1].any()
    assert form.materialise()[0].any()
