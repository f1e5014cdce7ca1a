"""Drawing coalitions a batch at a time until a stopping rule has seen enough."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Design, Estimator, Table, join
from proponent.retraining.stopping import State, StoppingRule

LEAST = 64  # coalitions between two looks
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
    size = int(min(size, stop.most, size if total is None else total))
    while state.n_models < size:
        end = state.n_models + max(LEAST, state.n_models // PORTION)
        # A short batch at the end is added to the last: all of a few may fail, and none of many.
        end = size if size - end < LEAST else end
        parts.append(design.draw(n, state.n_models, end, seed))
        train(parts[-1])
        state.n_models += len(parts[-1])
        state.seconds = time.monotonic() - began
        if measure is not None:
            tables.append(measure(parts[-1]).total())
            _look(state, estimator, tables, n)
        if stop.done(state):
            break
    return join(parts)


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
