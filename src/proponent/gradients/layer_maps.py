"""Linear maps of a layer's gradients from both sides, ``L^T G R``, by the factors of G.

With ``G_i = sum_t l_it r_it^T`` only the factors are mapped, to ``L^T l_it`` and ``R^T r_it``. The
bias of a layer is a column of its matrix (the homogeneous coordinate), or a row where the weight
stands transposed; a parameter that is no matrix is a matrix of one column.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.data import Instances
from proponent.gradients.capture import GradientCapture
from proponent.gradients.forms import Form
from proponent.gradients.kfac.layers import Kind, Layer, find_layers
from proponent.gradients.products import Gradients
from proponent.gradients.tokens import Tokens

# Training instances from whose gradients the layers are read off.
LOOKED_AT = 3


@dataclass(frozen=True)
class Factors:
    """Mapped factors of n gradients, ``sum_t left_it right_it^T``: (n, T, a) and (n, T, c)."""

    left: Tensor
    right: Tensor


def layers_of(capture: GradientCapture, instances: Instances) -> tuple[Layer, ...]:
    """Return the layers that the chosen parameters form, each parameter in exactly one."""
    model, rows = capture.model, slice(0, min(len(instances), LOOKED_AT))
    with model.evaluating():
        forms = capture(model.prepare(instances.batch(rows)), instances.ids[rows])
    shapes = {name: parameter.shape for name, parameter in model.selected.items()}
    return find_layers(forms, shapes)[0]


def sides(layer: Layer) -> tuple[int, int]:
    """Return the numbers of rows and columns of a layer's gradient as a matrix."""
    if layer.diagonal:
        return (layer.shape[0] if layer.shape else 1), math.prod(layer.shape[1:])
    return layer.rows, layer.columns


def pieces(
    layer: Layer, gradients: Gradients, entries: int, memory: int
) -> Iterator[tuple[slice, Gradients]]:
    """Cut a layer's gradients into instances whose factors, and what is made of them, fit memory.

    Parameters
    ----------
    layer : Layer
        The layer.
    gradients : mapping
        Of n instances, by parameter; nothing comes out if none is the layer's.
    entries : int
        Numbers that are made of one position of an instance.
    memory : int
        Bytes.
    """
    own = {name: gradients[name] for name in layer.parameters if name in gradients}
    if not own:
        return
    form = own.get(layer.weight, next(iter(own.values())))
    each = form.positions * (form.width + entries) or form.numel + entries * sides(layer)[0]
    size = max(1, memory // (each * form.like.element_size()))
    for start in range(0, form.n, size):
        rows = slice(start, min(start + size, form.n))
        yield rows, {name: part[rows] for name, part in own.items()}


def mapped(
    layer: Layer, gradients: Gradients, left: Tensor, right: Tensor, combined: int
) -> list[Factors] | None:
    """Return the factors of a layer's gradients, mapped, for each use of its weight.

    Parameters
    ----------
    layer : Layer
        The layer.
    gradients : mapping
        Of n instances, by parameter.
    left, right : Tensor of shape (rows, a), (columns, c)
        The maps L and R.
    combined : int
        Numbers that a pair of mapped factors makes.

    Returns
    -------
    list of Factors, or None
        None where these gradients have no factors, or to map :func:`matrices` is cheaper.
    """
    form = gradients.get(layer.weight)
    if form is None or not _by_factors(layer, form, left, right, combined):
        return None
    tokens = _tokens(layer, form)
    if tokens is None:
        return None
    bordered = layer.bias is not None
    return [
        Factors(
            _mapped(part.left, left, bordered and layer.bias_on_left),
            _mapped(part.right, right, bordered and not layer.bias_on_left),
        )
        for part in tokens
    ]


def matrices(layer: Layer, gradients: Gradients) -> Tensor:
    """Return a layer's gradients themselves, ``(n, rows, columns)``."""
    rows, columns = sides(layer)
    form = next(gradients[name] for name in layer.parameters if name in gradients)
    whole = form.like.new_zeros(form.n, rows, columns)
    weight, bias = whole, None
    if layer.bias is not None:
        weight = whole[:, :-1] if layer.bias_on_left else whole[:, :, :-1]
        bias = whole[:, -1] if layer.bias_on_left else whole[:, :, -1]
    if layer.weight in gradients:
        weight.copy_(gradients[layer.weight].flat().view(weight.shape))
    for name in layer.parameters[1:]:
        if bias is not None and name in gradients:
            bias.copy_(gradients[name].flat())
    return whole


def _by_factors(layer: Layer, form: Form, left: Tensor, right: Tensor, combined: int) -> bool:
    """Whether to map the factors takes fewer multiply-adds than to map the gradients."""
    (rows, a), (columns, c) = left.shape, right.shape
    factored = form.positions * (rows * a + columns * c + combined)
    whole = form.materialise_cost + rows * columns * min(a, c) + rows * combined
    return columns == 1 or layer.kind is Kind.LOOKUP or 0 < factored <= whole


def _tokens(layer: Layer, form: Form) -> list[Tokens] | None:
    if sides(layer)[1] == 1:
        column = form.flat()[:, None, :]
        return [Tokens(column, column.new_ones(form.n, 1, 1))]
    return form.tokens()


def _mapped(factors: Tensor, matrix: Tensor, bordered: bool) -> Tensor:
    """Return ``M^T a`` of each factor a, with a 1 behind it where the matrix has a border."""
    if not factors.is_floating_point():
        return matrix[factors]  # unit vectors, held by their index
    if bordered:
        return torch.add(factors @ matrix[:-1], matrix[-1])
    return factors @ matrix
