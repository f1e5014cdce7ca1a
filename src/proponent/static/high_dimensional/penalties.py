"""The penalties: their proximal maps, how far a point is from optimal, and their kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.static.high_dimensional.arrays import Array


class Penalty(Protocol):
    """A convex function of the parameters with a proximal map."""

    def value(self, theta: Array) -> float:
        """Return the penalty."""

    def proximal(self, theta: Array, step: float) -> Array:
        """Return the minimiser by t of ``penalty(t) + ||t - theta||^2 / (2 step)``."""

    def distance(self, theta: Array, slope: Array) -> float:
        """Return how far ``-slope`` is from the subdifferential, relative to the strength.

        It is the residual of the Karush-Kuhn-Tucker conditions, divided by lambda, where
        ``slope`` is the gradient of the mean risk.
        """


@dataclass(frozen=True)
class ElasticNet(Penalty):
    """``sum_j l1_j |theta_j| + (l2_j / 2) theta_j^2`` over the columns of theta, ``(k, d)``.

    Attributes
    ----------
    l1, l2 : array of shape (d,)
        Zero for a column without penalty.
    unit : array of shape (d,)
        lambda for each column, as it is after scaling the columns; residuals are measured in it.
    nonnegative : bool
        Whether theta is constrained to be at least 0.
    """

    l1: Array
    l2: Array
    unit: Array
    nonnegative: bool = False

    @classmethod
    def of(
        cls, strength: float, l1_ratio: float, penalised: Array, *, nonnegative: bool = False
    ) -> ElasticNet:
        """Return ``strength (l1_ratio ||.||_1 + (1 - l1_ratio) / 2 ||.||^2)`` of some columns.

        Parameters
        ----------
        strength, l1_ratio : float
            lambda, and the share of the L1 norm.
        penalised : array of shape (d,)
            1 for the columns that are penalised, 0 for the others.
        nonnegative : bool
            As the attribute.
        """
        l1, l2 = strength * l1_ratio * penalised, strength * (1 - l1_ratio) * penalised
        return cls(l1, l2, np.full(len(penalised), strength), nonnegative)

    def scaled(self, sizes: Array) -> ElasticNet:
        """Return the same penalty of ``theta * sizes``."""
        l1, l2, unit = self.l1 / sizes, self.l2 / sizes**2, self.unit / sizes
        return replace(self, l1=l1, l2=l2, unit=unit)

    @override
    def value(self, theta: Array) -> float:
        return float((self.l1 * np.abs(theta) + self.l2 / 2 * theta**2).sum())

    @override
    def proximal(self, theta: Array, step: float) -> Array:
        shrunk = np.maximum(np.abs(theta) - step * self.l1, 0) / (1 + step * self.l2)
        signs = np.sign(theta)
        return shrunk * (np.where(self.l1 > 0, signs > 0, signs) if self.nonnegative else signs)

    def free(self, theta: Array) -> NDArray[np.bool_]:
        """Return where the penalty is differentiable: not at zeros of columns with an L1 part."""
        found: NDArray[np.bool_] = (theta != 0) | (self.l1 == 0)
        return found

    def residual(self, theta: Array, slope: Array) -> Array:
        """Return the distance of ``-slope`` to the subdifferential, entry by entry, ``(k, d)``."""
        pull = slope + self.l2 * theta
        at_zero = np.maximum((-pull if self.nonnegative else np.abs(pull)) - self.l1, 0)
        return np.where(self.free(theta), np.abs(pull + self.l1 * np.sign(theta)), at_zero)

    @override
    def distance(self, theta: Array, slope: Array) -> float:
        return float((self.residual(theta, slope) / self.unit).max())

    def kernel(self, theta: Array) -> Array:
        """Return the diagonal of the kernel, ``|theta| / (rho + (1 - rho) |theta|)``, ``(k, d)``.

        With ``l1 = lambda rho`` and ``l2 = lambda (1 - rho)`` the optimum has ``-slope = l1
        sign(theta) + l2 theta`` wherever theta is not zero, so that ``theta = -(kernel / lambda)
        slope``. A column without penalty has no kernel: its slope is zero.
        """
        size = np.abs(theta)
        with_kernel = (size > 0) & (self.l1 > 0)
        pull = np.where(with_kernel, self.l1 + self.l2 * size, 1.0)
        return np.where(with_kernel, self.unit * size / pull, 0.0)


@dataclass(frozen=True)
class NuclearNorm(Penalty):
    """``strength * ||theta||_*``, the sum of the singular values of theta, ``(a, b)``."""

    strength: float

    @override
    def value(self, theta: Array) -> float:
        return self.strength * float(np.linalg.svd(theta, compute_uv=False).sum())

    @override
    def proximal(self, theta: Array, step: float) -> Array:
        left, sizes, right = np.linalg.svd(theta, full_matrices=False)
        kept = np.maximum(sizes - step * self.strength, 0)
        shrunk: Array = (left * kept) @ right
        return shrunk

    @override
    def distance(self, theta: Array, slope: Array) -> float:
        left, _, right = compact_svd(theta)
        dual = -slope / self.strength
        # The subdifferential is U V^T + W with U^T W = 0, W V = 0 and no singular value over 1.
        rest = dual - left @ (left.T @ dual)
        rest = rest - (rest @ right.T) @ right
        within = np.linalg.norm(dual - rest - left @ right, 2)
        return float(max(within, np.linalg.norm(rest, 2) - 1))


def compact_svd(theta: Array) -> tuple[Array, Array, Array]:
    """Return U (a, r), s (r,), V^T (r, b) with ``theta = U diag(s) V^T`` and r its rank."""
    left, sizes, right = np.linalg.svd(theta, full_matrices=False)
    rank = int((sizes > max(theta.shape) * np.finfo(float).eps * sizes.max(initial=0)).sum())
    return left[:, :rank], sizes[:rank], right[:rank]
