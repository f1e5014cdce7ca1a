"""The linear datamodeling score: do summed influences predict training on a subset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.evaluation.correlation import PairedRows, mean_of_defined
from proponent.evaluation.estimates import Estimate, correlation_estimate, jackknife_variance
from proponent.evaluation.inputs import (
    listed,
    open_fraction,
    real_array,
    refuse_non_finite,
    subset_positions,
)
from proponent.evaluation.matching import LabelledMatrix
from proponent.evaluation.tables import Table, TabulatedResult
from proponent.exceptions import InvalidInputError
from proponent.progress import progress

# Of a row's summed magnitude. Sums that differ by less differ by rounding only: they are ties.
DECIMALS = 12


@dataclass(frozen=True, eq=False, repr=False)
class LinearDatamodelingScore(TabulatedResult):
    """How well summed influences rank what was measured on retrained models.

    Attributes
    ----------
    score : Estimate
        Mean Spearman correlation over the test instances, with its interval over subsets and
        test instances.
    per_test : array of shape (n_test,)
        Spearman correlation of each test instance, NaN where it is undefined.
    test_ids : array of shape (n_test,)
        Labels of the test instances.
    undefined : array
        Ids of the test instances left out of the mean, because their measured outputs or their
        predictions are the same for all subsets.
    noise_ceiling : float or None
        About what a perfect prediction would score, given the noise between trainings on the
        same subset. None where each subset was trained once, so that it cannot be known.
    n_subsets, n_repeats : int
        How many models stand behind it.
    confidence : float
        Level of the interval.
    """

    score: Estimate
    per_test: NDArray[np.float64]
    test_ids: NDArray[Any]
    undefined: NDArray[Any]
    noise_ceiling: float | None
    n_subsets: int
    n_repeats: int
    confidence: float

    def __float__(self) -> float:
        """Return the score without its interval."""
        return self.score.value

    def _as_table(self) -> Table:
        ceiling = (
            "not known (one training a subset)"
            if self.noise_ceiling is None
            else f"{self.noise_ceiling:.3f}"
        )
        header = ["linear datamodeling score", "noise ceiling", "subsets", "trainings a subset"]
        cells = [[str(self.score), ceiling, str(self.n_subsets), str(self.n_repeats)]]
        notes = [f"Mean Spearman correlation over {len(self.per_test)} test instances"]
        if len(self.undefined):
            notes.append(
                f"left out, constant over the subsets: {len(self.undefined)} test instances "
                f"({listed(self.undefined)})"
            )
        notes.append(f"[{100 * self.confidence:g} % interval, over subsets and test instances]")
        return Table(header, cells, notes)


def linear_datamodeling_score(
    influence: Any,
    subsets: Any,
    *,
    risks: Any = None,
    margins: Any = None,
    confidence: float = 0.95,
) -> LinearDatamodelingScore:
    r"""Correlate measured outputs of retrained models with sums of influences.

    For test instance z and subsets :math:`S_1, \dots, S_m`, the Spearman correlation between the
    measured output of the model trained on :math:`S_j` and the prediction
    :math:`\sum_{i \in S_j} I(z_i, z)`, where ties share their mean rank; then the mean over z.

    **Source**: Park et al., "TRAK: Attributing Model Behavior at Scale", ICML 2023.

    Parameters
    ----------
    influence : Influence or array of shape (n_test, n_train)
        Positive where the training instance lowers the risk of the test instance.
    subsets : boolean array of shape (m, n_train), or sequence of m position lists
        What each model was trained on, see :func:`~proponent.evaluation.random_subsets`.
    risks : array of shape (m, n_test) or (m, r, n_test)
        Measured risks (lower is better), as
        :func:`~proponent.evaluation.retrain_on_subsets` returns them; r trainings of each subset
        are averaged and give the noise ceiling.
    margins : array of shape (m, n_test) or (m, r, n_test)
        Instead of risks: outputs where higher is better, such as the margin
        ``log(p / (1 - p))`` of the true class, which does not saturate as a risk does.
    confidence : float
        Level of the interval.

    Returns
    -------
    LinearDatamodelingScore
        With the figure of each test instance, and those left out.

    Raises
    ------
    InvalidInputError
        Fewer than three subsets, shapes that do not fit, both or none of ``risks`` and
        ``margins``, or no test instance for which the correlation is defined.
    NonFiniteError
        An influence or an output is NaN or infinite.

    Notes
    -----
    The interval is for other subsets **and** other test instances. Its variance is
    :math:`V_S + V_z - V_{Sz}`: that from deleting one subset at a time, that of the mean over
    test instances, less what both count because it is private to a subset and a test instance;
    all three by the jackknife, and never less than the larger of the first two. With a single
    test instance it is for other subsets only.
    """
    matrix = LabelledMatrix.of(influence, "influence", (2,))
    refuse_non_finite(matrix.values, "influence", matrix.train_ids)
    n_test, n_train = matrix.values.shape
    positions = subset_positions(subsets, n_train)
    outputs = _outputs(risks, margins, len(positions), n_test, matrix.test_ids)
    confidence = open_fraction(confidence, "confidence")

    rows = PairedRows(_predictions(matrix.values, positions), outputs.mean(axis=1).T)
    per_test = rows.spearman()
    undefined = matrix.test_ids[np.isnan(per_test)]
    if len(undefined) == n_test:
        raise InvalidInputError(
            "No correlation is defined: for every test instance the measured outputs or the "
            "summed influences are the same for all subsets."
        )
    variance = _two_way_variance(rows, per_test, len(positions))
    score = correlation_estimate(mean_of_defined(per_test), variance, confidence)
    n_repeats = outputs.shape[1]
    return LinearDatamodelingScore(
        score=score,
        per_test=per_test,
        test_ids=matrix.test_ids,
        undefined=undefined,
        noise_ceiling=noise_ceiling(outputs) if n_repeats > 1 else None,
        n_subsets=len(positions),
        n_repeats=n_repeats,
        confidence=confidence,
    )


def noise_ceiling(outputs: NDArray[np.float64]) -> float:
    r"""Score that the noiseless outputs would have, from how well repeated trainings agree.

    With :math:`\rho` the Spearman correlation between the means of two halves of h trainings
    (averaged over the r rotations of the trainings), the Spearman-Brown formula with L = r/h
    gives the reliability :math:`L\rho / (1 + (L-1)\rho)` of the mean of all r, and its square
    root is the correlation of that mean with what it estimates. A negative :math:`\rho`, which
    noise alone gives half of the time, counts with its sign, so that pure noise averages to 0.

    **Source**: Spearman 1910; Brown 1910.

    Parameters
    ----------
    outputs : array of shape (m, r, n_test)
        r trainings of each subset, r at least 2.

    Returns
    -------
    float
        Mean over the test instances where it is defined; NaN where there is none.
    """
    n_repeats = outputs.shape[1]
    half = n_repeats // 2
    correlations = []
    for start in range(n_repeats):
        rotated = np.roll(outputs, -start, axis=1)
        first, second = rotated[:, :half].mean(axis=1), rotated[:, half : 2 * half].mean(axis=1)
        correlations.append(PairedRows(first.T, second.T).spearman())
    table = np.stack(correlations)
    rho = np.array([mean_of_defined(column) for column in table.T])
    lengthening = n_repeats / half
    reliability = lengthening * np.abs(rho) / (1.0 + (lengthening - 1.0) * np.abs(rho))
    return mean_of_defined(np.sign(rho) * np.sqrt(reliability))


def _two_way_variance(rows: PairedRows, per_test: NDArray[np.float64], n_subsets: int) -> float:
    """Variance of the mean over test instances, for new subsets and new test instances."""
    without = np.empty((n_subsets, len(per_test)))
    for subset in progress(range(n_subsets), description="interval"):
        kept = np.ones(n_subsets)
        kept[subset] = 0.0
        without[subset] = rows.spearman(kept)
    # A test instance that is constant without one of the subsets tells nothing of the variance.
    usable = ~np.isnan(without).any(axis=0)
    n_test = int(usable.sum())
    if n_test == 0:
        return float("nan")
    by_subset = float(jackknife_variance(without[:, usable].mean(axis=1)))
    if n_test == 1:
        return by_subset
    by_test = float(per_test[usable].var(ddof=1)) / n_test
    private = float(jackknife_variance(without[:, usable]).sum()) / n_test**2
    return max(by_subset + by_test - private, by_subset, by_test)


def _predictions(
    values: NDArray[np.float64], positions: list[NDArray[np.intp]]
) -> NDArray[np.float64]:
    """Return sums over each subset in units of each row's summed magnitude, (n_test, m)."""
    n_train = values.shape[1]
    masks = np.zeros((len(positions), n_train))
    for mask, subset in zip(masks, positions, strict=True):
        mask[subset] = 1.0
    scale = np.abs(values).max(axis=1, keepdims=True)
    scaled = values / np.where(scale > 0, scale, 1.0)
    total = np.abs(scaled).sum(axis=1, keepdims=True)
    sums = (scaled @ masks.T) / np.where(total > 0, total, 1.0)
    # The same sum in another order differs in its last bits, which must not make a rank.
    rounded: NDArray[np.float64] = np.round(sums, DECIMALS)
    return rounded


def _outputs(
    risks: Any, margins: Any, n_subsets: int, n_test: int, test_ids: NDArray[Any]
) -> NDArray[np.float64]:
    """Measured outputs of shape (m, r, n_test), higher is better."""
    if (risks is None) == (margins is None):
        raise InvalidInputError(
            "Give the measured outputs either as risks= (lower is better) or as margins= (higher "
            "is better)."
        )
    if n_subsets < 3:
        raise InvalidInputError(
            f"{n_subsets} subsets cannot be correlated: at least 3, and some 100 for a score "
            "within a few hundredths."
        )
    name, given = ("risks", risks) if margins is None else ("margins", margins)
    outputs = real_array(given, name, (2, 3))
    if outputs.ndim == 2:
        outputs = outputs[:, None]
    if outputs.shape != (n_subsets, outputs.shape[1], n_test) or outputs.shape[1] == 0:
        raise InvalidInputError(
            f"{name} must be of shape (m, n_test) or (m, r, n_test) with m = {n_subsets} subsets "
            f"and n_test = {n_test}, got {np.shape(given)}."
        )
    refuse_non_finite(outputs, name, test_ids)
    return outputs if margins is not None else -outputs
