"""Submodels that there is no need to train: in memory, in a store, or known to fail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from proponent.models.learner import Fitted, Trainer
from proponent.retraining.batches import Done, Trained
from proponent.retraining.store import Store


class Held:
    """Submodels by key, in the batches that they were trained in.

    Parameters
    ----------
    trainer : Trainer
        Whose they are.
    memory : int
        How many bytes they may take.
    store : Store, optional
        Where they outlive this process, if they can be stored as arrays.

    Attributes
    ----------
    failures : dict
        Those that could not be trained, and why.
    nbytes : int
        The memory that they take.
    stored : bool
        Whether submodels go to the store.
    """

    def __init__(self, trainer: Trainer, memory: int, store: Store | None) -> None:
        self.store = store
        self.failures: dict[bytes, str] = {} if store is None else dict(store.failures)
        self.nbytes = 0
        self.stored = store is not None and type(trainer).to_arrays is not Trainer.to_arrays
        self._trainer = trainer
        self._memory = memory
        self._where: dict[bytes, int] = {}  # the batch of a submodel
        self._batches: list[tuple[Sequence[bytes], Fitted]] = []
        self._measured = (0, 0)  # bytes, submodels

    def missing(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return those that have to be trained."""
        kept, failed = self._where, self.failures
        stored = {} if self.store is None else self.store.submodels
        return [key for key in keys if key not in kept and key not in failed and key not in stored]

    @property
    def measured(self) -> bool:
        """Whether it is known what a submodel takes."""
        return self._measured[1] > 0

    def room(self, wanted: int, awaited: int) -> int:
        """Return how many of those wanted are expected to fit the memory, beside those awaited."""
        nbytes, count = self._measured
        each = nbytes / count if count else 0.0
        left = self._memory - self.nbytes - each * awaited
        if left < 0 or each * wanted <= left:
            return 0 if left < 0 else wanted
        return int(left / each)

    def add(self, keys: Sequence[bytes], done: Done, wanted: bool) -> None:
        """Take in a batch that was trained: its failures, and where they are wanted its models.

        Raises
        ------
        ProponentError
            If the disk is full.
        """
        failures = {keys[row]: reason for row, reason in done.untrained.items()}
        failures = {key: failures[key] for key in failures.keys() - self.failures.keys()}
        self.failures |= failures
        # A worker that died may not die again: another process is to try.
        if failures and not done.died and self.store is not None:
            self.store.add_failures(failures)
        if not wanted or len(done.untrained) == len(keys):
            return
        if done.fitted is None:
            self._memory = -1  # it is not known what they take, so that no more are kept
            return
        self._measured = (self._measured[0] + done.nbytes, self._measured[1] + len(keys))
        if self.nbytes + done.nbytes <= self._memory:
            self._where.update(dict.fromkeys(keys, len(self._batches)))
            self._batches.append((keys, done.fitted))
            self.nbytes += done.nbytes
        if self.stored and self.store is not None:
            self.stored = self.store.add_submodels(keys, done.fitted, self._trainer)

    def batches(self, keys: Sequence[bytes]) -> Iterator[tuple[Sequence[bytes], Trained]]:
        """Return the batches that hold some submodels, from memory and then from the store."""
        for number in sorted({self._where[key] for key in keys if key in self._where}):
            members, fitted = self._batches[number]
            yield members, Trained(fitted)
        if self.store is not None:
            stored = [self.store.submodels[key] for key in keys if key not in self._where]
            for path in dict.fromkeys(stored):
                members, fitted = self.store.load_submodels(path, self._trainer)
                yield members, Trained(fitted)


def most_frequent(failures: Mapping[Any, str], most: int = 5) -> dict[str, int]:
    """Return the most frequent reasons, and how often each stands."""
    reasons, counts = np.unique(list(failures.values()), return_counts=True)
    order = np.argsort(-counts, kind="stable")[:most]
    return {str(reasons[place]): int(counts[place]) for place in order}
