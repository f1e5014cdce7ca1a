"""A store of submodels and of what was measured on them: a directory that outlives a kill.

::

    manifest.json             the data set and the recipe: another one is refused
    results/*.journal         utilities, one file a writer (see ``journal.py``)
    submodels/*.npz           the arrays of submodels that were trained together, without pickle

A file appears under its name when it is complete. Several processes may use a store: each writes
files of its own, and sees what was there when it opened the store.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proponent.models.learner import Fitted, Trainer
from proponent.retraining.array_files import read_arrays, write_arrays
from proponent.retraining.journal import JournalWriter, Record, not_written, read_journal
from proponent.retraining.keys import KEY_BYTES
from proponent.retraining.manifest import check_manifest

# What stands for test set and utility where a submodel could not even be trained.
UNTRAINED = ""
# The names of the arrays in a file of submodels.
KEYS, FAILURES, MODEL = "keys", "failures", "model."

Values = NDArray[np.float64]


class Store:
    """What is known of the submodels of one recipe on one training set.

    Parameters
    ----------
    path : Path
        The directory; it is made if there is none.
    data : str
        A hash of the content of the training set.
    recipe : str
        What the learner is.
    n : int
        Number of training instances.
    training : int
        The version of the code that trains.

    Attributes
    ----------
    submodels : dict
        The file of each submodel, by key.
    failures : dict
        Why some of them could not be trained, by key.
    unread_bytes : int
        How much at the ends of journals is no complete record: what a kill tore.

    Raises
    ------
    InvalidInputError
        If the directory holds submodels of another training set or recipe, or something else.
    """

    def __init__(self, path: Path, data: str, recipe: str, n: int, training: int = 1) -> None:
        self.path = path
        check_manifest(path, data, recipe, n, training)
        self._writer: JournalWriter | None = None
        self._owner = 0
        self.unread_bytes = 0
        self._records: dict[tuple[str, str], list[Record]] = {}
        for file in sorted((path / "results").glob("*.journal")):
            complete, unread = read_journal(file)
            self.unread_bytes += unread
            for record in complete:
                key = (record.header["test"], record.header["utility"])
                self._records.setdefault(key, []).append(record)
        self.submodels: dict[bytes, Path] = {}
        for file in sorted((path / "submodels").glob("*.npz")):
            keys = read_arrays(file, lambda name: name == KEYS)[KEYS]
            self.submodels |= dict.fromkeys(_keys_of(keys), file)
        self.failures: dict[bytes, str] = {}
        for found, _, failures in self.results(UNTRAINED, UNTRAINED):
            self.failures |= {found[row]: reason for row, reason in failures.items()}

    def results(
        self, test: str, utility: str
    ) -> Iterator[tuple[list[bytes], Values | None, dict[int, str]]]:
        """Return what was measured on a test set: keys, utilities ``(K, T)``, and failures.

        Parameters
        ----------
        test : str
            A hash of the content of the test set.
        utility : str
            The recipe of the utility.

        Raises
        ------
        RunError
            If a journal is damaged.
        """
        for record in self._records.get((test, utility), []):
            content = record.payload()
            count, width = record.header["shape"]
            keys = _keys_of(np.frombuffer(content, np.uint8, count * KEY_BYTES))
            failures = {int(row): reason for row, reason in record.header["failures"].items()}
            utilities = np.frombuffer(content, "<f8", offset=count * KEY_BYTES)
            yield keys, utilities.reshape(count, width) if width else None, failures

    def add_results(
        self,
        test: str,
        utility: str,
        keys: Sequence[bytes],
        utilities: Values | None,
        failures: Mapping[int, str],
    ) -> None:
        """Append what was measured on a test set, as :meth:`results` returns it.

        Raises
        ------
        ProponentError
            If the disk is full; what was written before is complete.
        """
        header = {
            "test": test,
            "utility": utility,
            "shape": [len(keys), 0 if utilities is None else utilities.shape[1]],
            "failures": {str(row): reason for row, reason in failures.items()},
        }
        rows = b"" if utilities is None else np.ascontiguousarray(utilities, "<f8").tobytes()
        record = self._journal().append(header, b"".join(keys) + rows)
        self._records.setdefault((test, utility), []).append(record)

    def add_failures(self, failures: Mapping[bytes, str]) -> None:
        """Append why some submodels could not be trained, whatever they are measured on.

        Raises
        ------
        ProponentError
            If the disk is full.
        """
        reasons = dict(enumerate(failures.values()))
        self.add_results(UNTRAINED, UNTRAINED, list(failures), None, reasons)

    def add_submodels(self, keys: Sequence[bytes], fitted: Fitted, trainer: Trainer) -> bool:
        """Store submodels that were trained together; return whether they have a safe form.

        Raises
        ------
        ProponentError
            If the disk is full.
        """
        arrays = trainer.to_arrays(fitted)
        if arrays is None or any(array.dtype.hasobject for array in arrays.values()):
            return False
        failures = json.dumps({str(row): reason for row, reason in fitted.failures.items()})
        members = {MODEL + name: array for name, array in arrays.items()}
        members[KEYS] = np.frombuffer(b"".join(keys), np.uint8)
        members[FAILURES] = np.frombuffer(failures.encode(), np.uint8)
        path = self.path / "submodels" / f"{uuid.uuid4().hex}.npz"
        try:
            path.parent.mkdir(exist_ok=True)
            write_arrays(path, members)
        except OSError as error:
            raise not_written(self.path, error) from error
        self.submodels |= dict.fromkeys(keys, path)
        return True

    def load_submodels(self, path: Path, trainer: Trainer) -> tuple[list[bytes], Fitted]:
        """Return submodels that were trained together, and their keys.

        Raises
        ------
        RunError
            If the file is damaged.
        """
        arrays = read_arrays(path)
        keys = _keys_of(arrays.pop(KEYS))
        reasons = json.loads(arrays.pop(FAILURES).tobytes())
        failures = {int(row): str(reason) for row, reason in reasons.items()}
        models = {name.removeprefix(MODEL): array for name, array in arrays.items()}
        return keys, trainer.from_arrays(models, len(keys), failures)

    def _journal(self) -> JournalWriter:
        if self._writer is None or self._owner != os.getpid():  # a fork writes its own file
            folder = self.path / "results"
            try:
                folder.mkdir(exist_ok=True)
            except OSError as error:
                raise not_written(self.path, error) from error
            self._writer = JournalWriter(folder / f"{uuid.uuid4().hex}.journal")
            self._owner = os.getpid()
        return self._writer


def _keys_of(content: NDArray[np.uint8]) -> list[bytes]:
    joined = content.tobytes()
    return [joined[start : start + KEY_BYTES] for start in range(0, len(joined), KEY_BYTES)]
