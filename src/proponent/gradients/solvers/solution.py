"""What a solver is, and what it answers: vectors, and how far they can be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Curvature

MEMORY = 2 * 2**30


@dataclass(frozen=True)
class Solution:
    """Solutions of ``(C + shift I) x = b`` for k right-hand sides.

    Attributes
    ----------
    vectors : Tensor of shape (k, p)
        The x.
    residuals : Tensor of shape (k,)
        ``||(C + shift I) x - b|| / ||b||``, from a product with all training instances; NaN
        where it was not measured.
    converged : bool
        Whether every residual that was measured is within the solver's tolerance.
    effective_damping : float
        What was in fact added to the curvature's diagonal, weight decay included.
    solver : str
        Which solver.
    iterations : int
        Products with the curvature, of all right-hand sides at once; 0 for direct solvers.
    smallest_eigenvalue, largest_eigenvalue : float, optional
        Estimates of the extreme eigenvalues of C, without the shift; None where the solver has
        none. The true spectrum reaches at least as far.
    warnings : tuple of str
        What the user should know.
    reason : str, optional
        Why this solver was chosen, where the library chose it.
    """

    vectors: Tensor
    residuals: Tensor
    converged: bool
    effective_damping: float
    solver: str
    iterations: int = 0
    smallest_eigenvalue: float | None = None
    largest_eigenvalue: float | None = None
    warnings: tuple[str, ...] = ()
    reason: str | None = None

    def diagnostics(self) -> dict[str, Any]:
        """Return everything but the vectors, as values that JSON can hold."""
        residuals: list[float] = self.residuals.tolist()
        measured = [value for value in residuals if not math.isnan(value)]
        return {
            "solver": self.solver,
            "converged": self.converged,
            "largest_residual": max(measured, default=0.0),
            "residuals": [None if math.isnan(value) else value for value in residuals],
            "effective_damping": self.effective_damping,
            "iterations": self.iterations,
            "smallest_eigenvalue": self.smallest_eigenvalue,
            "largest_eigenvalue": self.largest_eigenvalue,
            "warnings": list(self.warnings),
            "reason": self.reason,
        }


class Prepared(Protocol):
    """A solver that has done what can be done before the right-hand sides are known."""

    def solve(self, right: Tensor) -> Solution:
        """Solve ``(C + shift I) x = b`` for right-hand sides (k, p).

        Raises
        ------
        SolveError
            If the system cannot be solved; the message says why and what to try.
        """


class Solver(Protocol):
    """How linear systems of a curvature are solved: settings, and nothing else."""

    def prepare(self, curvature: Curvature, shift: float) -> Prepared:
        """Do what can be done upfront.

        Parameters
        ----------
        curvature : Curvature
            C, an average over the training instances.
        shift : float
            Weight decay and damping together, in the units of the mean risk's Hessian.
        """


def check_shift(shift: float) -> float:
    """Refuse a shift that is not a number of at least 0."""
    if not (isinstance(shift, (int, float)) and 0 <= shift < float("inf")):
        raise InvalidInputError(
            f"shift (weight decay plus damping) must be a finite number of at least 0; got "
            f"{shift!r}."
        )
    return float(shift)


def check_positive(**values: float) -> None:
    """Refuse settings that are not positive."""
    for name, value in values.items():
        if not value > 0:
            raise InvalidInputError(f"{name} must be positive; got {value!r}.")


def relative_residuals(residuals: Tensor, right: Tensor) -> Tensor:
    """Return ``||r|| / ||b||`` for each row; 0 where both are zero."""
    sizes = torch.linalg.vector_norm(right, dim=1)
    found = torch.linalg.vector_norm(residuals, dim=1)
    return torch.where(found > 0, found / torch.where(sizes > 0, sizes, 1), 0)


def residual(curvature: Curvature, shift: float, vectors: Tensor, right: Tensor) -> Tensor:
    """Return ``b - (C + shift I) x``, (k, p), by one product with all instances."""
    return right - curvature.matvec(vectors) - shift * vectors


def rounding(curvature: Curvature) -> float:
    """Return the relative rounding error of a number in the curvature's precision."""
    return float(torch.finfo(curvature.space.dtype).eps)


def refuse_memory(what: str, needed: float, memory: int, instead: Sequence[str]) -> None:
    """Refuse work that needs more memory than allowed; the message names what to use instead."""
    if needed > memory:
        raise SolveError(
            f"{what} needs {needed / 2**30:,.1f} GiB, more than memory={memory / 2**30:,.1f} GiB. "
            f"Use {' or '.join(instead)}, choose fewer parameters (parameters='last'), or raise "
            "memory=."
        )


def not_converged(residuals: Tensor, tolerance: float, advice: str) -> tuple[str, ...]:
    """Return a warning about the right-hand sides that are not solved to the tolerance."""
    measured = ~residuals.isnan()
    failed = (measured & (residuals > tolerance)).nonzero().flatten().tolist()
    if not failed:
        return ()
    listed = ", ".join(map(str, failed[:10])) + (", ..." if len(failed) > 10 else "")
    return (
        f"{len(failed)} of {int(measured.sum())} right-hand sides are not solved to "
        f"{tolerance:g} (rows {listed}; largest relative residual "
        f"{float(residuals[measured].max()):.2g}): {advice}.",
    )
