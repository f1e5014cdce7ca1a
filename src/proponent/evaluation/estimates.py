"""An estimate and its confidence interval."""

from __future__ import annotations

from dataclasses import dataclass
from math import atanh, sqrt, tanh
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Estimate:
    """A value and its confidence interval.

    Attributes
    ----------
    value : float
        The estimate.
    low, high : float
        Ends of the interval; NaN where there is too little data for one.
    """

    value: float
    low: float
    high: float

    def __float__(self) -> float:
        """Return the value without its interval."""
        return self.value

    def __str__(self) -> str:
        """Return the value and its interval to three decimals."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def percentile_estimate(
    value: float, replicates: NDArray[np.float64], confidence: float
) -> Estimate:
    """Attach the interval that holds the middle of the replicates."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(replicates, [tail, 1.0 - tail])
    return Estimate(float(value), float(low), float(high))


def correlation_estimate(value: float, variance: float, confidence: float) -> Estimate:
    """Attach to a correlation the interval that is symmetric on Fisher's scale, artanh.

    On that scale the error hardly depends on the correlation itself, and the ends stay
    between -1 and 1.
    """
    if variance == 0.0 or abs(value) >= 1.0:
        return Estimate(value, value, value)
    quantile = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    half_width = quantile * sqrt(variance) / (1.0 - value**2)
    return Estimate(value, tanh(atanh(value) - half_width), tanh(atanh(value) + half_width))


def jackknife_variance(replicates: NDArray[np.float64]) -> NDArray[np.float64]:
    r"""Jackknife variance along the first axis.

    .. math:: V = \frac{G - 1}{G} \sum_{g=1}^G (\theta_{-g} - \bar\theta)^2

    where :math:`\theta_{-g}` is the estimate without group g of the observations.

    Unlike the bootstrap, it repeats no observation: repeated ones are ties, which pull a rank
    correlation near 1 down by more than the width of its interval.
    """
    n_groups = len(replicates)
    deviations = replicates - replicates.mean(axis=0)
    variance: NDArray[np.float64] = (n_groups - 1) / n_groups * (deviations**2).sum(axis=0)
    return variance
