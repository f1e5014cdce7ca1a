"""Test gradients times an inverse curvature, ready to meet training gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.gradients.inverse import Inverse, ShiftedQuery
from proponent.gradients.low_rank import LowRankQuery, compressed
from proponent.gradients.products import Gradients, Products, Query, VectorQuery
from proponent.gradients.space import ParameterSpace

Parts = Iterable[tuple[Gradients, int]]


@dataclass(frozen=True)
class DecayTerm:
    """``g^T A^{-1} (lambda theta)``: what a weight decay inside every training gradient adds.

    Attributes
    ----------
    vectors : mapping, optional
        ``A^{-1} (lambda theta)`` by parameter, each ``(1, *shape)``; None: no such term.
    products : Products
        How it meets gradients.
    """

    vectors: Mapping[str, Tensor] | None
    products: Products

    def __call__(self, gradients: Gradients, n: int) -> Tensor | float:
        """Return the term of each of n captured gradients, (n,)."""
        if self.vectors is None:
            return 0.0
        return VectorQuery(self.vectors, self.products).meet(gradients, n)[0][:, 0]


@dataclass(frozen=True)
class TestSolver:
    """Multiplies test gradients with an inverse.

    Attributes
    ----------
    inverse : Inverse
        ``A^{-1}``.
    space : ParameterSpace
        The parameters.
    products : Products
        How solved gradients meet training gradients.
    dtype : torch.dtype
        Precision of the captured gradients.
    decay : DecayTerm
        What is added to every product.
    """

    inverse: Inverse
    space: ParameterSpace
    products: Products
    dtype: torch.dtype
    decay: DecayTerm

    def whole(self, parts: Parts) -> Query:
        """Return ``A^{-1} g_te`` of captured gradients, solved for all at once."""
        forms, sizes = zip(*parts, strict=True)
        return self._shifted(self.inverse.query(forms, sizes), forms, sizes)

    def of_rank(self, parts: Parts, rank: int, seed: int) -> Query:
        """Return ``A^{-1} g_te``, each batch compressed to low rank once it is solved."""
        queries, constants = [], []
        for forms, n in parts:
            queries.append(compressed(self.inverse.query([forms], [n]), rank, seed=seed))
            constants.append(self.decay(forms, n))
        joined = LowRankQuery.joined(queries)
        if self.decay.vectors is None:
            return joined
        return ShiftedQuery(joined, torch.cat([torch.as_tensor(part) for part in constants]))

    def summed(self, parts: Parts) -> Query:
        """Return ``A^{-1} sum g_te``, one vector."""
        total = self.space.gradients({}, 1)
        for forms, n in parts:
            total += self.space.gradient_sum(forms, n)
        solved = self.space.unflatten(self.inverse.solve(total).vectors, self.dtype)
        query = VectorQuery(solved, self.products)
        if self.decay.vectors is None:
            return query
        decay = self.space.flatten(self.decay.vectors)
        return ShiftedQuery(query, (total * decay).sum(1))

    def _shifted(self, query: Query, forms: Iterable[Gradients], sizes: Iterable[int]) -> Query:
        if self.decay.vectors is None:
            return query
        terms = [self.decay(*part) for part in zip(forms, sizes, strict=True)]
        return ShiftedQuery(query, torch.cat([torch.as_tensor(term) for term in terms]))
