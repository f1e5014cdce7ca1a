"""Block conjugate gradients: right-hand sides that search each other's directions too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.exceptions import SolveError

Operator = Callable[[Tensor], Tensor]

RITZ_SIZE = 500  # of the projected matrix whose eigenvalues are taken


@dataclass
class CoupledRun:
    """What a run came to.

    Attributes
    ----------
    solution : Tensor of shape (k, p)
    iterations : int
    lowest, highest : float
        Extreme quotients ``s^T A s / s^T s`` over the directions searched, or eigenvalues of A
        projected on them all.
    noise : float
        Quotients below this are zero to rounding, or negative; the run stops at one.
    """

    solution: Tensor
    iterations: int = 0
    lowest: float = float("inf")
    highest: float = float("-inf")
    noise: float = 0.0

    @property
    def flat(self) -> bool:
        """Whether a direction without positive curvature was met."""
        return self.lowest <= self.noise


def coupled_run(
    multiply: Operator,
    precondition: Operator,
    right: Tensor,
    goals: Tensor,
    limit: int,
    tick: Callable[[], object],
) -> CoupledRun:
    """Minimise over the sum of the Krylov spaces of all right-hand sides, from zero.

    Parameters
    ----------
    multiply, precondition : callable
        A and an approximation of its inverse: (k, p) to (k, p), symmetric.
    right : Tensor of shape (k, p)
        Right-hand sides, none of them zero.
    goals : Tensor of shape (k,)
        Norms of the residuals at which the run ends.
    limit : int
        Products, at most.
    tick : callable
        Called at every product.

    Notes
    -----
    **Source**: O'Leary (1980); in the form of Dubrulle (2001), whose residuals are kept as an
    orthonormal block times a small matrix, so that right-hand sides that depend on each other do
    no harm.
    """
    lengths = torch.linalg.vector_norm(right, dim=1)
    # Rows: residuals = small @ block, with block M block^T the identity.
    block, moved, small = _orthonormal(right / lengths[:, None], precondition)
    directions, solution = moved, torch.zeros_like(right)
    run = CoupledRun(solution)
    eps = torch.finfo(right.dtype).eps
    bent: list[Tensor] = []
    changes: list[Tensor] = []
    while run.iterations < limit:
        run.iterations += 1
        tick()
        products = multiply(directions)
        bends, gram = directions @ products.T, directions @ directions.T
        bends = (bends + bends.T) / 2
        quotients = _quotients(bends, gram)
        run.lowest = min(run.lowest, float(quotients[0]))
        run.highest = max(run.highest, float(quotients[-1]))
        run.noise = eps * max(abs(run.highest), abs(run.lowest))
        if run.flat:
            break
        bent.append(bends)
        steps = torch.cholesky_inverse(torch.linalg.cholesky(bends))
        solution.addmm_(small @ steps, directions)
        remaining = torch.addmm(block, steps, products, alpha=-1)
        block, moved, change = _orthonormal(remaining, precondition)
        directions = torch.addmm(moved, change.T, directions)
        changes.append(change)
        small = small @ change
        if (torch.linalg.vector_norm(small @ block, dim=1) * lengths <= goals).all():
            break
    run.solution = solution * lengths[:, None]
    plain, few = moved is block, max(1, RITZ_SIZE // len(right))
    if plain and bent and not run.flat:
        values = _ritz_values(bent[:few], changes)
        run.lowest = min(run.lowest, float(values[0]))
        run.highest = max(run.highest, float(values[-1]))
    return run


def _orthonormal(rows: Tensor, precondition: Operator) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, M q and c with ``rows = c q`` and ``q M q^T = I``."""
    block, mixed = _orthogonalised(rows)
    moved = precondition(block)
    if moved is block:
        return block, block, mixed
    gram = block @ moved.T
    factor, failed = torch.linalg.cholesky_ex((gram + gram.T) / 2)
    if int(failed):
        raise SolveError(
            "the preconditioner is not positive: <r, M r> <= 0 for a residual r. Use a positive "
            "one ('jacobi', or a Kronecker-factored solve with damping) or None."
        )
    return (
        _inverse(factor) @ block,
        _inverse(factor) @ moved,
        mixed @ factor,
    )


def _orthogonalised(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return q and c with ``rows = c q`` and orthonormal rows of q.

    By two Cholesky factorisations, which a tall block passes much faster than Householder's QR;
    that one is for rows that all but depend on each other.
    """
    block, mixed = rows, torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
    for _ in range(2):
        factor, failed = torch.linalg.cholesky_ex(block @ block.T)
        sizes = factor.diagonal()
        eps = torch.finfo(rows.dtype).eps
        if int(failed) or not sizes.min() > 10 * eps**0.5 * sizes.max():
            basis, upper = torch.linalg.qr(rows.T)
            return basis.T, upper.T
        block = _inverse(factor) @ block
        mixed = mixed @ factor
    return block, mixed


def _inverse(factor: Tensor) -> Tensor:
    """Invert a small triangular matrix: multiplying a wide block is faster than solving it."""
    unit = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, unit, upper=False)
    return inverse


def _ritz_values(bends: list[Tensor], changes: list[Tensor]) -> Tensor:
    """Return the eigenvalues of A projected on all residual blocks, ascending.

    The blocks are ``q_j = s_j - c_j^T s_{j-1}`` with ``s_i A s_j^T`` zero for i != j.
    """
    sizes = [len(part) for part in bends]
    whole = bends[0].new_zeros(sum(sizes), sum(sizes))
    start = 0
    for j, part in enumerate(bends):
        here = slice(start, start + sizes[j])
        whole[here, here] = part
        if j:
            change, previous = changes[j - 1], slice(start - sizes[j - 1], start)
            whole[here, here] += change.T @ bends[j - 1] @ change
            whole[previous, here] = -bends[j - 1] @ change
            whole[here, previous] = whole[previous, here].T
        start += sizes[j]
    values: Tensor = torch.linalg.eigvalsh(whole)
    return values


def _quotients(bends: Tensor, gram: Tensor) -> Tensor:
    """Return the extreme quotients of A over the span of the directions, ascending."""
    values, vectors = torch.linalg.eigh(gram)
    inside = values > torch.finfo(gram.dtype).eps * len(gram) * values[-1]
    whitened = vectors[:, inside] / values[inside].sqrt()
    found: Tensor = torch.linalg.eigvalsh(whitened.T @ bends @ whitened)
    return found
