"""Submodels: a model trained on each of many subsets, once, and measured as often as asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, ProponentError
from proponent.models.as_learner import as_learner
from proponent.models.learner import Learner, Trainer
from proponent.retraining.empty import check_empty
from proponent.retraining.held import Held, most_frequent
from proponent.retraining.measurements import Measurement, Measurements
from proponent.retraining.players import Players
from proponent.retraining.requests import Request
from proponent.retraining.store import Store
from proponent.retraining.training import Training
from proponent.retraining.utility import Utility, utility_of

Values = NDArray[np.float64]


@dataclass(frozen=True)
class TrainingReport:
    """What :meth:`Submodels.fit` did for the distinct subsets that it was given.

    Attributes
    ----------
    trained : int
        Trained now.
    reused : int
        Trained before, by whichever method.
    failed : int
        Of all of these, those that could not be trained.
    deferred : int
        Left for :meth:`Submodels.utilities`, which trains and measures them in one pass.
    """

    trained: int
    reused: int
    failed: int
    deferred: int


class Submodels:
    """Models trained on subsets of a training set, shared by all methods that ask for them.

    Each distinct subset and seed is trained once. What is measured depends neither on ``n_jobs``
    nor on joblib's backend.

    Parameters
    ----------
    learner : estimator, Learner or object with ``fit`` and ``risk``
        The recipe that is trained on each subset.
    train : (X, y), dict, Dataset or Instances
        The training set, n instances.
    ids : array-like of shape (n,), optional
        Unique labels of the training instances.
    groups : array-like of shape (n,), optional
        The name of the group of each instance: every group is then one player, in or out as a
        whole, and masks have a column a group, in ascending order of the names.
    path : path, optional
        A directory that keeps what was trained and measured. After a kill, or for another method,
        only what is missing is trained. It belongs to one training set and recipe.
    memory : int
        Bytes for submodels that are kept, so that a new test set costs predictions only, and as
        many for results.
    empty : {"prior", "uniform", "init", "max_class_freq"} or float
        What a model without a training instance is; see :func:`empty_utility`.
    n_jobs : int, optional
        How many batches are trained side by side, as joblib and scikit-learn have it.
    progress : bool, optional
        Whether to show a progress bar; None: on a terminal when the work lasts.

    Raises
    ------
    InvalidInputError
        If an argument cannot be used, or ``path`` holds submodels of another training set or
        recipe, or of another version of the learner's training code.

    Notes
    -----
    A submodel is known by the training instances that are in, how often, and by its seed; where
    a learner has no use for a seed, all seeds share the submodel. What is stored is known by the
    content of the training set, the recipe, the version of the learner's training code (which is
    raised by hand when that comes to other numbers; see :class:`Learner`), the content of the test
    set and the utility as well.

    With a path and a learner whose submodels can be stored as arrays, ``fit`` stores them all.
    Where they cannot, ``fit`` leaves the training to ``utilities``, which stores each result as it
    comes: what has been done is never lost to a kill.

    A learner that trains its submodels one by one gives the same bits whatever was there before.
    One that trains many at once gives the same bits for the same request, also when it was
    interrupted and repeated; in other company its submodels may differ by rounding.

    Examples
    --------
    >>> import numpy as np
    >>> import proponent as pp
    >>> from sklearn.linear_model import Ridge
    >>> X, y = np.arange(6.0)[:, None], np.array([0.0, 1, 2, 3, 4, 9])
    >>> submodels = pp.Submodels(Ridge(alpha=1e-9), (X, y))
    >>> all_but_one = ~np.eye(6, dtype=bool)
    >>> submodels.fit(all_but_one, np.zeros(6, int))
    TrainingReport(trained=6, reused=0, failed=0, deferred=0)
    >>> submodels.utilities(all_but_one, np.zeros(6, int), (X[4:], y[4:]), "risk").round(2)[-1]
    array([ -0., -16.])
    """

    def __init__(
        self,
        learner: Any,
        train: Any,
        *,
        ids: Any = None,
        groups: Any = None,
        path: str | Path | None = None,
        memory: int = 2**30,
        empty: str | float = "prior",
        n_jobs: int | None = None,
        progress: bool | None = None,
    ) -> None:
        if not isinstance(memory, (int, float, np.number)) or not memory >= 0:
            raise InvalidInputError(f"memory: expected a number of bytes; got {memory!r}.")
        self.learner: Learner = as_learner(learner)
        self.train = Instances.of(train, ids=ids)
        self.path = None if path is None else Path(path)
        self.memory = memory
        self.empty = check_empty(empty)
        self.n_jobs = n_jobs
        self.progress = progress
        self._players = Players(self.train, groups)
        self._trainer: Trainer = self.learner.bind(self.train)
        self._store: Store | None = None
        if self.path is not None:
            content, version = self.train.content_hash(), self.learner.training_version
            recipe, n = self.learner.recipe(), len(self.train)
            self._store = Store(self.path, content, recipe, n, version)
        self._held = Held(self._trainer, memory, self._store)
        self._training = Training(self._trainer, self._held, n_jobs, progress)
        self._measurements = Measurements(self._trainer, self._store, memory)
        self._request: Request | None = None
        self._counted: set[bytes] = set()  # since the last fit
        self._reused = self._deferred = 0

    def __repr__(self) -> str:
        """Show the learner and the number of players."""
        return f"Submodels({self.learner!r}, n={self.n:,})"

    @property
    def n(self) -> int:
        """The number of players."""
        return len(self._players)

    @property
    def players(self) -> Instances:
        """The players: the training instances, or the groups."""
        return self._players.instances

    @property
    def players_ids(self) -> NDArray[Any]:
        """The labels of the players, ``(n,)``."""
        return self.players.ids

    @property
    def grouped(self) -> bool:
        """Whether the players are groups."""
        return self._players.members is not None

    @property
    def seeded(self) -> bool:
        """Whether the seed of a training changes the submodel."""
        return self._trainer.seeded

    def check(self, utility: Utility) -> None:
        """Refuse a utility that the submodels would not have, before they are trained.

        Raises
        ------
        MethodCapabilityError
            If it is made of what they do not predict.
        """
        utility.check(self._trainer)

    def fit(self, masks: Any, seeds: Any) -> TrainingReport:
        """Train the submodels that are missing, and keep them while they fit the memory.

        Parameters
        ----------
        masks : ndarray of shape (K, n)
            Who is in: boolean, or how often (0 to 255).
        seeds : ndarray of shape (K,)
            What decides everything random about each training.

        Raises
        ------
        InvalidInputError
            If masks or seeds are of another kind or shape.
        ProponentError
            If all of them failed, with the first reason; or if the disk is full.
        """
        request = self._requested(masks, seeds)
        missing = set(self._held.missing(request.rows))
        if missing and (self._store is None or self._held.stored):
            self._training.train(request, missing)
        deferred = set(self._held.missing(missing))
        self._counted = request.rows.keys() - deferred
        reused = len(request.rows) - len(missing)
        self._reused += reused
        self._deferred = len(deferred) if self._store is None else 0
        failures = self._held.failures
        _raise_if_all(request, failures)
        failed = sum(key in failures for key in request.rows)
        return TrainingReport(len(missing) - len(deferred), reused, failed, len(deferred))

    def utilities(
        self, masks: Any, seeds: Any, test: Any, utility: str | Utility | Any = "risk"
    ) -> Values:
        """Return what submodels are worth on test instances, ``(K, T)``; larger is better.

        What was measured before is looked up, what was trained before only predicts, and the rest
        is trained and measured in one pass.

        Parameters
        ----------
        masks, seeds : ndarray of shape (K, n) and (K,)
            As in :meth:`fit`.
        test : Instances, (X, y), dict or Dataset
            The test set, T instances.
        utility : {"risk", "accuracy", "margin"}, callable or Utility
            What is measured; see :func:`utility_of`.

        Returns
        -------
        ndarray of shape (K, T)
            A row of NaN is a submodel that failed. T is 1 for a function of predictions that
            returns one number.

        Raises
        ------
        InvalidInputError
            If an argument is of another kind or shape; or, with a path, if the utility is a
            function whose content is not known.
        ProponentError
            If all of them failed, with the first reason; or if the disk is full.
        """
        request = self._requested(masks, seeds)
        measurement = self._measurements.of(Instances.of(test, role="test"), utility_of(utility))
        results, failures = measurement.results, self._held.failures
        if failures:
            for key in request.rows.keys() & failures.keys():
                results.failures[key] = failures[key]
        distinct = list(request.rows)
        unknown = [distinct[row] for row in results.unknown(distinct)]
        missing = set(self._held.missing(unknown))
        new = request.rows.keys() - self._counted
        self._reused += len(new - missing)
        self._counted |= new
        if unknown:
            held = [key for key in unknown if key not in missing]
            self._training.measure(request, held, missing, measurement)
        if not len(results):
            _raise_if_all(request, results.failures)
        return self._table(request, measurement)

    def failures(self, masks: Any, seeds: Any) -> dict[int, str]:
        """Return which of some submodels have failed so far, by row, and why.

        Parameters
        ----------
        masks, seeds : ndarray of shape (K, n) and (K,)
            As in :meth:`fit`.
        """
        reasons = {**self._measurements.failures(), **self._held.failures}
        keys = self._requested(masks, seeds).keys if reasons else []
        return {row: reasons[key] for row, key in enumerate(keys) if key in reasons}

    def report(self) -> dict[str, Any]:
        """Return what was done since the beginning, as JSON knows it.

        ``trained`` counts trainings; ``reused`` the distinct subsets, since each ``fit``, that
        were trained or measured before; ``failed`` the subsets without a result, with the most
        frequent reasons; ``deferred`` those of the last ``fit`` that do not fit the memory;
        ``warnings`` the trainings that warned, by category.
        """
        failures = {**self._measurements.failures(), **self._held.failures}
        found: dict[str, Any] = {
            "trained": self._training.trained,
            "reused": self._reused,
            "failed": len(failures),
            "deferred": self._deferred,
        }
        if failures:
            found["failures"] = most_frequent(failures)
        if self._training.warned:
            found["warnings"] = dict(sorted(self._training.warned.items()))
        if self._deferred:
            found["trained_in_one_pass"] = (
                "submodels that do not fit the memory are trained anew for every test set"
            )
        if self._store is not None and self._store.unread_bytes:
            found["unread_bytes"] = self._store.unread_bytes
        return found

    def _requested(self, masks: Any, seeds: Any) -> Request:
        """Return what is asked for; whoever fits asks for the utilities next."""
        if self._request is None or not self._request.is_for(masks, seeds):
            self._request = Request(self._players, masks, seeds, self._trainer)
        return self._request

    def _table(self, request: Request, measurement: Measurement) -> Values:
        """Return the rows of a request, ``(K, T)``."""
        rows = measurement.results.take(request.keys)
        if not request.empty.any():
            return rows
        empty = measurement.empty(self.empty)
        if measurement.results.width is None:
            rows = np.full((len(request.keys), len(empty)), np.nan)
        rows[request.empty] = empty
        return rows


class AllFailedError(ProponentError):
    """Not one of the submodels that were asked for could be trained and measured."""


def _raise_if_all(request: Request, failures: Mapping[bytes, str]) -> None:
    if request.rows and all(key in failures for key in request.rows):
        first = failures[next(iter(request.rows))]
        raise AllFailedError(f"all {len(request.rows)} submodels failed, the first with: {first}")
