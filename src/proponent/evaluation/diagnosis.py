"""What a diagnosis answers: how far an influence is from retraining, and which step errs most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import isfinite, pi, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proponent.evaluation.correlation import PairedRows, mean_of_defined
from proponent.evaluation.diagnosis_report import advice, as_table
from proponent.evaluation.estimates import (
    Estimate,
    correlation_estimate,
    jackknife_variance,
    percentile_estimate,
)
from proponent.evaluation.gaps import GAPS, RESPONSES
from proponent.evaluation.tables import Table, TabulatedResult

if TYPE_CHECKING:
    from pandas import DataFrame

Array = NDArray[np.float64]

# Draws of the bootstrap.
RESAMPLES = 2000
# Instances: less one, as the jackknife has it, a correlation of two says nothing.
FEWEST = 4


@dataclass(frozen=True)
class Optimisation:
    """How far the optimisation of one response got.

    Attributes
    ----------
    response : "warm", "proximal" or "pbrf"
        What was optimised.
    train_id : object
        The instance left out; None: none.
    iterations : int
        Steps taken.
    gradient : float
        Norm of the gradient that is left, beside that of the terms the instances take with them:
        about the relative error of the change of the parameters.
    stop : "converged", "stalled", "iterations" or "unbounded"
        Why it ended, see :class:`~proponent.evaluation.minimise.Minimum`.
    """

    response: str
    train_id: Any
    iterations: int
    gradient: float
    stop: str


@dataclass(frozen=True, eq=False, repr=False)
class Diagnosis(TabulatedResult):
    """How an influence differs from retraining, in five gaps that add up exactly.

    Every response is the change of the risk of a test instance when a training instance is left
    out, ``L(z_te; theta) - L(z_te; theta_s)`` for trained parameters theta_s. The gaps are the
    differences of neighbours: their sum is ``cold - estimate``.

    Attributes
    ----------
    retrained : array of shape (r, n_test, k)
        Retrained from scratch with each of r seeds; r = 0: not measured.
    warm, proximal, pbrf, linear, estimate : array of shape (n_test, k)
        Retrained from theta_s, the same held near theta_s by the damping, the proximal Bregman
        response function (NaN where it has none: without the instance its objective is
        unbounded), its derivative, and what the method says (NaN where it did not score).
    retrained_drift : array of shape (r, n_test)
    warm_drift, proximal_drift : array of shape (n_test,)
        The same change when nothing is left out. The other responses have none.
    train_ids : array of shape (k,)
        The training instances that were left out, one at a time.
    test_ids : array of shape (n_test,)
        The test instances.
    method : str
        Name of the method.
    optimisations : tuple of Optimisation
        How far each got: what they left undone is a further error, inside the gaps.
    residual : float
        Largest relative residual of the solves for ``linear``.
    remedies : mapping
        For each gap a sentence on what would reduce it.
    resolution : float
        Rounding of a change of the risk in the precision of the diagnosis.
    confidence : float
        Level of the intervals.
    """

    retrained: Array
    warm: Array
    proximal: Array
    pbrf: Array
    linear: Array
    estimate: Array
    retrained_drift: Array
    warm_drift: Array
    proximal_drift: Array
    train_ids: NDArray[Any]
    test_ids: NDArray[Any]
    method: str
    optimisations: tuple[Optimisation, ...]
    residual: float
    remedies: Mapping[str, str]
    resolution: float
    confidence: float

    @property
    def n_seeds(self) -> int:
        """How often each instance was left out of a retraining from scratch."""
        return len(self.retrained)

    @property
    def cold(self) -> Array:
        """Retrained from scratch, mean over the seeds, (n_test, k); NaN where not measured."""
        return self.retrained.mean(0) if self.n_seeds else np.full(self.warm.shape, np.nan)

    @property
    def cold_drift(self) -> Array:
        """Retrained from scratch with nothing left out, mean over the seeds, (n_test,)."""
        none = np.full(self.warm_drift.shape, np.nan)
        return self.retrained_drift.mean(0) if self.n_seeds else none

    @property
    def responses(self) -> dict[str, Array]:
        """The six responses by name, from retraining to the estimate."""
        return {name: getattr(self, name) for name in RESPONSES}

    @property
    def gaps(self) -> dict[str, Array]:
        """The five gaps by name, each of shape (n_test, k); NaN where not measured."""
        steps = pairwise(self.responses.values())
        return {gap: a - b for gap, (a, b) in zip(GAPS, steps, strict=True)}

    @cached_property
    def sizes(self) -> dict[str, Estimate]:
        """Mean absolute size of each gap, with a bootstrap interval over the instances left out.

        Every pair of a test and a training instance counts the same; pairs that were not
        measured do not count. With few instances the interval is too narrow.
        """
        return {gap: self._size(values) for gap, values in self.gaps.items()}

    @property
    def drift(self) -> dict[str, Array]:
        """What each gap is already when nothing is left out, (n_test,)."""
        none = np.zeros_like(self.warm_drift)
        drifts = [self.cold_drift, self.warm_drift, self.proximal_drift, none, none, none]
        return {gap: a - b for gap, (a, b) in zip(GAPS, pairwise(drifts), strict=True)}

    @cached_property
    def sizes_beyond_drift(self) -> dict[str, Estimate]:
        """As :attr:`sizes`, of the gaps less their drift: what leaving out itself makes.

        The drift moves the risks of all instances alike, and so neither their order nor a
        difference between retrained models.
        """
        gaps, drift = self.gaps, self.drift
        return {gap: self._size(gaps[gap] - drift[gap][:, None]) for gap in GAPS}

    @cached_property
    def correlations(self) -> dict[str, Estimate]:
        """Pearson correlation of the estimate with each response over the instances.

        Mean over the test instances, with an interval from the jackknife over the training
        instances. Over those that have all values; NaN with fewer than four, or where all
        values are the same.
        """
        return {name: self._correlation(self.responses[name]) for name in RESPONSES[:-1]}

    @property
    def largest(self) -> str:
        """Name of the largest gap among those measured."""
        return _largest(self.sizes)

    @property
    def largest_beyond_drift(self) -> str:
        """Name of the largest gap less its drift among those measured."""
        return _largest(self.sizes_beyond_drift)

    @property
    def retraining_noise(self) -> float:
        """Mean absolute warm-start gap that the noise between seeds would make alone.

        NaN with fewer than two seeds.
        """
        return _noise(self.retrained)

    @property
    def retraining_noise_beyond_drift(self) -> float:
        """As :attr:`retraining_noise`, where the same seed is compared with nothing left out."""
        return _noise(self.retrained - self.retrained_drift[:, :, None])

    @property
    def advice(self) -> str:
        """Sentences that name the largest gap and say what would reduce it."""
        return advice(self)

    def to_dataframe(self) -> DataFrame:
        """Return every value: a row for each pair, columns for the responses and the gaps.

        Returns
        -------
        DataFrame
            Indexed by ``test_id`` and ``train_id``; the gaps' columns end in ``_gap``.
        """
        from pandas import DataFrame, MultiIndex

        index = MultiIndex.from_product(
            [self.test_ids, self.train_ids], names=["test_id", "train_id"]
        )
        columns = self.responses | {f"{gap}_gap": values for gap, values in self.gaps.items()}
        return DataFrame({name: values.ravel() for name, values in columns.items()}, index=index)

    def table(self) -> DataFrame:
        """Return a row for each gap: its size, and that beyond its drift, with intervals."""
        from pandas import DataFrame

        records = []
        for gap in GAPS:
            record: dict[str, float] = {}
            sizes = (("size", self.sizes), ("beyond_drift", self.sizes_beyond_drift))
            for name, figures in sizes:
                figure = figures[gap]
                record |= {name: figure.value, f"{name}_low": figure.low}
                record[f"{name}_high"] = figure.high
            records.append(record)
        return DataFrame(records, index=list(GAPS)).rename_axis("gap")

    def _size(self, gap: Array) -> Estimate:
        counted = ~np.isnan(gap)
        sums, counts = np.abs(np.where(counted, gap, 0.0)).sum(0), counted.sum(0)
        if not counts.sum():
            return Estimate(np.nan, np.nan, np.nan)
        value = float(sums.sum() / counts.sum())
        sums, counts = sums[counts > 0], counts[counts > 0]
        if len(counts) < 2:
            return Estimate(value, np.nan, np.nan)
        drawn = np.random.default_rng(0).integers(len(counts), size=(RESAMPLES, len(counts)))
        replicates = sums[drawn].sum(1) / counts[drawn].sum(1)
        return percentile_estimate(value, replicates, self.confidence)

    def _correlation(self, response: Array) -> Estimate:
        known = ~np.isnan(self.estimate + response).any(axis=0)
        k = int(known.sum())
        if k < FEWEST:
            return Estimate(np.nan, np.nan, np.nan)
        rows = PairedRows(self.estimate[:, known], response[:, known])
        value = mean_of_defined(rows.pearson())
        deleted = [mean_of_defined(rows.pearson(weights)) for weights in 1.0 - np.eye(k)]
        variance = float(jackknife_variance(np.array(deleted)))
        return correlation_estimate(value, variance, self.confidence)

    def _as_table(self) -> Table:
        return as_table(self)


def _noise(retrained: Array) -> float:
    """Mean absolute size of a mean over seeds that is zero but for their noise."""
    r = len(retrained)
    if r < 2:
        return float("nan")
    return sqrt(2 / pi / r) * float(retrained.std(0, ddof=1).mean())


def _largest(sizes: Mapping[str, Estimate]) -> str:
    measured = {gap: size.value for gap, size in sizes.items() if isfinite(size.value)}
    return max(measured, key=measured.__getitem__)
