"""The base of the neighbours' methods: from features and labels to scores, some tests at a time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proponent._results.strongest import strongest_positions
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.method import InfluenceMethod
from proponent.models.nearest_points import Neighbours
from proponent.progress import progress as progress_bar
from proponent.retraining.neighbours.features import Embedding, Features, embedding_of, labels_of
from proponent.retraining.neighbours.labels import UNSEEN, Classes, targets_of
from proponent.top import TopInfluence

if TYPE_CHECKING:
    from typing_extensions import Self

NEEDS = (
    "the training set alone, fit((X, y)), or first what makes features of X: a function, or a "
    "trained network (pp.TorchModel), whose features enter its last linear layer"
)

Values = NDArray[np.float64]


class Tests(NamedTuple):
    """Test instances, as their neighbours see them."""

    features: Features  # (m, d)
    labels: NDArray[Any]  # (m,), classes as codes


class NeighbourMethod(InfluenceMethod):
    """Base of the methods that score training instances as neighbours of test instances.

    A subclass implements ``_prepare`` and ``_values``. All training instances are put in order
    for a few test instances at a time: beside the answer, memory is O(n).

    Distances are Euclidean, in float64. Of two training instances at the same distance the one
    that stands first in the training set is the nearer. A training instance that is a test
    instance too is its own nearest neighbour, at distance 0: memorization is its influence on
    itself in this case.

    Parameters
    ----------
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal when the work lasts.
    """

    progress: bool | None
    _embedding: Embedding
    _neighbours: Neighbours
    _classes: Classes | None  # None for a regression
    _n_classes: int
    _trained: Tests  # the training set, as tests

    def fit(self, model: Any, train: Any = None, *, ids: Any = None) -> Self:
        """Take a training set, ``fit(train)``, or one as a model sees it, ``fit(model, train)``.

        Parameters
        ----------
        model : (X, y), callable or TorchModel
            The training set, where nothing else is given. Otherwise a function from X, as a numpy
            array, to features ``(n, d)``, such as the ``transform`` of a fitted scikit-learn
            transformer; or a trained network, whose features enter its last linear layer.
        train : (X, y), dict, Dataset or Instances
            The training set; (X, y) pairs unless there is a network.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model is of another kind, the set is empty, features or labels do not fit, or a
            hyperparameter is out of range.
        NonFiniteError
            If a feature or target is NaN or infinite.
        """
        if train is None:
            model, train = None, model
        elif hasattr(model, "shape"):
            raise InvalidInputError(
                f"model: {self.card.name} takes X and y as one argument, fit((X, y)), as it needs "
                f"{self.card.needs}; got an array."
            )
        instances = Instances.of(train, ids=ids)
        if not len(instances):
            raise InvalidInputError("train: the set is empty; fit to at least one instance.")
        embedding = embedding_of(model, instances, progress=self.progress)
        if embedding is None:
            raise self._wrong_kind(model)
        self._embedding = embedding
        features, labels = embedding(instances, "train"), labels_of(instances, "train")
        self._neighbours = Neighbours(features)
        self._classes = Classes.of(labels) if self._classifies() else None
        self._n_classes = 0 if self._classes is None else len(self._classes.names)
        self._trained = Tests(features, self._read(labels, "train"))
        self._prepare(len(instances))
        self.train_ = instances
        return self

    # What a subclass writes

    @abstractmethod
    def _prepare(self, n: int) -> None:
        """Check the hyperparameters, and prepare the closed form for n training instances."""

    @abstractmethod
    def _values(self, tests: Tests) -> Iterator[tuple[slice, Values]]:
        """Yield some of the tests at a time, and the values of all instances, ``(some, n)``.

        The array may be used again for the next ones.
        """

    def _classifies(self) -> bool:
        """Whether labels are classes, rather than targets of a regression."""
        return True

    # The frame's hooks

    def _read(self, labels: NDArray[Any], role: str) -> NDArray[Any]:
        classes = self._classes
        return targets_of(labels, role) if classes is None else classes.codes(labels, role)

    def _query(self, instances: Instances) -> Tests:
        features = self._embedding(instances, "test")
        width = self._trained.features.shape[1]
        if features.shape[1] != width:
            raise InvalidInputError(
                f"test: instances have {features.shape[1]} features, the training set {width}."
            )
        return Tests(features, self._read(labels_of(instances, "test"), "test"))

    def _blocks_of_tests(self, tests: Tests, rows: range) -> Iterator[tuple[slice, Values]]:
        """Yield some of the tests at a time, and the values of the instances at ``rows``."""
        bar: Any = progress_bar(
            total=len(tests.features), description="test instances", enabled=self.progress
        )
        with bar:
            for some, values in self._values(tests):
                yield some, values[:, rows.start : rows.stop]
                bar.update(len(values))

    def _scores(self, query: Tests, rows: range) -> Values:
        scores = np.empty((len(query.features), len(rows)))
        for some, values in self._blocks_of_tests(query, rows):
            scores[some] = values
        return scores

    def _joint_scores(self, query: Tests, rows: range) -> Values:
        total = np.zeros(len(rows))
        for _, values in self._blocks_of_tests(query, rows):
            total += values.sum(axis=0)
        return total

    def _self_scores(self, rows: range) -> Values:
        chosen = Tests(*(column[rows.start : rows.stop] for column in self._trained))
        scores = np.empty(len(rows))
        for some, values in self._blocks_of_tests(chosen, rows):
            scores[some] = values[:, some].diagonal()
        return scores

    def _strongest(self, query: Tests, instances: Instances, rows: range, k: int) -> TopInfluence:
        # The frame goes through the training instances, and would have all of them sorted anew
        # for each block.
        sides = []
        for some, values in self._blocks_of_tests(query, rows):
            self._check_finite(values, rows, instances.ids[some])
            both = [strongest_positions(values, k, largest=largest) for largest in (True, False)]
            sides.append([(at, np.take_along_axis(values, at, axis=1)) for at in both])
        proponents, opponents = (
            [np.concatenate(part) for part in zip(*side, strict=True)]
            for side in zip(*sides, strict=True)
        )
        return TopInfluence(
            *proponents,
            *opponents,
            train_ids=self._ids(rows),
            test_ids=instances.ids,
            method=self.card.name,
            settings=self._settings(),
            diagnostics=self._diagnostics(query),
        )

    def _settings(self) -> dict[str, Any]:
        """Return what the numbers depend on."""
        return {name: value for name, value in super()._settings().items() if name != "progress"}

    def _diagnostics(self, query: Tests | None) -> dict[str, Any]:
        noticed: dict[str, Any] = {"features": self._trained.features.shape[1]}
        if self._classes is None:
            return noticed
        noticed["classes"] = self._n_classes
        unseen = 0 if query is None else int(np.count_nonzero(query.labels == UNSEEN))
        if unseen:
            noticed["warnings"] = [
                f"test instances with labels that no training instance has: {unseen:,}"
            ]
        return noticed


def empty_or(default: float, given: float | None) -> float:
    """Return what is predicted without a neighbour: what was given, or the default.

    Raises
    ------
    InvalidInputError
        If it is not finite.
    """
    if given is None:
        return default
    if not isinstance(given, (int, float, np.number)) or not np.isfinite(given):
        raise InvalidInputError(f"empty must be a finite number or None; got {given!r}.")
    return float(given)
