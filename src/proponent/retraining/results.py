"""The utilities of submodels on one test set, in memory and by key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError

Values = NDArray[np.float64]


class Results:
    """The utilities of submodels on one test set, by key."""

    def __init__(self) -> None:
        self.failures: dict[bytes, str] = {}
        self._positions: dict[bytes, int] = {}
        self._rows = np.empty((0, 0))

    def __contains__(self, key: object) -> bool:
        """Whether a submodel has a row, or has failed."""
        return key in self._positions or key in self.failures

    def unknown(self, keys: Iterable[bytes]) -> list[int]:
        """Return the positions of those keys that it does not contain."""
        known, failed = self._positions, self.failures
        return [row for row, key in enumerate(keys) if key not in known and key not in failed]

    def __len__(self) -> int:
        """Return the number of submodels with a row."""
        return len(self._positions)

    @property
    def width(self) -> int | None:
        """The number of columns T; None before the first row."""
        return self._rows.shape[1] if self._positions else None

    @property
    def nbytes(self) -> int:
        """The memory that the rows take."""
        return self._rows.nbytes

    def add(
        self, keys: Sequence[bytes], utilities: Values | None, failures: Mapping[int, str]
    ) -> None:
        """Add what was measured of some submodels.

        Parameters
        ----------
        keys : sequence of bytes
            The submodels, K, each of them new.
        utilities : ndarray of shape (K, T), or None
            None where all failed.
        failures : mapping from int to str
            Positions of those that failed, and why.

        Raises
        ------
        InvalidInputError
            If the number of columns is another than before.
        """
        for position, reason in failures.items():
            self.failures.setdefault(keys[position], reason)
        if utilities is None:
            return
        if failures:
            measured = [position for position in range(len(keys)) if position not in failures]
            keys, utilities = [keys[position] for position in measured], utilities[measured]
        if not keys:
            return
        start, stop = len(self._positions), len(self._positions) + len(keys)
        self._make_room(stop, utilities.shape[1])
        self._rows[start:stop] = utilities
        self._positions.update(zip(keys, range(start, stop), strict=True))

    def take(self, keys: Iterable[bytes]) -> Values:
        """Return the rows of submodels, ``(K, T)``; NaN for those that failed."""
        find = self._positions.get
        positions = np.array([find(key, -1) for key in keys], np.intp)
        if not self._positions:
            return np.full((len(positions), 1), np.nan)
        rows = self._rows[positions]
        rows[positions < 0] = np.nan
        return rows

    def _make_room(self, rows: int, width: int) -> None:
        if self._positions and width != self._rows.shape[1]:
            raise InvalidInputError(
                f"utility: it returned {width} numbers for some submodels and "
                f"{self._rows.shape[1]} for others."
            )
        if rows > len(self._rows) or not self._positions:
            larger = np.empty((max(rows, 2 * len(self._rows)), width))
            if self._positions:
                larger[: len(self._positions)] = self._rows[: len(self._positions)]
            self._rows = larger
