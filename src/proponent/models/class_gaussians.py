"""Gaussian classes of many subsets at once: sums over a subset are products of matrices.

Everything is relative to the mean of the class over the whole training set, so that nothing is
lost where features are far from 0. Where a product would still lose digits, because the members
of a subset are close to each other and far from that mean, it is computed member by member.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

# A difference of squares keeps 13 digits where these are at most so many times as large.
CANCELLATION = 1e2
# The exponent of a density, a sum of such terms, is then off by 1e-11 at most.
LARGEST_TERM = 1e5
# A spread below this, relative to the distance from the training set's mean, is rounding alone.
ROUNDING = 1e-14


@dataclass(frozen=True)
class Gaussians:
    """What naive Bayes learns of K subsets with C classes and d features.

    Attributes
    ----------
    priors : ndarray of shape (K, C)
        The weight of each class; 0 for one that a subset lacks.
    shifts : ndarray of shape (K, C, d)
        Means of the features, from ``centres``.
    variances : ndarray of shape (K, C, d)
        Smoothed.
    """

    priors: Values
    shifts: Values
    variances: Values


class ClassGaussians:
    """A training set, to estimate the Gaussians of its subsets.

    Parameters
    ----------
    features : ndarray of shape (n, d)
    classes : ndarray of shape (n,)
        Positions of the classes, 0 .. C - 1; each is there.
    """

    def __init__(self, features: Values, classes: NDArray[Any]) -> None:
        members = [np.flatnonzero(classes == code) for code in range(int(classes.max()) + 1)]
        overall = features.mean(axis=0)
        self._members = members
        self.centres = np.stack([features[chosen].mean(axis=0) for chosen in members])
        self._offsets = self.centres - overall  # (C, d)
        self._centred = [features[m] - c for m, c in zip(members, self.centres, strict=True)]

    def of(self, counts: NDArray[Any], smoothing: float, priors: Values | None) -> Gaussians:
        """Return the Gaussians of subsets.

        Parameters
        ----------
        counts : ndarray of shape (K, n)
            How often each training instance is in.
        smoothing : float
            This portion of the largest variance of the subset's features is added to all.
        priors : ndarray of shape (C,), optional
            Weights of the classes; None: their frequencies in the subset.

        Returns
        -------
        Gaussians
            Where all members of a subset are the same point, its variances are 1: whatever they
            are, no class is more likely than another.
        """
        n_classes, d = self.centres.shape
        sizes = np.empty((len(counts), n_classes))
        shifts = np.zeros((len(counts), n_classes, d))
        variances = np.zeros((len(counts), n_classes, d))
        for code, (members, centred) in enumerate(zip(self._members, self._centred, strict=True)):
            weights = counts[:, members].astype(np.float64)
            sizes[:, code] = weights.sum(axis=1)
            total = np.maximum(sizes[:, code], 1)[:, None]
            shifts[:, code] = weights @ centred / total
            variances[:, code] = weights @ np.square(centred) / total - shifts[:, code] ** 2
            variances[np.count_nonzero(weights, axis=1) < 2, code] = 0
        np.maximum(variances, 0, out=variances)
        frequencies = sizes / sizes.sum(axis=1, keepdims=True)
        added = smoothing * self._largest_variance(frequencies, shifts, variances)
        self._repair(counts, shifts, variances, added)
        largest = self._largest_variance(frequencies, shifts, variances)
        variances += smoothing * largest[:, None, None]
        variances[largest == 0] = 1
        weights = frequencies if priors is None else np.where(sizes > 0, priors, 0)
        return Gaussians(weights, shifts, variances)

    def log_densities(self, gaussians: Gaussians, tests: Values) -> Values:
        """Return the log densities of tests by each class of each subset, ``(K, T, C)``.

        Parameters
        ----------
        gaussians : Gaussians
            Their variances are positive.
        tests : ndarray of shape (T, d)
        """
        found = np.empty((len(gaussians.priors), len(tests), len(self.centres)))
        for code, centre in enumerate(self.centres):
            shifts, variances = gaussians.shifts[:, code], gaussians.variances[:, code]
            found[:, :, code] = _exponents(shifts, 1 / variances, tests - centre)
            found[:, :, code] += np.log(2 * np.pi * variances).sum(axis=1)[:, None]
        found *= -0.5
        return found

    def _largest_variance(self, frequencies: Values, shifts: Values, variances: Values) -> Values:
        """Return the largest variance of a feature over each whole subset, ``(K,)``."""
        means = np.where(frequencies[:, :, None] > 0, shifts + self._offsets, 0)
        overall = np.einsum("kc,kcd->kd", frequencies, means)
        between = np.square(means - overall[:, None])
        whole = np.einsum("kc,kcd->kd", frequencies, variances + between)
        largest: Values = whole.max(axis=1)
        largest[largest <= (ROUNDING * np.abs(means).max(axis=(1, 2))) ** 2] = 0
        return largest

    def _repair(
        self, counts: NDArray[Any], shifts: Values, variances: Values, added: Values
    ) -> None:
        """Compute the variances anew that are differences of much larger numbers."""
        lost = shifts**2 > CANCELLATION * (variances + added[:, None, None])
        for row, code in np.argwhere(lost.any(axis=2)):
            counted = counts[row, self._members[code]]
            chosen = np.flatnonzero(counted)
            if len(chosen) > 1:
                deviations = self._centred[code][chosen] - shifts[row, code]
                variances[row, code] = np.average(deviations**2, axis=0, weights=counted[chosen])


def _exponents(shifts: Values, precisions: Values, tests: Values) -> Values:
    """Return ``sum_j (t_j - shift_j)^2 precision_j`` of K Gaussians and T tests, ``(K, T)``."""
    squares = np.square(tests)
    own = np.einsum("kd,kd->k", shifts**2, precisions)
    found: Values = precisions @ squares.T
    found -= 2 * (shifts * precisions) @ tests.T
    found += own[:, None]
    largest = precisions @ squares.max(axis=0) + own
    for row in np.flatnonzero(~(largest <= LARGEST_TERM)):
        found[row] = np.square(tests - shifts[row]) @ precisions[row]
    return found
