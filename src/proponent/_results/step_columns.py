"""The steps of training, and how they are gathered into columns: one a step, or phases of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent._results.checks import as_count, frozen
from proponent.exceptions import InvalidInputError


@dataclass(frozen=True)
class StepColumns:
    """Columns of consecutive steps, in the order of training.

    Attributes
    ----------
    first, last : array of shape (K,)
        The first and the last step of each column.
    """

    first: NDArray[np.int64]
    last: NDArray[np.int64]

    @classmethod
    def of(cls, steps: Sequence[int], phases: int | None = None) -> StepColumns:
        """Give each step a column, or cut the steps into phases of equal numbers of steps.

        Raises
        ------
        InvalidInputError
            If there are more phases than steps.
        """
        ordered = np.unique(np.asarray(steps, dtype=np.int64))
        if phases is None:
            return cls(frozen(ordered), frozen(ordered.copy()))
        if as_count(phases, "phases") > len(ordered):
            raise InvalidInputError(
                f"phases={phases}: only {len(ordered)} steps or checkpoints contribute; ask for "
                f"at most {len(ordered)} phases, or leave phases out for one column each"
            )
        parts = np.array_split(ordered, phases)
        first, last = ([part[end] for part in parts] for end in (0, -1))
        return cls(frozen(np.array(first)), frozen(np.array(last)))

    @classmethod
    def checked(cls, steps: Any, last_steps: Any, count: int) -> StepColumns:
        """Read what a user gives as ``steps`` and ``last_steps`` of ``count`` columns.

        Raises
        ------
        InvalidInputError
            If they are not integers in the order of training, one for each column.
        """
        arrays = []
        for name, given in (("steps", steps), ("last_steps", last_steps)):
            array = np.asarray(steps if given is None else given)
            if array.shape != (count,) or array.dtype.kind not in "iu":
                raise InvalidInputError(
                    f"{name} must be integers of shape ({count},), one for each checkpoint; got "
                    f"{array.dtype} of shape {array.shape}"
                )
            arrays.append(frozen(array.astype(np.int64)))
        first, last = arrays
        if np.any(last < first) or np.any(first[1:] <= last[:-1]):
            raise InvalidInputError(
                "steps must be in the order of training, and each checkpoint's last step before "
                "the first of the next"
            )
        return cls(first, last)

    def __len__(self) -> int:
        """Count the columns."""
        return len(self.first)

    def column(self, step: int) -> int:
        """Return the column of a step.

        Raises
        ------
        KeyError
            If no column has it.
        """
        column = int(np.searchsorted(self.last, step))
        if column == len(self) or step < self.first[column]:
            raise KeyError(step)
        return column

    def between(self, first: int | None, last: int | None) -> slice:
        """Return the columns of the steps ``first`` to ``last``, both included.

        Raises
        ------
        InvalidInputError
            If there are none, or a column is only partly inside.
        """
        low = self.first[0] if first is None else first
        high = self.last[-1] if last is None else last
        inside = (self.last >= low) & (self.first <= high)
        if not inside.any():
            raise InvalidInputError(
                f"there is no checkpoint in steps {low} to {high}; there are {self.listed()}"
            )
        cut = inside & ((self.first < low) | (self.last > high))
        if cut.any():
            raise InvalidInputError(
                f"steps {low} to {high} begin or end within {self.label(int(cut.argmax()))}; the "
                f"phases are {self.listed()}"
            )
        where = np.flatnonzero(inside)
        return slice(int(where[0]), int(where[-1]) + 1)

    def label(self, column: int) -> str:
        """Write a column as ``step 3`` or ``steps 1-10``."""
        first, last = self.first[column], self.last[column]
        return f"step {first}" if first == last else f"steps {first}-{last}"

    def listed(self) -> str:
        """Write the first columns for a message."""
        names = [self.label(column) for column in range(min(len(self), 12))]
        return ", ".join(names) + (f", ... ({len(self)} in all)" if len(self) > 12 else "")

    def gathered(self, count: int) -> tuple[StepColumns, NDArray[np.intp]]:
        """Return at most ``count`` columns of these, and where each begins."""
        starts = [part[0] for part in np.array_split(np.arange(len(self)), min(count, len(self)))]
        ends = [*(start - 1 for start in starts[1:]), len(self) - 1]
        gathered = StepColumns(self.first[starts], self.last[ends])
        return gathered, np.array(starts, dtype=np.intp)
