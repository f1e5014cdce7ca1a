"""The files of a recorded run: what the recorder writes and the reader trusts.

A run is a directory::

    run.json                                  what was trained: written once, before training
    steps.jsonl                               one line a step; the newline commits the step
    checkpoints/step-00000012.safetensors     parameters and buffers before step 12
    checkpoints/step-00000012.json            its size and hash, written after it
    checkpoints/step-00000012.optimizer.safetensors      (where asked for)
    test_risks.f64                            one row of float64 a state (where asked for)

Nothing is ever written in place. A file appears under its name only when it is complete, and
before the line of the journal that mentions it; so whatever a kill leaves behind reads as the run
up to its last complete step.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proponent.exceptions import InvalidInputError, RunError

FORMAT = "proponent-run"
FORMAT_VERSION = 1

HEADER = "run.json"
STEPS = "steps.jsonl"
TEST_RISKS = "test_risks.f64"
CHECKPOINTS = "checkpoints"

# What safetensors calls the dtypes of torch.
DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True)
class StoredFile:
    """A complete file of a run: its name, its size in bytes and its checksum.

    The checksum is to find damage; a cryptographic hash took half the time of recording.
    """

    file: str
    size: int
    crc32: int


def checkpoint_name(step: int) -> str:
    """Return the name, without ending, of the files with the state before ``step``."""
    return f"step-{step:08d}"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> StoredFile:
    """Write tensors to a safetensors file, atomically, and their checksum on the way.

    The format is written here rather than by ``safetensors`` because the bytes are then checked
    as they pass, without a copy and without reading the file again.

    Parameters
    ----------
    path : Path
        The file; an older one is replaced at once.
    tensors : mapping
        Dense tensors by name, on any device.

    Raises
    ------
    InvalidInputError
        If a tensor is sparse or of a dtype that safetensors has no name for.
    """
    header: dict[str, Any] = {}
    contents: list[memoryview] = []
    end = 0
    # Wide entries first, as safetensors orders them: every tensor then lies aligned in the file.
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        if tensor.layout is not torch.strided or tensor.dtype not in DTYPES:
            raise InvalidInputError(
                f"{name} is a tensor of {tensor.dtype} with layout {tensor.layout}, which cannot "
                f"be stored in a checkpoint; keep parameters and buffers dense."
            )
        dense = tensor.detach().cpu().contiguous().reshape(-1)
        contents.append(dense.view(torch.uint8).numpy().data)
        start, end = end, end + contents[-1].nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    encoded = _encode(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    return _write(path, [len(encoded).to_bytes(8, "little"), encoded, *contents])


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a small JSON file, atomically."""
    _write(path, [json.dumps(value, indent=1).encode() + b"\n"])


def _write(path: Path, parts: Iterable[bytes | memoryview]) -> StoredFile:
    checksum = 0
    size = 0
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        for part in parts:
            checksum = zlib.crc32(part, checksum)
            file.write(part)
            size += len(part)
    os.replace(temporary, path)
    return StoredFile(path.name, size, checksum)


def write_sidecar(
    path: Path,
    step: int,
    learning_rates: list[float] | None,
    tensors: StoredFile,
    optimizer_state: StoredFile | None,
) -> None:
    """Write the JSON file beside the state before ``step``; the final one has no rates."""
    entries = {
        "step": step,
        "learning_rates": learning_rates,
        "tensors": asdict(tensors),
        "optimizer_state": None if optimizer_state is None else asdict(optimizer_state),
    }
    write_json(path, entries)


def read_sidecar(path: Path, step: int) -> tuple[StoredFile, StoredFile | None]:
    """Return the files of the state before ``step``: its tensors and its optimizer state.

    Raises
    ------
    RunError
        If the sidecar is missing, damaged or of another step, or a file has the wrong size.
    """
    sidecar = read_json(path)
    try:
        if sidecar["step"] != step:
            raise KeyError
        optimizer = sidecar["optimizer_state"]
        files = (StoredFile(**sidecar["tensors"]), optimizer and StoredFile(**optimizer))
    except (KeyError, TypeError):
        raise RunError(f"{path} does not describe the checkpoint before step {step}.") from None
    for stored in files:
        if stored is not None:
            _check_size(path.with_name(stored.file), stored)
    return files


def read_tensors(directory: Path, stored: StoredFile) -> dict[str, Tensor]:
    """Return the tensors of a complete file, mapped from disk.

    Raises
    ------
    RunError
        If the file is missing, or its size, checksum or header is not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / stored.file
    _check_size(path, stored)
    if _checksum(path, path.stat().st_mtime_ns) != stored.crc32:
        raise RunError(f"{path} is damaged: its content is not what was recorded.")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}.") from error


def _check_size(path: Path, stored: StoredFile) -> None:
    if not path.is_file():
        raise RunError(f"{path} is missing; the run's journal names it.")
    if path.stat().st_size != stored.size:
        raise RunError(
            f"{path} is truncated or damaged: {path.stat().st_size:,} bytes, where "
            f"{stored.size:,} were recorded."
        )


@cache
def _checksum(path: Path, modified: int) -> int:
    """Return a file's checksum, computed once for each time that it was written."""
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a small JSON file.

    Raises
    ------
    RunError
        If the file is missing or holds no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RunError(f"{path} is missing.") from None
    except (ValueError, OSError) as error:
        raise RunError(f"{path} is damaged: {error}.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object.")
    return value


def encode_line(entry: Mapping[str, Any]) -> bytes:
    """Return one line of the journal."""
    return _encode(entry).encode() + b"\n"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the entries of the journal; a last line without its newline was not committed.

    Raises
    ------
    RunError
        If the file is missing, or a committed line cannot be read; the message names the line.
    """
    try:
        *lines, _torn = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error}.") from error
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise RunError(f"{path}, line {number}, is damaged; the run cannot be trusted.")
        entries.append(entry)
    return entries


def read_test_risks(path: Path, rows: int, n_test: int) -> NDArray[np.float64]:
    """Return the first ``rows`` rows of the recorded test risks, ``(rows, n_test)``.

    Rows past those belong to a step that was not committed.

    Raises
    ------
    RunError
        If the file is missing or has fewer rows.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing; the run's header names it.")
    found = path.stat().st_size // (8 * n_test)
    if found < rows:
        raise RunError(
            f"{path} is truncated: it has the risks of {found:,} states, where the journal has "
            f"{rows:,}."
        )
    return np.fromfile(path, dtype="<f8", count=rows * n_test).reshape(rows, n_test)
