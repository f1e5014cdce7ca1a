"""Many small positive definite systems at once.

Matrices are stacked on their *last* axis, ``(p, p, K)``: every operation of the factorisation
then runs over K contiguous numbers, and what LAPACK spends on being called K times is saved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[Any]  # float64, or float32 throughout

# Up to this order, and from twice as many matrices on, vectorising over the matrices is faster
# than calling LAPACK for each (one core, factor and solution: 3.5 against 12 us at p = 21 and
# K = 512, 15 against 33 us at p = 42).
LARGEST_VECTORISED = 64


class BatchedCholesky:
    r"""The factors :math:`A_k = L_k L_k^\top` of K symmetric matrices.

    Parameters
    ----------
    matrices : ndarray of shape (p, p, K)
        Their lower triangles are read, and overwritten.

    Attributes
    ----------
    failed : ndarray of shape (K,)
        Which matrices are not positive definite; their solutions are NaN.
    pivots : ndarray of shape (p, K)
        The diagonals of the factors: the square of their largest ratio is a lower bound of the
        condition number.
    """

    def __init__(self, matrices: Values) -> None:
        self._vectorised = _vectorised(*matrices.shape[1:])
        if self._vectorised:
            self._factors = _factorise(matrices)
            self.pivots: Values = np.einsum("iik->ik", self._factors).copy()
        else:
            self._factors = _factorise_each(matrices)
            self.pivots = np.einsum("kii->ik", self._factors).copy()
        self.failed: NDArray[np.bool_] = np.asarray(np.isnan(self.pivots).any(axis=0))

    def solve(self, right: Values) -> Values:
        """Return the solutions of ``A_k x_k = b_k``.

        Parameters
        ----------
        right : ndarray of shape (p, K) or (outputs, p, K)
            The right-hand sides.

        Returns
        -------
        ndarray
            Of the same shape.
        """
        if right.ndim == 3:
            return np.stack([self.solve(part) for part in right])
        return (_substitute if self._vectorised else _substitute_each)(self._factors, right)


def empty_matrices(order: int, count: int) -> Values:
    """Return room for matrices ``(p, p, K)``, laid out in memory as they will be factorised."""
    if _vectorised(order, count):
        return np.empty((order, order, count))
    return np.empty((count, order, order)).transpose(1, 2, 0)


def _vectorised(order: int, count: int) -> bool:
    return order <= LARGEST_VECTORISED and count >= 2 * order


def _factorise(matrices: Values) -> Values:
    """Write the lower factors over the matrices, column by column (left-looking); NaN: failed."""
    with np.errstate(invalid="ignore", divide="ignore"):
        for j in range(len(matrices)):
            column = rest = matrices[j:, j]
            if j:
                rest = np.einsum("rik,ik->rk", matrices[j:, :j], matrices[j, :j])
                np.subtract(column, rest, out=rest)  # its rows lie together, the column's do not
            # A pivot that is not positive makes the rest of its matrix NaN, and of no other.
            np.multiply(rest, 1.0 / np.sqrt(rest[0]), out=column)
    return matrices


def _substitute(factors: Values, right: Values) -> Values:
    solution = right.copy()
    inverse = 1.0 / np.einsum("iik->ik", factors)
    for j in range(len(factors)):
        if j:
            solution[j] -= np.einsum("ik,ik->k", factors[j, :j], solution[:j])
        solution[j] *= inverse[j]
    for j in reversed(range(len(factors))):
        if j + 1 < len(factors):
            solution[j] -= np.einsum("ik,ik->k", factors[j + 1 :, j], solution[j + 1 :])
        solution[j] *= inverse[j]
    return solution


def _factorise_each(matrices: Values) -> Values:
    """Return the lower factors ``(K, p, p)`` by LAPACK; NaN: failed."""
    from scipy.linalg import lapack

    potrf: Any = lapack.dpotrf if matrices.dtype == np.float64 else lapack.spotrf
    factors = np.ascontiguousarray(matrices.transpose(2, 0, 1))
    for factor in factors:
        # The transpose is a Fortran array, whose upper triangle is the lower one: no copy.
        done, info = potrf(factor.T, lower=0, clean=0, overwrite_a=1)
        if info or not np.isfinite(np.diagonal(done)).all():
            factor[:] = np.nan
        elif not np.shares_memory(done, factor):
            factor[:] = done.T
    return factors


def _substitute_each(factors: Values, right: Values) -> Values:
    from scipy.linalg import lapack

    potrs: Any = lapack.dpotrs if factors.dtype == np.float64 else lapack.spotrs
    solution = np.array(right.T, order="C")
    for factor, vector in zip(factors, solution, strict=True):
        vector[:] = potrs(factor.T, vector, lower=0)[0]
    return np.ascontiguousarray(solution.T)
