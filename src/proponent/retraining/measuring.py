"""How a method trains its submodels, or takes those of others, and what it measures on them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.method import InfluenceMethod
from proponent.models.as_learner import as_learner
from proponent.models.learner import Learner
from proponent.retraining.checks import check_seed
from proponent.retraining.coalitions import Coalitions, Design, Estimator, Table
from proponent.retraining.game import CooperativeGame, Game
from proponent.retraining.growth import grow
from proponent.retraining.settings import HOW, NO_USE, refuse_ignored
from proponent.retraining.stopping import StoppingRule
from proponent.retraining.submodels import AllFailedError, Submodels
from proponent.retraining.utility import Utility, utility_of

if TYPE_CHECKING:
    from typing_extensions import Self

Values = NDArray[np.float64]


class MeasuringMethod(InfluenceMethod):
    """What a method does before it estimates: a design is drawn, trained on and measured.

    The hyperparameters are those of :class:`~proponent.retraining.method.SubmodelMethod`, which
    makes answers of the measurements.
    """

    utility: str | Utility | Callable[[Any, Any], Any]
    empty: str | float
    stop: StoppingRule | None
    seed: int
    n_jobs: int | None
    store: str | Path | None
    memory: int
    progress: bool | None
    _game: Game | None
    _submodels: Submodels | None
    _coalitions: Coalitions
    _given_test: Instances | None
    _given_table: Table | None  # what was measured on it
    _utility: Utility

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
            If the model or the sets are not of the right kind, or a hyperparameter is out of range;
            or if one is set that the Submodels or the game decide (``empty``, ``n_jobs``,
            ``store``, ``memory``, ``progress``, and for a game ``utility``).
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
        if isinstance(model, Submodels):
            own = {
                "empty": model.empty,
                "n_jobs": model.n_jobs,
                "store": model.path,
                "memory": model.memory,
                "progress": model.progress,
            }
            refuse_ignored(self, own, "the Submodels have")
        if isinstance(model, Game):
            refuse_ignored(self, dict.fromkeys(("utility", "empty", *HOW), NO_USE), "a Game has")
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
            self._submodels.check(self._utility)
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
            raise AllFailedError(
                f"{self.card.name}: all {len(coalitions)} trainings failed: {self._report()}."
            )
        return Table(
            coalitions.take(~failed),
            utilities[~failed],
            {"failed": int(failed.sum())},
            self._failures(coalitions),
        )

    def _failures(self, coalitions: Coalitions) -> dict[int, str]:
        """Return why coalitions have no utility: of each size the first reason."""
        if self._submodels is None:
            return {}
        found: dict[int, str] = {}
        for row, reason in self._submodels.failures(coalitions.masks, coalitions.seeds).items():
            found.setdefault(int(coalitions.sizes[row]), reason)
        return found

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
