"""The forward recursion: how leaving single training instances out moves the parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from proponent.dynamic.unrolled.batches import ReplayedBatches
from proponent.dynamic.unrolled.linearised import Linearised
from proponent.dynamic.unrolled.removal import Divisor, removal_weights
from proponent.dynamic.unrolled.updates import States, Update, Vectors
from proponent.dynamic.unrolled.watch import Watch

if TYPE_CHECKING:
    from proponent.dynamic.replay import Moment

CHANGE = "change of the parameters"


def parameter_changes(
    moments: Iterator[Moment],
    batches: ReplayedBatches,
    positions: NDArray[np.int64],
    *,
    kind: str,
    hessian: bool,
    divisor: Divisor,
    deletion_corrected: bool,
    first: int,
    watch: Watch,
) -> Vectors:
    r"""Return how leaving single instances out of training moves the final parameters.

    To first order :math:`\theta_{-i} - \theta`, which is :math:`-\tilde h_i / n` with the
    survey's hypergradient :math:`\tilde h_i = d\theta / d\epsilon_i`.

    Parameters
    ----------
    moments : iterator
        The run's moments, t = 1 .. T.
    batches : ReplayedBatches
        Their batches.
    positions : integer array of shape (k,)
        The instances, each left out alone.
    kind : str
        The optimizer.
    hessian : bool
        Whether the gradients' dependence on the parameters counts.
    divisor : "kept" or "reduced"
        What leaving an instance out does to the divisor of its batch.
    deletion_corrected : bool
        Whether each change goes on under the Hessian of the batch without the instance.
    first : int
        The first step that counts.
    watch : Watch
        Looks at the changes.

    Returns
    -------
    dict
        (k, *shape) by parameter.

    Raises
    ------
    NonFiniteError
        If a gradient is not finite, or the changes explode.
    """
    changes = zeros(batches.parameters, len(positions))
    states: States = {}
    begun = checked = False
    watch.begin()
    for moment in moments:
        step = moment.step
        if step.index < first:
            continue
        weights = removal_weights(step, positions, divisor)
        leaves = bool(weights.any())
        if not (leaves or begun):
            continue  # nothing has changed yet
        update = Update.of(moment, kind)
        gradients = zeros(batches.parameters, len(positions))
        if leaves or hessian:
            with batches.fully_linearised(moment) as linearised:
                batches.provide(moment, linearised)
                if leaves:
                    gradients = linearised.gradients(weights)
                    if not all(bool(part.isfinite().all()) for part in gradients.values()):
                        raise batches.fault(moment) or watch.exploded(step.index)
                if hessian and begun:
                    if not checked:
                        linearised.check_twice()
                        checked = True
                    _add(gradients, linearised.hessian(changes))
                if deletion_corrected and leaves and begun:
                    _correct(gradients, changes, weights, linearised)
        changes, states = update.forward(changes, states, gradients)
        watch.look(changes.values(), step.index)
        begun = True
    if begun:
        watch.look(changes.values(), step.index, last=True)
    return changes


def zeros(parameters: Mapping[str, nn.Parameter], k: int) -> Vectors:
    """Return k vectors of zeros."""
    return {name: value.new_zeros(k, *value.shape) for name, value in parameters.items()}


def _add(total: Vectors, parts: Vectors) -> None:
    for name, part in parts.items():
        total[name] = total[name] + part


def _correct(gradients: Vectors, changes: Vectors, weights: Tensor, linearised: Linearised) -> None:
    """Take each instance's own Hessian, times its change, out of the batch's."""
    for place in torch.nonzero(weights.any(1)).flatten().tolist():
        own = {name: change[place : place + 1] for name, change in changes.items()}
        for name, part in linearised.hessian(own, weights[place]).items():
            gradients[name][place] += part[0]
