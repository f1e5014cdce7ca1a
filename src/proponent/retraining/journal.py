"""Journals: append-only files of records, each with its length and checksums.

A record is a fixed part (a mark, two lengths, two checksums), a header in JSON and a payload of
bytes. A kill may leave the last record torn: the file then reads up to the one before. A writer
has a file of its own, so that several may write beside each other.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proponent.exceptions import ProponentError, RunError

FIXED = struct.Struct("<8sQQII")
MARK = b"\x93record\n"


@dataclass(frozen=True)
class Record:
    """A record that stands complete in a journal.

    Attributes
    ----------
    path : Path
        The journal.
    header : dict
        What the payload is.
    start, length : int
        Where the payload lies.
    checksum : int
        Of the payload.
    """

    path: Path
    header: dict[str, Any]
    start: int
    length: int
    checksum: int

    def payload(self) -> bytes:
        """Return the payload.

        Raises
        ------
        RunError
            If it is not what was written.
        """
        with self.path.open("rb") as file:
            file.seek(self.start)
            content = file.read(self.length)
        if len(content) != self.length or zlib.crc32(content) != self.checksum:
            raise RunError(
                f"path: {self.path} is damaged at byte {self.start:,}. Delete this file: what it "
                f"held is computed again."
            )
        return content


def read_journal(path: Path) -> tuple[list[Record], int]:
    """Return the complete records of a journal, and how many bytes at its end are none."""
    size, end = path.stat().st_size, 0
    found: list[Record] = []
    with path.open("rb") as file:
        while len(fixed := file.read(FIXED.size)) == FIXED.size:
            mark, header_length, length, header_checksum, checksum = FIXED.unpack(fixed)
            if mark != MARK or file.tell() + header_length + length > size:
                break
            header = file.read(header_length)
            if zlib.crc32(header) != header_checksum:
                break
            found.append(Record(path, json.loads(header), file.tell(), length, checksum))
            end = file.seek(length, os.SEEK_CUR)
    return found, size - end


class JournalWriter:
    """Appends records to a new file, which appears with the first.

    Parameters
    ----------
    path : Path
        The file; it must not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0

    def append(self, header: Mapping[str, Any], payload: bytes) -> Record:
        """Append a record, which outlives this process from here on, and return it.

        Raises
        ------
        ProponentError
            If the disk does not take it; the records before are as they were.
        """
        head = json.dumps(header, separators=(",", ":")).encode()
        checksums = zlib.crc32(head), zlib.crc32(payload)
        fixed = FIXED.pack(MARK, len(head), len(payload), *checksums)
        try:
            with self.path.open("r+b" if self._end else "xb", buffering=0) as file:
                file.seek(self._end)
                write_all(file, fixed + head + payload)
        except OSError as error:
            self._forget_torn()
            raise not_written(self.path.parent, error) from error
        start = self._end + len(fixed) + len(head)
        self._end = start + len(payload)
        return Record(self.path, dict(header), start, len(payload), checksums[1])

    def _forget_torn(self) -> None:
        """Take back what was written of a record, where the disk allows that."""
        try:
            if self._end:
                os.truncate(self.path, self._end)
            else:
                self.path.unlink(missing_ok=True)
        except OSError:
            pass  # a torn end is read as no record


def write_all(file: Any, content: bytes) -> None:
    """Write bytes to a file without a buffer, which may take them in parts."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]


def not_written(path: Path, error: OSError) -> ProponentError:
    """Return what is raised where the disk is full, or does not take a file for another reason."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    return ProponentError(
        f"path: {path} cannot be written to ({error.strerror or error}). What was written before "
        f"is complete: {'make room' if full else 'set that right'} and call again with the same "
        f"path, and only what is missing is computed."
    )
