"""The frame of a method: what a subclass writes, and what is made of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from proponent import _method_checks as checks
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NotFittedError
from proponent.influence import Influence
from proponent.parameters import Parameterised, as_json
from proponent.top import TopAccumulator, TopInfluence

BLOCK_SCORES = 2**22  # scores held at once while streaming: 32 MB in float64


class MethodFrame(Parameterised, ABC):
    """What stands between the questions of a user and the hooks of a method.

    The hooks are those that :class:`~proponent.method.InfluenceMethod` lists.
    """

    card: ClassVar[MethodCard]
    marks_unscored: ClassVar[bool] = False
    train_: Instances

    # What a subclass writes

    def _is_fitted(self) -> bool:
        return hasattr(self, "train_")

    def _is_additive(self) -> bool:
        return self.card.group

    @abstractmethod
    def _query(self, instances: Instances) -> Any: ...

    @abstractmethod
    def _scores(self, query: Any, rows: range) -> NDArray[np.floating[Any]]: ...

    def _joint_query(self, instances: Instances) -> Any:
        return self._query(instances)

    def _joint_scores(self, query: Any, rows: range) -> NDArray[np.floating[Any]]:
        return np.asarray(self._scores(query, rows).sum(axis=0, dtype=np.float64))

    def _joint_errors(self, query: Any, rows: range) -> NDArray[np.floating[Any]] | None:
        return None

    def _std_errors(self, query: Any, rows: range) -> NDArray[np.floating[Any]] | None:
        return None

    def _block_rows(self, n_test: int) -> int:
        return max(1, BLOCK_SCORES // n_test)

    def _diagnostics(self, query: Any) -> dict[str, Any]:
        return {}

    # The frame

    def _rows(self, shard: tuple[int, int] | None) -> range:
        """Return the positions to score, of a method that is fitted to a set that has some."""
        if not self._is_fitted():
            raise NotFittedError(
                f"{self.card.name} is not fitted; call fit(model, train) first. "
                f"It needs {self.card.needs}."
            )
        if not len(self.train_):
            raise InvalidInputError("train: the set is empty; fit to at least one instance.")
        return checks.shard_rows(len(self.train_), shard)

    def _tests(self, test: Any, ids: Any) -> Instances:
        """Return the test set of a query."""
        if test is None:
            raise InvalidInputError("test: pass the test set, influence((X_test, y_test)).")
        instances = Instances.of(test, ids=ids, role="test")
        if not len(instances):
            raise InvalidInputError("test: the set is empty; pass at least one test instance.")
        return instances

    def _ids(self, rows: range) -> NDArray[Any]:
        return self.train_.ids[rows.start : rows.stop]

    def _blocks(self, rows: range, n_test: int) -> Iterator[range]:
        size = self._block_rows(n_test)
        return (rows[start : start + size] for start in range(0, len(rows), size))

    def _checked_scores(
        self, query: Any, instances: Instances, rows: range
    ) -> NDArray[np.floating[Any]]:
        shape = (len(instances), len(rows))
        values = checks.check_scores(self._scores(query, rows), shape, self.card.name, "_scores")
        self._check_finite(values, rows, instances.ids)
        return values

    def _check_finite(
        self, values: NDArray[np.floating[Any]], rows: range, test_ids: NDArray[Any] | None
    ) -> None:
        unscored = self.marks_unscored
        checks.check_finite(values, self._ids(rows), test_ids, self.card.name, unscored=unscored)

    def _joint(self, instances: Instances, rows: range) -> Influence:
        query, n_test = self._joint_query(instances), len(instances)
        kind, base = type(self), MethodFrame
        errors: NDArray[np.floating[Any]] | None = None
        own = kind._joint_query, kind._joint_scores
        if own == (base._joint_query, base._joint_scores):
            # These hold the scores of every test instance, so they go block by block.
            values, errors = checks.joint_by_block(
                (self._checked_scores(query, instances, part), self._std_errors(query, part))
                for part in self._blocks(rows, n_test)
            )
        else:
            # A subclass's own holds a single row, and may pay for each call.
            values = self._joint_scores(query, rows)
            checks.check_scores(values, (len(rows),), self.card.name, "_joint_scores")
            errors = self._joint_errors(query, rows)
        self._check_finite(values, rows, None)
        asked = {"joint": {"reduction": "sum", "n_test": n_test}}
        return self._answer(values, rows, None, errors, self._diagnostics(query) | asked)

    def _strongest(self, query: Any, instances: Instances, rows: range, k: int) -> TopInfluence:
        strongest = TopAccumulator(len(instances), k)
        for block in self._blocks(rows, len(instances)):
            positions = np.arange(block.start, block.stop) - rows.start
            strongest.add(positions, self._checked_scores(query, instances, block))
        return strongest.result(
            train_ids=self._ids(rows),
            test_ids=instances.ids,
            method=self.card.name,
            settings=self._settings(),
            diagnostics=self._diagnostics(query),
        )

    def _answer(
        self,
        values: NDArray[np.floating[Any]],
        rows: range,
        test_ids: NDArray[Any] | None,
        errors: NDArray[np.floating[Any]] | None,
        diagnostics: dict[str, Any],
    ) -> Influence:
        values.setflags(write=False)  # handed over
        return Influence(
            values,
            train_ids=self._ids(rows),
            test_ids=test_ids,
            method=self.card.name,
            settings=self._settings(),
            std_error=errors,
            diagnostics=diagnostics,
            additive=self._is_additive(),
        )

    def _settings(self) -> dict[str, Any]:
        return {name: as_json(value) for name, value in self.get_params(deep=False).items()}

    def _wrong_kind(self, model: object) -> InvalidInputError:
        """Return the error, to be raised, for a model of another kind than the method needs."""
        return checks.wrong_kind(self.card, model)
