"""The Lanczos process with full two-pass orthogonalisation: extreme eigenpairs of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Krylov:
    """An orthonormal basis and the symmetrised matrix projected on it.

    Attributes
    ----------
    basis : Tensor of shape (m, p)
    projected : Tensor of shape (m, m)
        ``Q A Q^T`` for the basis Q, symmetrised.
    exhausted : bool
        Whether the basis holds everything on which the matrix is not zero: what is orthogonal
        to it has eigenvalue 0.
    """

    basis: Tensor
    projected: Tensor
    exhausted: bool

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Return Ritz values, ascending, and their vectors as rows, (m,) and (m, p)."""
        values, rotation = torch.linalg.eigh(self.projected)
        return values, rotation.T @ self.basis


def krylov(multiply: Operator, like: Tensor, iterations: int, seed: int = 0) -> Krylov:
    """Build an orthonormal basis by repeated products, each orthogonalised twice against all.

    Where the products leave nothing new (the basis is invariant: eigenvalues that stand several
    times, or a matrix of low rank), the process goes on from a random direction outside.

    Parameters
    ----------
    multiply : callable
        Maps (1, p) to (1, p): a symmetric matrix.
    like : Tensor of shape (..., p)
        Gives the size, the precision and the device.
    iterations : int
        Products to take, at most; never more than p.
    seed : int
        Seed of the random directions, the first one included.

    Notes
    -----
    **Source**: Arnoldi (1951), Lanczos (1950). All coefficients are kept and the projected
    matrix is symmetrised, so that its eigenvalues are real.
    """
    p = like.shape[-1]
    iterations = min(iterations, p)
    generator = torch.Generator().manual_seed(seed)
    basis = like.new_zeros(iterations, p)
    projected = like.new_zeros(iterations, iterations)
    eps = torch.finfo(like.dtype).eps
    direction, fresh, largest = _direction(like, generator), True, 0.0
    for m in range(iterations):
        basis[m] = direction
        product = multiply(direction[None])[0]
        size = float(torch.linalg.vector_norm(product))
        largest = max(largest, size)
        if fresh and m > 0 and size <= 100 * eps * largest:
            # A random direction has a part in every eigenspace that is left: all are null.
            return Krylov(basis[: m + 1], _symmetrised(projected, m + 1), exhausted=True)
        # First against the two directions that a symmetric matrix couples, then against all.
        near = slice(max(0, m - 1), m + 1)
        coefficients = basis[near] @ product
        product = product - coefficients @ basis[near]
        others = basis[: m + 1] @ product
        remainder = product - others @ basis[: m + 1]
        projected[: m + 1, m] = others
        projected[near, m] += coefficients
        left = float(torch.linalg.vector_norm(remainder))
        if m + 1 == iterations:
            break
        fresh = left <= 100 * eps * largest
        if fresh:
            drawn = _direction(like, generator)
            for _ in range(2):
                drawn = drawn - (basis[: m + 1] @ drawn) @ basis[: m + 1]
            remainder = drawn
            left = float(torch.linalg.vector_norm(remainder))
        else:
            projected[m + 1, m] = left
        direction = remainder / left
    return Krylov(basis, _symmetrised(projected, iterations), exhausted=iterations == p)


def extreme_eigenvalues(
    multiply: Operator, like: Tensor, iterations: int = 20, seed: int = 0
) -> tuple[float, float]:
    """Return estimates from inside of the smallest and the largest eigenvalue.

    Parameters
    ----------
    multiply : callable
        Maps (1, p) to (1, p): a symmetric matrix.
    like : Tensor of shape (..., p)
        Gives the size, the precision and the device.
    """
    values, _ = torch.linalg.eigh(krylov(multiply, like, iterations, seed).projected)
    return float(values[0]), float(values[-1])


def _direction(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(like.shape[-1], generator=generator, dtype=torch.float64).to(like)
    unit: Tensor = drawn / torch.linalg.vector_norm(drawn)
    return unit


def _symmetrised(projected: Tensor, m: int) -> Tensor:
    """Fill in the symmetric matrix.

    Columns hold all coefficients above and on the diagonal, and one below; the coefficient below
    and its mirror image are two values of one number.
    """
    upper = torch.triu(projected[:m, :m])
    below = torch.diagonal(projected[:m, :m], -1)
    above = torch.diagonal(upper, 1)
    off = torch.triu(upper, 2) + torch.diag_embed((above + below) / 2, 1)
    full: Tensor = torch.diag(torch.diagonal(upper)) + off + off.T
    return full
