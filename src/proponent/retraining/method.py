"""The base of the methods that train submodels: a design, and an estimator over what it gives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError, ProponentError
from proponent.influence import Influence
from proponent.method import InfluenceMethod
from proponent.models.as_learner import as_learner
from proponent.models.learner import Learner
from proponent.retraining.checks import check_seed
from proponent.retraining.coalitions import (
    Coalitions,
    Design,
    Estimate,
    Estimated,
    Estimator,
    Table,
)
from proponent.retraining.game import CooperativeGame, Game
from proponent.retraining.growth import grow
from proponent.retraining.repeats import expectation, reseeded
from proponent.retraining.stopping import StoppingRule
from proponent.retraining.submodels import Submodels
from proponent.retraining.utility import Utility, utility_of

if TYPE_CHECKING:
    from typing_extensions import Self

NEEDS = (
    "a scikit-learn estimator, pp.TorchLearner, an object with fit and risk, pp.Submodels that "
    "another method trained, or a pp.Game"
)
HOW = ("n_jobs", "store", "memory", "progress")  # what the numbers do not depend on

Values = NDArray[np.float64]

NAMED = 5  # players that a warning names


class Settings(TypedDict, total=False):
    """What all these methods take; :class:`SubmodelMethod` says what each does."""

    utility: str | Utility | Callable[[Any, Any], Any]
    empty: str | float
    stop: StoppingRule | None
    seed: int
    n_jobs: int | None
    store: str | Path | None
    memory: int
    progress: bool | None


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


class SubmodelMethod(InfluenceMethod):
    """Base of the methods that train submodels on subsets of the training set.

    A subclass implements ``_design``, ``_estimator`` and ``_size``.

    Parameters
    ----------
    utility : {"risk", "accuracy", "margin"}, callable or Utility
        What a submodel is worth on a test instance, larger is better: minus its risk; whether its
        prediction is right; the log odds, or the difference in logits, of the true class and the
        best other one; or a function of (predictions ``(T, ...)``, labels ``(T,)``) that returns a
        value for each test instance, ``(T,)``, or one for all.
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
    _game: Game | None
    _submodels: Submodels | None
    _coalitions: Coalitions
    _given_test: Instances | None
    _given_table: Table | None  # what was measured on it
    _utility: Utility

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

    # What a subclass writes

    @abstractmethod
    def _design(self, n: int) -> Design:
        """Return the design for n players; check the hyperparameters."""

    @abstractmethod
    def _estimator(self, n: int) -> Estimator:
        """Return the estimator for n players; check the hyperparameters."""

    @abstractmethod
    def _size(self, n: int) -> int:
        """Return how many coalitions of the design are evaluated, at most."""

    # What a user asks

    @override
    def fit(
        self,
        model: Any,
        train: Any = None,
        *,
        ids: Any = None,
        groups: Any = None,
        test: Any = None,
    ) -> Self:
        """Train the submodels.

        Parameters
        ----------
        model : estimator, Learner, object with ``fit`` and ``risk``, Submodels or Game
            What is trained on each subset; or the submodels that another method trained, of which
            only those that are missing are added; or a game of the user's own.
        train : (X, y), dict, Dataset or Instances
            The training set; None for Submodels, which have theirs, and for a game.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.
        groups : array-like of shape (n,), optional
            The name of the group that each instance belongs to: every group is then one player,
            in or out as a whole, and a column of the answer.
        test : (X, y), dict, Dataset or Instances, optional
            A test set to be measured at once, which ``influence()`` then answers for.

        Raises
        ------
        InvalidInputError
            If the model or the sets are not of the right kind, or a hyperparameter is out of range.
        ProponentError
            If every training failed; the first reason is given.
        """
        self._check_settings()
        self._utility = utility_of(self.utility)
        self._game, self._submodels, self._given_table = None, None, None
        if isinstance(model, (CooperativeGame, Submodels)):
            for name, given in (("train", train), ("ids", ids), ("groups", groups)):
                if given is not None:
                    raise InvalidInputError(f"{name}: {model!r} has its own; leave it out.")
        if isinstance(model, Game):
            if test is not None:
                raise InvalidInputError("test: a game has its values; leave the test set out.")
            self._game, self.train_ = model, model.as_instances()
        else:
            self._submodels = self._submodels_of(model, train, ids, groups)
            self.train_ = self._submodels.players
        self._given_test = None if test is None else super()._tests(test, None)
        with fixed_randomness():  # data sets may draw when they are looked at
            self._train()
        return self

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
        if unknown.any() and not isinstance(diagnostics.get("warnings"), list):
            named = ", ".join(map(str, self._ids(rows)[unknown][:NAMED]))
            warning = (
                f"the coalitions say nothing about {np.count_nonzero(unknown):,} of the "
                f"{len(rows):,} columns, which are NaN: {named}"
                f"{', ...' if unknown.sum() > NAMED else ''}; raise n_models"
            )
            fits = [diagnostics["warnings"]] if "warnings" in diagnostics else []  # of the fits
            diagnostics = diagnostics | {"warnings": [*fits, warning]}
        return super()._answer(values, rows, test_ids, errors, diagnostics)

    @override
    def _settings(self) -> dict[str, Any]:
        """Return what the numbers depend on."""
        return {name: value for name, value in super()._settings().items() if name not in HOW}

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        noticed: dict[str, Any] = {"coalitions": len(self._coalitions)}
        noticed |= self._report()
        if query is not None:
            noticed |= query.table.noticed if query.table is not None else {}
            noticed |= query.estimated.noticed()
        return noticed

    # Training and measuring

    def _check_settings(self) -> None:
        """Refuse a seed that is none, and what does not say when to stop."""
        check_seed(self.seed)
        if self.stop is not None and not isinstance(self.stop, StoppingRule):
            raise InvalidInputError(
                f"stop: expected a rule such as pp.MaxModels(500) | pp.MaxSeconds(60); got "
                f"{self.stop!r}."
            )

    def _submodels_of(self, model: Any, train: Any, ids: Any, groups: Any) -> Submodels:
        if isinstance(model, Submodels):
            return model
        if train is None:
            raise InvalidInputError("train: pass the training set, fit(model, (X, y)).")
        try:
            learner = self._learner(model)
        except InvalidInputError as error:
            raise self._wrong_kind(model) from error
        instances = Instances.of(train, ids=ids)
        if not len(instances):
            raise InvalidInputError("train: the set is empty; fit to at least one instance.")
        with fixed_randomness():
            return Submodels(
                learner,
                instances,
                groups=groups,
                path=self.store,
                memory=self.memory,
                empty=self.empty,
                n_jobs=self.n_jobs,
                progress=self.progress,
            )

    def _learner(self, model: Any) -> Learner:
        """Return what was given as the recipe that is trained."""
        return as_learner(model)

    def _train(self) -> None:
        """Train the submodels of the design, until the stopping rule has seen enough."""
        n = len(self.train_)
        design, estimator, size = self._design(n), self._estimator(n), self._size(n)
        if self.stop is not None:
            needs_test = self.stop.looks and self._game is None and self._given_test is None
            if needs_test:
                raise InvalidInputError(
                    "stop: this rule looks at the estimates, so fit needs the test set too: "
                    "fit(model, train, test=test)."
                )
            measured = (lambda part: self._measured(None, part)) if self.stop.looks else None
            self._coalitions = grow(
                design, estimator, n, size, self.seed, self.stop, self._trained, measured
            )
            return
        self._coalitions = design.draw(n, 0, size, self.seed)
        self._trained(self._coalitions)
        if self._given_test is not None:
            self._given_table = self._measured(None, self._coalitions)

    def _trained(self, coalitions: Coalitions) -> None:
        if self._submodels is not None:
            self._submodels.fit(coalitions.masks, coalitions.seeds)

    def _measured(self, instances: Instances | None, coalitions: Coalitions) -> Table:
        """Return what coalitions are worth, without those whose training failed.

        Raises
        ------
        ProponentError
            If all of them failed.
        """
        known = self._given_table
        if known is not None and instances is self._given_test and coalitions is self._coalitions:
            return known
        utilities = self._utilities(instances, coalitions)
        failed = np.isnan(utilities).any(axis=1)
        if not failed.any():
            return Table(coalitions, utilities)
        if failed.all():
            raise ProponentError(
                f"{self.card.name}: all {len(coalitions)} trainings failed: {self._report()}."
            )
        return Table(coalitions.take(~failed), utilities[~failed], {"failed": int(failed.sum())})

    def _of_each(self, instances: Instances, coalitions: Coalitions) -> Table:
        """Return what coalitions are worth on each of some instances.

        Raises
        ------
        InvalidInputError
            If the utility is a single number of all of them.
        """
        table = self._measured(instances, coalitions)
        if table.n_tests != len(instances):
            raise InvalidInputError(
                f"utility: {self._utility.name} returns one number for all {len(instances)} "
                f"instances, and nothing can be said of each. Let it return one for each, or ask "
                f"for the influence on the whole test set, influence(test, joint=True)."
            )
        return table

    def _utilities(self, instances: Instances | None, coalitions: Coalitions) -> Values:
        """Return what coalitions are worth on a test set, or the one given to ``fit``."""
        if self._game is not None:
            return self._game.utilities(coalitions)
        test = self._given_test if instances is None else instances
        if self._submodels is None or test is None:
            raise InvalidInputError("test: pass the test set, influence((X_test, y_test)).")
        masks, seeds = coalitions.masks, coalitions.seeds
        with fixed_randomness():
            return self._submodels.utilities(masks, seeds, test, self._utility)

    def _report(self) -> dict[str, Any]:
        source = self._submodels if self._game is None else self._game
        return {} if source is None else source.report()

    def _asked(self, table: Table) -> Asked:
        return Asked(self._estimator(table.n).on(table), table)
