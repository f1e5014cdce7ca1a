"""Which solver for which size, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proponent.gradients.curvature import Curvature
from proponent.gradients.fisher import GradientCovariance
from proponent.gradients.solvers.arnoldi import Arnoldi
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.gradients.solvers.explicit import Explicit
from proponent.gradients.solvers.gram_dual import GramDual
from proponent.gradients.solvers.lissa import LiSSA
from proponent.gradients.solvers.solution import MEMORY, Prepared, Solution, Solver

# Sizes up to which a factorisation takes seconds on one core, (2,000^3 / 3 multiply-adds each).
FACTORISED = 2_000
# Right-hand sides from which a basis for all of them is cheaper than a solve for each block.
MANY_RIGHT_HAND_SIDES = 2_000
# Instances from which even one pass a step is too many: mini-batches.
MANY_INSTANCES = 1_000_000


@dataclass(frozen=True)
class Choice:
    """A solver, and a sentence that says why it was chosen."""

    solver: Solver
    reason: str


def choose(
    curvature: Curvature,
    shift: float,
    *,
    right_hand_sides: int | None = None,
    memory: int = MEMORY,
) -> Choice:
    """Choose a solver by the number of parameters and instances, and the memory.

    Parameters
    ----------
    curvature : Curvature
        The matrix, of p parameters and n instances.
    shift : float
        Weight decay plus damping; without it the solvers that divide by it are left out.
    right_hand_sides : int, optional
        How many are to be solved for in all, where it is known.
    memory : int
        Bytes that a matrix or a basis may take.
    """
    p, n, name = curvature.size, curvature.n, curvature.name
    entry = torch.finfo(curvature.space.dtype).bits // 8
    dual = isinstance(curvature, GradientCovariance) and shift > 0
    if dual and n <= FACTORISED and n < p and 3 * n * n * entry <= memory:
        return Choice(
            GramDual(memory=memory),
            f"Gram dual: exact, for a {name} of {n:,} instances is inverted through its "
            f"{n:,} x {n:,} inner products whatever the {p:,} parameters.",
        )
    if p <= FACTORISED and 3 * p * p * entry <= memory:
        return Choice(
            Explicit(memory=memory),
            f"explicit: exact, for a matrix of {p:,} parameters is factorised within seconds.",
        )
    size = f"{p:,} parameters are too many to factorise their matrix"
    if right_hand_sides is not None and right_hand_sides >= MANY_RIGHT_HAND_SIDES and shift > 0:
        rank = min(200, p, memory // (p * entry))
        if rank >= 20:
            return Choice(
                Arnoldi(iterations=rank, rank=max(1, rank // 2), memory=memory),
                f"Arnoldi: {size}, and one Krylov basis of {rank} vectors serves all "
                f"{right_hand_sides:,} right-hand sides; it is approximate.",
            )
    if n >= MANY_INSTANCES and shift > 0:
        return Choice(
            LiSSA(),
            f"LiSSA: {size}, and {n:,} instances too many for a pass in every step; it is "
            "approximate.",
        )
    return Choice(
        ConjugateGradients(),
        f"conjugate gradients: {size}, and products with all right-hand sides at once need no "
        "matrix.",
    )


@dataclass(frozen=True)
class Automatic:
    """The solver that :func:`choose` chooses; the solution says why.

    Parameters
    ----------
    right_hand_sides : int, optional
        How many are to be solved for in all, where it is known.
    memory : int
        Bytes that a matrix or a basis may take.
    """

    right_hand_sides: int | None = None
    memory: int = MEMORY

    def prepare(self, curvature: Curvature, shift: float) -> PreparedAutomatic:
        """Choose, and prepare what was chosen."""
        chosen = choose(
            curvature, shift, right_hand_sides=self.right_hand_sides, memory=self.memory
        )
        return PreparedAutomatic(chosen, chosen.solver.prepare(curvature, shift))


@dataclass(frozen=True)
class PreparedAutomatic:
    """A prepared solver, and why it was chosen."""

    choice: Choice
    prepared: Prepared

    def solve(self, right: Tensor) -> Solution:
        """Solve for right-hand sides (k, p)."""
        return replace(self.prepared.solve(right), reason=self.choice.reason)
