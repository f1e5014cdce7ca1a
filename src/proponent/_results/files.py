"""Results on disk: a directory of ``.npy`` arrays, ``labels.npz`` and ``meta.json``.

Nothing is pickled and nothing pickled is read. A result is written under a temporary name beside
its place and renamed, so a kill leaves the old result or none, never half of one.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent._results.checks import from_strict_json, frozen, strict_json
from proponent.exceptions import InvalidInputError

FORMAT = "proponent result"
VERSION = 1
META = "meta.json"
LABELS = "labels.npz"
ARRAYS = {
    "Influence": ("values", "std_error"),
    "TopInfluence": (
        "proponent_positions",
        "proponent_values",
        "opponent_positions",
        "opponent_values",
    ),
    "CheckpointInfluence": ("contributions", "steps", "last_steps"),
    "CheckpointSummary": ("helped", "harmed", "steps", "last_steps"),
}
# The axes of a kind's first array where it has one of test instances.
AXES = {"Influence": 2, "TopInfluence": 2, "CheckpointInfluence": 3, "CheckpointSummary": 2}
OPTIONAL = ("std_error",)
DAMAGE = (
    OSError,
    ValueError,
    OverflowError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
)
REMEDY = "save the result again, or compute it again"


@dataclass(frozen=True)
class Stored:
    """What one directory holds."""

    arrays: Mapping[str, NDArray[Any]]
    labels: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any]


def write(
    path: str | os.PathLike[str],
    *,
    kind: str,
    arrays: Mapping[str, NDArray[Any]],
    labels: Mapping[str, NDArray[Any]],
    meta: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Write a result to the directory ``path``.

    Raises
    ------
    InvalidInputError
        If something is there already and ``overwrite`` is not set, or if what is there is
        anything else than a result of this library.
    """
    target = Path(os.path.realpath(path))
    if os.path.lexists(target):
        if not overwrite:
            raise InvalidInputError(
                f"{target} exists already; choose another path, or pass overwrite=True"
            )
        _check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:12]
    temporary = target.with_name(f".{target.name}.{unique}.tmp")
    temporary.mkdir()
    try:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        with open(temporary / LABELS, "wb") as stream:
            np.savez(stream, **dict(labels))  # type: ignore[arg-type]
        described = {
            "format": FORMAT,
            "format_version": VERSION,
            "kind": kind,
            "library_version": _library_version(),
            "arrays": {name: _description(array) for name, array in arrays.items()},
            "labels": {name: _description(array) for name, array in labels.items()},
            **{key: strict_json(value) for key, value in meta.items()},
        }
        text = json.dumps(described, indent=2, allow_nan=False)
        (temporary / META).write_text(text + "\n", encoding="utf-8")
        _put_in_place(temporary, target, target.with_name(f".{target.name}.{unique}.old"))
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def read(path: str | os.PathLike[str], *, kind: str, mmap: bool) -> Stored:
    """Read the result in the directory ``path``.

    Parameters
    ----------
    path : path-like
        Where it was saved.
    kind : str
        The class that is asked for.
    mmap : bool
        Map the arrays instead of reading them: only what is used is read.

    Raises
    ------
    InvalidInputError
        If a file is missing, truncated, of another version or of another kind; the message names
        the file.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise InvalidInputError(f"{folder} is not a directory with a saved {kind}")
    meta = _read_meta(folder / META, kind)
    arrays = {
        name: _read_array(folder / f"{name}.npy", meta["arrays"].get(name), mmap)
        for name in ARRAYS[kind]
        if name not in OPTIONAL or name in meta["arrays"]
    }
    rows = arrays[ARRAYS[kind][0]].ndim == AXES[kind]  # with an axis less there are no tests
    names = ("train_ids", "test_ids") if rows else ("train_ids",)
    return Stored(arrays, _read_labels(folder / LABELS, names, meta["labels"]), meta)


@contextmanager
def fitting(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the directory where its files, each whole, do not make a result."""
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(
            f"the files in {os.fspath(path)} do not fit together ({error}); {REMEDY}"
        ) from error


def _description(array: NDArray[Any]) -> dict[str, Any]:
    return {"shape": list(array.shape), "dtype": array.dtype.str}


def _library_version() -> str:
    try:
        return metadata.version("proponent")
    except metadata.PackageNotFoundError:
        return "unknown"


def _check_replaceable(target: Path) -> None:
    """Refuse to overwrite, and so remove, a directory that holds more than a result."""
    ours = {META, LABELS, *(f"{name}.npy" for names in ARRAYS.values() for name in names)}
    if not target.is_dir():
        raise InvalidInputError(f"{target} is not a directory; it is not overwritten")
    present = {entry.name for entry in target.iterdir()}
    if present and META not in present:
        raise InvalidInputError(
            f"{target} is a directory without {META}, so not a saved result; it is not overwritten"
        )
    if present - ours:
        raise InvalidInputError(
            f"{target} also holds {sorted(present - ours)[0]!r}, which overwriting would delete; "
            "move it away or choose another path"
        )


def _put_in_place(temporary: Path, target: Path, aside: Path) -> None:
    """Rename, with the old result aside until the new one stands."""
    if not target.exists():
        os.rename(temporary, target)
        return
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(aside, target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _read_meta(file: Path, kind: str) -> dict[str, Any]:
    def parse() -> Any:
        return json.loads(file.read_text(encoding="utf-8"), object_hook=from_strict_json)

    meta = _reading(file, parse)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise InvalidInputError(f"{file} does not describe a saved {kind}")
    if meta.get("format_version") != VERSION:
        raise InvalidInputError(
            f"{file} has format version {meta.get('format_version')!r}, this version of proponent "
            f"reads {VERSION}; load it with version {meta.get('library_version')} of proponent"
        )
    found = meta.get("kind")
    if found != kind:
        use = f"load it with {found}.load" if found in ARRAYS else REMEDY
        raise InvalidInputError(f"{file} describes a {found!r}, not an {kind}; {use}")
    types = dict.fromkeys(("arrays", "labels", "settings", "diagnostics"), dict) | {"method": str}
    for key, needed in types.items():
        if not isinstance(meta.get(key), needed):
            raise InvalidInputError(f"{file} lacks {key!r} or holds it wrongly; {REMEDY}")
    return meta


def _read_array(file: Path, description: object, mmap: bool) -> NDArray[Any]:
    def parse() -> NDArray[Any]:
        # Not numpy.load: these two accept neither a pickle nor an archive in the array's place.
        if mmap:
            return np.lib.format.open_memmap(file, mode="r")
        with open(file, "rb") as stream:
            array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
        return array

    array: NDArray[Any] = _reading(file, parse)
    _check_described(file, array, description)
    return frozen(array)


def _read_labels(
    file: Path, names: tuple[str, ...], descriptions: Mapping[str, Any]
) -> dict[str, NDArray[Any]]:
    def parse() -> dict[str, NDArray[Any]]:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("not an archive of arrays")
        with archive:
            return {name: np.asarray(archive[name]) for name in names}

    labels: dict[str, NDArray[Any]] = _reading(file, parse)
    for name, array in labels.items():
        _check_described(file, array, descriptions.get(name))
        frozen(array)
    return labels


def _check_described(file: Path, array: NDArray[Any], description: object) -> None:
    if _description(array) != description:
        raise InvalidInputError(
            f"{file} holds {_description(array)}, but {META} says {description}; {REMEDY}"
        )


def _reading(file: Path, parse: Callable[[], Any]) -> Any:
    """Return the content of a file, or raise an error that names the file."""
    try:
        return parse()
    except FileNotFoundError:
        raise InvalidInputError(f"{file} is missing; {REMEDY}") from None
    except DAMAGE as error:
        raise InvalidInputError(
            f"{file} is damaged or truncated and cannot be read ({error}); {REMEDY}"
        ) from error
