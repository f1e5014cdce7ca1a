"""Cooperative games: players, and what each coalition of them is worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent._content import as_numpy
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.retraining.coalitions import Coalitions

Values = NDArray[np.float64]

KEPT = 2**28  # bytes of values that a game keeps


class CooperativeGame(ABC):
    """What the estimators play: n players and T values of every coalition."""

    n: int

    @abstractmethod
    def utilities(self, coalitions: Coalitions) -> Values:
        """Return what coalitions are worth, ``(K, T)``; a row of NaN is a failure."""

    def report(self) -> dict[str, Any]:
        """Return what evaluating it took, as JSON knows it."""
        return {}


class Game(CooperativeGame):
    """A cooperative game of the user's own, given to the same methods as a training set.

    ``pp.Shapley().fit(game).influence()`` has one column a player and one row a value. Values are
    kept, so that a coalition is evaluated once, whatever is asked and by however many methods.

    Parameters
    ----------
    players : int or sequence of int or str
        How many there are, or their names.
    value : callable
        ``value(mask)`` takes a boolean array ``(n,)``, who is in, and returns a number, or
        several, ``(T,)``; larger is better.
    vectorized : bool
        Whether ``value(masks)`` takes many coalitions at once, ``(K, n)``, and returns ``(K,)``
        or ``(K, T)``.

    Raises
    ------
    InvalidInputError
        If there are no players, or the value is not callable.

    Examples
    --------
    >>> import numpy as np
    >>> import proponent as pp
    >>> weights = np.array([3.0, 1.0, 2.0])
    >>> game = pp.Game(["ann", "bob", "cy"], lambda mask: float(weights[mask].sum() >= 4))
    >>> pp.Shapley(estimator="exact").fit(game).influence().values.round(3)
    array([[0.667, 0.167, 0.167]])
    """

    def __init__(
        self, players: Any, value: Callable[[Any], Any], *, vectorized: bool = False
    ) -> None:
        names = np.arange(players) if isinstance(players, (int, np.integer)) else None
        self.players = np.asarray(players) if names is None else names
        if self.players.ndim != 1 or not len(self.players):
            raise InvalidInputError(
                f"players: expected a positive number of players, or their names; got {players!r}."
            )
        if not callable(value):
            raise InvalidInputError(
                f"value: expected a function of a boolean mask of the players; got {value!r}."
            )
        self.n = len(self.players)
        self.value = value
        self.vectorized = vectorized
        self._evaluated = 0
        self._kept: dict[bytes, Values] = {}
        self._nbytes = 0

    def __repr__(self) -> str:
        """Show the number of players."""
        return f"Game(n={self.n:,})"

    def utilities(self, coalitions: Coalitions) -> Values:
        """Return what coalitions are worth, ``(K, T)``.

        Raises
        ------
        InvalidInputError
            If the function does not return numbers, always of the same shape.
        NonFiniteError
            If a value is NaN or infinite.
        """
        masks = coalitions.masks
        keys = [mask.tobytes() for mask in masks]
        first = {key: row for row, key in enumerate(keys) if key not in self._kept}
        new: dict[bytes, Values] = {}
        if first:
            new = dict(zip(first, self._evaluate(masks[list(first.values())]), strict=True))
            size = sum(len(key) + row.nbytes for key, row in new.items())
            if self._nbytes + size <= KEPT:
                self._nbytes += size
                self._kept |= new
        rows = [new[key] if key in new else self._kept[key] for key in keys]
        widths = sorted({len(row) for row in rows})
        if len(widths) > 1:
            raise InvalidInputError(f"value: it gives now {widths[0]} numbers, now {widths[1]}.")
        return np.stack(rows)

    def _evaluate(self, masks: NDArray[Any]) -> Values:
        self._evaluated += len(masks)
        if self.vectorized:
            found = as_numpy(self.value(masks))
            if found.ndim not in (1, 2) or len(found) != len(masks):
                raise InvalidInputError(
                    f"value: {len(masks)} masks must give an array of shape ({len(masks)},) or "
                    f"({len(masks)}, T); got {found.shape}."
                )
        else:
            rows = [as_numpy(self.value(mask)) for mask in masks]
            shapes = {row.shape for row in rows}
            if len(shapes) != 1 or len(next(iter(shapes))) > 1:
                raise InvalidInputError(
                    "value: each mask must give a number, or always as many of them, (T,); got "
                    f"the shapes {sorted(shapes)}."
                )
            found = np.stack(rows)
        if found.dtype.kind not in "biuf":
            raise InvalidInputError(f"value: expected real numbers; got {found.dtype}.")
        table = found.reshape(len(masks), -1).astype(np.float64)
        bad = ~np.isfinite(table).all(axis=1)
        if bad.any():
            mask = masks[int(np.flatnonzero(bad)[0])]
            raise NonFiniteError(
                f"value: {np.count_nonzero(bad)} coalitions have a value that is not finite, the "
                f"first with the players {self.players[np.flatnonzero(mask)][:10].tolist()}."
            )
        return table

    def report(self) -> dict[str, Any]:
        """Return how many coalitions were evaluated, by all that played the game."""
        return {"evaluations": self._evaluated}

    def as_instances(self) -> Instances:
        """Return the players, as the columns of a result."""
        return Instances.of((np.arange(self.n),), ids=self.players)
