r"""Subspaces of a layer's gradients, ``L^T G R`` with few orthonormal columns in L and R.

Gradients in such coordinates are those of a model whose weight may move only as
:math:`W + L B R^T`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.gradients.kfac.covariances import Covariances
from proponent.gradients.kfac.layers import Kind, Layer
from proponent.gradients.layer_maps import mapped, matrices, pieces, sides
from proponent.gradients.products import Gradients
from proponent.gradients.projection import generator


@dataclass(frozen=True)
class Subspace:
    """A subspace of one layer's gradients.

    Attributes
    ----------
    layer : Layer
        The layer.
    left, right : Tensor of shape (rows, a), (columns, c)
        Orthonormal bases, in columns.
    """

    layer: Layer
    left: Tensor
    right: Tensor

    @property
    def width(self) -> int:
        """Number of dimensions, ``a c``."""
        return self.left.shape[1] * self.right.shape[1]

    def coordinates(self, gradients: Gradients, n: int, memory: int) -> Tensor:
        """Return the coordinates of n gradients, ``(n, width)``; working memory in bytes."""
        result = self.left.new_zeros(n, self.left.shape[1], self.right.shape[1])
        entries = self.left.shape[1] + self.right.shape[1]
        for where, piece in pieces(self.layer, gradients, entries, memory):
            factors = mapped(self.layer, piece, self.left, self.right, self.width)
            if factors is None:
                result[where] = self.left.T @ matrices(self.layer, piece) @ self.right
            else:
                for part in factors:
                    result[where] += part.left.mT @ part.right
        return result.flatten(1)


def basis_sizes(layer: Layer, rank: int) -> tuple[int, int]:
    """Return how many vectors the left and the right basis of a layer have.

    ``rank`` each, or as many as a side has where those are fewer; a parameter that is no matrix
    has one basis, of up to ``rank^2`` vectors.
    """
    rows, columns = sides(layer)
    return (min(rows, rank**2), 1) if columns == 1 else (min(rows, rank), min(columns, rank))


def subspaces(
    layers: Sequence[Layer],
    rank: int,
    seed: object,
    like: Tensor,
    covariances: Covariances | None = None,
) -> list[Subspace]:
    """Return a subspace of each layer's gradients.

    Parameters
    ----------
    layers : sequence of Layer
        The layers.
    rank : int
        As for :func:`basis_sizes`.
    seed : object
        Fixes random bases.
    like : Tensor
        Has the dtype and device of the bases.
    covariances : Covariances, optional
        Of the layers' factors: the bases are then their leading eigenvectors, where a layer has
        both (an embedding has not: its leading vectors would be its most frequent entries). None:
        random.
    """
    found = []
    for layer in layers:
        sums: tuple[Tensor, ...] = ()
        if covariances is not None and layer.kind is Kind.KRONECKER:
            sums = (covariances.sums[layer.weight].left, covariances.sums[layer.weight].right)
        bases = []
        for side, size in enumerate(basis_sizes(layer, rank)):
            total = sides(layer)[side]
            if size == total:
                basis = torch.eye(total, dtype=torch.float64)  # all bases of the whole are as good
            elif sums:
                basis = torch.linalg.eigh(sums[side])[1][:, -size:]
            else:
                drawn = generator(seed, "subspace", layer.weight, side)
                normal = torch.randn(total, size, generator=drawn, dtype=torch.float64)
                basis = torch.linalg.qr(normal)[0]
            bases.append(basis.to(like))
        found.append(Subspace(layer, *bases))
    return found


def as_tensors(spaces: Sequence[Subspace]) -> dict[str, Tensor]:
    """Return the bases by name, for :func:`from_tensors`."""
    left = {f"{space.layer.weight}/left": space.left for space in spaces}
    return left | {f"{space.layer.weight}/right": space.right for space in spaces}


def from_tensors(layers: Sequence[Layer], tensors: Mapping[str, Tensor]) -> list[Subspace]:
    """Return the subspaces whose bases :func:`as_tensors` returned."""
    return [
        Subspace(layer, tensors[f"{layer.weight}/left"], tensors[f"{layer.weight}/right"])
        for layer in layers
    ]
