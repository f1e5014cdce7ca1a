"""Contributions of steps with their labels: what may be in them, selecting, joining, storing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from typing_extensions import override

from proponent._results.base import joined_diagnostics, joined_labels
from proponent._results.checks import as_scores, check_not_infinite, frozen, owned
from proponent._results.over_steps import OverSteps
from proponent._results.select import positions_of
from proponent._results.step_columns import StepColumns
from proponent.exceptions import InvalidInputError

if TYPE_CHECKING:
    from typing_extensions import Self


class StepContributions(OverSteps):
    """Contributions (n_test, n_train, K) or (n_train, K), labelled; see ``CheckpointInfluence``."""

    __slots__ = ("_additive", "_stored")

    _stored: NDArray[np.floating[Any]]  # (K, n_test, n_train) or (K, n_train)
    _additive: bool

    def __init__(
        self,
        values: ArrayLike,
        *,
        steps: ArrayLike,
        last_steps: ArrayLike | None = None,
        train_ids: ArrayLike | None = None,
        test_ids: ArrayLike | None = None,
        method: str = "",
        settings: Mapping[str, Any] | None = None,
        diagnostics: Mapping[str, Any] | None = None,
        additive: bool = True,
    ) -> None:
        scores = as_scores(values, "values")
        if scores.ndim not in (2, 3):
            raise InvalidInputError(
                "values must have shape (n_test, n_train, K) or (n_train, K), "
                f"but have shape {scores.shape}"
            )
        labels = {"train_ids": train_ids, "test_ids": test_ids}
        meta = {
            "method": method,
            "settings": settings,
            "diagnostics": diagnostics,
            "additive": additive,
        }
        self._build(np.moveaxis(scores, -1, 0), steps, last_steps, labels, meta, scan=True)

    def _build(
        self,
        stored: NDArray[np.floating[Any]],
        steps: Any,
        last_steps: Any,
        labels: Mapping[str, Any],
        meta: Mapping[str, Any],
        *,
        scan: bool,
    ) -> None:
        stored = owned(stored)
        columns = StepColumns.checked(steps, last_steps, len(stored))
        n_test = stored.shape[1] if stored.ndim == 3 else None
        self._label(
            stored.shape[-1],
            n_test,
            labels["train_ids"],
            labels.get("test_ids"),
            meta["method"],
            meta["settings"],
            meta["diagnostics"],
        )
        if not isinstance(meta["additive"], (bool, np.bool_)):
            raise InvalidInputError(f"additive must be True or False, not {meta['additive']!r}")
        if scan:
            for contributions in stored:
                check_not_infinite(contributions, "values", self._train_ids, self._test_ids)
        self._fill(stored=stored, columns=columns, additive=bool(meta["additive"]))

    @property
    def values(self) -> NDArray[np.floating[Any]]:
        """The contributions, (n_test, n_train, K) or (n_train, K), read-only."""
        return np.moveaxis(self._stored, 0, -1)

    @property
    def additive(self) -> bool:
        """Whether the influence of a group is the sum over its members."""
        return self._additive

    @property
    def shape(self) -> tuple[int, ...]:
        """(n_test, n_train, K) or (n_train, K)."""
        return self.values.shape

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Give numpy the contributions; read-only unless a copy is asked for."""
        if dtype is None or np.dtype(dtype) == self._stored.dtype:
            return self.values.copy() if copy else self.values
        if copy is False:
            raise ValueError(f"values are {self._stored.dtype}, so {dtype} needs a copy")
        return self.values.astype(dtype)

    def select(self, *, test: ArrayLike | None = None, train: ArrayLike | None = None) -> Self:
        """Select test and training instances by id, in the order wanted; all when left out.

        Raises
        ------
        InvalidInputError
            If an id is unknown or asked for twice, or there are no tests to select.
        """
        stored, train_ids, test_ids = self._stored, self._train_ids, self._test_ids
        if test is not None:
            if test_ids is None:
                raise InvalidInputError("a joint influence has no test instances to select")
            rows = positions_of(test, test_ids, "test")
            stored, test_ids = stored[:, rows], test_ids[rows]
        if train is not None:
            members = positions_of(train, train_ids, "train")
            stored, train_ids = stored[..., members], train_ids[members]
        return self._with(frozen(stored), train_ids=train_ids, test_ids=test_ids)

    @classmethod
    def join(cls, parts: Iterable[Self]) -> Self:
        """Join shards of the training set to one result, in the order given.

        Raises
        ------
        InvalidInputError
            If the parts do not belong together.
        """
        shards = list(parts)
        train_ids = joined_labels(shards, cls)
        first = shards[0]
        for number, part in enumerate(shards):
            same = np.array_equal(part.steps, first.steps)
            if not same or not np.array_equal(part.last_steps, first.last_steps):
                raise InvalidInputError(f"part {number} differs from part 0 in its steps")
            if part._additive != first._additive:
                raise InvalidInputError(f"part {number} differs from part 0 in being additive")
        return first._with(
            frozen(np.concatenate([part._stored for part in shards], axis=-1)),
            train_ids=train_ids,
            diagnostics=joined_diagnostics(shards),
        )

    # What the base asks for

    @override
    def _absolute(self, tests: slice) -> NDArray[np.floating[Any]]:
        stored = self._stored if self._test_ids is None else self._stored[:, tests]
        return np.stack([np.abs(c).sum(-1, dtype=np.float64) for c in stored], -1)

    @override
    def _arrays(self) -> dict[str, NDArray[Any]]:
        return {"contributions": self._stored}  # checkpoint first: one of them is read alone

    @override
    def _meta(self) -> dict[str, Any]:
        return {**super()._meta(), "additive": self._additive}

    @override
    @classmethod
    def _from_files(
        cls,
        arrays: Mapping[str, NDArray[Any]],
        labels: Mapping[str, NDArray[Any]],
        meta: Mapping[str, Any],
        *,
        scan: bool,
    ) -> Self:
        result = cls.__new__(cls)
        stored, steps, last = (arrays[n] for n in ("contributions", "steps", "last_steps"))
        if stored.ndim not in (2, 3):
            raise InvalidInputError(f"contributions have {stored.ndim} axes")
        result._build(stored, steps, last, labels, {"additive": None, **meta}, scan=scan)
        return result

    def _labels(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "last_steps": self.last_steps,
            "train_ids": self._train_ids,
            "test_ids": self._test_ids,
        }

    def _metadata(self) -> dict[str, Any]:
        return super()._meta()

    def _with(self, stored: NDArray[np.floating[Any]], **changes: Any) -> Self:
        given = {**self._labels(), **self._meta(), **changes}
        return type(self)(np.moveaxis(stored, 0, -1), **given)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes, and copy."""
        return _restored, (type(self), self._stored, {**self._labels(), **self._meta()})


def _restored(
    kind: type[StepContributions], stored: NDArray[np.floating[Any]], given: dict[str, Any]
) -> StepContributions:
    return kind(np.moveaxis(frozen(stored), 0, -1), **given)
