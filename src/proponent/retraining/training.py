"""Training and measuring submodels in batches, side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain, islice

from proponent.jobs import TaskFailed, run_tasks
from proponent.models.learner import SerialTrainer, Trainer
from proponent.retraining.batches import Done, ToTrain, Trained, Work
from proponent.retraining.held import Held
from proponent.retraining.measurements import Measurement
from proponent.retraining.requests import SOME, Pace, Request

OUTPUTS_AT_ONCE = 2**14  # pairs of a submodel and a test instance

Batch = tuple[Sequence[bytes], ToTrain | Trained]


class Training:
    """Runs the batches of requests and hands over what comes of them, as it comes.

    Parameters
    ----------
    trainer : Trainer
        Trains.
    held : Held
        Takes in what was trained.
    n_jobs, progress
        As for :class:`Submodels`.

    Attributes
    ----------
    trained : int
        Trainings so far.
    warned : Counter
        How many of them warned in each category.
    """

    def __init__(
        self, trainer: Trainer, held: Held, n_jobs: int | None, progress: bool | None
    ) -> None:
        self.trained = 0
        self.warned: Counter[str] = Counter()
        self._trainer = trainer
        self._held = held
        self._n_jobs = n_jobs
        self._progress = progress
        self._pace = Pace()
        self._under_way: dict[int, Batch] = {}
        self._serial = isinstance(trainer, SerialTrainer)

    def train(self, request: Request, missing: set[bytes]) -> None:
        """Train what is missing into a store, or while it fits the memory."""
        most, while_room = self._trainer.at_once, not self._held.stored
        batches = self._to_train(request, missing, most, keep=True, while_room=while_room)
        work, remaining = Work(self._trainer), len(missing)
        # Until the first has been measured, nobody knows how many fit.
        for part in [batches] if self._held.measured else [islice(batches, 1), batches]:
            for keys, batch, done in self._run(work, part, remaining, "training submodels"):
                remaining -= len(keys)
                self._take(keys, batch, done)

    def measure(
        self,
        request: Request,
        held: Sequence[bytes],
        missing: set[bytes],
        measurement: Measurement,
    ) -> None:
        """Measure submodels that are held; train and measure those that are missing."""
        # With a store that cannot hold them, `fit` has trained nothing: what fits is kept here.
        keep = self._held.store is not None and not self._held.stored
        # Predictions of many models on many instances are large.
        most = max(
            SOME, min(self._trainer.at_once, OUTPUTS_AT_ONCE // max(len(measurement.test), 1))
        )
        pace = Pace()
        batches = chain(
            self._in_parts(self._held.batches(held), pace, most),
            self._to_train(request, missing, most, keep=keep, while_room=False),
        )
        work = Work(self._trainer, measurement.utility, measurement.test)
        what = "training and measuring submodels" if missing else "measuring submodels"
        for keys, batch, done in self._run(work, batches, len(held) + len(missing), what):
            self._take(keys, batch, done)
            if isinstance(batch, Trained) and not done.died:
                pace.saw(done.seconds, len(keys))
            measurement.add(keys, done)

    def _to_train(
        self, request: Request, missing: set[bytes], most: int, *, keep: bool, while_room: bool
    ) -> Iterator[Batch]:
        """Return the batches to train, as they are needed."""
        for keys, counts, seeds in request.batches(missing, self._trainer, self._pace, most):
            size = len(keys)
            awaited = sum(len(batch) for _, batch in [*self._under_way.values()])
            room = self._held.room(size, awaited) if keep else 0
            if room == size or not while_room:
                kept = room == size or (keep and self._held.stored)
                yield keys, ToTrain(counts, seeds, keep=kept)
                continue
            if room and self._serial:
                yield keys[:room], ToTrain(counts[:room], seeds[:room], keep=True)
            return

    def _in_parts(
        self, batches: Iterator[tuple[Sequence[bytes], Trained]], pace: Pace, most: int
    ) -> Iterator[Batch]:
        """Return batches of submodels in parts that do not take long, if they are a list."""
        for keys, batch in batches:
            if not self._serial:
                yield keys, batch
                continue
            stop = 0
            while stop < len(keys):
                start, stop = stop, min(stop + pace.width(most), len(keys))
                part = self._part(batch, start, stop)
                if part is None:
                    yield keys, batch
                    break
                yield keys[start:stop], part

    def _take(self, keys: Sequence[bytes], batch: ToTrain | Trained, done: Done) -> None:
        if isinstance(batch, ToTrain):
            self.trained += len(keys)
            self.warned.update(done.warned)
            if not done.died:
                self._pace.saw(done.seconds, len(keys))
            self._held.add(keys, done, batch.keep)

    def _run(
        self, work: Work, batches: Iterator[Batch], total: int, description: str
    ) -> Iterator[tuple[Sequence[bytes], ToTrain | Trained, Done]]:
        """Run batches and yield what becomes of them; those that a worker died of, one by one."""
        self._under_way = {}
        apart: list[Batch] = []
        tasks = run_tasks(
            work,
            self._sent(batches),
            n_jobs=self._n_jobs,
            progress=self._progress,
            description=description,
            total=total,
            size=len,
        )
        with closing(tasks) as results:
            for index, done in results:
                keys, batch = self._under_way.pop(index)
                if isinstance(done, Done):
                    yield keys, batch, done
                elif parts := self._one_by_one(keys, batch):
                    apart += parts
                else:
                    yield keys, batch, _dead(done, len(keys))
        if apart:
            yield from self._run(work, iter(apart), len(apart), description)

    def _one_by_one(self, keys: Sequence[bytes], batch: ToTrain | Trained) -> list[Batch]:
        """Return the batches of one that a batch is made of; none where it cannot be parted."""
        if len(keys) == 1:
            return []
        parts = [self._part(batch, row, row + 1) for row in range(len(keys))]
        return [([key], part) for key, part in zip(keys, parts, strict=True) if part is not None]

    def _part(self, batch: ToTrain | Trained, start: int, stop: int) -> ToTrain | Trained | None:
        if isinstance(batch, ToTrain):
            some = slice(start, stop)
            return ToTrain(batch.counts[some], batch.seeds[some], batch.keep)
        fitted = self._trainer.part(batch.fitted, start, stop)
        return None if fitted is None else Trained(fitted)

    def _sent(self, batches: Iterator[Batch]) -> Iterator[ToTrain | Trained]:
        for index, (keys, batch) in enumerate(batches):
            self._under_way[index] = keys, batch
            yield batch


def _dead(failed: TaskFailed, size: int) -> Done:
    return Done(None, 0, None, dict.fromkeys(range(size), failed.reason), {}, 0.0, died=True)
