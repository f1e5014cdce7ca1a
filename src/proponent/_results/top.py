"""The answer when the matrix would not fit: only the k strongest on both sides of each test."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proponent._results import files
from proponent._results.base import LabelledResult, joined_diagnostics, joined_labels
from proponent._results.checks import as_count, as_scores, owned
from proponent._results.strongest import Side, Strongest, best
from proponent._results.view import ROWS, SIDE, Row, View, warnings_in
from proponent.exceptions import InvalidInputError, NonFiniteError

if TYPE_CHECKING:
    import pandas as pd

WHOLE_MATRIX = {
    name: "call influence(test) without top_k for the whole matrix"
    for name in ("values", "std_error", "shape", "ranking", "select", "to_xarray")
} | {
    "joint": "call influence(test, joint=True), or influence(test) without top_k",
    "group": "call group_influence(groups, test), or influence(test) without top_k",
}


class TopInfluence(LabelledResult):
    """The k strongest proponents and opponents of each test instance, and nothing else.

    ``influence(test, top_k=k)`` returns it. :meth:`proponents` and :meth:`opponents` answer
    exactly what :class:`~proponent.influence.Influence` would, for every k up to the k kept.

    Parameters
    ----------
    proponent_positions, opponent_positions : array-like of int, shape (n_test, k)
        Positions in ``train_ids``, strongest first, equal scores by position.
    proponent_values, opponent_values : array-like of shape (n_test, k)
        Their influence.
    train_ids : array-like of shape (n_train,)
        Ids of all training instances that were scored, not only of the strongest.
    test_ids : array-like of shape (n_test,), optional
        0, 1, 2, ... when left out.
    method : str
        Name of the method.
    settings, diagnostics : mapping, optional
        What the method was set to, and what it noticed; anything that JSON can hold.

    Raises
    ------
    InvalidInputError
        If shapes do not fit, a position is out of range or repeated, a value is NaN, or a row
        is not in order.
    NonFiniteError
        If a value is infinite.
    """

    __slots__ = ("_opponents", "_proponents")

    _proponents: Side
    _opponents: Side

    def __init__(
        self,
        proponent_positions: ArrayLike,
        proponent_values: ArrayLike,
        opponent_positions: ArrayLike,
        opponent_values: ArrayLike,
        *,
        train_ids: ArrayLike,
        test_ids: ArrayLike | None = None,
        method: str = "",
        settings: Mapping[str, Any] | None = None,
        diagnostics: Mapping[str, Any] | None = None,
    ) -> None:
        proponents = _shaped("proponent", proponent_positions, proponent_values)
        opponents = _shaped("opponent", opponent_positions, opponent_values)
        if proponents.values.shape != opponents.values.shape:
            raise InvalidInputError(
                f"proponents have shape {proponents.values.shape}, but opponents "
                f"{opponents.values.shape}; keep the same k on both sides"
            )
        n_test = len(proponents.values)
        self._label(None, n_test, train_ids, test_ids, method, settings, diagnostics)
        _check_side("proponent", proponents, len(self.train_ids), largest=True)
        _check_side("opponent", opponents, len(self.train_ids), largest=False)
        self._fill(proponents=proponents, opponents=opponents)

    @property
    def k(self) -> int:
        """How many are kept on each side."""
        return int(self._proponents.values.shape[1])

    @property
    def test_ids(self) -> NDArray[Any]:
        """Ids of the test instances, shape (n_test,), read-only."""
        assert self._test_ids is not None
        return self._test_ids

    def __len__(self) -> int:
        """Count the test instances."""
        return len(self._proponents.values)

    def proponents(self, k: int | None = None) -> Strongest:
        """Give the k training instances that helped most, most helpful first.

        Parameters
        ----------
        k : int, optional
            How many for each test instance; all that were kept when left out.

        Returns
        -------
        Strongest
            ``ids``, ``values`` and ``positions``, each (n_test, k).

        Raises
        ------
        InvalidInputError
            If ``k`` is more than were kept.
        """
        return self._cut("proponents", self._proponents, k)

    def opponents(self, k: int | None = None) -> Strongest:
        """Give the k training instances that harmed most, most harmful first.

        Everything else is as for :meth:`proponents`.
        """
        return self._cut("opponents", self._opponents, k)

    def _cut(self, what: str, side: Side, k: int | None) -> Strongest:
        k = self.k if k is None else as_count(k)
        if k > self.k:
            raise InvalidInputError(
                f"{what}(k={k}): only the {self.k} strongest were kept; "
                f"call influence(test, top_k={k})"
            )
        positions = side.positions[:, :k]
        return Strongest(self.train_ids[positions], side.values[:, :k], positions)

    def merge(self, other: TopInfluence) -> TopInfluence:
        """Join this shard with another; the same as ``TopInfluence.join([self, other])``."""
        return TopInfluence.join([self, other])

    @classmethod
    def join(cls, parts: Iterable[TopInfluence]) -> TopInfluence:
        """Join shards of the training set: the k strongest of all, exactly.

        Parameters
        ----------
        parts : iterable of TopInfluence
            With the same test ids, method, settings and k, and no training instance in common.
            A part with fewer than k training instances keeps them all instead.

        Returns
        -------
        TopInfluence
            Its train ids are those of the parts in the order given, and its
            ``diagnostics["shards"]`` lists the diagnostics of the parts.

        Raises
        ------
        InvalidInputError
            If the parts do not belong together.
        """
        shards = list(parts)
        train_ids = joined_labels(shards, TopInfluence)
        first = shards[0]
        k = max(shard.k for shard in shards)
        for number, shard in enumerate(shards):
            if shard.k < k and shard.k < len(shard.train_ids):
                raise InvalidInputError(
                    f"part {number} kept {shard.k} of its {len(shard.train_ids)} training "
                    f"instances, another part {k}; compute all parts with the same top_k"
                )
        starts = np.cumsum([0] + [len(shard.train_ids) for shard in shards[:-1]])
        sides = []
        for name, largest in (("_proponents", True), ("_opponents", False)):
            kept = [getattr(shard, name) for shard in shards]
            moved = [
                Side(side.positions + start, side.values)
                for side, start in zip(kept, starts, strict=True)
            ]
            sides += [*best(moved, k, largest=largest)]
        return TopInfluence(
            *sides,
            train_ids=train_ids,
            test_ids=first.test_ids,
            method=first.method,
            settings=first.settings,
            diagnostics=joined_diagnostics(shards),
        )

    def to_dataframe(self) -> pd.DataFrame:
        """Give one line for each test instance, side and rank.

        Returns
        -------
        pandas.DataFrame
            Columns ``side`` ("proponent" or "opponent"), ``test``, ``rank`` from 1, ``train``,
            ``influence`` and ``position``.
        """
        import pandas as pd

        frames = {
            "proponent": self.proponents().to_dataframe(self.test_ids),
            "opponent": self.opponents().to_dataframe(self.test_ids),
        }
        stacked = pd.concat(frames, names=["side"]).reset_index(level="side")
        frame: pd.DataFrame = stacked.reset_index(drop=True)
        return frame

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the result to a directory, without pickle; see ``Influence.save``."""
        files.write(
            path,
            kind="TopInfluence",
            arrays={
                "proponent_positions": self._proponents.positions,
                "proponent_values": self._proponents.values,
                "opponent_positions": self._opponents.positions,
                "opponent_values": self._opponents.values,
            },
            labels={"train_ids": self.train_ids, "test_ids": self.test_ids},
            meta={
                "method": self._method,
                "settings": self._settings,
                "diagnostics": self._diagnostics,
            },
            overwrite=overwrite,
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, mmap: bool = True) -> TopInfluence:
        """Open a saved result.

        Parameters
        ----------
        path : path-like
            The directory.
        mmap : bool
            Leave the arrays on disk; they are checked in both cases.

        Raises
        ------
        InvalidInputError
            If a file is missing, damaged or of another version; the message names it.
        """
        stored = files.read(path, kind="TopInfluence", mmap=mmap)
        with files.fitting(path):
            return cls(
                **stored.arrays,
                **stored.labels,
                method=stored.meta["method"],
                settings=stored.meta["settings"],
                diagnostics=stored.meta["diagnostics"],
            )

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes, and copy."""
        labels = {
            "train_ids": self._train_ids,
            "test_ids": self._test_ids,
            "method": self._method,
            "settings": self._settings,
            "diagnostics": self._diagnostics,
        }
        return _restored, (type(self), (*self._proponents, *self._opponents), labels)

    def __array__(self, dtype: object = None, copy: bool | None = None) -> NoReturn:
        """Refuse: there is no matrix."""
        raise TypeError(f"TopInfluence is no array: {_explained(self, 'values')}")

    if not TYPE_CHECKING:  # for a type checker these attributes do not exist

        def __getattr__(self, name: str) -> NoReturn:
            """Say why what needs the whole matrix is not there."""
            why = f": {_explained(self, name)}" if name in WHOLE_MATRIX else ""
            raise AttributeError(f"TopInfluence has no attribute {name!r}{why}")

    def _view(self) -> View:
        kept = "proponent and opponent" if self.k == 1 else "proponents and opponents"
        start = f"The {self.k:,} strongest {kept} among"
        sides = []
        for side in (self._proponents, self._opponents):
            ids = self._train_ids[side.positions[:ROWS, :SIDE]]
            values = side.values[:ROWS, :SIDE]
            sides.append(
                [
                    [(label, float(value)) for label, value in zip(*row, strict=True)]
                    for row in zip(ids, values, strict=True)
                ]
            )
        rows = [Row(*parts) for parts in zip(self.test_ids[:ROWS], *sides, strict=True)]
        warnings = warnings_in(self._diagnostics)
        return View(self._heading(start), rows, len(self) - len(rows), warnings)


def _shaped(name: str, positions: ArrayLike, values: ArrayLike) -> Side:
    where = np.asarray(positions)
    scores = owned(as_scores(values, f"{name}_values"))
    if where.dtype.kind not in "iu":
        raise InvalidInputError(f"{name}_positions must be integers, not {where.dtype}")
    if where.ndim != 2 or where.shape != scores.shape or where.shape[1] < 1:
        raise InvalidInputError(
            f"{name}_positions and {name}_values must both have shape (n_test, k) with k of at "
            f"least 1, but have shapes {where.shape} and {scores.shape}"
        )
    return Side(owned(where.astype(np.intp, copy=False)), scores)


def _check_side(name: str, side: Side, n_train: int, *, largest: bool) -> None:
    positions, values = side
    if np.any((positions < 0) | (positions >= n_train)):
        raise InvalidInputError(
            f"{name}_positions must be in 0 ... {n_train - 1} (train_ids has {n_train} ids)"
        )
    bad = np.flatnonzero(np.any(~np.isfinite(values), axis=1))
    if bad.size:
        raise NonFiniteError(
            f"{name}_values of test row {bad[0]} are not finite; keep scored instances only"
        )
    ordered = np.sort(positions, axis=1)
    if np.any(ordered[:, 1:] == ordered[:, :-1]):
        row = int(np.flatnonzero(np.any(ordered[:, 1:] == ordered[:, :-1], axis=1))[0])
        raise InvalidInputError(f"{name}_positions of test row {row} repeat a position")
    steps = np.diff(values, axis=1) * (-1 if largest else 1)
    wrong = (steps < 0) | ((steps == 0) & (np.diff(positions, axis=1) < 0))
    if np.any(wrong):
        row = int(np.flatnonzero(np.any(wrong, axis=1))[0])
        raise InvalidInputError(
            f"{name}_values of test row {row} are not in order: strongest first, "
            "equal values by position"
        )


def _explained(result: TopInfluence, name: str) -> str:
    return f"only the {result.k} strongest were kept; {WHOLE_MATRIX[name]}"


def _restored(
    kind: type[TopInfluence], arrays: tuple[NDArray[Any], ...], labels: dict[str, Any]
) -> TopInfluence:
    return kind(*arrays, **labels)
