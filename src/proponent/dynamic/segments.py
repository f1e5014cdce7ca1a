"""A recorded run cut into segments, in each of which training is taken for stationary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from proponent.dynamic.segments_rates import step_rate
from proponent.exceptions import InvalidInputError, RunError
from proponent.models.history import Checkpoint, Step
from proponent.models.run import TrainingRun

Cut = int | Literal["learning_rate"] | Sequence[int]


@dataclass(frozen=True, eq=False)
class StoredState:
    """A stored state, and the steps of a segment that it stands for.

    Attributes
    ----------
    checkpoint : Checkpoint
        The state.
    share : float
        The part of the segment's learning rates that these steps have.
    members : integer array
        Positions of the instances of their batches, as often as they were used.
    member_weights : array of the same shape
        The part of the segment's learning rates with which each was used.
    """

    checkpoint: Checkpoint
    share: float
    members: NDArray[np.int64]
    member_weights: NDArray[np.float64]

    @property
    def label(self) -> str:
        """What the state is called in messages."""
        return "the end" if self.checkpoint.final else f"step {self.checkpoint.t}"


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive steps, and the stored states that stand for them.

    Attributes
    ----------
    steps : tuple of Step
        The steps.
    states : tuple of StoredState
        The states; their shares add up to 1.
    used : integer array
        Positions of the instances that the steps used, each once.
    """

    steps: tuple[Step, ...]
    states: tuple[StoredState, ...]
    used: NDArray[np.int64]

    @property
    def label(self) -> str:
        """What the segment is called in messages."""
        return f"the segment of steps {self.steps[0].index} to {self.steps[-1].index}"


def cut_run(
    run: TrainingRun, cut: Cut, checkpoints: Sequence[Checkpoint], by: str
) -> tuple[Segment, ...]:
    """Cut a run into segments.

    Parameters
    ----------
    run : TrainingRun
        The run.
    cut : int, "learning_rate" or sequence of int
        The number of segments, of equally many steps; or a cut wherever a learning rate changes;
        or the steps with which the second and later segments begin, counted from 1.
    checkpoints : sequence of Checkpoint
        The states that may stand for steps, in the order of training.
    by : str
        The method that asks, for messages.

    Raises
    ------
    InvalidInputError
        If ``cut`` is none of these.
    RunError
        If no state was stored within a segment.
    """
    starts = _starts(run.steps, cut)
    bounds = [*starts, len(run.steps) + 1]
    steps = run.steps
    segments = []
    for first, end in pairwise(bounds):
        if not any(first <= checkpoint.t < end for checkpoint in checkpoints):
            times = [checkpoint.t for checkpoint in checkpoints if not checkpoint.final]
            raise RunError(
                f"segments={cut!r}: {by} needs the parameters before a step of each segment, and "
                f"of steps {first} to {end - 1} the run at {run.path} has none (it has those "
                f"before steps {_listed(times)}). Take fewer segments, or record "
                f"more states with Recorder(..., every='epoch') or every=k."
            )
        segments.append(_segment(steps[first - 1 : end - 1], checkpoints))
    return tuple(segments)


def _segment(steps: tuple[Step, ...], checkpoints: Sequence[Checkpoint]) -> Segment:
    rates = np.array([step_rate(step) for step in steps])
    total = float(rates.sum())
    # Where nothing moves nothing is influenced; every step then counts alike.
    parts = rates / total if total else np.full(len(steps), 1 / len(steps))
    times = np.array([checkpoint.t for checkpoint in checkpoints])
    stands = _standing(np.array([step.index for step in steps]), times)
    states = []
    for position in np.unique(stands):
        where = np.flatnonzero(stands == position)
        own = [steps[index] for index in where]
        weights = [
            part * step.weights / step.weights.sum()
            for part, step in zip(parts[where], own, strict=True)
        ]
        states.append(
            StoredState(
                checkpoints[position],
                float(parts[where].sum()),
                np.concatenate([step.indices for step in own]),
                np.concatenate(weights),
            )
        )
    used = np.unique(np.concatenate([state.members for state in states]))
    return Segment(steps, tuple(states), used)


def _standing(steps: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return, for each step, the position of the state that is nearest to it."""
    after = np.searchsorted(times, steps).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    nearer = np.abs(steps - times[before]) <= np.abs(times[after] - steps)
    return np.where(nearer, before, after)


def _starts(steps: Sequence[Step], cut: Any) -> list[int]:
    """Return the first step of each segment."""
    if isinstance(cut, str) and cut == "learning_rate":
        changes = [
            after.index
            for before, after in pairwise(steps)
            if before.learning_rates != after.learning_rates
        ]
        return [1, *changes]
    if isinstance(cut, Integral) and not isinstance(cut, bool):
        if not 1 <= int(cut) <= len(steps):
            raise InvalidInputError(
                f"segments={cut!r}: expected 1 or more, and at most the {len(steps)} steps of the "
                f"run."
            )
        return [1 + len(steps) * part // int(cut) for part in range(int(cut))]
    if isinstance(cut, np.ndarray):
        cut = cut.tolist()
    if isinstance(cut, Sequence) and not isinstance(cut, str):
        starts = list(cut)
        whole = all(isinstance(t, Integral) and not isinstance(t, bool) for t in starts)
        if whole and all(a < b for a, b in pairwise([1, *starts, len(steps) + 1])):
            return [1, *map(int, starts)]
        raise InvalidInputError(
            f"segments={cut!r}: expected the steps with which later segments begin, increasing, "
            f"from 2 to {len(steps)}."
        )
    raise InvalidInputError(
        f"segments={cut!r}: expected a number of segments, 'learning_rate', or the steps with "
        f"which later segments begin."
    )


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:20])) + (", ..." if len(steps) > 20 else "")
