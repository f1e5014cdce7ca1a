"""Finding the strongest while the scores stream past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proponent._results.checks import as_count, as_scores, check_not_infinite
from proponent._results.strongest import Side, best, strongest_positions
from proponent._results.top import TopInfluence
from proponent._results.view import counted
from proponent.exceptions import InvalidInputError


class TopAccumulator:
    """The k strongest on both sides, kept while scores of blocks of training instances come in.

    The result is exactly that of the full matrix, ties included, whatever the blocks and their
    order. Memory is O(n_test (k + b)) for blocks of b training instances.

    Parameters
    ----------
    n_test : int
        Number of test instances.
    k : int
        How many to keep on each side.

    Examples
    --------
    >>> import numpy as np
    >>> top = TopAccumulator(n_test=1, k=1)
    >>> top.add(np.array([0, 1]), np.array([[0.5, -1.0]]))
    >>> top.add(np.array([2]), np.array([[2.0]]))
    >>> top.result(train_ids=["a", "b", "c"]).proponents().ids
    array([['c']], dtype='<U1')
    """

    def __init__(self, n_test: int, k: int) -> None:
        if n_test < 0:
            raise InvalidInputError(f"n_test must not be negative, but is {n_test}")
        self._n_test = n_test
        self._k = as_count(k)
        self._added = 0
        empty = Side(
            np.full((n_test, self._k), -1, dtype=np.intp),
            np.full((n_test, self._k), np.nan, dtype=np.float32),
        )
        self._proponents = self._opponents = empty

    def add(self, positions: ArrayLike, values: ArrayLike) -> None:
        """Take in the scores of a block of training instances.

        Parameters
        ----------
        positions : array-like of int, shape (b,)
            Positions of the training instances, none of which was added before.
        values : array-like of shape (n_test, b)
            Their scores; NaN is "not scored".

        Raises
        ------
        InvalidInputError
            If the shapes do not fit, or a position is negative or stands twice.
        NonFiniteError
            If a score is infinite.
        """
        where = np.asarray(positions)
        scores = as_scores(values, "values")
        if where.ndim != 1 or (where.size and where.dtype.kind not in "iu"):
            raise InvalidInputError(
                f"positions must be integers of shape (b,), but have dtype {where.dtype} "
                f"and shape {where.shape}"
            )
        if scores.shape != (self._n_test, len(where)):
            raise InvalidInputError(
                f"values have shape {scores.shape}; for {counted(self._n_test, 'test instance')} "
                f"and {counted(len(where), 'position')} they need "
                f"shape {(self._n_test, len(where))}"
            )
        if not where.size:
            return
        if np.any(where[1:] <= where[:-1]):  # ties go by position, so blocks are put in order
            order = np.argsort(where, kind="stable")
            where, scores = where[order], scores[:, order]
        if where[0] < 0 or np.any(where[1:] == where[:-1]):
            raise InvalidInputError("positions must be 0 or more, each once")
        check_not_infinite(scores, "values", where, np.arange(self._n_test))
        self._added += len(where)
        self._proponents = self._updated(self._proponents, where, scores, largest=True)
        self._opponents = self._updated(self._opponents, where, scores, largest=False)

    def _updated(
        self, side: Side, where: NDArray[Any], scores: NDArray[Any], *, largest: bool
    ) -> Side:
        # Once k are kept, few blocks have anything better, and only those rows are looked at.
        kept = side.values.astype(np.result_type(side.values, scores), copy=False)
        worst = kept[:, -1:]
        if where[0] > side.positions.max(initial=-1):  # an equal score comes too late
            better = scores > worst if largest else scores < worst
        else:
            better = scores >= worst if largest else scores <= worst
        rows = np.flatnonzero(np.isnan(worst[:, 0]) | better.any(axis=1))
        if not rows.size:
            return Side(side.positions, kept)
        chosen = strongest_positions(scores[rows], min(self._k, len(where)), largest=largest)
        none = chosen < 0
        block = Side(
            np.where(none, -1, where[chosen]),
            np.where(none, np.nan, np.take_along_axis(scores[rows], chosen, axis=1)),
        )
        found = best([Side(side.positions[rows], kept[rows]), block], self._k, largest=largest)
        positions, values = side.positions.copy(), kept.copy()
        positions[rows], values[rows] = found
        return Side(positions, values)

    def result(
        self,
        *,
        train_ids: ArrayLike | None = None,
        test_ids: ArrayLike | None = None,
        method: str = "",
        settings: Mapping[str, Any] | None = None,
        diagnostics: Mapping[str, Any] | None = None,
    ) -> TopInfluence:
        """Give what was found so far.

        Parameters
        ----------
        train_ids : array-like of shape (n_train,), optional
            Ids of all training instances; 0, 1, 2, ... of those added when left out.
        test_ids, method, settings, diagnostics
            As for :class:`TopInfluence`.

        Raises
        ------
        InvalidInputError
            If fewer than k training instances were added, or are scored for a test instance.
        """
        if self._added < self._k:
            raise InvalidInputError(
                f"k={self._k}: only {counted(self._added, 'training instance')} were added; "
                f"ask for at most {self._added}"
            )
        short = np.flatnonzero(self._proponents.positions[:, -1] < 0)
        if short.size:
            row = int(short[0])
            scored = int(np.count_nonzero(self._proponents.positions[row] >= 0))
            raise InvalidInputError(
                f"k={self._k}: only {scored} of the {self._added} training instances of test row "
                f"{row} are scored, the others are NaN; ask for at most {scored}"
            )
        return TopInfluence(
            *self._proponents,
            *self._opponents,
            train_ids=np.arange(self._added) if train_ids is None else train_ids,
            test_ids=test_ids,
            method=method,
            settings=settings,
            diagnostics=diagnostics,
        )
