"""An estimate that is asked for values and for their errors."""

from __future__ import annotations

from proponent.retraining.coalitions import Estimate, Estimated, Table


class Asked:
    """An estimate with its last answer, as scores and errors are asked for one after the other."""

    def __init__(self, estimated: Estimated, table: Table | None) -> None:
        self.estimated = estimated
        self.table = table
        self._last: tuple[range, Estimate] | None = None

    def players(self, rows: range) -> Estimate:
        """Return the estimate for the players at some positions."""
        if self._last is None or self._last[0] != rows:
            self._last = rows, self.estimated.players(rows)
        return self._last[1]
