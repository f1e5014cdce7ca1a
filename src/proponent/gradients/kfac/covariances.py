r"""The first pass: uncentred covariances of the factors, as sums that add up over shards.

.. math:: A = \frac{1}{N} \sum_{i,t} a_{it} a_{it}^T, \qquad
          S = \frac{1}{n} \sum_{i,t} d_{it} d_{it}^T,

with N the number of positions that count: masked ones, whose outer product is zero, enter
neither sum nor count. Then ``S (x) A`` estimates ``(1/n) sum_i vec(G_i) vec(G_i)^T`` with the
positions taken for independent; for one position an instance it is K-FAC's own definition.

**Source**: Martens & Grosse (2015), sections 3 and 6.3; Grosse & Martens (2016) for
convolutions; Grosse et al. (2023), section 2.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.gradients.forms import Form
from proponent.gradients.kfac.layers import Kind, Layer, pieces
from proponent.gradients.kfac.squares import add_squares
from proponent.gradients.tokens import Tokens

# A Gram matrix is computed in columns of this width, below the diagonal alone.
GRAM_COLUMNS = 128
# Batches whose products are summed in the gradients' own precision before they enter the sums.
BATCHES_APART = 16


@dataclass
class LayerSums:
    """Sums over instances for one layer, in float64.

    Attributes
    ----------
    left : Tensor
        ``sum left left^T`` (rows, rows), of which the lower triangle is filled; for a lookup the
        counts of its entries (rows,); for a diagonal block the sums of squared gradients.
    right : Tensor
        ``sum right right^T`` (columns, columns), likewise; empty for a diagonal block.
    positions : int
        How many positions counted.
    """

    left: Tensor
    right: Tensor
    positions: int = 0
    _parts: dict[str, Tensor] = field(default_factory=dict, repr=False)
    _batches: int = 0

    @classmethod
    def zero(cls, layer: Layer, device: torch.device) -> LayerSums:
        """Return empty sums for a layer."""
        rows, columns = layer.rows, layer.columns
        shapes: dict[Kind, tuple[tuple[int, ...], tuple[int, ...]]] = {
            Kind.KRONECKER: ((rows, rows), (columns, columns)),
            Kind.LOOKUP: ((rows,), (columns, columns)),
            Kind.DIAGONAL: (layer.shape, (0,)),
        }
        left, right = shapes[layer.kind]
        empty = torch.zeros(0, dtype=torch.float64, device=device)
        return cls(empty.new_zeros(left), empty.new_zeros(right))

    def __add__(self, other: LayerSums) -> LayerSums:
        """Return the sums over both sets of instances."""
        return LayerSums(
            self.left + other.left, self.right + other.right, self.positions + other.positions
        )

    def part(self, side: Literal["left", "right"], dtype: torch.dtype) -> Tensor:
        """Return what products of factors of this precision are to be added to."""
        total: Tensor = getattr(self, side)
        if dtype == total.dtype:
            return total
        if side not in self._parts:
            self._parts[side] = torch.zeros_like(total, dtype=dtype)
        return self._parts[side]

    def end_batch(self) -> bool:
        """Move on to the next batch; return whether all sums are finite."""
        self._batches += 1
        # An entry of a covariance is bounded by those of the diagonal.
        sums = [s for s in (self.left, self.right, *self._parts.values()) if s.numel()]
        square = self.right.numel() > 0
        ends = [s.diagonal() if square and s.ndim == 2 else s for s in sums]
        finite = all(bool(torch.isfinite(end.sum())) for end in ends)
        if self._batches % BATCHES_APART == 0:
            self.gather()
        return finite

    def gather(self) -> None:
        """Add what was summed in another precision to the sums."""
        for side, part in self._parts.items():
            getattr(self, side).add_(part)
        self._parts.clear()


@dataclass
class Covariances:
    """Sums of the first pass over n instances; those of disjoint shards add up with ``+``.

    Attributes
    ----------
    layers : tuple of Layer
        The blocks.
    sums : dict
        The sums of each layer, by its weight.
    n : int
        Number of instances.
    excluded : tuple of str
        Parameters left out.
    failed : dict
        Layers with gradients that are not finite, by their weight, and what was seen.
    """

    layers: tuple[Layer, ...]
    sums: dict[str, LayerSums]
    n: int = 0
    excluded: tuple[str, ...] = ()
    failed: dict[str, str] = field(default_factory=dict)

    def __add__(self, other: Covariances) -> Covariances:
        """Return the sums over both sets of instances.

        Raises
        ------
        InvalidInputError
            If they are of different layers.
        """
        if self.layers != other.layers or self.excluded != other.excluded:
            raise InvalidInputError(
                "covariances of different layers cannot be added; fit all shards with the same "
                "model, parameters and exclude."
            )
        failed = {**self.failed, **other.failed}
        sums = {
            name: self.sums[name] + other.sums[name] for name in self.sums if name not in failed
        }
        return Covariances(self.layers, sums, self.n + other.n, self.excluded, failed)

    def add(self, forms: Mapping[str, Form], n: int, ids: Sequence[object], memory: int) -> None:
        """Add the gradients of n further instances."""
        self.n += n
        for layer in self.layers:
            if layer.weight in self.failed or layer.weight not in forms:
                continue
            _accumulate(layer, forms, self.sums[layer.weight], memory)
            if not self.sums[layer.weight].end_batch():
                self.failed[layer.weight] = blame(layer, forms, ids)
                del self.sums[layer.weight]

    def gather(self) -> None:
        """Finish the sums after the last batch."""
        for sums in self.sums.values():
            sums.gather()


def _accumulate(layer: Layer, forms: Mapping[str, Form], sums: LayerSums, memory: int) -> None:
    form = forms[layer.weight]
    if layer.diagonal:
        add_squares(sums.left, form)
        return
    for piece in pieces(layer, {layer.weight: form}, memory):
        tokens = layer.tokens(piece)
        if tokens is None or tokens.one_hot != (layer.kind is Kind.LOOKUP):
            raise InvalidInputError(
                f"layer {layer.name!r}: its gradients factorise for some batches and not for "
                f"others, because the forward pass differs between them. Leave it out with "
                f"exclude=[{layer.weight!r}], or make the forward pass the same for all instances."
            )
        _add_tokens(layer, tokens, sums)


def _add_tokens(layer: Layer, tokens: Tokens, sums: LayerSums) -> None:
    counted = layer.active(tokens)
    positions = int(counted.sum())
    left, right = tokens.left.flatten(0, 1), tokens.right.flatten(0, 1)
    if positions < counted.numel():
        chosen = counted.flatten().nonzero()[:, 0]
        # The output gradients of a layer with a bias are zero wherever a position does not count.
        left = left if layer.bias is not None and not layer.bias_on_left else left[chosen]
        right = right if layer.bias_on_left else right.index_select(0, chosen)
    sums.positions += positions
    homogeneous = layer.bias is not None
    _add_gram(right, sums.part("right", right.dtype), homogeneous and not layer.bias_on_left)
    if layer.kind is Kind.LOOKUP:
        sums.left.add_(torch.bincount(left, minlength=layer.rows))
    else:
        _add_gram(left, sums.part("left", left.dtype), homogeneous and layer.bias_on_left)


def _add_gram(factors: Tensor, total: Tensor, homogeneous: bool) -> None:
    """Add the lower triangle of ``sum_t a_t a_t^T``, with a 1 behind each factor if homogeneous."""
    d = factors.shape[1]
    for start in range(0, d, GRAM_COLUMNS):
        columns = slice(start, min(start + GRAM_COLUMNS, d))
        total[start:d, columns].addmm_(factors[:, start:].T, factors[:, columns])
    if homogeneous:
        total[d, :d].add_(factors.sum(0))
        total[d, d].add_(len(factors))


def blame(layer: Layer, forms: Mapping[str, Form], ids: Sequence[object]) -> str:
    """Say which instances' gradients are not finite."""
    wrong = [
        str(ids[i])
        for i in range(forms[layer.weight].n)
        if not torch.isfinite(forms[layer.weight][i : i + 1].materialise()).all()
    ]
    if not wrong:
        return "the squares of its gradients overflow: use dtype=torch.float64"
    listed = ", ".join(wrong[:10]) + (", ..." if len(wrong) > 10 else "")
    return f"the gradients of {len(wrong)} instance(s) are not finite: ids {listed}"
