"""Mislabel detection: are wrongly labelled training instances found first."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.evaluation.detection_result import (
    RANDOM,
    MislabelDetection,
    MislabelDetectionRow,
)
from proponent.evaluation.estimates import percentile_estimate
from proponent.evaluation.inputs import (
    boolean_mask,
    open_fraction,
    positive_integer,
    real_array,
    refuse_non_finite,
)
from proponent.evaluation.ranking import (
    Ordering,
    bootstrap_figures,
    expected_average_precision,
    random_figures,
)
from proponent.exceptions import InvalidInputError
from proponent.influence import Influence

LOSS = "loss"


def by_memorization(influence: Any) -> NDArray[np.float64]:
    """Suspicion by memorization: the higher its influence on itself, the more suspicious.

    Parameters
    ----------
    influence : Influence or array of shape (n_train,)
        What ``method.memorization()`` returned.

    Returns
    -------
    array of shape (n_train,)
        Higher is more suspicious, as :func:`mislabel_detection` expects.

    Raises
    ------
    InvalidInputError
        The influence is not of shape (n_train,).
    """
    values = influence.values if isinstance(influence, Influence) else influence
    return real_array(values, "influence (a memorization)", (1,))


def by_opponents(influence: Any) -> NDArray[np.float64]:
    """Suspicion by harm to trusted test instances: minus the summed influence on them.

    Parameters
    ----------
    influence : Influence or array of shape (n_test, n_train) or (n_train,)
        Influence on test instances whose labels are right, or already their joint influence.

    Returns
    -------
    array of shape (n_train,)
        Higher is more suspicious, as :func:`mislabel_detection` expects.

    Raises
    ------
    InvalidInputError
        The influence has another number of dimensions.
    """
    values = influence.values if isinstance(influence, Influence) else influence
    array = real_array(values, "influence", (1, 2))
    summed: NDArray[np.float64] = -(array.sum(axis=0) if array.ndim == 2 else array)
    return summed


def mislabel_detection(
    scores: Any,
    mislabelled: Any,
    *,
    losses: Any = None,
    seconds: Mapping[str, float] | None = None,
    checked: float = 0.1,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> MislabelDetection:
    """Measure how well suspicion scores find mislabelled training instances.

    Parameters
    ----------
    scores : mapping of str to array of shape (n,), or one such array
        For every method how suspicious each training instance is, **higher is more suspicious**.
        An influence has no such direction by itself: say which one is meant with
        :func:`by_memorization` or :func:`by_opponents`.
    mislabelled : boolean array of shape (n,)
        True for the instances whose label is wrong, as :func:`flip_labels` returns it.
    losses : array of shape (n,), optional
        Loss of each training instance under the trained model. Adds the row ``"loss"``, the
        baseline that costs nothing and is often hard to beat.
    seconds : mapping of str to float, optional
        What each method took, shown beside it.
    checked : float
        Fraction of the instances that somebody would check, worst first.
    n_bootstrap : int
        Number of bootstrap resamples, drawn among mislabelled and correct instances apart and
        shared by all methods.
    confidence : float
        Level of the percentile intervals.
    seed : int
        Fixes the resamples.

    Returns
    -------
    MislabelDetection
        A row for each method, for ``"loss"`` and for ``"random"``, whose values are exact
        expectations: AUROC one half, found ``checked``, and the average precision of
        :func:`~proponent.evaluation.ranking.expected_average_precision`.

    Raises
    ------
    InvalidInputError
        A bare influence, scores of another length or shape, a mask without or with only
        mislabelled instances, or a number out of range.
    NonFiniteError
        A score or a loss is NaN or infinite.

    Notes
    -----
    Ties share their credit: constant scores have an AUROC of exactly one half, and nothing
    depends on the order or the scale of the scores. A ranking without a single error has the
    interval [1, 1] for AUROC, because no resample of it has an error either.

    Examples
    --------
    >>> import numpy as np
    >>> wrong = np.array([True, False, False, True, False])
    >>> detection = mislabel_detection({"mine": np.array([9, 2, 1, 8, 3])}, wrong)
    >>> detection["mine"].auroc.value
    1.0
    """
    named = scores if isinstance(scores, Mapping) else {"scores": scores}
    marked = boolean_mask(mislabelled, "mislabelled")
    if not 0 < marked.sum() < len(marked):
        raise InvalidInputError(
            f"mislabelled marks {marked.sum()} of {len(marked)} instances; there must be some "
            "mislabelled and some correct ones to tell apart."
        )
    checked = open_fraction(checked, "checked")
    confidence = open_fraction(confidence, "confidence")
    n_bootstrap = positive_integer(n_bootstrap, "n_bootstrap")
    vectors = _suspicions(named, losses, len(marked))
    timings = _timings(seconds, [*vectors, RANDOM])

    rng = np.random.default_rng(seed)
    orderings = [Ordering(vector, marked) for vector in vectors.values()]
    replicates = bootstrap_figures(orderings, marked, checked, n_bootstrap, rng)
    rows = {}
    once = np.ones((1, len(marked)))
    for name, ordering, drawn in zip(vectors, orderings, replicates, strict=True):
        values, curve = ordering.figures(once, checked)[0], ordering.curve()
        rows[name] = _row(values, drawn, confidence, timings.get(name), curve)
    average_precision = expected_average_precision(len(marked), int(marked.sum()))
    expected = np.array([0.5, average_precision, checked])
    drawn = random_figures(marked, checked, n_bootstrap, rng)
    diagonal = np.array([0.0, 1.0])
    rows[RANDOM] = _row(expected, drawn, confidence, timings.get(RANDOM), (diagonal, diagonal))
    return MislabelDetection(
        MappingProxyType(rows), len(marked), int(marked.sum()), checked, confidence
    )


def _row(
    values: NDArray[np.float64],
    replicates: NDArray[np.float64],
    confidence: float,
    seconds: float | None,
    curve: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> MislabelDetectionRow:
    auroc, average_precision, found = (
        percentile_estimate(value, drawn, confidence)
        for value, drawn in zip(values, replicates.T, strict=True)
    )
    return MislabelDetectionRow(auroc, average_precision, found, seconds, *curve)


def _suspicions(
    named: Mapping[str, Any], losses: Any, n_instances: int
) -> dict[str, NDArray[np.float64]]:
    if not named:
        raise InvalidInputError("scores names no method.")
    reserved = {RANDOM} if losses is None else {RANDOM, LOSS}
    if taken := reserved & set(named):
        raise InvalidInputError(
            f"scores uses the name {taken.pop()!r}, which is a row of its own: choose another."
        )
    everything = dict(named) if losses is None else {**named, LOSS: losses}
    vectors = {}
    for name, value in everything.items():
        if isinstance(value, Influence):
            raise InvalidInputError(
                f"scores[{name!r}] is an Influence, and it does not say whether a high or a low "
                "value is suspicious: wrap it in by_memorization(...) (high) or "
                "by_opponents(...) (low)."
            )
        label = "losses" if name == LOSS and losses is not None else f"scores[{name!r}]"
        vector = real_array(value, label, (1,))
        if len(vector) != n_instances:
            raise InvalidInputError(
                f"{label} has {len(vector)} entries, but mislabelled has {n_instances}."
            )
        refuse_non_finite(vector, label, np.arange(n_instances))
        vectors[name] = vector
    return vectors


def _timings(seconds: Mapping[str, float] | None, methods: list[str]) -> dict[str, float]:
    timings = {} if seconds is None else dict(seconds)
    if unknown := [name for name in timings if name not in methods]:
        raise InvalidInputError(
            f"seconds names {unknown[0]!r}, which is not among the methods {methods}."
        )
    return timings
