"""Where gradients of training instances meet test gradients that were carried to a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proponent.dynamic.segments import Segment
from proponent.dynamic.segments_propagation import Propagator
from proponent.dynamic.segments_rates import Pace
from proponent.exceptions import NonFiniteError
from proponent.gradients.path import PathPoint, TestSet
from proponent.gradients.products import Gradients
from proponent.models.run import TrainingRun

Averaging = Literal["expected", "recorded"]


@dataclass(frozen=True)
class SegmentPoint(PathPoint):
    """A stored state, and the segment whose steps it stands for.

    Attributes
    ----------
    segment : int
        Position of the segment among all.
    """

    segment: int = 0


@dataclass(frozen=True)
class CarriedSet(TestSet):
    """A test set, and what its gradients are at each segment.

    Attributes
    ----------
    carried : list
        Empty until they are carried; then one list of them, by parameter, for each segment.
    """

    carried: list[list[dict[str, Tensor]]] = field(default_factory=list)


def segment_points(
    run: TrainingRun, segments: Sequence[Segment], paces: Sequence[Pace], n: int, how: Averaging
) -> tuple[SegmentPoint, ...]:
    """Return the points at which n training instances are compared, segment by segment.

    A point has weights that, over a segment, add up to 1; where ``how`` is "expected", alike for
    all instances that the segment used, else as the recorded batches used them.
    """
    points = []
    for position, (segment, pace) in enumerate(zip(segments, paces, strict=True)):
        if pace.largest == 0:
            continue  # nothing moved
        everyone = None if len(segment.used) == n else segment.used
        for state in segment.states:
            recorded = how == "recorded"
            point = SegmentPoint(
                label=f"{state.label}, segment {position + 1}",
                weight=1.0 if recorded else state.share / len(segment.used),
                enter=partial(run.at, state.checkpoint),
                members=state.members if recorded else everyone,
                member_weights=state.member_weights if recorded else None,
                step=state.checkpoint.t,
                segment=position,
            )
            if state.share > 0:
                points.append(point)
    return tuple(points)


def carry_back(propagators: Sequence[Propagator], gradients: Tensor) -> list[Tensor]:
    """Return what gradients (k, p) at the end of training are at each segment, each ``(k, p)``."""
    found = []
    for propagator in reversed(propagators):
        carried = propagator.carry(gradients)
        found.append(carried.met)
        gradients = carried.before
    return found[::-1]


def own_products(
    gradients: Gradients, vectors: Mapping[str, Tensor], rows: NDArray[np.int64]
) -> Tensor:
    """Return the product of each gradient with the vector at its row, (n,)."""
    total = torch.zeros(len(rows))
    for name, form in gradients.items():
        own = vectors[name][torch.as_tensor(rows)].flatten(1)
        total = total.to(own) + (form.flat().to(own) * own).sum(1)
    return total


def refuse_non_finite(gradients: Tensor, query: TestSet) -> None:
    """Refuse test gradients (k, p), or their sum, that are not finite.

    Raises
    ------
    NonFiniteError
        If some are not; the message names the instances.
    """
    finite = torch.isfinite(gradients).all(1).cpu().numpy()
    if finite.all():
        return
    ids = [] if query.joint else query.instances.ids[~finite].tolist()
    named = ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")
    which = "some instances" if query.joint else f"instances {named}"
    raise NonFiniteError(
        f"the gradient of {which} at the end of training is not finite: look at their features "
        f"and labels, or leave them out."
    )


def describe(segment: Segment, pace: Pace, propagator: Propagator) -> dict[str, object]:
    """Return what a segment is, as values that JSON can hold."""
    count = len(segment.steps)
    return {
        "steps": [segment.steps[0].index, segment.steps[-1].index],
        "n_steps": count,
        "states": [state.label for state in segment.states],
        "shares": [state.share for state in segment.states],
        "instances": len(segment.used),
        "effective_learning_rate": _one({name: rate / count for name, rate in pace.rates.items()}),
        "weight_decay": _one(pace.decays),
        **propagator.diagnostics(),
    }


def warnings(paces: Sequence[Pace], propagators: Sequence[Propagator]) -> list[str]:
    """Return what the user should know of the segments."""
    found = [warning for propagator in propagators for warning in propagator.warnings()]
    if not any(pace.largest for pace in paces):
        found.append("no step moved the chosen parameters: every influence is 0")
    return found


def _one(values: dict[str, float]) -> float | dict[str, float]:
    """Return the one number that all parameters have, or one a parameter."""
    numbers = set(values.values())
    return numbers.pop() if len(numbers) == 1 else values
