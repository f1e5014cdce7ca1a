"""Go along a recorded training run again, forwards or backwards, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from proponent.data import Instances
from proponent.dynamic.replay.checks import check_replayable, starting_points
from proponent.dynamic.replay.divergence import Comparisons
from proponent.dynamic.replay.moment import Moment, Tensors
from proponent.dynamic.replay.optimizer import RecordedOptimizer, optimizer_class, state_entries
from proponent.dynamic.replay.schedule import next_kept, repeats
from proponent.dynamic.replay.stage import Stage, moved_by
from proponent.dynamic.replay.trajectory import State, Trajectory
from proponent.exceptions import InvalidInputError
from proponent.models.history import Checkpoint
from proponent.models.run import TrainingRun
from proponent.progress import progress as progress_bar

MEMORY = 512 * 2**20
# Beyond so many recomputations of a step the memory is refused rather than the time taken.
MOST_REPEATS = 8
# Going backwards the last stored state is checked, and others at the cost of one gradient: for
# one step in so many.
STEPS_A_CHECK = 8


class Replay:
    r"""The steps of a recorded run, taken again.

    Each step's gradient is that of the recorded batch, in its order, with the recorded divisors,
    clipping factor, modes and seed; the step itself is taken by torch's own optimizer with the
    recorded settings. On the machine of the training the parameters are so the same bit for bit,
    where the risk computes what the training loop's loss did. Every stored state on the way is
    compared, :attr:`report` says where one was not met, and the replay goes on from the stored
    one.

    Parameters
    ----------
    run : TrainingRun
        The recorded run. Its module is lent to the replay within its calls alone, and comes back
        as it was.
    train : (X, y), dict, Dataset or Instances
        The training set that it was recorded on.
    by : str
        The method that replays, for messages.
    memory : int
        Bytes for the states that are kept while going backwards.
    progress : bool or None
        Whether to show a progress bar; None shows one where the work lasts.

    Attributes
    ----------
    names : tuple of str
        The trained parameters: those that some step moves, in the module's order.

    Raises
    ------
    RunError
        If the run has not recorded what a replay needs, or was trained by an optimizer that is
        not replayed; the message says what to do.

    Notes
    -----
    A step of several accumulated batches is replayed as one batch: the same up to rounding, and
    only for modules whose risk does not mix the instances of a batch as BatchNorm does.
    """

    def __init__(
        self,
        run: TrainingRun,
        train: Any,
        *,
        by: str,
        memory: int = MEMORY,
        progress: bool | None = None,
    ) -> None:
        self.run = run
        self._by = by
        self._memory = memory
        self._progress = progress
        run.require(batches=True, by=by)
        self._kind = optimizer_class(run.optimizer["class"], by)
        self._starts = starting_points(run, self._kind, by)
        instances = Instances.of(train, role="train")
        run.check_train(instances)
        self._stage = Stage(run.model, instances)
        check_replayable(run, self._stage, by)
        self.names = self._trained()
        self._comparisons = Comparisons()

    def __repr__(self) -> str:
        """Return the run and its length."""
        return f"Replay({str(self.run.path)!r}, {len(self):,} steps)"

    def __len__(self) -> int:
        """Return the number of steps T."""
        return len(self.run.steps)

    @property
    def report(self) -> dict[str, Any]:
        """What comparing with the stored states has shown, as JSON.

        ``exact`` (None where no state was compared), ``states_compared``, ``states_diverged``,
        ``steps_recomputed`` and ``first_divergence`` (``step``, ``parameter``,
        ``largest_difference``, ``relative_difference``, or None): the first stored state that
        was not met.
        """
        return self._comparisons.report()

    @property
    def warning(self) -> str | None:
        """A sentence for the diagnostics where the replay has diverged, else None."""
        first = self._comparisons.first
        if first is None:
            return None
        return (
            f"the replay differs from the recorded run: before step {first.step} {first.name} is "
            f"off by up to {first.largest_difference:.1e} ({first.relative_difference:.1e} of its "
            f"largest value). It goes on from each stored state. Where this is more than "
            f"rounding, the training loop computed another loss, or drew random numbers that "
            f"were not recorded: record with Recorder(..., seed=0)."
        )

    def forward(self) -> Iterator[Moment]:
        """Go through the moments of steps 1 .. T; each is valid until the next is asked for."""
        trajectory = self._trajectory()
        trajectory.start(self._starts[0])
        with self._bar() as bar:
            while trajectory.t <= len(self):
                moment = trajectory.moment()
                yield moment
                gradient = moment.batch_gradient
                moment.end()
                trajectory.advance(gradient)
                bar.update()

    def backward(self) -> Iterator[Moment]:
        """Go through the moments of steps T .. 1; each is valid until the next is asked for.

        States are read from disk where they are stored, and recomputed from there elsewhere,
        within the memory given. Gradients are computed only where they are asked for.

        Raises
        ------
        InvalidInputError
            If the memory holds so few states that each step would be recomputed many times.
        """
        slots = self._slots()
        trajectory = self._trajectory()
        ends = [checkpoint.t for checkpoint in self._starts[1:]] + [len(self) + 1]
        unchecked = STEPS_A_CHECK
        spare: list[State] = []
        with self._bar() as bar:
            for start, end in zip(reversed(self._starts), reversed(ends), strict=True):
                for moment in self._reversed(trajectory, start, end, slots, spare):
                    yield moment
                    if moment.step.index == end - 1:
                        unchecked += end - start.t
                        if moment.is_computed or unchecked >= STEPS_A_CHECK:
                            self._check_end(trajectory, moment)
                            unchecked = 0
                    moment.end()
                    bar.update()

    @contextmanager
    def entering(self, moment: Moment) -> Iterator[None]:
        """Lend the module the state, the modes and the random state of a moment, for a while.

        Gradients are enabled, and required of the parameters that the step moved. :meth:`batch`
        gives the batch; then one forward pass draws what the training loop's did.
        """
        moment.check_valid()
        with self._stage.lent():
            self._stage.show(moment)
            yield

    def batch(self, moment: Moment) -> tuple[Any, int]:
        """Return the prepared batch of a moment, in the recorded order, and its size.

        To be called within :meth:`entering`. It seeds the generators, so that another call gives
        the same batch, and the forward pass after it draws the same numbers.
        """
        self._stage.seed(moment.step)
        return self._stage.batch(moment.step)

    def final_parameters(self) -> Tensors:
        """Return the trained parameters at the end of the run, as they were stored.

        Raises
        ------
        RunError
            If the run is not complete.
        """
        self.run.require(complete=True, by=self._by)
        state = self.run.final_state()
        tensors = self._stage.parameters
        return {
            name: state[name].to(device=tensors[name].device, dtype=tensors[name].dtype)
            for name in self.names
        }

    def _reversed(
        self, trajectory: Trajectory, start: Checkpoint, end: int, slots: int, spare: list[State]
    ) -> Iterator[Moment]:
        """Go backwards through the moments of the steps from a stored state up to ``end``.

        ``spare`` are states whose memory may be used again.
        """
        kept: list[State] = []
        for t in range(end - 1, start.t - 1, -1):
            while kept and kept[-1].t > t:
                spare.append(kept.pop())
            if kept and kept[-1].t == t:
                yield self._moment_of(kept[-1])
                continue
            if kept:
                trajectory.put(kept[-1])
            else:
                trajectory.start(start)
            with self._stage.lent():
                while trajectory.t < t:
                    ahead = t - trajectory.t + 1
                    free = slots - len(kept)
                    for _ in range(next_kept(ahead, free)):
                        self._advance(trajectory)
                    if trajectory.t < t:
                        kept.append(trajectory.copy(spare.pop() if spare else None))
            yield trajectory.moment()
        spare.extend(kept)

    def _advance(self, trajectory: Trajectory) -> None:
        """Take one step of a trajectory while the module is lent."""
        moment = trajectory.moment()
        self._stage.show(moment)
        trajectory.advance(self._stage.gradient(moment.step))
        self._comparisons.recomputed += 1

    def _check_end(self, trajectory: Trajectory, moment: Moment) -> None:
        """Take the last step before a stored state, and compare."""
        if trajectory.t == moment.step.index:
            trajectory.advance(moment.batch_gradient)

    def _moment_of(self, state: State) -> Moment:
        return Moment(
            self.run.steps[state.t - 1],
            state.parameters,
            state.fixed,
            state.buffers,
            lambda: state.optimizer,
            self._stage.gradient_of,
            rounds_alike=self._stage.batch_mean is None,
        )

    def _trajectory(self) -> Trajectory:
        return Trajectory(self.run, self._stage, self.names, self._new_optimizer, self._comparisons)

    def _new_optimizer(self, parameters: Mapping[str, Tensor]) -> RecordedOptimizer:
        implementation = self.run.optimizer.get("implementation", [])
        return RecordedOptimizer(self._kind, parameters, self.run.steps[0], implementation)

    def _trained(self) -> tuple[str, ...]:
        steps = {(id(step.groups), step.without_gradient): step for step in self.run.steps}
        moved = {name for step in steps.values() for name in moved_by(step)}
        return tuple(name for name in self._stage.parameters if name in moved)

    def _slots(self) -> int:
        """Return how many states the memory holds; refuse too little of it."""
        parameters = self._stage.parameters
        size = sum(parameters[name].nbytes for name in self.names)
        size *= 1 + state_entries(self._kind, self.run.steps[0])
        size += sum(buffer.nbytes for buffer in self._stage.buffers.values())
        slots = max(0, self._memory // max(size, 1))
        ends = [checkpoint.t for checkpoint in self._starts[1:]] + [len(self) + 1]
        longest = max(end - start.t for start, end in zip(self._starts, ends, strict=True))
        if longest > 1 and repeats(longest, slots) > MOST_REPEATS:
            needed = next(n for n in range(1, longest) if repeats(longest, n) <= MOST_REPEATS)
            raise InvalidInputError(
                f"memory: {self._memory:,} bytes hold {slots} states of {size:,} bytes, too few "
                f"to go backwards through {longest:,} steps between stored states; give "
                f"memory={needed * size:_} or more, or record more often."
            )
        return slots

    def _bar(self) -> Any:
        return progress_bar(total=len(self), description=self._by, enabled=self._progress)
