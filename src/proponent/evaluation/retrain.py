"""Ground truth by retraining: the risks of models trained on given subsets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from proponent.evaluation.inputs import (
    open_fraction,
    positive_integer,
    real_array,
    subset_positions,
)
from proponent.exceptions import InvalidInputError, NonFiniteError, ProponentError
from proponent.progress import progress

Model = TypeVar("Model")


def random_subsets(
    n_train: int, n_subsets: int, *, fraction: float = 0.5, seed: int = 0
) -> NDArray[np.bool_]:
    """Draw subsets of the training set, each uniform among those of its size.

    Parameters
    ----------
    n_train : int
        Number of training instances.
    n_subsets : int
        Number of subsets, m.
    fraction : float
        Every subset holds ``round(fraction * n_train)`` instances.
    seed : int
        Fixes the draw.

    Returns
    -------
    boolean array of shape (n_subsets, n_train)
        True for the instances in the subset.

    Raises
    ------
    InvalidInputError
        A number out of range, or subsets that would be empty or whole.
    """
    n_train = positive_integer(n_train, "n_train", least=2)
    n_subsets = positive_integer(n_subsets, "n_subsets")
    size = round(open_fraction(fraction, "fraction") * n_train)
    if not 0 < size < n_train:
        raise InvalidInputError(
            f"fraction {fraction} of {n_train} instances makes subsets of {size}: choose one "
            "that leaves some in and some out."
        )
    row = np.arange(n_train) < size
    return np.random.default_rng(seed).permuted(np.tile(row, (n_subsets, 1)), axis=1)


def retrain_on_subsets(
    train_fn: Callable[[NDArray[np.intp], int], Model],
    risk_fn: Callable[[Model], Any],
    subsets: Any,
    *,
    seeds: int | Sequence[int] = 0,
    show_progress: bool | None = None,
) -> NDArray[np.float64]:
    """Train a fresh model on each subset and evaluate it on the test instances.

    Parameters
    ----------
    train_fn : callable ``(indices, seed) -> model``
        Builds a **new** model and trains it on the training instances at those positions. A
        model that starts from an earlier one (warm start) has seen the instances left out and
        makes the ground truth too optimistic; returning the same object twice is refused.
    risk_fn : callable ``model -> (n_test,)``
        What to measure on each test instance, such as its risk or its margin.
    subsets : boolean array of shape (m, n_train), or sequence of m position lists
        For leave-one-out, ``~np.eye(n_train, dtype=bool)``.
    seeds : int or sequence of r ints
        Handed to ``train_fn``; several repeat every training.
    show_progress : bool or None
        True and False force the progress bar; None shows it on a terminal when it lasts.

    Returns
    -------
    array of shape (m, n_test), or (m, r, n_test) where ``seeds`` is a sequence
        What ``risk_fn`` returned.

    Raises
    ------
    ProponentError
        A training or an evaluation failed; the message names the subset, the cause follows it.
    InvalidInputError
        Unusable subsets or seeds, the same model object twice, or changing shapes.
    NonFiniteError
        A risk is NaN or infinite.

    Examples
    --------
    Leave-one-out differences in risk, positive where the training instance helps::

        full = retrain_on_subsets(train, risk, np.ones((1, n), dtype=bool))
        loo = (retrain_on_subsets(train, risk, ~np.eye(n, dtype=bool)) - full).T
    """
    positions = subset_positions(subsets)
    several = not isinstance(seeds, (int, np.integer))
    seed_list = [int(seed) for seed in np.atleast_1d(np.asarray(seeds))]
    if not seed_list:
        raise InvalidInputError("seeds is empty: give at least one.")
    tasks = [(index, seed) for index in range(len(positions)) for seed in seed_list]
    risks: list[NDArray[np.float64]] = []
    previous: Any = None
    for index, seed in progress(tasks, description="retraining", enabled=show_progress):
        model, row = _one_training(train_fn, risk_fn, positions[index], index, seed)
        if model is previous:
            raise InvalidInputError(
                f"train_fn returned the same model object for subset {index} (seed {seed}) as "
                "before, so it may start from earlier weights. Build the model inside train_fn "
                "(scikit-learn: clone(estimator).fit(...))."
            )
        if risks and row.shape != risks[0].shape:
            raise InvalidInputError(
                f"risk_fn returned shape {row.shape} for subset {index} (seed {seed}) and "
                f"{risks[0].shape} before; it must evaluate the same test instances."
            )
        risks.append(row)
        previous = model
    table = np.stack(risks).reshape(len(positions), len(seed_list), -1)
    return table if several else table[:, 0]


def _one_training(
    train_fn: Callable[[NDArray[np.intp], int], Model],
    risk_fn: Callable[[Model], Any],
    positions: NDArray[np.intp],
    index: int,
    seed: int,
) -> tuple[Model, NDArray[np.float64]]:
    where = f"for subset {index} (seed {seed})"
    try:
        # A copy, so that a train_fn that shuffles in place does not change the subset.
        model = train_fn(positions.copy(), seed)
        output = risk_fn(model)
    except Exception as error:
        raise ProponentError(f"Retraining failed {where}: {error!r}") from error
    row = real_array(output, f"What risk_fn returned {where}", (1,))
    bad = np.flatnonzero(~np.isfinite(row))
    if bad.size:
        raise NonFiniteError(f"risk_fn is not finite {where} at test instance {bad[0]}.")
    return model, row
