"""Layers of every kind, with random gradients in every form, and as plain matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from gradients.form_examples import (
    SHAPE,
    convolution,
    convolution_twice,
    dense,
    dense_kernel,
    grouped,
    kernel_as_matrix,
    lookup,
    outer,
    uses,
    uses_with_dense,
    written_out,
)
from torch import Tensor

from proponent.gradients.forms import Dense, Form, Lookup, Outer
from proponent.gradients.kfac.layers import Kind, Layer


@dataclass(frozen=True)
class LayerExample:
    """A layer, its gradients by parameter, and the same as matrices (n, rows, columns)."""

    layer: Layer
    gradients: dict[str, Form]
    matrices: Tensor


def _alone(form: Form, kind: Kind) -> LayerExample:
    layer = Layer("layer", kind, "layer.weight", tuple(form.shape))
    rows = form.shape[0] if form.shape else 1
    matrices = written_out(form).reshape(form.n, rows, -1)
    return LayerExample(layer, {"layer.weight": form}, matrices)


def with_bias(n: int, on_left: bool = False) -> LayerExample:
    """A weight and the bias whose gradients are the sums of one side's factors."""
    left, right = torch.randn(n, 3, 4), torch.randn(n, 3, 6)
    weight, bias = Outer(left, right, SHAPE), Dense((right if on_left else left).sum(1))
    layer = Layer("layer", Kind.KRONECKER, "layer.weight", SHAPE, "layer.bias", on_left)
    border = bias.gradients[:, None, :] if on_left else bias.gradients[:, :, None]
    matrices = torch.cat([written_out(weight), border], 1 if on_left else 2)
    return LayerExample(layer, {"layer.weight": weight, "layer.bias": bias}, matrices)


def with_bias_on_left(n: int) -> LayerExample:
    return with_bias(n, on_left=True)


def with_bias_and_no_factors(n: int) -> LayerExample:
    """As one batch may have to be differentiated where another was captured."""
    example = with_bias(n)
    whole = {name: Dense(form.materialise()) for name, form in example.gradients.items()}
    return LayerExample(example.layer, whole, example.matrices)


def without_the_weight(n: int) -> LayerExample:
    """The risk of these instances depends on the bias alone."""
    example = with_bias(n)
    bias = {"layer.bias": example.gradients["layer.bias"]}
    matrices = torch.cat([torch.zeros(n, *SHAPE), example.matrices[:, :, -1:]], 2)
    return LayerExample(example.layer, bias, matrices)


def linear(n: int) -> LayerExample:
    return _alone(outer(n, 1), Kind.KRONECKER)


def sequence(n: int) -> LayerExample:
    return _alone(outer(n), Kind.KRONECKER)


def embedding(n: int) -> LayerExample:
    return _alone(lookup(n), Kind.LOOKUP)


def embedding_and_no_factors(n: int) -> LayerExample:
    form = Lookup(torch.randint(0, 4, (n, 3)), torch.randn(n, 3, 6), SHAPE)
    return _alone(Dense(written_out(form)), Kind.LOOKUP)


def tied(n: int) -> LayerExample:
    return _alone(uses(n), Kind.DIAGONAL)


def partly_without_factors(n: int) -> LayerExample:
    return _alone(uses_with_dense(n), Kind.DIAGONAL)


def matrix_without_factors(n: int) -> LayerExample:
    return _alone(dense(n), Kind.DIAGONAL)


def convolutional(n: int) -> LayerExample:
    return _alone(convolution(n), Kind.KRONECKER)


def called_twice(n: int) -> LayerExample:
    return _alone(convolution_twice(n), Kind.KRONECKER)


def grouped_convolution(n: int) -> LayerExample:
    return _alone(grouped(n), Kind.DIAGONAL)


def kernel(n: int) -> LayerExample:
    return _alone(kernel_as_matrix(n), Kind.KRONECKER)


def kernel_without_factors(n: int) -> LayerExample:
    return _alone(dense_kernel(n), Kind.DIAGONAL)


def vector(n: int) -> LayerExample:
    return _alone(Dense(torch.randn(n, 11)), Kind.DIAGONAL)


def scalar(n: int) -> LayerExample:
    return _alone(Dense(torch.randn(n)), Kind.DIAGONAL)


LAYERS = (
    with_bias, with_bias_on_left, with_bias_and_no_factors, without_the_weight, linear, sequence,
    embedding, embedding_and_no_factors, tied, partly_without_factors, matrix_without_factors,
    convolutional, called_twice, grouped_convolution, kernel, kernel_without_factors, vector,
    scalar,
)  # fmt: skip
