"""What a run has to have recorded to be replayed; refused by name before any work starts."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from proponent.dynamic.replay.optimizer import is_stateless
from proponent.dynamic.replay.stage import Stage
from proponent.exceptions import RunError
from proponent.models.history import Checkpoint, Step
from proponent.models.run import TrainingRun


def starting_points(run: TrainingRun, kind: type[Optimizer], by: str) -> tuple[Checkpoint, ...]:
    """Return the stored states that a replay can start from; the first is before step 1.

    Raises
    ------
    RunError
        If the state before step 1 is not stored, or not with the optimizer's.
    """
    before = [checkpoint for checkpoint in run.checkpoints if not checkpoint.final]
    if not before or before[0].t != 1:
        raise RunError(
            f"{by} needs the parameters before step 1, which the run at {run.path} lacks: record "
            f"with a schedule that stores them, such as Recorder(..., every='epoch')."
        )
    if is_stateless(kind, run.steps):
        return tuple(before)
    if before[0].has_optimizer_state:
        return tuple(checkpoint for checkpoint in before if checkpoint.has_optimizer_state)
    if run.optimizer.get("has_state", False):
        raise RunError(
            f"{by}: the optimizer of the run at {run.path} had a state before step 1, which was "
            f"not recorded: record with Recorder(..., optimizer_state=True)."
        )
    return (before[0],)


def check_replayable(run: TrainingRun, stage: Stage, by: str) -> None:
    """Refuse a run whose steps were not recorded well enough to be taken again.

    Raises
    ------
    RunError
        If a gradient was clipped by an unknown factor, the optimizer held parameters of other
        modules that entered the clipping, the modes of the parts are not known where they
        matter, or two parameters share their memory.
    """
    run.require(batches=True, clip_scale=True, by=by)
    others = run.optimizer.get("parameters_of_other_modules", 0)
    if others and any(step.clip_scale != 1.0 for step in run.steps):
        raise RunError(
            f"{by}: gradients were clipped together with those of {others} parameters of other "
            f"modules, which the run has not recorded. Record a module that holds them all."
        )
    for groups in {id(step.groups): step.groups for step in run.steps}.values():
        held = [name for group in groups for name in group.parameters]
        if twice := sorted({name for name in held if held.count(name) > 1}):
            raise RunError(
                f"{by}: {twice[0]} is in the optimizer twice, as two parameters over the same "
                f"memory. Tie them by making them one parameter."
            )
    _check_modes(run.steps, stage, by)


def _check_modes(steps: Iterable[Step], stage: Stage, by: str) -> None:
    unknown = [step.index for step in steps if step.modes is None]
    if unknown:
        for name, part in stage.parts.items():
            if depends_on_mode(part):
                raise RunError(
                    f"{by}: the run has not recorded whether {name or 'the module'} "
                    f"({type(part).__name__}) was in training mode, which changes what it "
                    f"computes. Record the training with this version of the library."
                )
    check_parts(steps, stage, by)


def check_parts(steps: Iterable[Step], stage: Stage, by: str) -> None:
    """Refuse a module without a part whose mode was recorded.

    Raises
    ------
    RunError
        If there is one.
    """
    for modes in {id(step.modes): step.modes for step in steps}.values():
        if lost := set(modes or ()) - set(stage.parts):
            raise RunError(
                f"{by}: the recorded module had a part {min(lost)!r}, which this one has not; "
                f"load the run with a module that is built as the recorded one was."
            )


def depends_on_mode(part: nn.Module) -> bool:
    """Whether one of torch's own layers computes something else in training mode."""
    if isinstance(part, nn.modules.batchnorm._NormBase):
        return part.track_running_stats
    if isinstance(part, (nn.modules.dropout._DropoutNd, nn.RReLU)):
        return getattr(part, "p", 1.0) > 0
    return isinstance(part, (nn.RNNBase, nn.MultiheadAttention)) and float(part.dropout) > 0
