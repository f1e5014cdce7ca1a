"""Conjugate gradients for many right-hand sides, which share the passes over the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Curvature
from proponent.gradients.solvers.coupled import coupled_run
from proponent.gradients.solvers.jacobi import Preconditioner, jacobi
from proponent.gradients.solvers.solution import (
    Prepared,
    Solution,
    check_positive,
    check_shift,
    not_converged,
    relative_residuals,
    residual,
    rounding,
)
from proponent.progress import progress

if TYPE_CHECKING:
    from tqdm import tqdm

NegativeCurvature = Literal["error", "flag"]

COUPLED = 64


@dataclass(frozen=True)
class ConjugateGradients:
    """Solve ``(C + shift I) x = b`` by products alone, all right-hand sides at once.

    Each iteration multiplies the matrix with the directions of all right-hand sides that have not
    converged, in one pass over the training set. The residual is computed afresh at the end;
    where rounding made it drift from the recursion's, the iteration goes on from there.

    Cost: one product for each iteration, about the root of the condition number of them; 4 p
    numbers a right-hand side.

    Parameters
    ----------
    tolerance : float
        Relative residual at which a right-hand side has converged.
    max_iterations : int
        Products, at most.
    preconditioner : callable, "jacobi" or None
        Approximates ``(C + shift I)^{-1}``: maps (k, p) to (k, p), symmetric and positive. A
        prepared solver of another curvature will do: ``lambda b: ekfac.solve(b).vectors``.
        ``"jacobi"`` divides by the diagonal: the exact one of a Fisher matrix, else Hutchinson's
        estimate from 32 products.
    negative_curvature : "error" or "flag"
        What to do where ``d^T (C + shift I) d < 0`` for a direction d: raise, or stop that
        right-hand side, say so and leave it as not converged.
    coupled : bool
        Whether right-hand sides (up to 64 at a time) search the directions of each other too.
        Fewer passes for the same products a pass; all of them go on until the last one has
        converged.
    seed : int
        Seed of Hutchinson's probes.

    Notes
    -----
    **Source**: Hestenes and Stiefel (1952); Koh and Liang (2017), section 3.
    """

    tolerance: float = 1e-6
    max_iterations: int = 200
    preconditioner: Preconditioner | Literal["jacobi"] | None = None
    negative_curvature: NegativeCurvature = "error"
    coupled: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse unknown settings."""
        check_positive(max_iterations=self.max_iterations)
        if not self.tolerance >= 0:
            raise InvalidInputError(f"tolerance must be at least 0; got {self.tolerance!r}.")
        if self.negative_curvature not in get_args(NegativeCurvature):
            raise InvalidInputError(
                f"negative_curvature={self.negative_curvature!r}: expected 'error' or 'flag'."
            )
        if isinstance(self.preconditioner, str) and self.preconditioner != "jacobi":
            raise InvalidInputError(
                f"preconditioner={self.preconditioner!r}: expected 'jacobi', None or a callable."
            )

    def prepare(self, curvature: Curvature, shift: float) -> Prepared:
        """Prepare the preconditioner; nothing else is needed upfront."""
        shift, chosen = check_shift(shift), self.preconditioner
        precondition = jacobi(curvature, shift, self.seed) if isinstance(chosen, str) else chosen
        return _PreparedConjugateGradients(self, curvature, shift, precondition)


@dataclass
class _Course:
    """What happened: stopped rows by reason, and the coefficients that tell eigenvalues."""

    iterations: int = 0
    negative: dict[int, float] = field(default_factory=dict)
    singular: set[int] = field(default_factory=set)
    scale: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf

    def add_ritz(self, steps: list[tuple[Tensor, Tensor]], column: int) -> None:
        """Add the eigenvalues of the tridiagonal matrix that one column's steps make."""
        alphas = torch.stack([alpha[column] for alpha, _ in steps]).double()
        betas = torch.stack([beta[column] for _, beta in steps]).double()
        count = int((alphas > 0).sum())  # a step of length 0: the column had stopped
        if not count:
            return
        alphas, betas = alphas[:count], betas[:count]
        diagonal = 1 / alphas
        diagonal[1:] += betas[:-1] / alphas[:-1]
        off = betas[:-1].sqrt() / alphas[:-1]
        matrix = torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)
        if torch.isfinite(matrix).all():
            values = torch.linalg.eigvalsh(matrix)
            self.lowest = min(self.lowest, float(values[0]))
            self.highest = max(self.highest, float(values[-1]))


class _PreparedConjugateGradients:
    """Conjugate gradients of one curvature and shift."""

    def __init__(
        self,
        settings: ConjugateGradients,
        curvature: Curvature,
        shift: float,
        precondition: Preconditioner | None,
    ) -> None:
        self._settings = settings
        self._curvature = curvature
        self._shift = shift
        self._precondition = precondition

    def solve(self, right: Tensor) -> Solution:
        """Solve for right-hand sides (k, p).

        Raises
        ------
        SolveError
            If a direction of negative curvature is met, unless it is to be flagged; or the
            preconditioner is not positive.
        """
        right = self._curvature.space.check(right, "right")
        tolerance, course = self._settings.tolerance, _Course()
        vectors, remaining = torch.zeros_like(right), right
        found = relative_residuals(remaining, right)
        bar: tqdm[Any]
        with progress(
            total=self._settings.max_iterations,
            description="conjugate gradients",
            enabled=self._curvature.progress,
        ) as bar:
            while True:
                stopped = course.negative.keys() | course.singular
                rows = [row for row in _rows(found > tolerance) if row not in stopped]
                if not rows or course.iterations >= self._settings.max_iterations:
                    break
                descend = self._descend_coupled if self._settings.coupled else self._descend
                vectors[rows] += descend(remaining[rows], right[rows], rows, course, bar.update)
                before = found
                remaining = residual(self._curvature, self._shift, vectors, right)
                found = relative_residuals(remaining, right)
                if not (found[rows] < before[rows] / 2).any():
                    break  # rounding: no run from here gets further
        return Solution(
            vectors,
            found,
            bool((found <= tolerance).all()),
            self._shift,
            "conjugate gradients",
            course.iterations,
            course.lowest - self._shift if math.isfinite(course.lowest) else None,
            course.highest - self._shift if math.isfinite(course.highest) else None,
            self._warnings(course, found),
        )

    def _descend(
        self,
        remaining: Tensor,
        right: Tensor,
        rows: list[int],
        course: _Course,
        tick: Callable[[], object],
    ) -> Tensor:
        """Run the recursion from zero until each row has converged or cannot go on."""
        solution, remaining = torch.zeros_like(remaining), remaining.clone()
        sizes = torch.linalg.vector_norm(right, dim=1)
        # Below the rounding of the right-hand side the recursion means nothing.
        goals = sizes * max(self._settings.tolerance, rounding(self._curvature))
        moved = self._preconditioned(remaining)
        directions = moved.clone()
        slopes = self._slopes(remaining, moved)
        active = torch.linalg.vector_norm(remaining, dim=1) > goals
        steps: list[tuple[Tensor, Tensor]] = []
        while active.any() and course.iterations < self._settings.max_iterations:
            course.iterations += 1
            tick()
            at = active.nonzero().flatten()
            some = directions[at]
            products = self._curvature.matvec(some) + self._shift * some
            bends, lengths = (some * products).sum(1), some.square().sum(1)
            at, kept = self._stop_flat(at, bends, lengths, products, rows, active, course)
            if not len(at):
                break
            some, products, bends = some[kept], products[kept], bends[kept]
            alphas = slopes[at] / bends
            solution[at] += alphas[:, None] * some
            remaining[at] -= alphas[:, None] * products
            moved = self._preconditioned(remaining[at])
            fresh = self._slopes(remaining[at], moved)
            betas = fresh / slopes[at]
            directions[at] = moved + betas[:, None] * some
            slopes[at] = fresh
            active[at] = torch.linalg.vector_norm(remaining[at], dim=1) > goals[at]
            step = slopes.new_zeros(2, len(slopes))
            step[0, at], step[1, at] = alphas, betas
            steps.append((step[0], step[1]))
        if self._precondition is None:
            for column in range(len(rows)) if steps else ():
                course.add_ritz(steps, column)
        return solution

    def _descend_coupled(
        self,
        remaining: Tensor,
        right: Tensor,
        rows: list[int],
        course: _Course,
        tick: Callable[[], object],
    ) -> Tensor:
        """Run the coupled recursion for one group of right-hand sides after another."""
        limit, longest, found = self._settings.max_iterations - course.iterations, 0, []
        goals = torch.linalg.vector_norm(right, dim=1)
        goals = goals * max(self._settings.tolerance, rounding(self._curvature))
        for start in range(0, len(rows), COUPLED):
            group = slice(start, start + COUPLED)
            run = coupled_run(
                lambda vectors: self._curvature.matvec(vectors) + self._shift * vectors,
                self._preconditioned,
                remaining[group],
                goals[group],
                limit,
                tick,
            )
            found.append(run.solution)
            longest = max(longest, run.iterations)
            course.lowest = min(course.lowest, run.lowest)
            course.highest = max(course.highest, run.highest)
            if run.lowest < -100 * run.noise:
                course.negative |= dict.fromkeys(rows[group], run.lowest)
                if self._settings.negative_curvature == "error":
                    raise SolveError(self._negative(course))
            elif run.flat:
                course.singular |= set(rows[group])
        course.iterations += longest
        return torch.cat(found)

    def _stop_flat(
        self,
        at: Tensor,
        bends: Tensor,
        lengths: Tensor,
        products: Tensor,
        rows: list[int],
        active: Tensor,
        course: _Course,
    ) -> tuple[Tensor, Tensor]:
        """Stop the rows whose direction has no positive curvature; return the others."""
        sizes = torch.linalg.vector_norm(products, dim=1) / lengths.sqrt()
        course.scale = max(course.scale, float(sizes.max()))
        noise = rounding(self._curvature) * course.scale
        kept = bends > noise * lengths
        for place in _rows(~kept):
            row, quotient = rows[int(at[place])], float(bends[place] / lengths[place])
            if quotient < -100 * noise:
                course.negative[row] = quotient
                course.lowest = min(course.lowest, quotient)
            else:
                course.singular.add(row)
            active[at[place]] = False
        if course.negative and self._settings.negative_curvature == "error":
            raise SolveError(self._negative(course))
        return at[kept], kept

    def _preconditioned(self, remaining: Tensor) -> Tensor:
        return remaining if self._precondition is None else self._precondition(remaining)

    def _slopes(self, remaining: Tensor, moved: Tensor) -> Tensor:
        slopes = (remaining * moved).sum(1)
        if not ((slopes > 0) | (remaining == 0).all(1)).all():
            raise SolveError(
                "the preconditioner is not positive: <r, M r> <= 0 for a residual r. Use a "
                "positive one ('jacobi', or a Kronecker-factored solve with damping) or None."
            )
        return slopes

    def _negative(self, course: _Course) -> str:
        lowest = min(course.negative.values())
        return (
            f"the {self._curvature.name} plus shift = {self._shift:g} has negative curvature (a "
            f"quotient of {lowest:.3g} on rows {sorted(course.negative)[:10]}), so the system has "
            "no minimum. Use the Gauss-Newton matrix, or raise the damping by more than "
            f"{-lowest:.3g}."
        )

    def _warnings(self, course: _Course, found: Tensor) -> tuple[str, ...]:
        warnings = [self._negative(course)] if course.negative else []
        if course.singular:
            warnings.append(
                f"the {self._curvature.name} plus shift = {self._shift:g} is singular along rows "
                f"{sorted(course.singular)[:10]}: give a damping above 0."
            )
        advice = (
            "the precision allows no more; raise the damping or compute in float64"
            if course.iterations < self._settings.max_iterations
            else "raise max_iterations or the damping, or give a preconditioner"
        )
        return (*warnings, *not_converged(found, self._settings.tolerance, advice))


def _rows(chosen: Tensor) -> list[int]:
    rows: list[int] = chosen.nonzero().flatten().tolist()
    return rows
