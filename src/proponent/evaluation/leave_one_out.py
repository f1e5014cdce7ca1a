"""Leave-one-out correlation: do influences agree with leaving each instance out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proponent.evaluation.correlation import PairedRows, mean_of_defined
from proponent.evaluation.estimates import Estimate, correlation_estimate, jackknife_variance
from proponent.evaluation.inputs import listed, open_fraction, refuse_non_finite
from proponent.evaluation.matching import LabelledMatrix
from proponent.evaluation.tables import Table, TabulatedResult
from proponent.exceptions import InvalidInputError
from proponent.progress import progress

if TYPE_CHECKING:
    from pandas import DataFrame

# Groups of training instances that are deleted for the intervals.
N_GROUPS = 100


@dataclass(frozen=True, eq=False, repr=False)
class LooCorrelation(TabulatedResult):
    """Agreement of influences with measured leave-one-out differences.

    Pearson and Spearman answer different questions and can differ widely: a few strong
    instances make a high Pearson correlation, while most instances decide Spearman's.

    Attributes
    ----------
    pooled_pearson, pooled_spearman : Estimate
        Over all pairs of a test and a training instance.
    mean_pearson, mean_spearman : Estimate
        Mean over the test instances of the correlation over training instances.
    per_test_pearson, per_test_spearman : array of shape (n_test,)
        NaN where undefined.
    test_ids : array of shape (n_test,)
        Labels of the test instances.
    undefined : array
        Ids of the test instances left out of the means, because their influences or their
        leave-one-out differences are all the same.
    n_train : int
        Number of training instances.
    confidence : float
        Level of the intervals.
    """

    pooled_pearson: Estimate
    pooled_spearman: Estimate
    mean_pearson: Estimate
    mean_spearman: Estimate
    per_test_pearson: NDArray[np.float64]
    per_test_spearman: NDArray[np.float64]
    test_ids: NDArray[Any]
    undefined: NDArray[Any]
    n_train: int
    confidence: float

    def _rows(self) -> dict[str, tuple[Estimate, Estimate]]:
        rows = {"pooled": (self.pooled_pearson, self.pooled_spearman)}
        if len(self.test_ids) > 1:
            rows["mean over tests"] = (self.mean_pearson, self.mean_spearman)
        return rows

    def table(self) -> DataFrame:
        """Return the correlations as a data frame; ``*_low`` and ``*_high`` are the intervals."""
        from pandas import DataFrame

        records = []
        for pair in self._rows().values():
            record: dict[str, float] = {}
            for name, figure in zip(("pearson", "spearman"), pair, strict=True):
                record |= {name: figure.value, f"{name}_low": figure.low}
                record[f"{name}_high"] = figure.high
            records.append(record)
        return DataFrame(records, index=list(self._rows()))

    def _as_table(self) -> Table:
        cells = [[name, str(p), str(s)] for name, (p, s) in self._rows().items()]
        notes = [
            f"Agreement with leave-one-out: {self.n_train} training instances, "
            f"{len(self.test_ids)} test rows"
        ]
        if len(self.undefined):
            notes.append(
                f"left out of the mean, constant: {len(self.undefined)} test instances "
                f"({listed(self.undefined)})"
            )
        notes.append(f"[{100 * self.confidence:g} % interval, over training instances]")
        return Table(["", "Pearson", "Spearman"], cells, notes)


def loo_correlation(
    influence: Any, loo: Any, *, confidence: float = 0.95, seed: int = 0
) -> LooCorrelation:
    """Correlate influences with measured leave-one-out differences in risk.

    Parameters
    ----------
    influence : Influence or array of shape (n_test, n_train) or (n_train,)
        Positive where the training instance lowers the risk.
    loo : Influence or array of the same shape
        Risk without the training instance minus risk with it, so positive likewise, see
        :func:`~proponent.evaluation.retrain_on_subsets`. Where both are ``Influence``, rows and
        columns are matched by id, in whatever order they come; arrays are taken by position.
    confidence : float
        Level of the intervals.
    seed : int
        Fixes which training instances are deleted together for the intervals, where there are
        more than 100.

    Returns
    -------
    LooCorrelation
        Pooled over all pairs, and averaged over the test instances.

    Raises
    ------
    InvalidInputError
        Shapes or ids differ, fewer than three training instances, or nothing but constant rows.
    NonFiniteError
        A value is NaN or infinite.

    Notes
    -----
    Leaving one instance out changes the risk by about 1/n, which the noise between two trainings
    easily exceeds: use it with models whose training is deterministic and ends in one optimum.

    The intervals are for other training instances and the same test instances: a jackknife that
    deletes up to 100 groups of training instances in turn.
    """
    estimated = LabelledMatrix.of(influence, "influence", (1, 2))
    measured = LabelledMatrix.of(loo, "loo", (1, 2)).ordered_like(estimated, "loo", "influence")
    refuse_non_finite(estimated.values, "influence", estimated.train_ids)
    refuse_non_finite(measured.values, "loo", estimated.train_ids)
    n_test, n_train = estimated.values.shape
    if n_train < 3:
        raise InvalidInputError(f"{n_train} training instances cannot be correlated: at least 3.")
    confidence = open_fraction(confidence, "confidence")

    rows = PairedRows(estimated.values, measured.values)
    pooled = PairedRows(estimated.values.reshape(1, -1), measured.values.reshape(1, -1))
    pearson, spearman = rows.pearson(), rows.spearman()
    undefined = estimated.test_ids[np.isnan(spearman)]
    if len(undefined) == n_test:
        raise InvalidInputError(
            "No correlation is defined: for every test instance the influences or the "
            "leave-one-out differences are all the same."
        )

    def figures(weights: NDArray[np.float64]) -> list[float]:
        tiled = np.tile(weights, n_test)
        return [
            float(pooled.pearson(tiled)[0]),
            float(pooled.spearman(tiled)[0]),
            mean_of_defined(rows.pearson(weights)),
            mean_of_defined(rows.spearman(weights)),
        ]

    groups = _groups(n_train, seed)
    replicates = np.empty((len(groups), 4))
    for replicate, group in zip(replicates, progress(groups, description="interval"), strict=True):
        kept = np.ones(n_train)
        kept[group] = 0.0
        replicate[:] = figures(kept)
    pooled_pearson, pooled_spearman, mean_pearson, mean_spearman = (
        correlation_estimate(value, float(variance), confidence)
        for value, variance in zip(
            figures(np.ones(n_train)), jackknife_variance(replicates), strict=True
        )
    )
    return LooCorrelation(
        pooled_pearson=pooled_pearson,
        pooled_spearman=pooled_spearman,
        mean_pearson=mean_pearson,
        mean_spearman=mean_spearman,
        per_test_pearson=pearson,
        per_test_spearman=spearman,
        test_ids=estimated.test_ids,
        undefined=undefined,
        n_train=n_train,
        confidence=confidence,
    )


def _groups(n_train: int, seed: int) -> list[NDArray[np.intp]]:
    """Split the training instances at random into groups whose sizes differ by one at most."""
    order = np.random.default_rng(seed).permutation(n_train)
    return np.array_split(order, min(n_train, N_GROUPS))
