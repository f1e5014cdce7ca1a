"""Which parameters share a block of the Kronecker-factored curvature, and how it factorises."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.gradients.coverage import TOLERANCE
from proponent.gradients.forms import Form, Uses
from proponent.gradients.products import Gradients
from proponent.gradients.tokens import Tokens


class Kind(Enum):
    """How a block of the curvature factorises."""

    KRONECKER = "kronecker"  # left and right factors: linear layers, convolutions
    LOOKUP = "lookup"  # left factors are unit vectors: embeddings
    DIAGONAL = "diagonal"  # no factors: norms, biases on their own, tied weights


@dataclass(frozen=True)
class Layer:
    """One block: a weight, perhaps with the bias of the same layer.

    Gradients of the weight are ``sum_t left_t right_t^T``. A bias is taken into the matrix by
    the homogeneous coordinate: ``[W b]`` has gradients ``sum_t left_t [right_t; 1]^T``.

    Attributes
    ----------
    name : str
        The layer's name in messages: its module, or the parameter.
    kind : Kind
        How the block factorises.
    weight : str
        Name of the weight, or of the only parameter.
    shape : tuple of int
        The weight's shape.
    bias : str, optional
        Name of the bias that is taken in.
    bias_on_left : bool
        Whether the homogeneous coordinate is on the left: for weights that stand transposed, as
        in ``x @ W + b``, whose right factors are the output gradients.
    note : str
        Why the block is diagonal, where that is no matter of course.
    """

    name: str
    kind: Kind
    weight: str
    shape: tuple[int, ...]
    bias: str | None = None
    bias_on_left: bool = False
    note: str = ""

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters of the block."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def rows(self) -> int:
        """Length of the left factors, the homogeneous coordinate included."""
        return self.shape[0] + int(self.bias is not None and self.bias_on_left)

    @property
    def columns(self) -> int:
        """Length of the right factors, the homogeneous coordinate included."""
        return math.prod(self.shape[1:]) + int(self.bias is not None and not self.bias_on_left)

    @property
    def diagonal(self) -> bool:
        """Whether the block has no factors."""
        return self.kind is Kind.DIAGONAL

    @property
    def entries(self) -> int:
        """Number of eigenvalues."""
        return math.prod(self.eigenvalue_shape)

    @property
    def eigenvalue_shape(self) -> tuple[int, ...]:
        """Shape in which the block's eigenvalues are held."""
        return self.shape if self.kind is Kind.DIAGONAL else (self.rows, self.columns)

    def tokens(self, forms: Mapping[str, Form]) -> Tokens | None:
        """Return the weight's factors, without the homogeneous coordinate.

        The uses of a weight that is used several times follow each other along the positions.
        None where there are no factors in these gradients.
        """
        form = forms.get(self.weight)
        tokens = None if form is None else form.tokens()
        if not tokens or len({part.one_hot for part in tokens}) > 1:
            return None
        if len(tokens) == 1:
            return tokens[0]
        return Tokens(
            torch.cat([part.left for part in tokens], 1),
            torch.cat([part.right for part in tokens], 1),
        )

    def active(self, tokens: Tokens) -> Tensor:
        """Return which positions count, (n, T): those whose outer product is not zero.

        Masked and padded positions have an output gradient of zero.
        """
        # A side with the homogeneous coordinate is never zero.
        sides = [] if self.bias is not None and not self.bias_on_left else [tokens.right]
        if not tokens.one_hot and not (self.bias is not None and self.bias_on_left):
            sides.append(tokens.left)
        counted = torch.stack([side.sum(2) != 0 for side in sides]).all(0)
        if counted.all():
            return counted  # a sum that is not zero settles it, and is the rule
        sizes = [side.abs().amax(2) for side in sides]
        counted = sizes[0] != 0
        for size in sizes[1:]:
            # Zero times what is not finite is not zero: it has to come to light.
            counted = (counted & (size != 0)) | ~torch.isfinite(sizes[0] + size)
        return counted

    def describe(self) -> dict[str, Any]:
        """Return the layer as JSON."""
        return {**asdict(self), "kind": self.kind.value, "shape": list(self.shape)}

    @classmethod
    def described(cls, entries: Mapping[str, Any]) -> Layer:
        """Return the layer that :meth:`describe` wrote."""
        changed = {"kind": Kind(entries["kind"]), "shape": tuple(entries["shape"])}
        return cls(**{**entries, **changed})


def find_layers(
    forms: Mapping[str, Form], shapes: Mapping[str, torch.Size], exclude: Sequence[str] = ()
) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
    """Find the blocks from the captured gradients of a few instances.

    Parameters
    ----------
    forms : mapping
        Gradients by parameter; one without gradients here gets a diagonal block.
    shapes : mapping
        The shapes of all chosen parameters.
    exclude : sequence of str
        Names or globs of parameters to leave out.

    Returns
    -------
    layers, excluded
        The blocks in the parameters' order, and the names of the parameters left out.

    Raises
    ------
    InvalidInputError
        If an entry of ``exclude`` matches no parameter, or nothing is left.
    """
    excluded = tuple(
        name for name in shapes if any(name == part or fnmatchcase(name, part) for part in exclude)
    )
    idle = [part for part in exclude if not any(fnmatchcase(name, part) for name in shapes)]
    idle = [part for part in idle if part not in shapes]
    if idle or len(excluded) == len(shapes):
        raise InvalidInputError(
            f"exclude={list(exclude)!r}: "
            + (f"nothing matches {idle[0]!r}" if idle else "no parameter is left")
            + f"; the chosen parameters are {', '.join(shapes)}."
        )
    kept = {name: tuple(shape) for name, shape in shapes.items() if name not in excluded}
    layers: dict[str, Layer] = {}
    for name, shape in kept.items():
        layers[name] = _layer(name, shape, forms.get(name))
    for name, layer in list(layers.items()):
        bias = name.removesuffix("weight") + "bias"
        if layer.kind is Kind.KRONECKER and name.endswith("weight") and bias in layers:
            paired = _with_bias(layer, bias, forms)
            if paired is not None:
                layers[name] = paired
                del layers[bias]
    return tuple(layers.values()), excluded


def _layer(name: str, shape: tuple[int, ...], form: Form | None) -> Layer:
    # A module's name where it has one weight; parameters of other names go by their own.
    module = name.removesuffix(".weight")
    tokens = None if form is None else form.tokens()
    if form is None:
        return Layer(name, Kind.DIAGONAL, name, shape, note="no gradient in the first instances")
    if not tokens:
        note = "its gradients have no factors" if len(shape) > 1 else ""
        return Layer(name, Kind.DIAGONAL, name, shape, note=note)
    one_hot = {part.one_hot for part in tokens}
    if len(one_hot) > 1:
        note = "tied: its uses factorise in different ways"
        return Layer(name, Kind.DIAGONAL, name, shape, note=note)
    return Layer(module, Kind.LOOKUP if one_hot == {True} else Kind.KRONECKER, name, shape)


def _with_bias(layer: Layer, bias: str, forms: Mapping[str, Form]) -> Layer | None:
    """Take a bias in if its gradients are the sums of one side's factors; else None."""
    tokens, form = layer.tokens(forms), forms.get(bias)
    if tokens is None or form is None:
        return None
    gradients = form.flat()
    tolerance = 10 * TOLERANCE.get(gradients.dtype, 1e-4)
    for on_left, side in ((False, tokens.left), (True, tokens.right)):
        sums = side.sum(1)
        scale = tolerance * side.abs().sum(1).max() + torch.finfo(sums.dtype).tiny
        if sums.shape == gradients.shape and (sums - gradients).abs().max() <= scale:
            return Layer(layer.name, layer.kind, layer.weight, layer.shape, bias, on_left)
    return None


def pieces(layer: Layer, forms: Gradients, memory: int) -> Iterator[dict[str, Form]]:
    """Cut a layer's gradients into instances whose factors fit the memory."""
    own = {name: forms[name] for name in layer.parameters if name in forms}
    form = own.get(layer.weight)
    if form is None:
        if own:
            yield own
        return
    entries = 2 * form.positions * form.width
    if isinstance(form, Uses):
        entries *= 2  # their concatenation
    rows = max(1, memory // max(1, entries * form.like.element_size()))
    if rows >= form.n:
        yield own
        return
    for start in range(0, form.n, rows):
        yield {name: part[start : start + rows] for name, part in own.items()}
