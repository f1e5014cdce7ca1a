"""The backward recursion: the influence of every training instance, many tests at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proponent.dynamic.unrolled.batches import ReplayedBatches
from proponent.dynamic.unrolled.removal import Divisor, removal_scores
from proponent.dynamic.unrolled.updates import Adjoints, Update, Vectors
from proponent.dynamic.unrolled.watch import Watch
from proponent.models.history import Step

if TYPE_CHECKING:
    from proponent.dynamic.replay import Moment

ADJOINT = "adjoint of the test gradient"


def backward_scores(
    moments: Iterator[Moment],
    batches: ReplayedBatches,
    adjoints: Vectors,
    scores: Sums,
    *,
    kind: str,
    hessian: bool,
    first: int,
    watch: Watch,
) -> None:
    r"""Add the influence of every training instance on k tests to their scores.

    The gradient of a test's risk at the end of training is pulled back through every step,
    :math:`u \leftarrow (\partial\theta^{(t)} / \partial\theta^{(t-1)})^\top u`, and at each meets
    the change of the step's gradient that each instance of the batch would make by leaving.

    Parameters
    ----------
    moments : iterator
        The run's moments, t = T .. 1.
    batches : ReplayedBatches
        Their batches.
    adjoints : mapping
        The test gradients at the final parameters, (k, *shape) by parameter; written to.
    scores : Sums
        Where the influence is added.
    kind : str
        The optimizer.
    hessian : bool
        Whether the gradients' dependence on the parameters counts.
    first : int
        The first step that counts; those before are not looked at.
    watch : Watch
        Looks at the adjoints.

    Raises
    ------
    NonFiniteError
        If a gradient is not finite, or the adjoints explode.

    Notes
    -----
    **Source**: Hara et al. (2019), algorithm 1, for SGD without momentum; Griewank and Walther
    for adjoints.
    """
    states: Adjoints = {}
    watch.begin()
    watch.look(adjoints.values(), 0)
    for moment in moments:
        step = moment.step
        if hessian:
            with batches.linearised(moment) as linearised:
                batches.provide(moment, linearised)
                update = Update.of(moment, kind)
                pulled = update.pull(adjoints, states)
                if pulled.vectors:
                    products = linearised.multiply(pulled.vectors, pulled.factors)
                    _check_finite(products.inner, adjoints, moment, batches, watch)
                    scores.add(products.inner, step)
                    update.settle(adjoints, states, pulled)
                    products.add_to(adjoints)
        else:
            update = Update.of(moment, kind)
            pulled = update.pull(adjoints, states)
            if pulled.vectors:
                inner = batches.inner(moment, pulled)
                _check_finite(inner, adjoints, moment, batches, watch)
                scores.add(inner, step)
                update.settle(adjoints, states, pulled)
        last = step.index <= first
        watch.look(adjoints.values(), step.index, last=last)
        if last:
            break


def _check_finite(
    products: Tensor, adjoints: Vectors, moment: Moment, batches: ReplayedBatches, watch: Watch
) -> None:
    """Refuse products that are not finite: of adjoints that exploded, else of the batch."""
    if not bool(torch.isfinite(products).all()):
        watch.look(adjoints.values(), moment.step.index, last=True)
        raise batches.fault(moment) or watch.exploded(moment.step.index)


class Sums(Protocol):
    """What the influence that a step's batch makes is added to."""

    def add(self, products: Tensor, step: Step) -> None:
        """Add what a step's batch gives to the tests, from products (k, batch)."""


class Scores:
    """Influence of training instances on tests, summed up step by step.

    Parameters
    ----------
    n_test : int
    rows : range
        The training instances that are wanted.
    n_train : int
    divisor : "kept" or "reduced"
        What leaving an instance out does to the divisor of its batch.
    """

    def __init__(self, n_test: int, rows: range, n_train: int, divisor: Divisor) -> None:
        self._values = torch.zeros(n_test, n_train, dtype=torch.float64)
        self._rows = rows
        self._divisor = divisor

    def add(self, products: Tensor, step: Step) -> None:
        """Add what a step's batch gives to the tests, from products (k, batch)."""
        found = removal_scores(products.detach(), step, self._divisor)
        index = torch.from_numpy(np.array(step.indices))
        self._values.index_add_(1, index, found.to(self._values))

    def values(self) -> NDArray[np.float64]:
        """Return the scores of the wanted training instances, (n_test, len(rows))."""
        wanted: NDArray[np.float64] = self._values[:, self._rows.start : self._rows.stop].numpy()
        return wanted


class StepScores:
    """The same, the contributions of every step apart.

    Parameters
    ----------
    at : callable
        Returns the array (n_test, len(rows)) that a step's contributions are added to.
    rows : range
        The training instances that are wanted.
    divisor : "kept" or "reduced"
        What leaving an instance out does to the divisor of its batch.
    """

    def __init__(
        self, at: Callable[[int], NDArray[np.floating[Any]]], rows: range, divisor: Divisor
    ) -> None:
        self._at = at
        self._rows = rows
        self._divisor = divisor

    def add(self, products: Tensor, step: Step) -> None:
        """Add what a step's batch gives to the tests, from products (k, batch)."""
        found = removal_scores(products.detach(), step, self._divisor)
        wanted = (step.indices >= self._rows.start) & (step.indices < self._rows.stop)
        index = torch.from_numpy(step.indices[wanted] - self._rows.start)
        here = torch.from_numpy(self._at(step.index))
        here.index_add_(1, index, found[:, torch.from_numpy(wanted).to(found.device)].to(here))
