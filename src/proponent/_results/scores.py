"""A labelled array of scores: what may be in it, selecting from it, and joining shards of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from proponent._results.base import LabelledResult, joined_diagnostics, joined_labels
from proponent._results.checks import as_scores, check_not_infinite, frozen, owned
from proponent._results.select import axis_key, positions_of
from proponent.exceptions import InvalidInputError

if TYPE_CHECKING:
    from typing_extensions import Self


class Scores(LabelledResult):
    """Scores of shape (n_test, n_train) or (n_train,) with their labels; see ``Influence``."""

    __slots__ = ("_additive", "_std_error", "_values")

    _values: NDArray[np.floating[Any]]
    _std_error: NDArray[np.floating[Any]] | None
    _additive: bool

    def __init__(
        self,
        values: ArrayLike,
        *,
        train_ids: ArrayLike | None = None,
        test_ids: ArrayLike | None = None,
        method: str = "",
        settings: Mapping[str, Any] | None = None,
        std_error: ArrayLike | None = None,
        diagnostics: Mapping[str, Any] | None = None,
        additive: bool = True,
    ) -> None:
        self._build(values, train_ids, test_ids, method, settings, std_error, diagnostics, additive)

    def _build(
        self,
        values: ArrayLike,
        train_ids: ArrayLike | None,
        test_ids: ArrayLike | None,
        method: str,
        settings: Mapping[str, Any] | None,
        std_error: ArrayLike | None,
        diagnostics: Mapping[str, Any] | None,
        additive: bool,
        *,
        scan: bool = True,
    ) -> None:
        """Check everything and keep it; ``scan`` False skips what would read a whole file."""
        scores = owned(as_scores(values, "values"))
        if scores.ndim not in (1, 2):
            raise InvalidInputError(
                "values must have shape (n_test, n_train) or (n_train,), "
                f"but have shape {scores.shape}"
            )
        n_test = len(scores) if scores.ndim == 2 else None
        self._label(scores.shape[-1], n_test, train_ids, test_ids, method, settings, diagnostics)
        errors = None if std_error is None else owned(as_scores(std_error, "std_error"))
        if errors is not None and errors.shape != scores.shape:
            raise InvalidInputError(
                f"std_error has shape {errors.shape}, but values have shape {scores.shape}; "
                "pass one standard error for each value"
            )
        if not isinstance(additive, (bool, np.bool_)):
            raise InvalidInputError(f"additive must be True or False, not {additive!r}")
        if scan:
            check_not_infinite(scores, "values", self._train_ids, self._test_ids)
        if scan and errors is not None:
            check_not_infinite(errors, "std_error", self._train_ids, self._test_ids)
            if errors.size and np.fmin.reduce(errors, axis=None) < 0:
                raise InvalidInputError("std_error has negative entries; none can be below 0")
        self._fill(values=scores, std_error=errors, additive=bool(additive))

    @classmethod
    def _trusted(cls, **attributes: object) -> Self:
        """Make a result from parts that were checked already and that nobody else holds."""
        result = cls.__new__(cls)
        for name in ("values", "std_error", "train_ids", "test_ids"):
            if attributes[name] is not None:
                attributes[name] = frozen(attributes[name])  # type: ignore[arg-type]
        result._fill(**attributes)
        return result

    def _attributes(self) -> dict[str, Any]:
        return {
            "values": self._values,
            "std_error": self._std_error,
            "train_ids": self._train_ids,
            "test_ids": self._test_ids,
            "method": self._method,
            "settings": self._settings,
            "diagnostics": self._diagnostics,
            "additive": self._additive,
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes, and copy."""
        return _restored, (type(self), self._attributes())

    @property
    def values(self) -> NDArray[np.floating[Any]]:
        """The influence, shape (n_test, n_train) or (n_train,), read-only; NaN is not scored."""
        return self._values

    @property
    def std_error(self) -> NDArray[np.floating[Any]] | None:
        """Standard errors in the shape of ``values``, read-only; None where there are none."""
        return self._std_error

    @property
    def additive(self) -> bool:
        """Whether the influence of a group is the sum over its members."""
        return self._additive

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_test, n_train) or (n_train,)."""
        return self._values.shape

    def __len__(self) -> int:
        """Count the rows: n_test, or n_train for one-dimensional values."""
        return len(self._values)

    def __iter__(self) -> Iterator[Self]:
        """Go through the rows (or the training instances), each a result of its own."""
        return (self[number] for number in range(len(self)))

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Give numpy the values; read-only unless a copy is asked for."""
        if dtype is None or np.dtype(dtype) == self._values.dtype:
            return self._values.copy() if copy else self._values
        if copy is False:
            raise ValueError(f"values are {self._values.dtype}, so {dtype} needs a copy")
        return self._values.astype(dtype)

    def _with(self, **changes: Any) -> Self:
        return self._trusted(**{**self._attributes(), **changes})

    def __getitem__(self, key: Any) -> Self:
        """Select ``influence[test, train]`` (or ``influence[train]``) by position, labels kept.

        Each part is an integer, a slice, a list or array of integers, or a boolean mask, and
        each axis is selected for itself. An integer keeps its axis, with length 1.
        """
        keys = key if isinstance(key, tuple) else (key,)
        axes = ("train",) if self._test_ids is None else ("test", "train")
        if len(keys) > len(axes):
            raise IndexError(f"{len(keys)} keys for the axes {axes}")
        keys += (slice(None),) * (len(axes) - len(keys))
        return self._taken(*(axis_key(*part) for part in zip(keys, self.shape, axes, strict=True)))

    def select(self, *, test: ArrayLike | None = None, train: ArrayLike | None = None) -> Self:
        """Select as ``influence[test, train]`` does, but by id.

        Parameters
        ----------
        test, train : id or array-like of ids, optional
            In the order wanted; all when left out.

        Raises
        ------
        InvalidInputError
            If an id is unknown or asked for twice.
        """
        train_key = slice(None) if train is None else positions_of(train, self._train_ids, "train")
        if self._test_ids is None:
            if test is not None:
                raise InvalidInputError("values are 1-D, one score a training instance: no tests")
            return self._taken(train_key)
        test_key = slice(None) if test is None else positions_of(test, self._test_ids, "test")
        return self._taken(test_key, train_key)

    def _taken(self, *keys: slice | NDArray[np.intp]) -> Self:
        """Take these positions of each axis; slices are views, of a file as well."""
        if len(keys) == 2 and all(isinstance(key, np.ndarray) for key in keys):
            index: tuple[Any, ...] = np.ix_(*keys)  # type: ignore[arg-type]
        else:
            index = keys
        return self._with(
            values=self._values[index],
            std_error=None if self._std_error is None else self._std_error[index],
            train_ids=self._train_ids[keys[-1]],
            test_ids=None if self._test_ids is None else self._test_ids[keys[0]],
        )

    @classmethod
    def join(cls, parts: Iterable[Self]) -> Self:
        """Join shards of the training set to one result, in the order given.

        Parameters
        ----------
        parts : iterable of Influence
            With the same test ids, method and settings, and no training instance in common.

        Returns
        -------
        Influence
            Its ``diagnostics["shards"]`` lists the diagnostics of the parts.

        Raises
        ------
        InvalidInputError
            If the parts do not belong together.
        """
        shards = list(parts)
        train_ids = joined_labels(shards, cls)
        first = shards[0]
        for number, shard in enumerate(shards):
            if shard._additive != first._additive:
                raise InvalidInputError(f"part {number} differs from part 0 in being additive")
            if (shard._std_error is None) != (first._std_error is None):
                raise InvalidInputError(
                    f"part {number} or part 0 has no standard errors, the other has; "
                    "join parts that all have them or all have none"
                )
        errors = [shard._std_error for shard in shards if shard._std_error is not None]
        return first._with(
            values=np.concatenate([shard._values for shard in shards], axis=-1),
            std_error=np.concatenate(errors, axis=-1) if errors else None,
            train_ids=train_ids,
            diagnostics=joined_diagnostics(shards),
        )


def _restored(kind: type[Scores], attributes: dict[str, Any]) -> Scores:
    return kind._trusted(**attributes)
