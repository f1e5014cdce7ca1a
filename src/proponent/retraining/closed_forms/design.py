r"""A weighted design in coordinates in which ridge regression has a diagonal matrix.

With the features centred (where there is an intercept), multiplied by the square roots of the
weights and decomposed, :math:`\Omega^{1/2} (X - \bar x) = U S V^\top`, the coordinates of an
instance are :math:`(1, (x - \bar x)^\top V)`, those of its coefficients V^T coef, which have the
same norm. One decomposition serves every penalty and every output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """A decomposed training set.

    Attributes
    ----------
    centre : ndarray of shape (d,)
        The weighted mean of the features; zero without an intercept.
    axes : ndarray of shape (d, r)
        V: r is the rank.
    scales : ndarray of shape (r,)
        The singular values S.
    left : ndarray of shape (n, r)
        U.
    roots : ndarray of shape (n,)
        The square roots of the weights.
    intercept : bool
        Whether there is an intercept, which has no penalty.
    """

    centre: Values
    axes: Values
    scales: Values
    left: Values
    roots: Values
    intercept: bool

    @classmethod
    def of(
        cls, features: Values, weights: Values, intercept: bool, tolerance: float = 0.0
    ) -> Design:
        """Decompose features ``(n, d)`` with weights ``(n,)``.

        Singular values up to ``tolerance`` times the largest, and those that are rounding, are
        taken for zero.
        """
        from scipy.linalg import svd

        centre = np.zeros(features.shape[1])
        if intercept:
            centre = np.average(features, axis=0, weights=weights)
        roots = np.sqrt(weights)
        weighted = roots[:, None] * (features - centre)
        left, scales, axes = svd(weighted, full_matrices=False, check_finite=False)
        least = max(tolerance, max(weighted.shape) * np.finfo(np.float64).eps)
        kept = scales > least * scales.max(initial=0.0)
        return cls(centre, axes[kept].T.copy(), scales[kept], left[:, kept], roots, intercept)

    @property
    def total(self) -> float:
        """The sum of the weights."""
        return float(np.square(self.roots).sum())

    @property
    def spans(self) -> bool:
        """Whether any targets can be fitted without an error: as many directions as instances."""
        return len(self.scales) + self.intercept == np.count_nonzero(self.roots)

    def features(self, given: Values) -> Values:
        """Return the coordinates of instances, ``(T, q)``: q is r, plus 1 with an intercept."""
        projected = (given - self.centre) @ self.axes
        return np.column_stack([np.ones(len(given)), projected]) if self.intercept else projected

    def solve(self, targets: Values, penalty: float) -> Values:
        """Return the parameters of ridge regression on ``(n, m)`` targets, ``(q, m)``."""
        weighted, mean = self.centred(targets)
        inside = (self.left.T @ weighted) * (self.scales / self._squares(penalty))[:, None]
        return np.vstack([mean, inside]) if self.intercept else inside

    def centred(self, targets: Values) -> tuple[Values, Values]:
        """Return targets less their weighted mean, times the roots, and the mean ``(m,)``."""
        mean = np.zeros(targets.shape[1])
        if self.intercept:
            mean = np.average(targets, axis=0, weights=np.square(self.roots))
        return self.roots[:, None] * (targets - mean), mean

    def directions(self, penalty: float) -> Values:
        """Return ``A^{-1} x_i`` times the root of the weight, for all instances, ``(n, q)``."""
        inside = self.left * (self.scales / self._squares(penalty))
        if not self.intercept:
            return inside
        return np.column_stack([self.roots / self.total, inside])

    def parameters(self, penalty: float) -> float:
        """Return the number of parameters that a fit takes: the trace of the hat matrix."""
        shrunk = np.square(self.scales) / self._squares(penalty)
        return float(shrunk.sum()) + self.intercept

    def coefficients(self, parameters: Values) -> Values:
        """Return the coefficients, and the intercept last, of ``(..., q, m)``: ``(..., m, p)``."""
        rows = np.swapaxes(parameters, -1, -2)
        if not self.intercept:
            return np.asarray(rows @ self.axes.T)
        found = rows[..., 1:] @ self.axes.T
        return np.concatenate([found, rows[..., :1] - (found @ self.centre)[..., None]], axis=-1)

    def _squares(self, penalty: float) -> Values:
        return np.square(self.scales) + penalty
