r"""Kernel regression in its dual form, with all instances and without some.

With the inverse :math:`G = (\Omega^{1/2} K \Omega^{1/2} + \Lambda)^{-1}` for weights
:math:`\Omega` and noise :math:`\Lambda`, and :math:`u = G \Omega^{1/2} y`, the dual coefficients
are :math:`\Omega^{1/2} u`, and

.. math::
    \theta - \theta_{-g} = \Omega^{1/2} G_{:g} G_{gg}^{-1} u_g,

whose entries for g itself are those of the dual coefficients: what is left out gets 0.

**Source** Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 5.4.2,
there for an instance's own prediction; the block inverse of a matrix for any other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from proponent.retraining.closed_forms.closed_form import NoClosedForm
from proponent.retraining.closed_forms.differences import RankOne

Values = NDArray[np.float64]
Positions = NDArray[np.intp]


@dataclass(frozen=True)
class DualFit:
    """The inverse kernel matrix, and what follows from it.

    Attributes
    ----------
    inverse : ndarray of shape (n, n)
        G.
    roots : ndarray of shape (n,)
        The square roots of the weights.
    condition : float
        An estimate of the condition number of the kernel matrix with the noise.
    """

    inverse: Values
    roots: Values
    condition: float

    @classmethod
    def of(cls, kernel: Values, noise: Values, weights: Values) -> DualFit:
        """Invert a kernel matrix ``(n, n)`` with noise ``(n,)`` and weights ``(n,)``.

        Raises
        ------
        NoClosedForm
            If the matrix is singular.
        """
        roots = np.sqrt(weights)
        matrix = roots[:, None] * kernel * roots
        # An instance without weight stands alone, and must not make the matrix singular.
        matrix[np.diag_indices_from(matrix)] += np.where(weights > 0, noise, 1.0)
        inverse, condition = _inverse(matrix)
        return cls(inverse, roots, condition)

    def solve(self, targets: Values) -> Values:
        """Return ``u`` of targets ``(n, m)``."""
        return np.asarray(self.inverse @ (self.roots[:, None] * targets))

    def directions(self, rows: Positions) -> Values:
        """Return ``Omega^(1/2) G_i`` of some instances, ``(rows, n)``."""
        return np.asarray(self.inverse[rows] * self.roots)

    def each(self, rows: Positions, solved: Values) -> RankOne:
        """Return the differences without each of some instances, of ``u``."""
        sizes = solved[rows] / self.inverse.diagonal()[rows, None]
        return RankOne(self.directions(rows), sizes)

    def without(self, group: Positions, solved: Values) -> Values:
        """Return the difference without a group, ``(n, m)``, of ``u``."""
        from scipy.linalg import solve

        block = self.inverse[np.ix_(group, group)]
        sizes = solve(block, solved[group], assume_a="sym")
        return np.asarray(self.directions(group).T @ sizes)


def _inverse(matrix: Values) -> tuple[Values, float]:
    """Return the inverse of a symmetric matrix, and an estimate of its condition number."""
    from scipy.linalg import LinAlgError, LinAlgWarning, inv, lapack

    size = np.abs(matrix).sum(axis=0).max()
    factor, failed = lapack.dpotrf(matrix, lower=1)
    if not failed:
        inverse, failed = lapack.dpotri(factor, lower=1)
    if not failed:
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
    else:  # not positive definite, as a sigmoid kernel need not be
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", LinAlgWarning)
                inverse = inv(matrix)
        except (LinAlgError, LinAlgWarning) as error:
            raise NoClosedForm(
                "the kernel matrix is singular; a larger alpha makes it regular."
            ) from error
        inverse = (inverse + inverse.T) / 2
    return inverse, float(size * np.abs(inverse).sum(axis=0).max())
