"""What full and streamed results have in common: labels, metadata, and never changing."""

from __future__ import annotations

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from proponent._results.checks import as_ids, as_metadata
from proponent._results.view import View, as_html, as_text, counted
from proponent.exceptions import InvalidInputError


class LabelledResult(ABC):
    """Train and test ids, the method and its settings, diagnostics; nothing can be set."""

    __slots__ = ("__weakref__", "_diagnostics", "_method", "_settings", "_test_ids", "_train_ids")

    _train_ids: NDArray[Any]
    _test_ids: NDArray[Any] | None
    _method: str
    _settings: dict[str, Any]
    _diagnostics: dict[str, Any]

    def _fill(self, **attributes: object) -> None:
        """Set private attributes, which only the constructors may."""
        for name, value in attributes.items():
            object.__setattr__(self, f"_{name}", value)

    def _label(
        self,
        n_train: int | None,
        n_test: int | None,
        train_ids: object,
        test_ids: object,
        method: str,
        settings: Mapping[str, Any] | None,
        diagnostics: Mapping[str, Any] | None,
    ) -> None:
        """Check and set everything this class holds; ``n_test`` is None where tests are summed."""
        if not isinstance(method, str):
            raise InvalidInputError(f"method must be a string, not {type(method).__name__}")
        if n_test is None and test_ids is not None:
            raise InvalidInputError(
                "test_ids were given, but values are 1-D (one score a training instance); "
                "leave them out, or pass values of shape (n_test, n_train)"
            )
        self._fill(
            train_ids=labels(train_ids, "train_ids", n_train, "column"),
            test_ids=None if n_test is None else labels(test_ids, "test_ids", n_test, "row"),
            method=method,
            settings=as_metadata(settings, "settings"),
            diagnostics=as_metadata(diagnostics, "diagnostics"),
        )

    @property
    def train_ids(self) -> NDArray[Any]:
        """Ids of the training instances, shape (n_train,), read-only."""
        return self._train_ids

    @property
    def test_ids(self) -> NDArray[Any] | None:
        """Ids of the test instances, shape (n_test,), read-only; None where there is no test."""
        return self._test_ids

    @property
    def method(self) -> str:
        """Name of the method."""
        return self._method

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the method was set to; a read-only copy."""
        return MappingProxyType(copy.deepcopy(self._settings))

    @property
    def diagnostics(self) -> Mapping[str, Any]:
        """What the method noticed (residuals, rows without a score, ...); a read-only copy."""
        return MappingProxyType(copy.deepcopy(self._diagnostics))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        """Refuse: a result does not change."""
        raise AttributeError(f"cannot set {name!r}: {type(self).__name__} is immutable")

    def __delattr__(self, name: str) -> NoReturn:
        """Refuse: a result does not change."""
        raise AttributeError(f"cannot delete {name!r}: {type(self).__name__} is immutable")

    def _heading(self, start: str) -> str:
        text = f"{start} {counted(len(self._train_ids), 'training instance')}"
        if self._test_ids is not None:
            text += f" on {counted(len(self._test_ids), 'test instance')}"
        return text + (f" ({self._method})" if self._method else "")

    @abstractmethod
    def _view(self) -> View:
        """Return what is shown of the result."""

    def __repr__(self) -> str:
        """Show a heading and the strongest training instances of the first test instances."""
        return as_text(self._view())

    def _repr_html_(self) -> str:
        """Show the same as a table, for notebooks."""
        return as_html(self._view())


Result = TypeVar("Result", bound=LabelledResult)


def labels(ids: object, name: str, length: int | None, axis: str) -> NDArray[Any]:
    """Ids of an axis of this length: those given, or else 0, 1, 2, ..."""
    if ids is None:
        if length is None:
            raise InvalidInputError(f"{name} must be given; pass one id for each {axis}")
        ids = np.arange(length)
    array = as_ids(ids, name)
    if length is not None and len(array) != length:
        raise InvalidInputError(
            f"{name} has {counted(len(array), 'id')} for "
            f"{counted(length, axis)} of values; pass one for each {axis}"
        )
    return array


def joined_labels(parts: Sequence[Result], kind: type[Result]) -> NDArray[Any]:
    """Train ids of the shards in the order given, once it is sure that they belong together.

    Raises
    ------
    InvalidInputError
        If a part is of another kind, or differs in test ids, method or settings, or if a
        training instance is in two parts.
    """
    if not parts:
        raise InvalidInputError("join needs at least one part")
    for number, part in enumerate(parts):
        if not isinstance(part, kind):
            raise InvalidInputError(
                f"part {number} is of type {type(part).__name__}; join takes {kind.__name__} only"
            )
    first = parts[0]
    for number, part in enumerate(parts[1:], start=1):
        for what, same in (
            ("test ids", _same_ids(first.test_ids, part.test_ids)),
            ("method", first.method == part.method),
            ("settings", _json(first._settings) == _json(part._settings)),
            ("kind of train ids", _same_kind(first.train_ids, part.train_ids)),
        ):
            if not same:
                raise InvalidInputError(
                    f"part {number} differs from part 0 in its {what}; "
                    "only shards of one question can be joined"
                )
    joined = np.concatenate([part.train_ids for part in parts])
    try:
        return as_ids(joined, "train_ids")
    except InvalidInputError as error:
        raise InvalidInputError(
            f"the parts overlap, or were given no ids of their own: {error}"
        ) from None


def joined_diagnostics(parts: Sequence[LabelledResult]) -> dict[str, Any]:
    """List the diagnostics of every shard, in the order of the shards."""
    return {"shards": [part._diagnostics for part in parts]}


def _same_ids(first: NDArray[Any] | None, second: NDArray[Any] | None) -> bool:
    if first is None or second is None:
        return first is second
    return _same_kind(first, second) and np.array_equal(first, second)


def _same_kind(first: NDArray[Any], second: NDArray[Any]) -> bool:
    return not first.size or not second.size or first.dtype.kind == second.dtype.kind


def _json(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)  # as text, for nan is not equal to itself
