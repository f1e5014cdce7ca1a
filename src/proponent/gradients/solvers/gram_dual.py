"""Fisher matrices inverted through the n x n inner products of their gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Curvature
from proponent.gradients.fisher import GradientCovariance
from proponent.gradients.solvers.lanczos import extreme_eigenvalues
from proponent.gradients.solvers.solution import (
    MEMORY,
    Prepared,
    Solution,
    check_shift,
    not_converged,
    refuse_memory,
    relative_residuals,
    residual,
    rounding,
)


@dataclass(frozen=True)
class GramDual:
    """Solve with ``F = (1/n) sum_i g_i g_i^T`` exactly, whatever the number of parameters.

    With the gradients as rows of G,

        (F + d I)^{-1} b = [b - G^T (n d I + G G^T)^{-1} G b] / d

    so that the only matrix is ``G G^T``, (n, n), of inner products of gradients that are never
    formed. Cost: n^2 / 2 inner products and n^3 / 3 multiply-adds upfront; two passes over the
    gradients for all right-hand sides.

    Parameters
    ----------
    memory : int
        Bytes that the matrix and its factor may take.

    Notes
    -----
    **Source**: the Sherman-Morrison-Woodbury identity.
    """

    memory: int = MEMORY

    def prepare(self, curvature: Curvature, shift: float) -> Prepared:
        """Take the inner products and factorise their matrix.

        Raises
        ------
        InvalidInputError
            If the curvature is no mean of outer products of gradients, or the shift is zero.
        SolveError
            If the matrix is too large for ``memory``.
        """
        shift = check_shift(shift)
        if not isinstance(curvature, GradientCovariance):
            raise InvalidInputError(
                f"GramDual inverts Fisher matrices (TrueFisher, EmpiricalFisher); the curvature "
                f"is a {curvature.name}. Use ConjugateGradients or Explicit."
            )
        if shift == 0:
            raise InvalidInputError(
                "GramDual divides by the shift (weight decay plus damping), which is 0: give a "
                "damping above 0, or use Explicit."
            )
        n = curvature.n
        needed = 3 * n * n * torch.finfo(curvature.space.dtype).bits // 8
        instead = ("ConjugateGradients", "Arnoldi")
        refuse_memory(f"the inner products of {n:,} gradients", needed, self.memory, instead)
        return _PreparedGramDual(curvature, shift)


class _PreparedGramDual:
    """The factorised matrix ``n d I + G G^T``."""

    def __init__(self, curvature: GradientCovariance, shift: float) -> None:
        self._curvature = curvature
        self._shift = shift
        gram = curvature.gram()
        _, self._largest = extreme_eigenvalues(lambda vectors: vectors @ gram, gram)
        gram.diagonal().add_(curvature.n * shift)
        self._factor, failed = torch.linalg.cholesky_ex(gram)
        if int(failed):
            raise SolveError(
                f"shift = {shift:g} is lost in the rounding of the gradients' inner products (up "
                f"to {self._largest:.3g}): raise the damping or compute in float64."
            )

    def solve(self, right: Tensor) -> Solution:
        """Solve for right-hand sides (k, p)."""
        curvature, shift = self._curvature, self._shift
        right = curvature.space.check(right, "right")
        vectors = self._apply(right)
        remaining = residual(curvature, shift, vectors, right)
        residuals = relative_residuals(remaining, right)
        tolerance = rounding(curvature) ** 0.5
        steps = 0
        # A small shift amplifies rounding; each correction takes most of it away.
        while steps < 3 and (residuals > tolerance / 100).any():
            corrected = vectors + self._apply(remaining)
            remaining = residual(curvature, shift, corrected, right)
            found = relative_residuals(remaining, right)
            if not (found < residuals).all():
                break
            vectors, residuals, steps = corrected, found, steps + 1
        return Solution(
            vectors,
            residuals,
            bool((residuals <= tolerance).all()),
            shift,
            "Gram dual",
            steps,
            0.0 if curvature.n < curvature.size else None,
            self._largest / curvature.n,
            not_converged(
                residuals, tolerance, "the shift is too small for this precision: raise the damping"
            ),
        )

    def _apply(self, right: Tensor) -> Tensor:
        weights = torch.cholesky_solve(self._curvature.inner(right), self._factor)
        return (right - self._curvature.combine(weights.T)) / self._shift
