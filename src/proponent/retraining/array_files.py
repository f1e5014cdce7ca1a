"""Files of arrays, as ``numpy.savez`` writes them, but whole or not there, and without pickle."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import RunError


def read_arrays(
    path: Path, wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a file whose names are wanted; every byte is checked.

    Raises
    ------
    RunError
        If the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: np.asarray(file[name]) for name in file.files if wanted(name)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(
            f"path: {path} is damaged ({error}). Delete this file: only the submodels that it "
            f"held are trained again."
        ) from error


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write arrays to a file, which appears when it is complete.

    Raises
    ------
    OSError
        If the disk is full; nothing is left of the file.
    ValueError
        If an array holds objects.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asarray(array), allow_pickle=False)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
