"""Products of gradients with the inverse of a curvature, ``(C + shift)^{-1}``.

What stands between a solver, which knows right-hand sides, and a method, which knows test and
training gradients. :class:`SolvedInverse` serves every solver; Kronecker factors answer for
themselves, in their eigenbasis (:class:`~proponent.gradients.kfac.precondition.Preconditioner`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from typing_extensions import override

from proponent.gradients.kfac.query import KroneckerQuery
from proponent.gradients.low_rank import LowRankQuery
from proponent.gradients.path import TestSet
from proponent.gradients.products import Gradients, Products, Query, VectorQuery
from proponent.gradients.solvers.solution import Prepared, Solution
from proponent.gradients.space import ParameterSpace


class Inverse(Protocol):
    """``A^{-1}`` with ``A = C + shift``, as methods use it."""

    def solve(self, right: Tensor) -> Solution:
        """Solve ``A x = b`` for right-hand sides (k, p)."""

    def query(
        self, parts: Sequence[Gradients], sizes: Sequence[int]
    ) -> VectorQuery | KroneckerQuery:
        """Return ``A^{-1} g_te`` of captured test gradients, ready to meet training gradients.

        Parameters
        ----------
        parts : sequence of gradients
            Of consecutive batches of test instances.
        sizes : sequence of int
            Number of test instances in each.
        """

    def self_inner(self, gradients: Gradients, n: int) -> Tensor:
        """Return ``g_i^T A^{-1} g_i`` of n captured gradients, (n,)."""

    def inverse_norms(self, gradients: Gradients, n: int) -> Tensor:
        """Return ``||A^{-1} g_i||`` of n captured gradients, (n,)."""

    def diagnostics(self) -> dict[str, Any]:
        """Return what was noticed, as values that JSON can hold."""


@dataclass
class SolvedInverse:
    """The inverse by a prepared solver; it remembers how well each solve went.

    Parameters
    ----------
    prepared : Prepared
        The solver.
    space : ParameterSpace
        The parameters.
    products : Products
        How solutions meet training gradients, and how many bytes gradients may take.
    dtype : torch.dtype
        Precision of the gradients that solutions are to meet.
    """

    prepared: Prepared
    space: ParameterSpace
    products: Products
    dtype: torch.dtype
    _solved: list[Solution] = field(default_factory=list, init=False, repr=False)

    def solve(self, right: Tensor) -> Solution:
        """Solve ``A x = b`` for right-hand sides (k, p)."""
        solution = self.prepared.solve(right)
        # How it went is remembered, without the vectors.
        self._solved.append(replace(solution, vectors=right.new_empty(0, self.space.size)))
        return solution

    def query(self, parts: Sequence[Gradients], sizes: Sequence[int]) -> VectorQuery:
        """Return ``A^{-1} g_te``, solved for all of them at once."""
        gradients = [self.space.gradients(*part) for part in zip(parts, sizes, strict=True)]
        solved = self.solve(torch.cat(gradients)).vectors
        return VectorQuery(self.space.unflatten(solved, self.dtype), self.products)

    def self_inner(self, gradients: Gradients, n: int) -> Tensor:
        """Return ``g_i^T A^{-1} g_i`` of n captured gradients, (n,): n solves."""
        return torch.cat([(self.solve(g).vectors * g).sum(1) for g in self._blocks(gradients, n)])

    def inverse_norms(self, gradients: Gradients, n: int) -> Tensor:
        """Return ``||A^{-1} g_i||`` of n captured gradients, (n,): n solves."""
        found = [
            torch.linalg.vector_norm(self.solve(g).vectors, dim=1)
            for g in self._blocks(gradients, n)
        ]
        return torch.cat(found)

    def diagnostics(self) -> dict[str, Any]:
        """Return how the solves since this object was made went, the worst of each."""
        if not self._solved:
            return {}
        each = [solution.diagnostics() for solution in self._solved]
        together = dict(each[-1])
        together["converged"] = all(one["converged"] for one in each)
        together["residuals"] = [value for one in each for value in one["residuals"]]
        together["largest_residual"] = max(one["largest_residual"] for one in each)
        together["iterations"] = sum(one["iterations"] for one in each)
        together["warnings"] = list(dict.fromkeys(w for one in each for w in one["warnings"]))
        for name, worst in (("smallest_eigenvalue", min), ("largest_eigenvalue", max)):
            known = [one[name] for one in each if one[name] is not None]
            together[name] = worst(known) if known else None
        return together

    def _blocks(self, gradients: Gradients, n: int) -> Iterator[Tensor]:
        """Go through the gradients as vectors, as many at once as the memory holds twice."""
        rows = max(1, self.products.memory // (16 * self.space.size))
        for start in range(0, n, rows):
            size = min(rows, n - start)
            yield self.space.gradients(sliced(gradients, start, size), size)


@dataclass
class ShiftedQuery(Query):
    """A query whose products with every training instance are moved by a constant.

    Parameters
    ----------
    query : Query
        The query, of m vectors.
    constants : Tensor of shape (m,)
        What is added to the products with each of them.
    """

    inner: Query
    constants: Tensor

    @override
    def __len__(self) -> int:
        return len(self.inner)

    @override
    def meet(
        self, train: Gradients, n: int, *, norms: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        products, squares = self.inner.meet(train, n, norms=norms)
        return products + self.constants, squares


@dataclass(frozen=True)
class SolvedSet(TestSet):
    """A test set, and the inverse that its gradients are multiplied with.

    Attributes
    ----------
    inverse : Inverse
        It notices how the solves go.
    kept : list
        The solved gradients, once they are.
    """

    inverse: Inverse
    kept: list[Query]

    @property
    def compression_errors(self) -> list[float]:
        """Relative error of each test gradient by compression; empty if there was none."""
        made = self.kept[0] if self.kept else None
        made = made.inner if isinstance(made, ShiftedQuery) else made
        return made.errors.tolist() if isinstance(made, LowRankQuery) else []


def sliced(gradients: Gradients, start: int, size: int) -> Gradients:
    """Return the gradients of ``size`` instances from ``start``."""
    return {name: form[start : start + size] for name, form in gradients.items()}
