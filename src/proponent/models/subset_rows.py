"""The rows of many subsets of a training set, and the products that fitting models to them takes.

Arrays of K subsets have K on their last axis. Every product comes in two forms: with the rows of
the whole training set, which all subsets share (one matrix product for all), and with rows of
their own, gathered for each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

LARGEST_KERNEL = 2**27  # bytes of the inner products of all rows that are kept


class Rows(Protocol):
    """Rows of K subsets: m rows each, of p features."""

    @property
    def width(self) -> int:
        """The number of features, p."""

    def forward(self, coefficients: Values) -> Values:
        """Return ``x_i . theta_k``: from ``(outputs, p, K)`` to ``(outputs, m, K)``."""

    def backward(self, residuals: Values) -> Values:
        """Return ``sum_i r_ik x_i``: from ``(outputs, m, K)`` to ``(outputs, p, K)``."""

    def gram(self, weights: Values, out: NDArray[Any]) -> None:
        """Write ``sum_i w_ik x_i x_i^T``: from ``(m, K)``, none negative, to ``(p, p, K)``.

        They are computed in the precision of ``out``.
        """

    def squares(self, weights: Values) -> Values:
        """Return ``sum_i w_ik x_ij^2``: from ``(m, K)`` to ``(p, K)``."""

    def select(self, subsets: NDArray[Any]) -> Rows:
        """Return the rows of some of the subsets."""

    def lift(self, coefficients: Values) -> Values:
        """Return coefficients of the features that were given: ``(outputs, p_given, K)``."""

    def project(self, coefficients: Values) -> Values:
        """Return coefficients ``(outputs, p_given, K)`` as these rows take them."""


class SharedRows:
    """The rows of the training set, whole, for any number of subsets.

    Parameters
    ----------
    matrix : ndarray of shape (n, p)
        The features.
    intercept : bool
        Whether the first of them is a column of ones, for an intercept.
    """

    def __init__(self, matrix: Values, intercept: bool = False) -> None:
        self.matrix, self.intercept = matrix, intercept

    @cached_property
    def _lower(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return np.tril_indices(self.matrix.shape[1])

    @cached_property
    def _positions(self) -> NDArray[np.intp]:
        """Where the product of two features stands in the table, ``(p, p)``."""
        width = self.matrix.shape[1]
        positions = np.empty((width, width), np.intp)
        i, j = self._lower
        positions[i, j] = positions[j, i] = np.arange(len(i))
        return positions

    @cached_property
    def _table(self) -> Values:
        """The products of the features of each row, ``(p (p + 1) / 2, n)``."""
        i, j = self._lower
        columns = np.ascontiguousarray(self.matrix.T)
        return np.asarray(columns[i] * columns[j])

    @cached_property
    def _rough_table(self) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            return self._table.astype(np.float32)

    @property
    def features(self) -> Values:
        """The features without the column of ones."""
        return self.matrix[:, int(self.intercept) :]

    def kernel(self, positions: NDArray[np.intp]) -> Values:
        """Return inner products of the rows, but for ones: from ``(K, m)`` to ``(m, m, K)``."""
        if 8 * len(self.matrix) ** 2 > LARGEST_KERNEL:
            rows = self.features[positions]
            return np.asarray(np.matmul(rows, rows.transpose(0, 2, 1)).transpose(1, 2, 0))
        return np.asarray(self._kernel[positions.T[:, None], positions.T[None]])

    @cached_property
    def _kernel(self) -> Values:
        return np.asarray(self.features @ self.features.T)

    @cached_property
    def _squared(self) -> Values:
        return np.asarray(np.square(self.matrix))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the table behind: a worker makes its own."""
        return {"matrix": self.matrix, "intercept": self.intercept}

    @property
    def width(self) -> int:
        """The number of features, p."""
        return int(self.matrix.shape[1])

    @property
    def table_bytes(self) -> int:
        """What the table of products takes."""
        n, width = self.matrix.shape
        return int(4 * n * width * (width + 1))

    def forward(self, coefficients: Values) -> Values:
        """Return ``x_i . theta_k``, as :class:`Rows` says."""
        return np.asarray(np.matmul(self.matrix, coefficients))

    def backward(self, residuals: Values) -> Values:
        """Return ``sum_i r_ik x_i``, as :class:`Rows` says."""
        return np.asarray(np.matmul(self.matrix.T, residuals))

    def gram(self, weights: Values, out: NDArray[Any]) -> None:
        """Write the Gram matrices by one product with the table: ``n p^2`` flops a subset."""
        if out.dtype == np.float32:
            products: NDArray[Any] = self._rough_table @ weights.astype(np.float32)
        else:
            products = self._table @ weights
        for j, positions in enumerate(self._positions):
            np.take(products, positions, axis=0, out=out[j], mode="clip")

    def squares(self, weights: Values) -> Values:
        """Return ``sum_i w_ik x_ij^2``, as :class:`Rows` says."""
        return np.asarray(self._squared.T @ weights)

    def select(self, subsets: NDArray[Any]) -> SharedRows:
        """Return the rows themselves: every subset has them."""
        return self

    def lift(self, coefficients: Values) -> Values:
        """Return the coefficients themselves."""
        return coefficients

    def project(self, coefficients: Values) -> Values:
        """Return the coefficients themselves."""
        return coefficients


@dataclass(frozen=True)
class OwnRows:
    """Rows gathered for each subset, those that are missing to a common number zero.

    Attributes
    ----------
    matrices : ndarray of shape (K, m, p)
        The rows.
    basis : ndarray of shape (K, p_given, p), optional
        An orthonormal basis of the space of the rows, in which they are written.
    """

    matrices: Values
    basis: Values | None = None

    @property
    def width(self) -> int:
        """The number of features, p."""
        return int(self.matrices.shape[2])

    def forward(self, coefficients: Values) -> Values:
        """Return ``x_i . theta_k``, as :class:`Rows` says."""
        return _last(np.matmul(self.matrices, coefficients.transpose(2, 1, 0)))

    def backward(self, residuals: Values) -> Values:
        """Return ``sum_i r_ik x_i``, as :class:`Rows` says."""
        return _last(np.matmul(self.matrices.transpose(0, 2, 1), residuals.transpose(2, 1, 0)))

    def gram(self, weights: Values, out: NDArray[Any]) -> None:
        """Write the Gram matrices one by one: ``m p^2`` flops each, by symmetric products."""
        scaled = (self.matrices * np.sqrt(weights.T)[:, :, None]).astype(out.dtype, copy=False)
        out[:] = np.matmul(scaled.transpose(0, 2, 1), scaled).transpose(1, 2, 0)

    def squares(self, weights: Values) -> Values:
        """Return ``sum_i w_ik x_ij^2``, as :class:`Rows` says."""
        return np.asarray((weights.T[:, None] @ np.square(self.matrices))[:, 0].T)

    def select(self, subsets: NDArray[Any]) -> OwnRows:
        """Return the rows of some of the subsets."""
        basis = None if self.basis is None else self.basis[subsets]
        return OwnRows(self.matrices[subsets], basis)

    def lift(self, coefficients: Values) -> Values:
        """Return the coefficients in the space of the features that were given."""
        if self.basis is None:
            return coefficients
        return _last(np.matmul(self.basis, coefficients.transpose(2, 1, 0)))

    def project(self, coefficients: Values) -> Values:
        """Return what of the coefficients lies in the space of the rows."""
        if self.basis is None:
            return coefficients
        return _last(np.matmul(self.basis.transpose(0, 2, 1), coefficients.transpose(2, 1, 0)))


def _last(stacked: Values) -> Values:
    """Move K to the end, ``(K, a, b)`` to ``(b, a, K)``."""
    return np.ascontiguousarray(stacked.transpose(2, 1, 0))
