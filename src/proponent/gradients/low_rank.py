r"""Compression of queries to low rank, so that many test gradients are held at a time.

What it loses is reported: with the relative error e_j of the test gradient x_j, its product with
a training gradient is off by at most ``e_j ||x_j|| ||g_i||``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.gradients.kfac.query import BlockVectors, KroneckerQuery
from proponent.gradients.low_rank_query import LowRank, LowRankQuery
from proponent.gradients.products import VectorQuery

__all__ = ["LowRankQuery", "compressed"]

# Matrices that are decomposed at a time.
PIECE_BYTES = 64 * 2**20
# Matrices of so few columns or rows are decomposed exactly.
CHEAP_COLUMNS = 48


def compressed(
    query: VectorQuery | KroneckerQuery, rank: int, oversampling: int = 10, seed: int = 0
) -> LowRankQuery:
    """Compress the test gradients of each matrix to low rank.

    Matrices of at most ``rank`` rows or columns, and those that factors would not make smaller,
    are held whole. A test gradient's factors depend neither on the other test gradients nor on
    how they are cut into queries.

    Parameters
    ----------
    query : VectorQuery or KroneckerQuery
        Test gradients, as they are or preconditioned.
    rank : int
        Rank k of each matrix.
    oversampling : int
        Directions beyond k in which a matrix is looked at before the k best are kept.
    seed : int
        Seed of the directions.

    Raises
    ------
    InvalidInputError
        If the rank is not positive, or the oversampling negative.

    Notes
    -----
    Randomised singular value decomposition with two power iterations; exact where that is no
    dearer. **Source**: Halko, Martinsson & Tropp (2011), algorithms 4.4 and 5.1; Grosse et al.
    (2023), section 3.2.2, for test gradients.
    """
    if rank < 1 or oversampling < 0:
        raise InvalidInputError(
            f"rank must be at least 1 and oversampling at least 0; got {rank} and {oversampling}."
        )
    compression = _Compression(rank, oversampling, seed)
    scales: Mapping[str, float] = {}
    if isinstance(query, KroneckerQuery):
        for block in query.blocks:
            compression.add_block(block)
    else:
        scales = query.scales
        for name, vectors in query.vectors.items():
            compression.add(name, vectors, scales.get(name, 1.0))
    return compression.query(scales)


class _Compression:
    """Gathers compressed parameters, and what was lost of each test gradient."""

    def __init__(self, rank: int, oversampling: int, seed: int) -> None:
        self._rank = rank
        self._oversampling = oversampling
        self._seed = seed
        self._matrices: dict[str, LowRank] = {}
        self._vectors: dict[str, Tensor] = {}
        self._squares: list[Tensor] = []
        self._lost: list[Tensor] = []

    def add(self, name: str, vectors: Tensor, scale: float = 1.0) -> None:
        """Take one parameter's vectors, ``(m, *shape)``."""
        self._squares.append(_squared_norms(vectors) * scale**2)
        if not self._shrinks(vectors):
            self._vectors[name] = vectors
            return
        left, right, lost = self._factors(vectors.flatten(2))
        self._lost.append(lost * scale**2)
        self._matrices[name] = _low_rank(left, right, vectors.shape[1:])

    def add_block(self, part: BlockVectors) -> None:
        """Take the vectors of a block of the curvature, a bias as a column of its matrix.

        An orthogonal basis changes neither ranks nor norms: of vectors in the eigenbasis it is the
        factors that are rotated back.
        """
        block, layer = part.block, part.block.layer
        rotated = part.coordinates is not None
        matrices = block.joined(part.vectors) if part.coordinates is None else part.coordinates
        if layer.diagonal or not self._shrinks(matrices):
            for name, vectors in (block.unrotate(matrices) if rotated else part.vectors).items():
                self.add(name, vectors)
            return
        left, right, lost = self._factors(matrices)
        if rotated and block.left is not None:
            left = block.left @ left
        if rotated and block.right is not None:
            right = block.right @ right
        self._squares.append(_squared_norms(matrices))
        self._lost.append(lost)
        if layer.bias is not None:
            inner, border = (right, left) if layer.bias_on_left else (left, right)
            self._vectors[layer.bias] = (inner @ border[:, -1, :, None]).squeeze(2)
            border = border[:, :-1]
            left, right = (border, inner) if layer.bias_on_left else (inner, border)
        self._matrices[layer.weight] = _low_rank(left, right, torch.Size(layer.shape))

    def query(self, scales: Mapping[str, float]) -> LowRankQuery:
        squares = torch.stack(self._squares).sum(0)
        lost = torch.stack(self._lost).sum(0) if self._lost else torch.zeros_like(squares)
        errors = torch.where(squares > 0, lost / squares.clamp(min=1e-300), 0).sqrt()
        like = next(iter((*self._vectors.values(), *(p.left for p in self._matrices.values()))))
        norms = squares.sqrt().to(like.dtype)
        return LowRankQuery(self._matrices, self._vectors, norms, errors.to(like.dtype), scales)

    def _shrinks(self, vectors: Tensor) -> bool:
        if vectors.ndim < 3:
            return False
        rows, columns = vectors.shape[1], math.prod(vectors.shape[2:])
        return self._rank < min(rows, columns) and self._rank * (rows + columns) < rows * columns

    def _factors(self, matrices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return U (m, o, k), V (m, d, k) and ``||X - U V^T||^2`` (m,) of matrices X (m, o, d)."""
        found = []
        size = matrices[0].numel() * matrices.element_size() if len(matrices) else 1
        at_once = max(1, PIECE_BYTES // size)
        for start in range(0, len(matrices), at_once):
            some = matrices[start : start + at_once]
            left, right = _decomposed(some, self._rank, self._oversampling, self._seed)
            found.append((left, right, _squared_norms(some - left @ right.mT)))
        lefts, rights, losts = zip(*found, strict=True)
        return torch.cat(lefts), torch.cat(rights), torch.cat(losts)


def _decomposed(matrices: Tensor, rank: int, oversampling: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return U (m, o, k) and V (m, d, k), ``U V^T`` the best that is found of rank k."""
    if matrices.shape[1] < matrices.shape[2]:
        right, left = _decomposed(matrices.mT, rank, oversampling, seed)
        return left, right
    columns = matrices.shape[2]
    directions = rank + oversampling
    if columns <= max(directions, CHEAP_COLUMNS):
        left, values, right = torch.linalg.svd(matrices, full_matrices=False)
        return left[:, :, :rank] * values[:, None, :rank], right[:, :rank].mT
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(columns, directions, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(matrices @ start.to(matrices)).Q
    for _ in range(2):
        basis = torch.linalg.qr(matrices.mT @ basis).Q
        basis = torch.linalg.qr(matrices @ basis).Q
    left, values, right = torch.linalg.svd(basis.mT @ matrices, full_matrices=False)
    return basis @ (left[:, :, :rank] * values[:, None, :rank]), right[:, :rank].mT


def _low_rank(left: Tensor, right: Tensor, shape: torch.Size) -> LowRank:
    return LowRank(left.movedim(1, 0).contiguous(), right.movedim(1, 0).contiguous(), shape)


def _squared_norms(vectors: Tensor) -> Tensor:
    """Return the squared norm of each vector, (m,), in float64."""
    norms: Tensor = torch.linalg.vector_norm(vectors.flatten(1), dim=1, dtype=torch.float64)
    return norms.square()
