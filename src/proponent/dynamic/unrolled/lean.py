"""The lean form of the fast approximation: one pass, no vector in parameter space per instance.

Without Hessians a step of SGD acts on every entry of a parameter alike, so what pulls a test
gradient back to step t is one number a parameter, known from the settings alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proponent.dynamic.unrolled.backward import Sums
from proponent.dynamic.unrolled.batches import ReplayedBatches
from proponent.dynamic.unrolled.clipping import Clipping
from proponent.dynamic.unrolled.sgd import SGDStep
from proponent.dynamic.unrolled.updates import clipping_at, moved_by
from proponent.exceptions import NonFiniteError, RunError
from proponent.gradients.products import GradientQuery, VectorQuery
from proponent.models.history import Step

if TYPE_CHECKING:
    from proponent.dynamic.replay import Moment

Coefficients = dict[int, dict[str, float]]


def coefficients(steps: Sequence[Step], names: Sequence[str], first: int = 1) -> Coefficients:
    r"""Return the numbers that a test gradient is multiplied by on its way back to each step.

    The adjoint of the gradient of step t is :math:`-c_t` times the test gradient, parameter by
    parameter; :math:`c_t = \eta_t` without momentum and weight decay, which gives eq. (64).

    Parameters
    ----------
    steps : sequence of Step
        1 .. T.
    names : sequence of str
        The parameters.
    first : int
        The first step that counts.

    Returns
    -------
    dict
        By step and parameter, :math:`-c_t`; parameters that a step does not move are left out.
    """
    begun: dict[str, int] = {}
    for step in steps:
        for name, (_, settings) in moved_by(step).items():
            if settings["momentum"]:
                begun.setdefault(name, step.index)
    adjoints = dict.fromkeys(names, 1.0)
    buffers = dict.fromkeys(names, 0.0)
    found: Coefficients = {}
    for step in reversed(steps):
        if step.index < first:
            break
        found[step.index] = {}
        for name, (rate, settings) in moved_by(step).items():
            rule = SGDStep.of(rate, settings, first=begun.get(name) == step.index)
            after = rule.adjoint(adjoints[name], buffers[name])
            found[step.index][name], adjoints[name], buffers[name] = after
    return found


def lean_scores(
    moments: Iterator[Moment],
    batches: ReplayedBatches,
    tests: GradientQuery | VectorQuery,
    scores: Sums,
    by_step: Coefficients,
) -> None:
    """Add the fast approximation of the influence of all training instances to the scores.

    Parameters
    ----------
    moments : iterator
        The run's moments, in any order.
    batches : ReplayedBatches
        Their batches, whose gradients can be captured.
    tests : query
        The test gradients at the final parameters.
    scores : Sums
        Where the influence is added.
    by_step : mapping
        What :func:`coefficients` returned.

    Raises
    ------
    RunError
        If the gradients of single instances cannot be captured at a step.
    NonFiniteError
        If a gradient is not finite.
    """
    names = set(batches.parameters)
    for moment in moments:
        factors = by_step.get(moment.step.index)
        if not factors:
            continue
        tests.scales = dict.fromkeys(names - factors.keys(), 0.0) | factors
        clipping = clipping_at(moment, factors)
        queries: list[GradientQuery | VectorQuery] = [tests]
        if clipping is not None and clipping.direction:
            direction = {name: part[None] for name, part in clipping.direction.items()}
            queries.append(VectorQuery(direction, tests.products))
        found = batches.meet(moment, queries)
        if found is None:
            raise RunError(
                f"step {moment.step.index}: instances meet in the batch, so that their gradients "
                f"cannot be captured one by one."
            )
        products = _clipped(found, clipping, tests)
        if not bool(torch.isfinite(products).all()):
            raise batches.fault(moment) or NonFiniteError(
                f"the products of gradients at step {moment.step.index} with those of the tests "
                f"overflow: compute in float64."
            )
        scores.add(products, moment.step)


def _clipped(
    found: list[Tensor], clipping: Clipping | None, tests: GradientQuery | VectorQuery
) -> Tensor:
    """Return the products with the adjoints on the other side of the clipping, (k, batch)."""
    if clipping is None:
        return found[0]
    products = found[0] * clipping.scale
    if clipping.direction:
        along = _project(tests, clipping)
        factor = -clipping.scale * clipping.shrink
        products = torch.addmm(products, along[:, None], found[1], alpha=factor)
    return products


def _project(tests: GradientQuery | VectorQuery, clipping: Clipping) -> Tensor:
    """Return the products of the scaled test gradients with the clipping's direction, (k,)."""
    if isinstance(tests, VectorQuery):
        parts = [
            tests.vectors[name].flatten(1) @ direction.flatten() * tests.scales[name]
            for name, direction in clipping.direction.items()
            if name in tests.vectors
        ]
        return torch.stack(parts).sum(0)
    blocks = []
    for part, size in zip(tests.parts, tests.sizes, strict=True):
        total = torch.zeros(size, dtype=tests.like.dtype, device=tests.like.device)
        for name, direction in clipping.direction.items():
            if name in part:
                total += part[name].contract(direction[None])[:, 0] * tests.scales[name]
        blocks.append(total)
    return torch.cat(blocks)
