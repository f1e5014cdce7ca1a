"""Writes the files of a run, each complete before the journal mentions it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proponent.exceptions import RunError
from proponent.models import journal

CHECKPOINT_FILE = re.compile(r"step-\d{8,}(\.optimizer)?\.(safetensors|json)(\.tmp)?")


class RunWriter:
    """The files of one run while it is recorded.

    Parameters
    ----------
    path : Path
        The run's directory; created.
    overwrite : bool
        Whether a run that is already there is deleted.

    Raises
    ------
    RunError
        If the directory holds anything else, or a run that is not to be overwritten.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        _make_room(path, overwrite=overwrite)
        self._path = path
        self._folder = path / journal.CHECKPOINTS
        self._folder.mkdir(parents=True, exist_ok=True)
        # Unbuffered: every line reaches the system in one write, before what follows it.
        self._steps = (path / journal.STEPS).open("xb", buffering=0)
        self._risks = (path / journal.TEST_RISKS).open("xb", buffering=0)

    def write_header(self, header: Mapping[str, Any]) -> None:
        """Write ``run.json``: from now on there is a run."""
        journal.write_json(self._path / journal.HEADER, header)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Commit one line to the journal."""
        self._steps.write(journal.encode_line(entry))

    def append_risks(self, risks: NDArray[np.float64], *, first: bool = False) -> None:
        """Append the test risks of one state, ``(n_test,)``; ``first`` replaces earlier ones."""
        if first:
            self._risks.seek(0)
            self._risks.truncate()
        self._risks.write(risks.astype("<f8").tobytes())

    def store(
        self,
        step: int,
        learning_rates: list[float] | None,
        state: Mapping[str, Tensor],
        optimizer_state: Mapping[str, Tensor] | None,
    ) -> str:
        """Store the state before ``step`` and return the name of its files.

        The final state has no learning rates.
        """
        name = journal.checkpoint_name(step)
        moments = None
        if optimizer_state is not None:
            path = self._folder / f"{name}.optimizer.safetensors"
            moments = journal.write_tensors(path, optimizer_state)
        tensors = journal.write_tensors(self._folder / f"{name}.safetensors", state)
        journal.write_sidecar(self._folder / f"{name}.json", step, learning_rates, tensors, moments)
        return name

    def close(self) -> None:
        """Close the files."""
        self._steps.close()
        self._risks.close()

    def discard(self) -> None:
        """Close and delete the files."""
        self.close()
        _make_room(self._path, overwrite=True)


def _make_room(path: Path, *, overwrite: bool) -> None:
    """Make sure that ``path`` is free; delete a run there if that was asked for, and only a run."""
    if not path.exists():
        return
    if not path.is_dir():
        raise RunError(f"{path} is a file; give the directory of the run.")
    folder = path / journal.CHECKPOINTS
    found = sorted(path.iterdir())
    stored = sorted(folder.iterdir()) if folder.is_dir() else []
    known = {journal.STEPS, journal.TEST_RISKS, journal.HEADER, f"{journal.HEADER}.tmp"}
    strange = [file for file in found if file.name not in known and file != folder]
    strange += [file for file in stored if not CHECKPOINT_FILE.fullmatch(file.name)]
    if strange:
        raise RunError(
            f"{path} is not empty, and not only a run is in it ({strange[0].name}); choose "
            f"another directory."
        )
    if found and not overwrite:
        raise RunError(f"{path} already holds a run; choose another path, or give overwrite=True.")
    for file in [*stored, *(file for file in found if file != folder)]:
        file.unlink()
    if folder.is_dir():
        folder.rmdir()
