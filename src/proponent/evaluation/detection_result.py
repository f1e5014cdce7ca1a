"""What mislabel detection answers: a row for every method, next to loss and to chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from proponent.evaluation.estimates import Estimate
from proponent.evaluation.tables import Table, TabulatedResult

if TYPE_CHECKING:
    from pandas import DataFrame

RANDOM = "random"


@dataclass(frozen=True, eq=False)
class MislabelDetectionRow:
    """How well one method finds the mislabelled instances.

    Attributes
    ----------
    auroc : Estimate
        Chance that a mislabelled instance is more suspicious than a correct one.
    average_precision : Estimate
        Mean precision over the recall levels.
    found : Estimate
        Share of the mislabelled instances among the fraction that is checked.
    seconds : float or None
        What the method took, where given.
    checked_fraction, found_share : array
        The found-at curve; linear between its points.
    """

    auroc: Estimate
    average_precision: Estimate
    found: Estimate
    seconds: float | None
    checked_fraction: NDArray[np.float64] = field(repr=False)
    found_share: NDArray[np.float64] = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class MislabelDetection(TabulatedResult):
    """How well each method finds the mislabelled instances, next to loss and to chance.

    ``detection["name"]`` is one method's row, ``table()`` all of them as a data frame.

    Attributes
    ----------
    rows : mapping of str to MislabelDetectionRow
        In the order given, then ``"loss"`` where losses were given, then ``"random"``.
    n_instances, n_mislabelled : int
        How many there are.
    checked : float
        Fraction of the instances that is checked for ``found``.
    confidence : float
        Level of the intervals. For ``"random"`` the interval is the range of that share of
        random orders: a method inside it does no better than chance.
    """

    rows: Mapping[str, MislabelDetectionRow]
    n_instances: int
    n_mislabelled: int
    checked: float
    confidence: float

    def __getitem__(self, method: str) -> MislabelDetectionRow:
        """Return the row of a method."""
        try:
            return self.rows[method]
        except KeyError:
            raise KeyError(f"{method!r} is not among the methods {list(self.rows)}") from None

    def table(self) -> DataFrame:
        """Return a data frame with one row a method; ``*_low`` and ``*_high`` are the intervals.

        Returns
        -------
        DataFrame
            Columns ``auroc``, ``average_precision`` and ``found``, each with its interval, and
            ``seconds`` where any were given.
        """
        from pandas import DataFrame

        records = []
        for row in self.rows.values():
            record: dict[str, float | None] = {}
            for name in ("auroc", "average_precision", "found"):
                figure: Estimate = getattr(row, name)
                record |= {name: figure.value, f"{name}_low": figure.low}
                record[f"{name}_high"] = figure.high
            if self._timed():
                record["seconds"] = row.seconds
            records.append(record)
        table = DataFrame(records, index=list(self.rows)).astype(float)
        table.index.name = "method"
        return table

    def curve(self, method: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the found-at curve of a method.

        Returns
        -------
        checked_fraction, found_share : array of shape (n_points,)
            From (0, 0) to (1, 1), with a point at the end of every tie. In between the curve is
            linear, which is the expectation when ties are broken at random.

        Raises
        ------
        KeyError
            No such method.
        """
        row = self[method]
        return row.checked_fraction, row.found_share

    def _timed(self) -> bool:
        return any(row.seconds is not None for row in self.rows.values())

    def _as_table(self) -> Table:
        percent, level = f"{100 * self.checked:g} %", f"{100 * self.confidence:g} %"
        header = ["method", "AUROC", "average precision", f"found in worst {percent}"]
        cells = [
            [name, str(row.auroc), str(row.average_precision), str(row.found)]
            for name, row in self.rows.items()
        ]
        if self._timed():
            header.append("seconds")
            for line, row in zip(cells, self.rows.values(), strict=True):
                line.append("" if row.seconds is None else f"{row.seconds:.2f}")
        notes = [
            f"Finding {self.n_mislabelled} mislabelled among {self.n_instances} instances",
            f"[{level} bootstrap interval; for {RANDOM}: where {level} of random orders lie]",
        ]
        return Table(header, cells, notes)
