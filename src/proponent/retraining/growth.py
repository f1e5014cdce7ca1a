"""Drawing coalitions a batch at a time until a stopping rule has seen enough."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Design, Estimator, Table, join
from proponent.retraining.stopping import State, StoppingRule
from proponent.retraining.submodels import AllFailedError

FIRST = 16  # coalitions before the first look; after it a look when there are twice as many
LEAST = 64  # coalitions between two looks once there are so many
PORTION = 4  # a look after each quarter more, so that looking stays cheap beside training


def grow(
    design: Design,
    estimator: Estimator,
    n: int,
    size: int,
    seed: int,
    stop: StoppingRule,
    train: Callable[[Coalitions], None],
    measure: Callable[[Coalitions], Table] | None,
) -> Coalitions:
    """Return the coalitions that were needed, at most ``size``.

    Parameters
    ----------
    design, estimator : Design and Estimator
        Of the method.
    n, size, seed : int
        Players; coalitions at most; the seed of the design.
    stop : StoppingRule
        When it is enough.
    train : callable
        Trains on a batch of coalitions.
    measure : callable, optional
        Returns the table of a batch; None where the rule looks at none.
    """
    began, state = time.monotonic(), State()
    total = design.total(n)
    parts: list[Coalitions] = []
    tables: list[Table] = []
    failure: AllFailedError | None = None
    failed = 0  # batches of which every training failed
    size = int(min(size, stop.most, size if total is None else total))
    while state.n_models < size:
        more = more_than(state.n_models)
        # A short batch at the end is added to the last.
        end = size if size - state.n_models < 2 * more else state.n_models + more
        parts.append(design.draw(n, state.n_models, end, seed))
        state.n_models += len(parts[-1])
        try:
            train(parts[-1])
            table = measure(parts[-1]).total() if measure is not None else None
        except AllFailedError as error:  # all of a few may fail, and not all of many
            failed, failure, table = failed + 1, error, None
        state.seconds = time.monotonic() - began
        if table is not None:
            tables.append(table)
            _look(state, estimator, tables, n)
        if stop.done(state):
            break
    if failed == len(parts) and failure is not None:
        raise failure
    return join(parts)


def more_than(n_models: int) -> int:
    """Return after how many more coalitions than these to look again."""
    if n_models < LEAST:
        return max(FIRST, n_models)
    return max(LEAST, n_models // PORTION)


def _look(state: State, estimator: Estimator, tables: list[Table], n: int) -> None:
    """Add the estimate for the sum over the tests, once there are coalitions enough for one."""
    coalitions = join([table.coalitions for table in tables])
    whole = Table(coalitions, np.concatenate([table.utilities for table in tables]))
    try:
        estimate = estimator.on(whole).players(range(n))
    except InvalidInputError:
        return  # too few so far
    errors = estimate.std_errors
    state.estimates.append(estimate.values[0])
    state.std_errors.append(None if errors is None else errors[0])
