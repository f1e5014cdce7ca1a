"""Rows of numbers for n instances, written once and read often: in memory, or on disk.

On disk a directory holds a manifest that says what the rows were made from, and safetensors
shards named by their first row. A shard is complete or not there: the missing ones are the work
that is left, whoever does it.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from typing_extensions import override

from proponent.exceptions import InvalidInputError

FORMAT = 1
MANIFEST = "manifest.json"
SHARD_BYTES = 256 * 2**20
# Rows are handed over in blocks of this size, so that products with them stay small.
BLOCK_ROWS = 4096

Rows = dict[str, Tensor]


class RowStore(ABC):
    """For each of n instances one row of numbers in each of some named tables.

    Parameters
    ----------
    n : int
        Number of instances.
    widths : mapping
        The length of a row, by table.
    like : Tensor
        Has the dtype and the device of what is read.
    """

    def __init__(self, n: int, widths: Mapping[str, int], like: Tensor) -> None:
        self.n = n
        self.widths = dict(widths)
        self.like = like

    @property
    def row_bytes(self) -> int:
        """Bytes that an instance takes."""
        return max(1, sum(self.widths.values()) * self.like.element_size())

    @abstractmethod
    def missing(self) -> list[range]:
        """Return the rows that are still to be written, as they are to be written together."""

    @abstractmethod
    def written(self) -> list[range]:
        """Return the rows that were there already, as they were written together."""

    @abstractmethod
    def write(self, rows: range, values: Mapping[str, Tensor]) -> None:
        """Write rows that are missing: each table's ``(len(rows), width)``."""

    @abstractmethod
    def read(
        self, rows: range, tables: Sequence[str] | None = None
    ) -> Iterator[tuple[range, Rows]]:
        """Go through the rows of all tables, or of some, in blocks."""

    def _chosen(self, tables: Sequence[str] | None) -> Sequence[str]:
        return list(self.widths) if tables is None else tables

    @abstractmethod
    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep other tensors beside the rows, for :meth:`kept` to find again."""

    @abstractmethod
    def kept(self, name: str) -> Rows | None:
        """Return tensors that were kept, also by another process; None where there are none."""


class MemoryRows(RowStore):
    """Rows in memory.

    Raises
    ------
    InvalidInputError
        If they need more than ``memory`` bytes.
    """

    def __init__(self, n: int, widths: Mapping[str, int], like: Tensor, memory: int) -> None:
        super().__init__(n, widths, like)
        if n * self.row_bytes > memory:
            raise InvalidInputError(
                f"the projected gradients of {n:,} training instances take "
                f"{n * self.row_bytes / 2**20:,.0f} MiB, more than memory="
                f"{memory / 2**20:,.0f} MiB. Give path=, a directory to store them in, project to "
                f"fewer dimensions, or raise memory."
            )
        self._tables = {name: like.new_empty(n, width) for name, width in widths.items()}
        self._written = 0

    @override
    def missing(self) -> list[range]:
        starts = range(self._written, self.n, BLOCK_ROWS)
        return [range(start, min(start + BLOCK_ROWS, self.n)) for start in starts]

    @override
    def written(self) -> list[range]:
        return [range(self._written)] if self._written else []

    @override
    def write(self, rows: range, values: Mapping[str, Tensor]) -> None:
        for name, table in self._tables.items():
            table[rows.start : rows.stop] = values[name]
        self._written = rows.stop

    @override
    def read(
        self, rows: range, tables: Sequence[str] | None = None
    ) -> Iterator[tuple[range, Rows]]:
        for block in _blocks(rows):
            where = slice(block.start, block.stop)
            yield block, {name: self._tables[name][where] for name in self._chosen(tables)}

    @override
    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        pass  # whoever made them holds them

    @override
    def kept(self, name: str) -> None:
        return None


class StoredRows(RowStore):
    """Rows in a directory, which is made if it is new and gone on with if it is not.

    Parameters
    ----------
    path : str or Path
        The directory.
    header : mapping
        What the rows are made from, as JSON: rows of another origin are refused.
    n, widths, like
        As for :class:`RowStore`.

    Raises
    ------
    InvalidInputError
        If the directory holds something else.
    """

    def __init__(
        self,
        path: str | Path,
        header: Mapping[str, Any],
        n: int,
        widths: Mapping[str, int],
        like: Tensor,
    ) -> None:
        super().__init__(n, widths, like)
        self.path = Path(path)
        self._shard = max(1, min(n, SHARD_BYTES // self.row_bytes))
        wanted = {
            "format": FORMAT,
            **header,
            "n": n,
            "tables": self.widths,
            "dtype": str(like.dtype).removeprefix("torch."),
        }
        file = self.path / MANIFEST
        if file.exists():
            found = _read_manifest(file)
            differing = [key for key in wanted if found.get(key) != wanted[key]]
            if differing:
                raise InvalidInputError(
                    f"path: {self.path} holds projected gradients of another fit (its "
                    f"{', '.join(differing)} differ); choose another directory."
                )
            self._shard = int(found["shard_rows"])
            return
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise InvalidInputError(
                f"path: {self.path} is no directory of projected gradients; choose an empty or a "
                f"new one."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        content = json.dumps({**wanted, "shard_rows": self._shard}, indent=1).encode()
        temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
        temporary.write_bytes(content)
        os.replace(temporary, file)

    @override
    def missing(self) -> list[range]:
        return [rows for rows in self._shards() if not self._file(rows).exists()]

    @override
    def written(self) -> list[range]:
        return [rows for rows in self._shards() if self._file(rows).exists()]

    @override
    def write(self, rows: range, values: Mapping[str, Tensor]) -> None:
        _save(self._file(rows), values)

    @override
    def read(
        self, rows: range, tables: Sequence[str] | None = None
    ) -> Iterator[tuple[range, Rows]]:
        for shard in self._shards():
            common = range(max(shard.start, rows.start), min(shard.stop, rows.stop))
            if not common:
                continue
            with _readable(self._file(shard)):
                file: Any = safe_open(self._file(shard), framework="pt")
            with file:
                for block in _blocks(common):
                    where = slice(block.start - shard.start, block.stop - shard.start)
                    parts = {name: file.get_slice(name)[where] for name in self._chosen(tables)}
                    yield block, {name: part.to(self.like.device) for name, part in parts.items()}

    @override
    def keep(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        _save(self.path / f"{name}.safetensors", tensors)

    @override
    def kept(self, name: str) -> Rows | None:
        file = self.path / f"{name}.safetensors"
        if not file.exists():
            return None
        with _readable(file):
            tensors = load_file(file)
        return {key: tensor.to(self.like.device) for key, tensor in tensors.items()}

    def _shards(self) -> list[range]:
        starts = range(0, self.n, self._shard)
        return [range(start, min(start + self._shard, self.n)) for start in starts]

    def _file(self, rows: range) -> Path:
        return self.path / f"rows-{rows.start:010d}.safetensors"


def _blocks(rows: range) -> Iterator[range]:
    return (rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS))


def _read_manifest(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"path: {file.parent} has no manifest that can be read ({error}); choose another "
            f"directory."
        ) from error
    return found


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InvalidInputError(
            f"path: {file} cannot be read ({error}). If it is damaged, delete it and fit again: "
            f"only what it held is computed again."
        ) from error


def _save(file: Path, tensors: Mapping[str, Tensor]) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary)
    os.replace(temporary, file)
