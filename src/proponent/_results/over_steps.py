"""What results over the steps of training have in common: their labels, shares and looks."""

from __future__ import annotations

import html
import os
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from proponent._results import files
from proponent._results.base import LabelledResult
from proponent._results.step_columns import StepColumns
from proponent._results.view import ROWS, View, as_html, as_text, counted, shown, warnings_in

if TYPE_CHECKING:
    from typing_extensions import Self

PHASES_SHOWN = 6


class OverSteps(LabelledResult):
    """Base of the results that tell when during training something happened."""

    __slots__ = ("_columns",)

    _columns: StepColumns
    _subject: ClassVar[str] = "Influence"

    @property
    def steps(self) -> NDArray[np.int64]:
        """The step taken from each checkpoint, or the first of each phase, (K,), from 1."""
        return self._columns.first

    @property
    def last_steps(self) -> NDArray[np.int64]:
        """The last step of each phase, (K,); without phases the same as ``steps``."""
        return self._columns.last

    @abstractmethod
    def _absolute(self, tests: slice) -> NDArray[np.floating[Any]]:
        """Return sums of absolute contributions, (some tests, K) or, without tests, (K,)."""

    @abstractmethod
    def _arrays(self) -> dict[str, NDArray[Any]]:
        """Return what is stored beside the labels."""

    # Shown

    def _view(self) -> View:
        phased = np.any(self.steps != self.last_steps)
        when = ("in", "phase") if phased else ("at", "checkpoint")
        heading = self._heading(f"{self._subject} of")
        heading += f" {when[0]} {counted(len(self._columns), when[1])}"
        tests = 0 if self._test_ids is None else len(self._test_ids)
        return View(heading, [], max(0, tests - ROWS), warnings_in(self._diagnostics))

    def _table(self) -> list[list[str]]:
        """Return the share of each phase in the influence on the first test instances."""
        columns, starts = self._columns.gathered(PHASES_SHOWN)
        absolute = np.atleast_2d(self._absolute(slice(0, ROWS)))
        halfway = median_steps(absolute, self._columns)
        parts = shares(np.add.reduceat(absolute, starts, axis=1))
        ids = [""] if self._test_ids is None else [shown(i, 24) for i in self._test_ids[:ROWS]]
        names = [columns.label(column) for column in range(len(columns))]
        lines = [["" if self._test_ids is None else "test", "half made by", *names]]
        for name, half, row in zip(ids, halfway, parts, strict=True):
            if np.isnan(half):
                lines.append([name, "nothing", *[""] * len(row)])
            else:
                lines.append([name, f"step {half:.0f}", *(f"{share:.0%}" for share in row)])
        return lines

    def __repr__(self) -> str:
        """Show a heading, and when the influence on the first test instances was made."""
        heading, _, rest = as_text(self._view()).partition("\n")
        if not len(self._columns) or not len(self._train_ids):
            return heading
        table = self._table()
        widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in table
        ]
        return "\n".join([heading, *lines, *([rest] if rest else [])])

    def _repr_html_(self) -> str:
        """Show the same as a table, for notebooks."""
        text = as_html(self._view())
        if not len(self._columns) or not len(self._train_ids):
            return text
        head, *lines = self._table()
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>"
            for line in lines
        )
        names = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        table = f"<table><thead><tr>{names}</tr></thead><tbody>{rows}</tbody></table>"
        before, end, after = text.partition("</p>")  # after the heading
        return before + end + table + after

    # Stored

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the result to a directory, without pickle; see ``Influence.save``.

        Parameters
        ----------
        path : path-like
            The directory to make.
        overwrite : bool
            Whether a result that is there may be replaced.

        Raises
        ------
        InvalidInputError
            If something is there that may not be replaced.
        """
        labels = {"train_ids": self._train_ids, "test_ids": self._test_ids}
        files.write(
            path,
            kind=type(self).__name__,
            arrays={**self._arrays(), "steps": self.steps, "last_steps": self.last_steps},
            labels={name: array for name, array in labels.items() if array is not None},
            meta=self._meta(),
            overwrite=overwrite,
        )

    def _meta(self) -> dict[str, Any]:
        return {
            "method": self._method,
            "settings": self._settings,
            "diagnostics": self._diagnostics,
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = True) -> Self:
        """Open a saved result.

        Parameters
        ----------
        path : path-like
            The directory.
        mmap : bool
            Leave the arrays on disk and read only what is used. Otherwise they are read, and
            checked for infinite values again.

        Raises
        ------
        InvalidInputError
            If a file is missing, damaged or of another version; the message names it.
        """
        stored = files.read(path, kind=cls.__name__, mmap=mmap)
        with files.fitting(path):
            return cls._from_files(stored.arrays, stored.labels, stored.meta, scan=not mmap)

    @classmethod
    @abstractmethod
    def _from_files(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        labels: Mapping[str, NDArray[Any]],
        meta: Mapping[str, Any],
        *,
        scan: bool,
    ) -> Self: ...


def shares(absolute: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
    """Divide by the sum over the last axis; NaN where that is 0."""
    totals = absolute.sum(axis=-1, keepdims=True)
    found = np.full_like(absolute, np.nan)
    np.divide(absolute, totals, out=found, where=totals > 0)
    return found


def median_steps(absolute: NDArray[np.floating[Any]], columns: StepColumns) -> NDArray[np.float64]:
    """Return the last step of the first column by which half of each row's sum has come."""
    totals = np.cumsum(absolute, axis=-1, dtype=np.float64)
    half = totals[..., -1] / 2
    found = columns.last[np.argmax(totals >= half[..., None], axis=-1)].astype(np.float64)
    return np.where(half > 0, found, np.nan)
