"""What the contributions of steps are added to, while a method goes along the run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from typing_extensions import override

from proponent._results.checks import frozen
from proponent._results.step_columns import StepColumns


class StepSums:
    """The contributions of every column of steps, ``(K, n_test, rows)``.

    Parameters
    ----------
    columns : StepColumns
        The steps or phases.
    n_test, rows : int
        Number of test and of training instances.
    dtype : dtype
        Of the contributions.
    """

    def __init__(self, columns: StepColumns, n_test: int, rows: int, dtype: DTypeLike) -> None:
        self._columns = columns
        self._values = np.zeros((len(columns), n_test, rows), dtype=dtype)

    def at(self, step: int) -> NDArray[np.floating[Any]]:
        """Return the array ``(n_test, rows)`` to which contributions of a step are to be added.

        The steps come in the order of training or against it; what is added to an array after
        the next one was asked for does not count.

        Raises
        ------
        KeyError
            If it is none of the steps that were announced.
        """
        array: NDArray[np.floating[Any]] = self._values[self._columns.column(step)]
        return array

    def result(self) -> NDArray[np.floating[Any]]:
        """Return the contributions, ``(K, n_test, rows)``, read-only."""
        return frozen(self._values)


class SummedSums(StepSums):
    """The same summed over the training instances as they pass, positive and negative apart.

    Parameters
    ----------
    columns, n_test, dtype
        As for :class:`StepSums`.
    """

    @override
    def __init__(self, columns: StepColumns, n_test: int, dtype: DTypeLike) -> None:
        self._columns = columns
        self._dtype = dtype
        self._sums = np.zeros((2, n_test, len(columns)))
        self.begin(0)

    def begin(self, rows: int) -> None:
        """Begin with a block of training instances."""
        self._buffer = np.zeros((self._sums.shape[1], rows), dtype=self._dtype)
        self._current: int | None = None
        self._seen: set[int] = set()

    @override
    def at(self, step: int) -> NDArray[np.floating[Any]]:
        column = self._columns.column(step)
        if column != self._current:
            self.end()
            if column in self._seen:
                raise RuntimeError(f"step {step} came again after steps of other columns")
            self._current = column
            self._seen.add(column)
        return self._buffer

    def end(self) -> None:
        """End the block: take in what the last column was given."""
        if self._current is not None:
            self._sums[0, :, self._current] += np.maximum(self._buffer, 0).sum(1, dtype=np.float64)
            self._sums[1, :, self._current] += np.minimum(self._buffer, 0).sum(1, dtype=np.float64)
            self._buffer[:] = 0
        self._current = None

    @override
    def result(self) -> NDArray[np.floating[Any]]:
        """Return the sums of positive and of negative contributions, ``(2, n_test, K)``."""
        return frozen(self._sums)
