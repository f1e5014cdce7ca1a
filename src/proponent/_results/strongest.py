"""The k strongest scores of each row, exactly, without sorting the row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proponent._results.view import score_text, shown

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 2**20  # scores looked at together: bounds the temporary arrays to some tens of MB


class Strongest(NamedTuple):
    """The strongest training instances of each test instance, strongest first.

    Attributes
    ----------
    ids : ndarray of shape (n_test, k) or (k,)
        Ids of the training instances.
    values : ndarray of shape (n_test, k) or (k,)
        Their influence, sign included.
    positions : ndarray of shape (n_test, k) or (k,)
        Their positions in ``train_ids``.
    """

    ids: NDArray[Any]
    values: NDArray[Any]
    positions: NDArray[np.intp]

    def to_dataframe(self, test_ids: Sequence[Any] | NDArray[Any] | None = None) -> pd.DataFrame:
        """Give one line an instance.

        The columns are ``test`` (for a matrix), ``rank`` from 1, ``train`` (the id),
        ``influence`` and ``position``.

        Parameters
        ----------
        test_ids : array-like of shape (n_test,), optional
            What to write in the column ``test``; the row numbers when left out.
        """
        import pandas as pd

        k = self.ids.shape[-1]
        rows = self.ids.size // k if k else 0
        columns: dict[str, NDArray[Any]] = {}
        if self.ids.ndim == 2:
            labels = np.arange(rows) if test_ids is None else np.asarray(test_ids)
            columns["test"] = np.repeat(labels, k)
        columns["rank"] = np.tile(np.arange(1, k + 1), rows)
        columns["train"] = self.ids.ravel()
        columns["influence"] = self.values.ravel()
        columns["position"] = self.positions.ravel()
        frame: pd.DataFrame = pd.DataFrame(columns)
        return frame

    def __repr__(self) -> str:
        """Show the first rows as ``id (influence)``."""
        ids, values = np.atleast_2d(self.ids), np.atleast_2d(self.values)
        rows = [
            ", ".join(f"{shown(i)} ({score_text(v)})" for i, v in zip(*row, strict=True))
            for row in zip(ids[:5, :10], values[:5, :10], strict=True)
        ]
        k = self.ids.shape[-1]
        more = f", ... {k - 10:,} more" if k > 10 else ""
        if self.ids.ndim == 1:
            return f"Strongest {k:,}: {rows[0]}{more}"
        lines = [f"Strongest {k:,} of each of {len(ids):,} rows"]
        lines += [f"  {number}: {row}{more}" for number, row in enumerate(rows)]
        if len(ids) > 5:
            lines.append(f"  ... {len(ids) - 5:,} more rows")
        return "\n".join(lines)


def strongest_positions(
    values: NDArray[np.floating[Any]], k: int, *, largest: bool
) -> NDArray[np.intp]:
    """Find the k largest (or smallest) scores of each row, strongest first.

    Equal scores come in the order of their positions, and NaN is never chosen: a row with
    fewer than ``k`` scores is filled up with -1.

    Parameters
    ----------
    values : ndarray of shape (m, n)
        The scores; NaN where there is none.
    k : int
        How many, 1 <= k <= n.
    largest : bool
        The largest, or else the smallest.

    Returns
    -------
    ndarray of shape (m, k)
        Equal to a stable sort of each row cut at ``k``, in O(n + k log k) a row.
    """
    m, n = values.shape
    positions = np.empty((m, k), dtype=np.intp)
    step = max(1, CHUNK // max(1, n))
    for start in range(0, m, step):
        rows = values[start : start + step]
        positions[start : start + step] = _smallest(-rows if largest else np.asarray(rows), k)
    return positions


def _smallest(keys: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
    """Find the k smallest keys of each row, (m, k); -1 where a row has fewer keys."""
    # The k-th smallest key. NaN sorts last, so it is NaN exactly where fewer than k are scored.
    threshold = np.partition(keys, k - 1, axis=1)[:, k - 1, None]
    keep = keys <= threshold
    counts = keep.sum(axis=1)

    # More keys than k equal the threshold in these rows: the first positions win.
    surplus = np.flatnonzero(counts > k)
    if surplus.size:
        tied = keys[surplus] == threshold[surplus]
        allowed = k - (counts[surplus] - tied.sum(axis=1))
        late = tied & (np.cumsum(tied, axis=1) > allowed[:, None])
        keep[surplus] &= ~late

    positions = np.full((len(keys), k), -1, dtype=np.intp)
    enough = counts >= k
    # nonzero runs along each row, so equal keys are in order and a stable sort keeps them so.
    chosen = np.nonzero(keep[enough])[1].reshape(-1, k)
    order = np.argsort(np.take_along_axis(keys[enough], chosen, axis=1), axis=1, kind="stable")
    positions[enough] = np.take_along_axis(chosen, order, axis=1)

    if not enough.all():
        few = keys[~enough]
        order = np.argsort(few, axis=1, kind="stable")[:, :k]
        positions[~enough] = np.where(np.isnan(np.take_along_axis(few, order, axis=1)), -1, order)
    return positions


class Side(NamedTuple):
    """The strongest found on one side: positions (-1 for none) and values (NaN for none)."""

    positions: NDArray[np.intp]
    values: NDArray[np.floating[Any]]


def best(sides: list[Side], k: int, *, largest: bool) -> Side:
    """Put sides together and keep the k strongest, equal scores by position, NaN last."""
    positions = np.concatenate([side.positions for side in sides], axis=1)
    values = np.concatenate([side.values for side in sides], axis=1)
    order = np.lexsort((positions, -values if largest else values), axis=1)[:, :k]
    return Side(
        np.take_along_axis(positions, order, axis=1), np.take_along_axis(values, order, axis=1)
    )
