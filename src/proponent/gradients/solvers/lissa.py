"""The stochastic Neumann series: inverse products from mini-batches alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from torch import Tensor

from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Curvature
from proponent.gradients.solvers.lanczos import extreme_eigenvalues
from proponent.gradients.solvers.solution import (
    Prepared,
    Solution,
    check_positive,
    check_shift,
    not_converged,
    relative_residuals,
    residual,
)
from proponent.progress import progress

PRODUCTS = 15  # for the estimate of an extreme eigenvalue
SAMPLED_INSTANCES = 32  # whose own largest eigenvalue is estimated
MARGIN = 1.1
GROWTH = 10.0  # beyond the bound of a convergent run
STEPS = (100, 10_000)


@dataclass(frozen=True)
class LiSSA:
    """Solve ``(C + d I) x = b`` by steps on mini-batches B of the training set.

        u_0 = b,   u_t = b + u_{t-1} - (C_B u_{t-1} + d u_{t-1}) / s,   x = u / s

    converges to the solution for every scale s that is large enough; the damping d is the shift,
    given directly. The answer is the mean of the last half of the u_t, which averages the noise
    of the batches out. A run that diverges is begun again with twice the scale; one that has not
    reached the solution is flagged by its residual over the whole training set.

    Cost: ``steps * repeats`` products with a batch, and one with the training set for the
    residual; 3 p numbers a right-hand side. Truncation adds a damping of about scale / steps.

    Parameters
    ----------
    batch_size : int
        Instances in a step, drawn without replacement within a step.
    steps : int, optional
        Length of a run; None takes four times scale / shift, between 100 and 10,000.
    scale : float, optional
        s; None takes 1.1 times what mean-square stability asks for, from estimates of the
        largest eigenvalue of C and of single instances.
    repeats : int
        Runs whose answers are averaged.
    average : bool
        Whether to average over the last half of a run, or take the last iterate as Koh and Liang.
    koh_damping : float, optional
        The damping of Koh and Liang's code, ``u_t = b + (1 - damping) u_{t-1} - C_B u_{t-1} / s``,
        whose solution is that of ``C + damping * s I``: **its effective damping is damping *
        scale**, added to the shift and reported. Needs ``scale``, which is then not changed.
    tolerance : float
        Relative residual up to which an answer counts as converged.
    max_restarts : int
        How often the scale is doubled.
    seed : int
        Seed of the batches.
    n_jobs : int
        Processes in which the repeats run, as joblib counts them; each gets a copy of the module
        and of the training set. It does not change the numbers.

    Raises
    ------
    InvalidInputError
        If a setting is out of range.

    Notes
    -----
    **Source**: Agarwal, Bullins and Hazan (2017); Koh and Liang (2017), section 3.

    **Differs from the papers in**: the damping, the automatic scale, averaging, restarts.
    """

    batch_size: int = 32
    steps: int | None = None
    scale: float | None = None
    repeats: int = 1
    average: bool = True
    koh_damping: float | None = None
    tolerance: float = 0.1
    max_restarts: int = 5
    seed: int = 0
    n_jobs: int = 1

    def __post_init__(self) -> None:
        """Refuse unknown settings."""
        check_positive(batch_size=self.batch_size, repeats=self.repeats, tolerance=self.tolerance)
        if self.steps is not None:
            check_positive(steps=self.steps)
        if self.scale is not None:
            check_positive(scale=self.scale)
        if self.max_restarts < 0:
            raise InvalidInputError(f"max_restarts must be at least 0; got {self.max_restarts!r}.")
        if self.koh_damping is not None:
            if self.scale is None:
                raise InvalidInputError(
                    "koh_damping needs scale=: the effective damping is koh_damping * scale."
                )
            if not 0 <= self.koh_damping < 1:
                raise InvalidInputError(
                    f"koh_damping must be at least 0 and below 1; got {self.koh_damping!r}."
                )

    def prepare(self, curvature: Curvature, shift: float) -> Prepared:
        """Choose the scale.

        Raises
        ------
        SolveError
            If an eigenvalue is found to be negative, which no scale helps.
        """
        shift = check_shift(shift)
        if self.koh_damping is not None and self.scale is not None:
            shift += self.koh_damping * self.scale
        batch_size = min(self.batch_size, curvature.n)
        smallest = largest = None
        scale = self.scale
        if scale is None:
            smallest, largest = extreme_eigenvalues(
                curvature.matvec, _like(curvature), PRODUCTS, self.seed
            )
            if smallest + shift < -1e-4 * max(largest, -smallest):
                raise SolveError(
                    f"the {curvature.name} has an eigenvalue of {smallest:.3g} or less, and "
                    f"LiSSA with damping {shift:g} then diverges at every scale. Use the "
                    f"Gauss-Newton matrix, or raise the damping by more than {-smallest:.3g}."
                )
            scale = stable_scale(curvature, shift, largest, batch_size, self.seed)
        return _PreparedLiSSA(self, curvature, shift, scale, batch_size, smallest, largest)


def stable_scale(
    curvature: Curvature, shift: float, largest: float, batch_size: int, seed: int = 0
) -> float:
    """Return a scale at which the iteration is stable in mean square.

    With batches of b instances the second moment of the steps stays bounded for
    ``s > [(1 - 1/b) lambda_max(C) + max_i ||C_i|| / b + d] / 2``; the maximum is estimated from
    32 instances by a few products each.
    """
    needed = largest
    if batch_size < curvature.n:
        rng = np.random.default_rng(seed)
        count = min(SAMPLED_INSTANCES, curvature.n)
        sizes = []
        for position in rng.choice(curvature.n, count, replace=False):
            alone = partial(curvature.matvec_on, positions=np.array([position]))
            low, high = extreme_eigenvalues(alone, _like(curvature), 3, seed)
            sizes.append(max(-low, high))
        needed = (1 - 1 / batch_size) * largest + max(sizes) / batch_size
    found = MARGIN * (needed + shift) / 2
    return found if found > 0 else 1.0


def _like(curvature: Curvature) -> Tensor:
    return torch.empty(curvature.size, dtype=curvature.space.dtype, device=curvature.space.device)


class _PreparedLiSSA:
    """A scale for one curvature and shift."""

    def __init__(
        self,
        settings: LiSSA,
        curvature: Curvature,
        shift: float,
        scale: float,
        batch_size: int,
        smallest: float | None,
        largest: float | None,
    ) -> None:
        self._settings = settings
        self._curvature = curvature
        self._shift = shift
        self.scale = scale
        self._batch_size = batch_size
        self._smallest = smallest
        self._largest = largest

    def steps(self, scale: float) -> int:
        """Return the number of steps of a run at a scale."""
        if self._settings.steps is not None:
            return self._settings.steps
        fewest, most = STEPS
        wanted = 4 * scale / self._shift if self._shift > 0 else math.inf
        return int(min(most, max(fewest, wanted)))

    def solve(self, right: Tensor) -> Solution:
        """Solve for right-hand sides (k, p).

        Raises
        ------
        SolveError
            If the iteration diverges at every scale tried.
        """
        settings, curvature, shift = self._settings, self._curvature, self._shift
        right = curvature.space.check(right, "right")
        restarts = 0 if settings.koh_damping is not None else settings.max_restarts
        warnings: list[str] = []
        scale, count = self.scale, 0
        for attempt in range(restarts + 1):
            runs = []
            for run, taken in self._repeats(right, scale):
                count += taken
                if run is None:
                    break
                runs.append(run)
            if len(runs) == settings.repeats:
                vectors = torch.stack(runs).mean(0)
                residuals = relative_residuals(residual(curvature, shift, vectors, right), right)
                # Worse than no answer at all: the growth was too slow to be seen on the way.
                if bool((residuals <= 1.0).all()):
                    break
            if attempt < restarts:
                warnings.append(f"diverged at scale {scale:.3g}: begun again with twice the scale.")
                scale *= 2
        else:
            raise SolveError(self._diverged(scale))
        self.scale = scale
        advice = (
            "take more steps, larger batches (batch_size) or a larger damping, or use "
            "ConjugateGradients"
        )
        warnings += not_converged(residuals, settings.tolerance, advice)
        return Solution(
            vectors,
            residuals,
            bool((residuals <= settings.tolerance).all()),
            shift,
            "LiSSA",
            count,
            self._smallest,
            self._largest,
            tuple(warnings),
        )

    def _repeats(self, right: Tensor, scale: float) -> Iterator[tuple[Tensor | None, int]]:
        """Go through the runs' answers, as :meth:`_run` returns them."""
        repeats, jobs = range(self._settings.repeats), self._settings.n_jobs
        if jobs == 1:
            return (self._run(right, scale, repeat) for repeat in repeats)
        # Processes and not threads: a pass switches the module's mode and watches its layers,
        # which two passes over one module cannot do at once.
        return iter(Parallel(jobs)(delayed(self._run)(right, scale, repeat) for repeat in repeats))

    def _run(self, right: Tensor, scale: float, repeat: int) -> tuple[Tensor | None, int]:
        """Return one run's answer, or None if it diverges, and the steps taken."""
        curvature, shift, steps = self._curvature, self._shift, self.steps(scale)
        rng = np.random.default_rng([self._settings.seed, repeat])
        sizes = torch.linalg.vector_norm(right, dim=1)
        # Where C is positive, ||u|| <= s / d ||b|| along the way to the solution.
        bound = GROWTH * (max(scale / shift, 1.0) if shift > 0 else steps) * sizes
        state, total, averaged = right.clone(), torch.zeros_like(right), 0
        first = steps // 2 if self._settings.average else steps - 1
        rows: Any
        with progress(range(steps), description="LiSSA", enabled=curvature.progress) as rows:
            for t in rows:
                if self._batch_size < curvature.n:
                    chosen = rng.choice(curvature.n, self._batch_size, replace=False)
                    product = curvature.matvec_on(state, chosen)
                else:
                    product = curvature.matvec(state)
                state = right + state - (product + shift * state) / scale
                if not (torch.linalg.vector_norm(state, dim=1) <= bound).all():
                    return None, t + 1
                if t >= first:
                    total += state
                    averaged += 1
        return total / (averaged * scale), steps

    def _diverged(self, scale: float) -> str:
        if self._settings.koh_damping is not None:
            remedy = f"Give a scale above {scale:.3g} (it changes the effective damping)"
        else:
            remedy = "Raise the damping, or use the Gauss-Newton matrix"
        cause = (
            "" if self._curvature.positive else " A negative eigenvalue makes every scale diverge."
        )
        return (
            f"LiSSA diverged on the {self._curvature.name} with damping {self._shift:g}, last at "
            f"scale {scale:.3g}.{cause} {remedy}."
        )
