"""The leading eigenvectors of the curvature, from Krylov spaces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Curvature
from proponent.gradients.solvers.lanczos import krylov
from proponent.gradients.solvers.solution import (
    MEMORY,
    Prepared,
    Solution,
    check_positive,
    check_shift,
    not_converged,
    refuse_memory,
    relative_residuals,
    residual,
    rounding,
)
from proponent.progress import progress

Complement = Literal["damped", "drop"]


@dataclass(frozen=True)
class Arnoldi:
    """Invert the curvature on its leading eigenvectors; elsewhere by the shift alone.

    With Ritz pairs (mu_j, v_j), mu_j > 0, and d the shift,

        x = sum_j v_j <v_j, b> / (mu_j + d)  +  (b - sum_j v_j <v_j, b>) / d

    The second term is what the directions outside the space get: as if their eigenvalues were
    zero. The paper drops it, although small eigenvalues count most in an inverse.

    Cost: ``iterations`` products with one vector and iterations^2 p multiply-adds upfront, for
    all right-hand sides ever; 2 rank p for each, and one product for the residuals.

    Parameters
    ----------
    iterations : int
        Dimension of the Krylov space.
    rank : int
        Ritz pairs that are kept: the largest ones.
    complement : "damped" or "drop"
        What the directions outside get: ``b / d``, or nothing as in the paper.
    tolerance : float
        Relative residual up to which an answer counts as converged.
    measured : int, optional
        Right-hand sides, evenly spread, whose residual is measured (a product for each); those
        of the others are NaN. None measures all. Measuring hundreds would cost more than the
        solution.
    seed : int
        Seed of the starting vector.
    memory : int
        Bytes that the basis may take.

    Notes
    -----
    **Source**: Schioppa, Zablotskaia, Vilar and Sokolov (2022), algorithm 1.

    **Differs from the paper in**: every product runs over the whole training set, the basis is
    orthogonalised twice, the projected matrix is symmetrised and only positive Ritz values are
    kept (the paper's code keeps the largest by absolute value, complex ones included); the
    complement.
    """

    iterations: int = 200
    rank: int = 100
    complement: Complement = "damped"
    tolerance: float = 0.1
    measured: int | None = 8
    seed: int = 0
    memory: int = MEMORY

    def __post_init__(self) -> None:
        """Refuse unknown settings."""
        check_positive(iterations=self.iterations, rank=self.rank, tolerance=self.tolerance)
        if self.measured is not None:
            check_positive(measured=self.measured)
        if self.complement not in get_args(Complement):
            raise InvalidInputError(f"complement={self.complement!r}: expected 'damped' or 'drop'.")

    def prepare(self, curvature: Curvature, shift: float) -> Prepared:
        """Find the leading eigenvectors.

        Raises
        ------
        SolveError
            If the basis is too large for ``memory``, the curvature has no positive eigenvalue,
            or the complement is to be divided by a shift of 0.
        """
        shift = check_shift(shift)
        m, bits = min(self.iterations, curvature.size), torch.finfo(curvature.space.dtype).bits
        refuse_memory(
            f"a Krylov basis of {m} vectors of {curvature.size:,} entries",
            m * curvature.size * bits // 8,
            self.memory,
            ("fewer iterations", "ConjugateGradients"),
        )
        return _PreparedArnoldi(self, curvature, shift)


class _PreparedArnoldi:
    """Ritz pairs of a curvature."""

    def __init__(self, settings: Arnoldi, curvature: Curvature, shift: float) -> None:
        self._settings = settings
        self._curvature = curvature
        self._shift = shift
        space = curvature.space
        like = torch.empty(space.size, dtype=space.dtype, device=space.device)
        bar: Any
        with progress(
            total=min(settings.iterations, space.size),
            description="Arnoldi iterations",
            enabled=curvature.progress,
        ) as bar:

            def multiply(vectors: Tensor) -> Tensor:
                bar.update()
                return curvature.matvec(vectors)

            found = krylov(multiply, like, settings.iterations, settings.seed)
        values, vectors = found.ritz()
        self.products = len(found.basis)
        self._extremes = float(values[0]), float(values[-1])
        noise = 10 * rounding(curvature) * space.size**0.5 * float(values.abs().max())
        negative = int((values < -noise).sum())
        kept = (values > noise).nonzero().flatten()[-settings.rank :]
        if not len(kept) and (negative or settings.complement == "drop"):
            raise SolveError(
                f"the {curvature.name} has no positive eigenvalue among {len(values)} Ritz values; "
                "there is nothing to invert. Use the Gauss-Newton matrix."
            )
        self.values, self.vectors = values[kept], vectors[kept]
        self._whole = len(kept) == space.size
        if not self._whole and settings.complement == "damped" and shift == 0:
            raise SolveError(
                "the damped complement divides by the shift (weight decay plus damping), which is "
                "0: give a damping above 0, or complement='drop' as in the paper."
            )
        self._warnings: tuple[str, ...] = ()
        if negative:
            self._warnings = (
                f"the {curvature.name} is indefinite: {negative} of {len(values)} Ritz values are "
                f"negative (the smallest is {self._extremes[0]:.3g}) and were not used.",
            )

    def solve(self, right: Tensor) -> Solution:
        """Solve for right-hand sides (k, p)."""
        right = self._curvature.space.check(right, "right")
        coordinates = right @ self.vectors.T
        if self._settings.complement == "drop" or self._whole:
            vectors = (coordinates / (self.values + self._shift)) @ self.vectors
        else:
            # Twice, as the orthogonalisation: what rounding leaves would be divided by d.
            outside = right - coordinates @ self.vectors
            more = outside @ self.vectors.T
            outside = outside - more @ self.vectors
            coordinates = coordinates + more
            vectors = (coordinates / (self.values + self._shift)) @ self.vectors
            vectors += outside / self._shift
        residuals, some = right.new_full((len(right),), float("nan")), self._measured(len(right))
        residuals[some] = relative_residuals(
            residual(self._curvature, self._shift, vectors[some], right[some]), right[some]
        )
        tolerance = self._settings.tolerance
        advice = (
            "complement='drop' leaves out what lies outside the leading eigenvectors"
            if self._settings.complement == "drop"
            else "raise rank and iterations, or the damping"
        )
        return Solution(
            vectors,
            residuals,
            bool((residuals[some] <= tolerance).all()),
            self._shift,
            "Arnoldi",
            self.products,
            *self._extremes,
            self._warnings + not_converged(residuals, tolerance, advice),
        )

    def _measured(self, k: int) -> list[int]:
        """Return the rows whose residual is measured."""
        count = k if self._settings.measured is None else min(k, self._settings.measured)
        return [j * k // count for j in range(count)]
