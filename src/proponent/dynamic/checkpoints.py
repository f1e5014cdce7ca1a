"""Which of a run's checkpoints a method looks at, and with which weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, RunError
from proponent.gradients.path import PathPoint
from proponent.models.history import Checkpoint
from proponent.models.run import TrainingRun


@dataclass(frozen=True)
class EveryKth:
    """Every k-th recorded checkpoint, beginning with the first.

    Parameters
    ----------
    k : int
        At least 1.
    """

    k: int

    def __post_init__(self) -> None:
        """Refuse a number below 1."""
        if self.k < 1:
            raise InvalidInputError(f"k must be at least 1; got {self.k}.")


@dataclass(frozen=True)
class LargestRiskChange:
    """The checkpoints after which the mean test risk changes most until the next one.

    Where the risk moves, influence is made (survey, Remark 7). Costs a forward pass over the
    test set at every recorded checkpoint.

    Parameters
    ----------
    count : int
        How many checkpoints to take.
    """

    count: int

    def __post_init__(self) -> None:
        """Refuse a number below 1."""
        if self.count < 1:
            raise InvalidInputError(f"count must be at least 1; got {self.count}.")


def choose(run: TrainingRun, choice: object, instances: Instances) -> list[Checkpoint]:
    """Return the checkpoints of a run that a choice names, in the order of training.

    Parameters
    ----------
    run : TrainingRun
        The recorded run.
    choice : "all", EveryKth, LargestRiskChange or sequence of int
        Or the steps whose starting parameters to take, 1-based as in the survey's
        ``theta^(t-1)``.
    instances : Instances
        The test set, whose risk a :class:`LargestRiskChange` follows.

    Raises
    ------
    RunError
        If the run has no checkpoint with a learning rate, or none for a step that is named.
    InvalidInputError
        If the choice is none of these.
    """
    stepping = [checkpoint for checkpoint in run.checkpoints if not checkpoint.final]
    if not stepping:
        raise RunError(
            "the run has no checkpoint from which a step was taken, so no learning rate to weigh "
            "gradients with. Record with Recorder(..., every='epoch') or every=k."
        )
    if isinstance(choice, str) and choice == "all":
        return stepping
    if isinstance(choice, EveryKth):
        return stepping[:: choice.k]
    if isinstance(choice, LargestRiskChange):
        return _largest_changes(run, stepping, choice.count, instances)
    if isinstance(choice, np.ndarray):
        choice = choice.tolist()
    if isinstance(choice, Sequence) and not isinstance(choice, str) and len(choice):
        by_step = {checkpoint.t: checkpoint for checkpoint in stepping}
        missing = [t for t in choice if t not in by_step]
        if missing:
            raise RunError(
                f"checkpoints: the run has no parameters recorded before step {missing[0]}; it has "
                f"those before steps {_listed(list(by_step))}."
            )
        return [by_step[t] for t in sorted(set(choice))]
    raise InvalidInputError(
        f"checkpoints={choice!r}: expected 'all', EveryKth(k), LargestRiskChange(count) or a "
        f"sequence of steps."
    )


def path_point(run: TrainingRun, checkpoint: Checkpoint) -> PathPoint:
    """Return the point of the path at a checkpoint, weighted by its step's learning rates.

    Where parameters have different learning rates, each one's products are weighted by its own.
    Parameters that did not move (learning rate 0) do not count.
    """
    rates = checkpoint.learning_rates or {}
    largest = max(rates.values(), default=0.0)
    return PathPoint(
        label=f"step {checkpoint.t}",
        weight=largest,
        enter=lambda: run.at(checkpoint),
        scales={name: rate / largest for name, rate in rates.items() if rate != largest},
        step=checkpoint.t,
    )


def _largest_changes(
    run: TrainingRun, stepping: list[Checkpoint], count: int, instances: Instances
) -> list[Checkpoint]:
    risks = []
    if len(run.checkpoints) < 2:
        raise RunError(
            "checkpoints=LargestRiskChange needs at least two recorded checkpoints, between which "
            "the risk can change; record more, or let the recording end in order."
        )
    followed = stepping + [checkpoint for checkpoint in run.checkpoints if checkpoint.final]
    for checkpoint in followed:
        with run.at(checkpoint):
            risks.append(float(run.model.risks(instances).mean()))
    changes = [abs(after - before) for before, after in pairwise(risks)]
    # A checkpoint with none after it has no change of its own.
    order = sorted(range(len(changes)), key=lambda index: (-changes[index], index))
    return [stepping[index] for index in sorted(order[:count]) if index < len(stepping)]


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:20])) + (", ..." if len(steps) > 20 else "")
