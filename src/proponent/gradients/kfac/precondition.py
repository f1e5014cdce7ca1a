r"""What Kronecker factors are fitted for: products with ``(C + shift I)^{-1}``.

.. math:: (C + \delta I)^{-1} V = Q_S \frac{Q_S^T V Q_A}{\Lambda + \delta} Q_A^T

Where captured gradients are taken to the eigenbasis, it is their factors that are rotated, and
never the gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.contraction import contract
from proponent.gradients.kfac.blocks import Block
from proponent.gradients.kfac.layers import pieces
from proponent.gradients.kfac.query import KroneckerQuery
from proponent.gradients.kfac.squares import weighted_squares
from proponent.gradients.products import Gradients
from proponent.gradients.solvers.solution import Solution, check_shift, relative_residuals
from proponent.gradients.space import ParameterSpace

PIECE_BYTES = 128 * 2**20


def checked_shifts(shift: float | Mapping[str, float], names: Sequence[str]) -> dict[str, float]:
    """Return the shift of each layer.

    Raises
    ------
    InvalidInputError
        If a shift is not a number of at least 0, or a mapping does not name each layer once.
    """
    if not isinstance(shift, Mapping):
        return dict.fromkeys(names, check_shift(shift))
    if set(shift) != set(names):
        wrong = sorted(set(shift) ^ set(names))
        raise InvalidInputError(
            f"shift: a mapping must name each layer ({', '.join(names)}); "
            f"missing or unknown: {', '.join(wrong)}."
        )
    return {name: check_shift(shift[name]) for name in names}


@dataclass(frozen=True)
class Preconditioner:
    """Kronecker factors with a shift, ready to solve with: ``(C + shift I)^{-1}``.

    :meth:`KroneckerFactors.prepare` makes it.

    Attributes
    ----------
    space : ParameterSpace
        The parameters.
    blocks : tuple of Block
        One a layer.
    shifts : dict
        Weight decay plus damping of each layer, by its name.
    method : str
        "ekfac" or "kfac".
    n : int
        Number of training instances that the factors were fitted to.
    notes : tuple of str
        What the user should know of the factors.
    """

    space: ParameterSpace
    blocks: tuple[Block, ...]
    shifts: Mapping[str, float]
    method: str
    n: int
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a singular system."""
        for block in self.blocks:
            shift, values = self.shifts[block.layer.name], block.eigenvalues
            smallest, largest = float(values.min()), float(values.max())
            rounding = torch.finfo(values.dtype).eps * largest if shift == 0 else 0.0
            if not smallest + shift > rounding:
                raise SolveError(
                    f"layer {block.layer.name!r}: the smallest eigenvalue is {smallest:.3g} of at "
                    f"most {largest:.3g}, and with shift {shift:g} the curvature is singular. Give "
                    f"a positive shift (weight decay or damping), for example that of "
                    f"default_damping(), or leave the layer out with exclude=."
                )

    def solve(self, right: Tensor) -> Solution:
        """Solve ``(C + shift I) x = b`` for right-hand sides (k, p).

        Parameters
        ----------
        right : Tensor of shape (k, p)
            Right-hand sides, flat as :class:`ParameterSpace` makes them.

        Returns
        -------
        Solution
            Its residuals are those of the factored curvature, not of the one that it
            approximates: a root mean square over the right-hand sides, from one combination of
            them with random signs. Excluded parameters have solution zero.
        """
        right = self.space.check(right, "right")
        parts = self.space.unflatten(right)
        solved = self.precondition(parts)
        vectors = self.space.flatten(solved) if solved else torch.zeros_like(right)
        residuals = self._residuals(vectors, right)
        return Solution(
            vectors=vectors,
            residuals=residuals,
            converged=bool((residuals <= torch.finfo(self.dtype).eps ** 0.5).all()),
            effective_damping=max(self.shifts.values(), default=0.0),
            solver=self.method,
            smallest_eigenvalue=min(float(b.eigenvalues.min()) for b in self.blocks),
            largest_eigenvalue=max(float(b.eigenvalues.max()) for b in self.blocks),
            warnings=(*self.notes, *self._warnings()),
        )

    def precondition(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return ``(C + shift I)^{-1} v`` for k vectors, each parameter ``(k, *shape)``."""
        result: dict[str, Tensor] = {}
        for block, inverse in zip(self.blocks, self.inverses, strict=True):
            result |= block.unrotate(block.rotate(vectors).mul(inverse))
        return result

    def matvec(self, vectors: Tensor) -> Tensor:
        """Return ``(C + shift I) v`` for vectors (k, p); zero at excluded parameters."""
        parts = self.space.unflatten(self.space.check(vectors))
        result: dict[str, Tensor] = {}
        for block in self.blocks:
            shifted = block.eigenvalues + self.shifts[block.layer.name]
            result |= block.unrotate(block.rotate(parts) * shifted)
        return self.space.flatten(result) if result else torch.zeros_like(vectors)

    def self_inner(self, gradients: Gradients, n: int) -> Tensor:
        """Return ``g_i^T (C + shift I)^{-1} g_i`` of n captured gradients, (n,)."""
        return self._weighted_squares(gradients, n, self.inverses)

    def inverse_norms(self, gradients: Gradients, n: int) -> Tensor:
        """Return ``||(C + shift I)^{-1} g_i||`` of n captured gradients, (n,)."""
        squares = [inverse.square() for inverse in self.inverses]
        return self._weighted_squares(gradients, n, squares).sqrt()

    def inner(self, vectors: Tensor, gradients: Gradients, n: int) -> Tensor:
        """Return ``v_k^T (C + shift I)^{-1} g_i`` for vectors (k, p), (k, n)."""
        solved = self.precondition(self.space.unflatten(self.space.check(vectors)))
        total = torch.zeros(n, len(vectors), dtype=self.dtype, device=self.space.device)
        for name, form in gradients.items():
            if name in solved:
                total += contract(form, solved[name])
        return total.T

    def query(self, parts: Sequence[Gradients], sizes: Sequence[int]) -> KroneckerQuery:
        """Return test gradients ready to meet training gradients in the eigenbasis.

        Parameters
        ----------
        parts : sequence of gradients
            Of consecutive batches of test instances.
        sizes : sequence of int
            Number of test instances in each.
        """
        return KroneckerQuery(self, parts, sizes)

    def queries_at_once(self, memory: int) -> int:
        """Return how many test gradients, ready to be met, take no more than ``memory`` bytes.

        At least 1. The captured gradients that they are made from are not counted.
        """
        entries = sum(block.layer.entries for block in self.blocks)
        return max(1, memory // max(1, entries * self.dtype.itemsize))

    def diagnostics(self) -> dict[str, Any]:
        """Return each layer's shift and eigenvalues, as values that JSON can hold."""
        layers = {
            block.layer.name: {
                "parameters": list(block.layer.parameters),
                "kind": block.layer.kind.value,
                "shift": self.shifts[block.layer.name],
                "mean_eigenvalue": float(block.eigenvalues.mean(dtype=torch.float64)),
                "smallest_eigenvalue": float(block.eigenvalues.min()),
                "largest_eigenvalue": float(block.eigenvalues.max()),
            }
            for block in self.blocks
        }
        return {"curvature": self.method, "layers": layers, "notes": list(self.notes)}

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the factors, and of the gradients that they are to meet."""
        return self.blocks[0].eigenvalues.dtype if self.blocks else self.space.dtype

    @cached_property
    def inverses(self) -> list[Tensor]:
        """``1 / (Lambda + shift)`` of each block."""
        return [
            (block.eigenvalues + self.shifts[block.layer.name]).reciprocal_()
            for block in self.blocks
        ]

    def _weighted_squares(self, gradients: Gradients, n: int, weights: Sequence[Tensor]) -> Tensor:
        total = torch.zeros(n, dtype=self.dtype, device=self.space.device)
        for block, weight in zip(self.blocks, weights, strict=True):
            start = 0
            for piece in pieces(block.layer, gradients, PIECE_BYTES):
                rotated = block.rotate_gradients(piece)
                if rotated is not None:
                    rows = slice(start, start + rotated.n)
                    total[rows] += weighted_squares(rotated, weight)
                    start += rotated.n
        return total

    def _residuals(self, vectors: Tensor, right: Tensor) -> Tensor:
        """Return the relative residual, root mean square over the right-hand sides, (k,).

        Random signs make the cross terms vanish in expectation, so one product is enough.
        """
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, (1, len(right)), generator=generator) * 2 - 1
        signs = signs.to(right)
        kept = [n for block in self.blocks for n in block.layer.parameters]
        target = {n: v for n, v in self.space.unflatten(signs @ right).items() if n in kept}
        combined = self.space.flatten(target)
        difference = self.matvec(signs @ vectors) - combined
        return relative_residuals(difference, combined).expand(len(right))

    def _warnings(self) -> list[str]:
        spread = {
            block.layer.name: float(block.eigenvalues.max())
            * torch.finfo(block.eigenvalues.dtype).eps
            for block in self.blocks
        }
        return [
            f"layer {block.layer.name!r}: the shift {self.shifts[block.layer.name]:.3g} is below "
            f"the rounding of the largest eigenvalue ({spread[block.layer.name]:.3g}); the "
            f"directions of small curvature are rounding magnified"
            for block in self.blocks
            if float(block.eigenvalues.min()) + self.shifts[block.layer.name]
            < spread[block.layer.name]
        ]
