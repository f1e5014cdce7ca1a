"""Test gradients times the inverse of Kronecker factors, ready to meet training gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from typing_extensions import override

from proponent.gradients.contraction import contract
from proponent.gradients.kfac.blocks import Block
from proponent.gradients.kfac.layers import pieces
from proponent.gradients.products import Gradients, Products, Query, squared_norms

if TYPE_CHECKING:
    from proponent.gradients.kfac.precondition import Preconditioner

# Factors that are rotated, and vectors that are rotated back, at a time.
PIECE_BYTES = 32 * 2**20


@dataclass(frozen=True)
class BlockVectors:
    """What m test gradients have become in one block of the curvature.

    Attributes
    ----------
    block : Block
        The block.
    coordinates : Tensor, optional
        In the eigenbasis, ``(m, *eigenvalue_shape)``: training gradients are rotated to meet them.
    vectors : dict
        Parameter by parameter ``(m, *shape)``, which meet training gradients as they are; empty
        where there are coordinates.
    """

    block: Block
    coordinates: Tensor | None
    vectors: dict[str, Tensor]

    def meet(self, train: Gradients, total: Tensor) -> None:
        """Add the products with training gradients to ``total`` (n, m)."""
        for name, vectors in self.vectors.items():
            if name in train:
                total += contract(train[name], vectors)
        if self.coordinates is None:
            return
        start = 0
        for piece in pieces(self.block.layer, train, PIECE_BYTES):
            rotated = self.block.rotate_gradients(piece)
            if rotated is not None:
                total[start : start + rotated.n] += contract(rotated, self.coordinates)
                start += rotated.n


@dataclass
class KroneckerQuery(Query):
    """Test gradients times ``(C + shift I)^{-1}``, ready to meet training gradients.

    A block's test gradients are preconditioned in the eigenbasis. They stay there, and training
    gradients are rotated to meet them, or are rotated back, whichever multiplies less.

    Parameters
    ----------
    preconditioner : Preconditioner
        The factors.
    parts : sequence of gradients
        Of consecutive batches of test instances.
    sizes : sequence of int
        Number of test instances in each.

    Attributes
    ----------
    blocks : list of BlockVectors
        The preconditioned gradients, block by block.
    """

    preconditioner: Preconditioner
    parts: InitVar[Sequence[Gradients]]
    sizes: Sequence[int]
    blocks: list[BlockVectors] = field(init=False, repr=False)

    def __post_init__(self, parts: Sequence[Gradients]) -> None:
        """Rotate and divide the test gradients."""
        made = self.preconditioner
        self.blocks = [
            self._preconditioned(block, inverse, parts)
            for block, inverse in zip(made.blocks, made.inverses, strict=True)
        ]

    @override
    def __len__(self) -> int:
        return sum(self.sizes)

    @override
    def meet(
        self, train: Gradients, n: int, *, norms: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``g_i^T (C + shift I)^{-1} g_te``, (n, m), and, if wanted, ``||g_i||^2``, (n,)."""
        made = self.preconditioner
        total = torch.zeros(n, len(self), dtype=made.dtype, device=made.space.device)
        for block in self.blocks:
            block.meet(train, total)
        return total, squared_norms(train, n, Products()) if norms else None

    def _preconditioned(
        self, block: Block, inverse: Tensor, parts: Sequence[Gradients]
    ) -> BlockVectors:
        m, layer = len(self), block.layer
        forms = [part[layer.weight] for part in parts if layer.weight in part]
        positions = max((form.positions for form in forms), default=0)
        if not self._rotating_back_pays(block, positions):
            coordinates = inverse.new_zeros(m, *inverse.shape)
            for rows, values in self._coordinates(block, inverse, parts):
                coordinates[rows] = values
            return BlockVectors(block, coordinates, {})
        space = self.preconditioner.space
        shapes = {name: space.shapes[space.names.index(name)] for name in layer.parameters}
        vectors = {name: inverse.new_zeros(m, *shape) for name, shape in shapes.items()}
        for rows, values in self._coordinates(block, inverse, parts):
            for name, part in block.unrotate(values).items():
                vectors[name][rows] = part
        return BlockVectors(block, None, vectors)

    def _coordinates(
        self, block: Block, inverse: Tensor, parts: Sequence[Gradients]
    ) -> Iterator[tuple[slice, Tensor]]:
        """Go through the preconditioned gradients in the eigenbasis, some at a time."""
        at_once = max(1, PIECE_BYTES // (inverse.numel() * inverse.element_size()))
        first = 0
        for part, size in zip(parts, self.sizes, strict=True):
            start = first
            for piece in pieces(block.layer, part, PIECE_BYTES):
                rotated = block.rotate_gradients(piece)
                if rotated is None:
                    continue
                for row in range(0, rotated.n, at_once):
                    some = rotated[row : row + at_once]
                    rows = slice(start + row, start + row + some.n)
                    yield rows, some.materialise() * inverse
                start += rotated.n
            first += size

    def _rotating_back_pays(self, block: Block, positions: int) -> bool:
        """Whether m matrices are sooner rotated back than n gradients to the eigenbasis."""
        rows, columns = block.layer.rows, block.layer.columns
        sides = [0 if block.left is None else rows, 0 if block.right is None else columns]
        back = len(self) * block.layer.entries * sum(sides)
        if not positions:  # without factors the gradients themselves are rotated
            return len(self) <= self.preconditioner.n
        return back <= self.preconditioner.n * positions * sum(side**2 for side in sides)
