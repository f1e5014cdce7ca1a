r"""Test gradients of low rank, met by factors alone.

A test gradient of a matrix (o, d) is held as ``U V^T`` with k columns each, (o + d) k numbers in
place of o d, and meets a training gradient ``G_i = sum_t left_it right_it^T`` as

.. math:: \langle G_i, U V^T \rangle = \sum_t (U^T left_{it}) \cdot (V^T right_{it}),

T k (o + d) multiplications, which forms neither.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.gradients.contraction import ENTRY_COST, contract
from proponent.gradients.forms import Form
from proponent.gradients.products import Gradients, Products, Query, squared_norms
from proponent.gradients.tokens import Tokens

# Vectors that are written out, and patches, at a time.
PIECE_BYTES = 64 * 2**20
# Products of the factors with tokens, at a time.
PRODUCT_BYTES = 2**20


@dataclass(frozen=True)
class LowRank:
    """m matrices ``U_j V_j^T`` of rank k, in the shape of one parameter.

    Attributes
    ----------
    left : Tensor of shape (o, m, k)
        The U_j.
    right : Tensor of shape (d, m, k)
        The V_j.
    shape : torch.Size
        The parameter's shape: (o, ...), d entries behind the first axis.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    def materialise(self, rows: slice) -> Tensor:
        """Return some of the matrices, ``(m', *shape)``."""
        left, right = self.left[:, rows].movedim(0, 1), self.right[:, rows].permute(1, 2, 0)
        return (left @ right).view(-1, *self.shape)

    def meet(self, form: Form) -> Tensor:
        """Return the inner products with captured gradients, (n, m)."""
        m, k = self.left.shape[1:]
        length, entries = len(self.left) + len(self.right), math.prod(self.shape)
        by_factors = form.positions * m * k * length
        written_out = (form.materialise_cost + (m + ENTRY_COST) * entries) * form.n
        if not form.positions or by_factors * form.n > written_out + m * k * entries:
            at_once = max(1, PIECE_BYTES // (entries * self.left.element_size()))
            parts = [
                contract(form, self.materialise(slice(start, start + at_once)))
                for start in range(0, m, at_once)
            ]
            return torch.cat(parts, 1)
        # Patches of convolutions take memory.
        at_once = max(1, PIECE_BYTES // (2 * form.positions * form.width * 8))
        return torch.cat(
            [self._by_factors(form[i : i + at_once]) for i in range(0, form.n, at_once)]
        )

    def _by_factors(self, form: Form) -> Tensor:
        total = self.left.new_zeros(form.n, self.left.shape[1])
        for tokens in form.tokens() or []:
            total += self._meet_tokens(tokens)
        return total

    def _meet_tokens(self, tokens: Tokens) -> Tensor:
        n, length = tokens.right.shape[:2]
        m, k = self.left.shape[1:]
        lefts, rights = tokens.left.flatten(0, 1), tokens.right.flatten(0, 1)
        result = rights.new_empty(n * length, m)
        at_once = max(1, PRODUCT_BYTES // max(1, n * length * k * rights.element_size()))
        for start in range(0, m, at_once):
            some = slice(start, start + at_once)
            left, right = (side[:, some].flatten(1) for side in (self.left, self.right))
            product = left[lefts] if tokens.one_hot else lefts @ left
            product *= rights @ right
            result[:, some] = product.view(n * length, -1, k).sum(2)
        return result.view(n, length, m).sum(1)


@dataclass
class LowRankQuery(Query):
    """Test gradients compressed to low rank.

    :func:`~proponent.gradients.low_rank.compressed` makes it.

    Attributes
    ----------
    matrices : mapping
        The compressed parameters.
    vectors : mapping
        Those held whole, ``(m, *shape)``: vectors, and matrices that low rank would not shrink.
    norms : Tensor of shape (m,)
        Norm of each test gradient before it was compressed.
    errors : Tensor of shape (m,)
        Norm of what was lost, relative to ``norms``.
    scales : mapping
        A factor for each parameter's products; 1 where none is named.
    """

    matrices: Mapping[str, LowRank]
    vectors: Mapping[str, Tensor]
    norms: Tensor
    errors: Tensor
    scales: Mapping[str, float]

    @override
    def __len__(self) -> int:
        return len(self.errors)

    @property
    def nbytes(self) -> int:
        """Bytes that the test gradients take."""
        held = [side for part in self.matrices.values() for side in (part.left, part.right)]
        return sum(part.nbytes for part in (*held, *self.vectors.values()))

    @override
    def meet(
        self, train: Gradients, n: int, *, norms: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``sum_p scale_p <g_i, x_j>_p``, (n, m), and, if wanted, ``||g_i||^2``, (n,)."""
        total = self.norms.new_zeros(n, len(self))
        for name, form in train.items():
            scale = self.scales.get(name, 1.0)
            if scale == 0.0:
                continue
            if name in self.matrices:
                total += self.matrices[name].meet(form).mul_(scale)
            elif name in self.vectors:
                total += contract(form, self.vectors[name]).mul_(scale)
        counted = {name: 0.0 for name, scale in self.scales.items() if scale == 0.0}
        return total, squared_norms(train, n, Products(), counted) if norms else None

    @classmethod
    def joined(cls, queries: Sequence[LowRankQuery]) -> LowRankQuery:
        """Return one query of the test gradients of several, in their order.

        Raises
        ------
        InvalidInputError
            If there are none, or they are of different parameters, ranks or scales.
        """
        kinds = {
            (
                *((name, part.left.shape[2]) for name, part in query.matrices.items()),
                *query.vectors,
                *query.scales.items(),
            )
            for query in queries
        }
        if len(kinds) != 1:
            raise InvalidInputError(
                "queries: expected some of the same parameters, rank and scales; compress all "
                "parts of a test set alike."
            )
        first = queries[0]
        matrices = {
            name: LowRank(
                torch.cat([query.matrices[name].left for query in queries], 1),
                torch.cat([query.matrices[name].right for query in queries], 1),
                part.shape,
            )
            for name, part in first.matrices.items()
        }
        vectors = {n: torch.cat([query.vectors[n] for query in queries]) for n in first.vectors}
        norms = torch.cat([query.norms for query in queries])
        return cls(
            matrices, vectors, norms, torch.cat([query.errors for query in queries]), first.scales
        )
