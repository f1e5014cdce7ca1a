"""The state of a replay on its way: parameters, buffers and the optimizer, step after step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from proponent.dynamic.replay.divergence import Comparisons, compare
from proponent.dynamic.replay.moment import (
    BatchGradient,
    Moment,
    OptimizerState,
    Tensors,
    clipped,
)
from proponent.dynamic.replay.optimizer import RecordedOptimizer
from proponent.dynamic.replay.stage import Stage
from proponent.models.history import Checkpoint
from proponent.models.run import TrainingRun


@dataclass(frozen=True)
class State:
    """A copy of everything before a step."""

    t: int
    parameters: Tensors
    fixed: Tensors
    buffers: Tensors
    optimizer: OptimizerState
    stored_buffers: Tensors | None


class Trajectory:
    """Goes along a recorded run; every stored state on the way is compared and taken over.

    Parameters
    ----------
    run : TrainingRun
        The run.
    stage : Stage
        The module on loan.
    names : sequence of str
        The trained parameters.
    new_optimizer : callable
        Makes the optimizer of given tensors.
    comparisons : Comparisons
        Takes note of divergences.
    """

    def __init__(
        self,
        run: TrainingRun,
        stage: Stage,
        names: tuple[str, ...],
        new_optimizer: Callable[[Mapping[str, Tensor]], RecordedOptimizer],
        comparisons: Comparisons,
    ) -> None:
        self._run = run
        self._stage = stage
        self._comparisons = comparisons
        self._stored = {checkpoint.t: checkpoint for checkpoint in run.checkpoints}
        parameters = stage.parameters
        self.parameters = {name: parameters[name].detach().clone() for name in names}
        self.fixed = {name: parameters[name].data for name in parameters if name not in names}
        self.buffers: Tensors = {}
        self.optimizer = new_optimizer(self.parameters)
        # Stored buffers have seen the batch of their step already.
        self._stored_buffers: Tensors | None = None
        self._compares_buffers = False
        self.t = 0

    def start(self, checkpoint: Checkpoint) -> None:
        """Start from a stored state."""
        stored = self._load(checkpoint)
        self._take_over(stored)
        self.buffers = {name: stored[name] for name in self._stage.buffers}
        self._stored_buffers = self.buffers or None
        self._compares_buffers = False
        if checkpoint.has_optimizer_state:
            self.optimizer.load(checkpoint.optimizer_state())
        else:
            self.optimizer.reset()
        self.t = checkpoint.t

    def put(self, state: State) -> None:
        """Go back to a copied state."""
        for name, value in state.parameters.items():
            self.parameters[name].copy_(value)
        self.fixed = state.fixed
        self.buffers = state.buffers
        self._stored_buffers = state.stored_buffers
        self._compares_buffers = True
        self.optimizer.load(state.optimizer)
        self.t = state.t

    def copy(self, spare: State | None = None) -> State:
        """Return a copy of the present state, in the memory of a state no longer needed.

        New memory costs as much as the copying, a page at a time.
        """
        old = {} if spare is None else {"": spare.parameters, **spare.optimizer}
        return State(
            self.t,
            _copied(self.parameters, old.get("", {})),
            self.fixed,
            self.buffers,  # replaced at each step, never written to
            {
                name: _copied(entries, old.get(name, {}))
                for name, entries in self.optimizer.state().items()
            },
            self._stored_buffers,
        )

    def moment(self) -> Moment:
        """Return the present state as a moment; its tensors are the trajectory's own."""
        return Moment(
            self._run.steps[self.t - 1],
            dict(self.parameters),
            self.fixed,
            self.buffers,
            self.optimizer.state,
            self._stage.gradient_of,
            rounds_alike=self._stage.batch_mean is None,
        )

    def advance(self, gradient: BatchGradient) -> None:
        """Take the optimizer's step with a gradient that is not yet clipped."""
        step = self._run.steps[self.t - 1]
        self.optimizer.step(step, clipped(gradient.values, step))
        if gradient.buffers:
            self.buffers = gradient.buffers
        if self._stored_buffers is not None:
            if self._compares_buffers:
                divergence = compare(self.t, self.buffers, self._stored_buffers)
                self._comparisons.note(self.t, divergence)
            self.buffers = self._stored_buffers
            self._stored_buffers = None
        self.t += 1
        if self.t in self._stored:
            self._meet(self._stored[self.t])

    def _meet(self, checkpoint: Checkpoint) -> None:
        """Compare with a stored state; where they differ go on from the stored one."""
        stored = self._load(checkpoint)
        tensors = {**self.parameters, **self.fixed}
        if checkpoint.final:
            tensors |= self.buffers
        divergence = compare(self.t, tensors, stored)
        self._comparisons.note(self.t, divergence)
        self._stored_buffers = {name: stored[name] for name in self._stage.buffers} or None
        self._compares_buffers = True
        if divergence is not None:
            self._take_over(stored)
            if checkpoint.has_optimizer_state:
                self.optimizer.load(checkpoint.optimizer_state())

    def _take_over(self, stored: Mapping[str, Tensor]) -> None:
        for name, value in self.parameters.items():
            value.copy_(stored[name])
        self.fixed = {name: stored[name] for name in self.fixed}

    def _load(self, checkpoint: Checkpoint) -> Tensors:
        """Return a stored state on the module's devices and in its dtypes."""
        wanted = {**self._stage.parameters, **self._stage.buffers}
        stored = checkpoint.load()
        return {
            name: stored[name].to(device=tensor.device, dtype=tensor.dtype)
            for name, tensor in wanted.items()
        }


def _copied(tensors: Mapping[str, Tensor], spare: Mapping[str, Tensor]) -> Tensors:
    return {
        name: spare[name].copy_(tensor) if name in spare else tensor.clone()
        for name, tensor in tensors.items()
    }
