"""The base of the methods that train submodels: a design, and an estimator over what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.influence import Influence
from proponent.parameters import as_json
from proponent.retraining.asked import Asked
from proponent.retraining.coalitions import (
    Table,
)
from proponent.retraining.measuring import MeasuringMethod
from proponent.retraining.repeats import expectation, reseeded
from proponent.retraining.settings import HOW
from proponent.retraining.stopping import StoppingRule
from proponent.retraining.utility import Utility

if TYPE_CHECKING:
    pass

Values = NDArray[np.float64]

NAMED = 5  # players that a warning names


class SubmodelMethod(MeasuringMethod):
    """Base of the methods that train submodels on subsets of the training set.

    A subclass implements ``_design``, ``_estimator`` and ``_size``.

    Parameters
    ----------
    utility : {"risk", "accuracy", "margin"}, callable or Utility
        What a submodel is worth on a test instance, larger is better: minus its risk; whether its
        prediction is right; the log odds (of probabilities smoothed by 0.001), or the difference in
        logits, of the true class and the best other one; or a function of (predictions
        ``(T, ...)``, labels ``(T,)``) that returns a value for each test instance, ``(T,)``, or one
        for all.
    empty : {"prior", "uniform", "init", "max_class_freq"} or float
        What a model without a training instance is: the frequencies of the classes in the training
        set (with one more of each), or the mean target; every class alike; the untrained network;
        for the accuracy, always right on the most frequent class of the test set; or the utility
        itself.
    stop : StoppingRule, optional
        When to stop before all submodels are trained, such as
        ``pp.TargetStdError(0.01) | pp.MaxSeconds(60)``. It looks at a test set, so that ``fit``
        has to be given one, unless it counts only models and seconds.
    seed : int
        Decides the subsets and everything random in the trainings.
    n_jobs : int, optional
        How many submodels are trained side by side, as joblib and scikit-learn have it.
    store : path, optional
        A folder that keeps what was trained and measured. A method that finds there what another
        one left trains only what is missing; after a kill nothing that was done is done again.
    memory : int
        Bytes for submodels that are kept after ``fit``, so that a new test set costs predictions
        only. What does not fit is trained and measured in one pass for each test set.
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal when the work lasts.
    """

    marks_unscored = True
    explains_unscored: ClassVar[bool] = False  # says itself why a column is NaN

    def __init__(
        self,
        *,
        utility: str | Utility | Callable[[Any, Any], Any] = "risk",
        empty: str | float = "prior",
        stop: StoppingRule | None = None,
        seed: int = 0,
        n_jobs: int | None = None,
        store: str | Path | None = None,
        memory: int = 2**30,
        progress: bool | None = None,
    ) -> None:
        self.utility = utility
        self.empty = empty
        self.stop = stop
        self.seed = seed
        self.n_jobs = n_jobs
        self.store = store
        self.memory = memory
        self.progress = progress

    # What a user asks

    @override
    def group_influence(
        self, groups: Mapping[Any, Any] | Any, test: Any = None, *, ids: Any = None
    ) -> Influence:
        """Return the influence of groups, where it is the sum of their members'.

        For the group as one player give its name to ``fit(model, train, groups=names)``.

        Raises
        ------
        MethodCapabilityError
            If it is not the sum.
        """
        if not self._is_additive():
            raise MethodCapabilityError(
                f"{self.card.name} has no group influence that is a sum. Let each group be one "
                f"player: fit(model, train, groups=names), with a name for each instance."
            )
        return super().group_influence(groups, test, ids=ids)

    @override
    def expected(self, test: Any = None, *, repeats: int = 5, ids: Any = None) -> Influence:
        """Return the influence in expectation over seeds of the training.

        The same subsets are trained anew with other seeds, ``repeats`` times in all.

        Parameters
        ----------
        test, ids
            As in :meth:`influence`.
        repeats : int
            How many seeds, 2 or more.

        Returns
        -------
        Influence
            The mean, ``(n_test, n_train)``, with its standard error over the seeds; diagnostics
            have the deviation between seeds and how much two halves of them agree in rank.

        Raises
        ------
        InvalidInputError
            If ``repeats`` is less than 2, or nothing in the training is random.
        """
        rows = self._rows(None)
        instances = self._tests(test, ids)
        if self._submodels is None or not self._submodels.seeded:
            raise InvalidInputError("repeats: the training has no randomness to average over.")

        def values(repeat: int) -> Values:
            coalitions = self._coalitions
            seeds = reseeded(coalitions.seeds, repeat)
            table = self._of_each(instances, replace(coalitions, seeds=seeds))
            return self._estimator(len(self.train_)).on(table).players(rows).values

        mean, errors, noticed = expectation(values, repeats)
        return self._answer(mean, rows, instances.ids, errors, noticed)

    # The frame's hooks

    @override
    def _tests(self, test: Any, ids: Any) -> Instances:
        if self._game is not None:
            if test is not None:
                raise InvalidInputError("test: a game has its values; leave the test set out.")
            found = self._measured(None, self._coalitions.take(slice(0, 1))).n_tests
            return Instances.of((np.arange(found),))
        if test is None and self._given_test is not None:
            return self._given_test
        return super()._tests(test, ids)

    @override
    def _query(self, instances: Instances) -> Asked:
        return self._asked(self._of_each(instances, self._coalitions))

    @override
    def _scores(self, query: Asked, rows: range) -> Values:
        return query.players(rows).values

    @override
    def _std_errors(self, query: Asked, rows: range) -> Values | None:
        return query.players(rows).std_errors

    @override
    def _joint_query(self, instances: Instances) -> Asked:
        table = self._measured(instances, self._coalitions)
        linear = self._estimator(len(self.train_)).linear
        return self._asked(table.total() if linear else table)

    @override
    def _joint_scores(self, query: Asked, rows: range) -> Values:
        return np.asarray(query.players(rows).values.sum(axis=0))

    @override
    def _joint_errors(self, query: Asked, rows: range) -> Values | None:
        errors = query.players(rows).std_errors
        return None if errors is None else np.asarray(errors.sum(axis=0))

    @override
    def _self_scores(self, rows: range) -> Values:
        submodels = self._submodels
        if submodels is None or submodels.grouped:
            raise MethodCapabilityError(
                f"{self.card.name}: memorization is the influence of a training instance on "
                f"itself; the players here are {'groups' if submodels else 'not instances'}."
            )
        chosen = submodels.train.select(slice(rows.start, rows.stop))
        table = self._of_each(chosen, self._coalitions)
        estimator, scores = self._estimator(len(self.train_)), np.empty(len(rows))
        for start in range(0, len(rows), 256):
            some = slice(start, min(start + 256, len(rows)))
            estimated = estimator.on(table.tests(some))
            scores[some] = estimated.players(rows[some]).values.diagonal()
        return scores

    @override
    def _is_additive(self) -> bool:
        return False

    @override
    def _answer(
        self,
        values: NDArray[np.floating[Any]],
        rows: range,
        test_ids: NDArray[Any] | None,
        errors: NDArray[np.floating[Any]] | None,
        diagnostics: dict[str, Any],
    ) -> Influence:
        unknown = np.isnan(values.reshape(-1, len(rows))).all(axis=0)
        if unknown.any() and not self.explains_unscored:
            named = ", ".join(map(str, self._ids(rows)[unknown][:NAMED]))
            warning = (
                f"the coalitions say nothing about {np.count_nonzero(unknown):,} of the "
                f"{len(rows):,} columns, which are NaN: {named}"
                f"{', ...' if unknown.sum() > NAMED else ''}; raise n_models"
            )
            diagnostics = diagnostics | {"warnings": _joined(diagnostics, {"warnings": [warning]})}
        return super()._answer(values, rows, test_ids, errors, diagnostics)

    @override
    def _settings(self) -> dict[str, Any]:
        """Return what the numbers depend on."""
        used = {name: value for name, value in super()._settings().items() if name not in HOW}
        if self._submodels is not None:
            used["empty"] = as_json(self._submodels.empty)
        elif self._game is not None:
            used = {name: value for name, value in used.items() if name not in ("utility", "empty")}
        return used

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        noticed: dict[str, Any] = {"coalitions": len(self._coalitions)}
        noticed |= self._report()
        if query is not None:
            noticed |= query.table.noticed if query.table is not None else {}
            estimated = query.estimated.noticed()
            if "warnings" in estimated:
                estimated = estimated | {"warnings": _joined(noticed, estimated)}
            noticed |= estimated
        return noticed

    def _asked(self, table: Table) -> Asked:
        return Asked(self._estimator(table.n).on(table), table)


def _joined(noticed: Mapping[str, Any], more: Mapping[str, Any]) -> list[Any]:
    """Return the warnings of two reports; those of the trainings are counts by category."""
    first = noticed.get("warnings", [])
    return [*(first if isinstance(first, list) else [first]), *more["warnings"]]
