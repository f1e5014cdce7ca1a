"""The curvature written out as a matrix and factorised."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Curvature
from proponent.gradients.solvers.lanczos import extreme_eigenvalues
from proponent.gradients.solvers.solution import (
    MEMORY,
    Prepared,
    Solution,
    check_shift,
    not_converged,
    refuse_memory,
    relative_residuals,
    rounding,
)

Indefinite = Literal["error", "clamp", "absolute"]
INSTEAD = ("ConjugateGradients", "GramDual (Fisher matrices)", "Arnoldi")


@dataclass(frozen=True)
class Explicit:
    """Form C and solve ``(C + shift I) x = b`` by Cholesky factors: exact, for few parameters.

    Cost: p products or one pass for Fisher matrices, p^2 numbers, p^3 / 3 multiply-adds; p^2 for
    each right-hand side. Meant for p up to some ten thousand.

    Parameters
    ----------
    indefinite : "error", "clamp" or "absolute"
        What to do if ``C + shift I`` has eigenvalues that are not positive, as Hessians of
        networks have: refuse; or set the negative eigenvalues of C to zero; or take their
        absolute values, before the shift is added.
    memory : int
        Bytes that the matrix and its factor may take.
    """

    indefinite: Indefinite = "error"
    memory: int = MEMORY

    def __post_init__(self) -> None:
        """Refuse unknown settings."""
        if self.indefinite not in get_args(Indefinite):
            raise InvalidInputError(
                f"indefinite={self.indefinite!r}: expected one of "
                f"{', '.join(get_args(Indefinite))}."
            )

    def prepare(self, curvature: Curvature, shift: float) -> Prepared:
        """Form the matrix and factorise it.

        Raises
        ------
        SolveError
            If the matrix is too large for ``memory``, singular, or indefinite.
        """
        shift, p = check_shift(shift), curvature.size
        needed = 3 * p * p * torch.finfo(curvature.space.dtype).bits // 8
        refuse_memory(f"the {curvature.name} of {p:,} parameters", needed, self.memory, INSTEAD)
        matrix = curvature.dense()
        shifted = matrix.clone()
        shifted.diagonal().add_(shift)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if int(failed) == 0:
            return _cholesky(curvature, shift, matrix, factor)
        return self._by_eigenvalues(curvature, shift, matrix)

    def _by_eigenvalues(self, curvature: Curvature, shift: float, matrix: Tensor) -> Prepared:
        values, vectors = torch.linalg.eigh(matrix)
        smallest, largest = float(values[0]), float(values.abs().max())
        noise = _noise(curvature, max(largest, shift))
        if self.indefinite == "error" and not curvature.positive and smallest + shift < -noise:
            count = int((values + shift < -noise).sum())
            raise SolveError(
                f"the {curvature.name} is indefinite: {count} of {len(values)} eigenvalues are "
                f"below -shift = {-shift:g}, the smallest is {smallest:.3g}. Raise the damping "
                f"above {-smallest:.3g}, use the Gauss-Newton matrix, or Explicit("
                "indefinite='clamp' or 'absolute')."
            )
        clamped = self.indefinite == "clamp" or curvature.positive  # what is below 0 is rounding
        moved = values.clamp(min=0) if clamped else values
        moved = (moved.abs() if self.indefinite == "absolute" else moved) + shift
        if float(moved.min()) <= noise:
            raise _singular(curvature, shift, int((moved <= noise).sum()))
        negative = int((values < -noise).sum())
        done = {"clamp": "set to zero", "absolute": "taken by absolute value"}
        warnings = (
            f"the {curvature.name} is indefinite: {negative} negative eigenvalues (the smallest is "
            f"{smallest:.3g}) were {done.get(self.indefinite, 'kept')}.",
        )
        return _PreparedExplicit(
            lambda right: (right @ vectors / moved) @ vectors.T,
            lambda solved: (solved @ vectors * moved) @ vectors.T,
            curvature,
            shift,
            (smallest, float(values[-1])),
            warnings if negative else (),
        )


def _cholesky(curvature: Curvature, shift: float, matrix: Tensor, factor: Tensor) -> Prepared:
    def solve(right: Tensor) -> Tensor:
        return torch.cholesky_solve(right.T, factor).T

    _, largest = extreme_eigenvalues(lambda vectors: vectors @ matrix, matrix)
    _, inverse = extreme_eigenvalues(solve, matrix)
    smallest = 1 / inverse
    # Rounding can hide a zero eigenvalue from the factorisation.
    if not smallest > _noise(curvature, largest + shift):
        raise _singular(curvature, shift, 1)
    return _PreparedExplicit(
        solve,
        lambda solved: solved @ matrix + shift * solved,
        curvature,
        shift,
        (smallest - shift, largest),
        (),
    )


def _noise(curvature: Curvature, largest: float) -> float:
    """Return the size up to which an eigenvalue may be rounding.

    The worst case grows with p; where C is positive the shift is known to be there, and only has
    to be more than the rounding of the matrix's entries.
    """
    factor = 10 if curvature.positive else curvature.size
    return factor * rounding(curvature) * largest


def _singular(curvature: Curvature, shift: float, count: int) -> SolveError:
    return SolveError(
        f"the {curvature.name} plus shift = {shift:g} is singular: at least {count} of "
        f"{curvature.size} eigenvalues are zero to rounding (a softmax layer has one for each "
        "of its inputs; so has every unused parameter). Give a damping above 0, or train with "
        "weight decay and say so."
    )


class _PreparedExplicit:
    """A factorised matrix."""

    def __init__(
        self,
        solve: Callable[[Tensor], Tensor],
        multiply: Callable[[Tensor], Tensor],
        curvature: Curvature,
        shift: float,
        extremes: tuple[float, float],
        warnings: tuple[str, ...],
    ) -> None:
        self._solve = solve
        self._multiply = multiply
        self._curvature = curvature
        self._shift = shift
        self._extremes = extremes
        self._warnings = warnings

    def solve(self, right: Tensor) -> Solution:
        """Solve for right-hand sides (k, p)."""
        right = self._curvature.space.check(right, "right")
        vectors = self._solve(right)
        residuals = relative_residuals(right - self._multiply(vectors), right)
        tolerance = rounding(self._curvature) ** 0.5
        advice = "the matrix is too badly conditioned for this precision: raise the damping"
        return Solution(
            vectors,
            residuals,
            bool((residuals <= tolerance).all()),
            self._shift,
            "explicit",
            0,
            *self._extremes,
            self._warnings + not_converged(residuals, tolerance, advice),
        )
