"""A learner: a recipe that trains a model on any subset of a training set.

A :class:`Learner` is bound to a training set once and becomes a :class:`Trainer`, which trains as
many submodels as it is asked for and says what they make of test instances. torch and
scikit-learn are not imported here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import MethodCapabilityError
from proponent.models.model_size import size_of
from proponent.parameters import Parameterised

Counts = NDArray[Any]  # (K, n): boolean, or how often each instance is in (uint8, bootstrap)
Seeds = NDArray[np.int64]  # (K,)
Values = NDArray[np.float64]

Output = Literal["probabilities", "logits", "values"]
Empty = Literal["prior", "uniform", "init"]

WEIGHED = 64  # submodels whose size stands for that of all


@dataclass(frozen=True)
class Fitted:
    """Submodels that were trained together.

    Attributes
    ----------
    models : object
        What the trainer that made them reads: a list with one an entry, or stacked arrays.
    size : int
        How many, K; those that failed are counted.
    failures : mapping from int to str
        Positions of those that could not be trained, and why. Their risks are NaN.
    """

    models: Any
    size: int
    failures: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """Test instances as a trainer's models take them.

    Attributes
    ----------
    inputs : object
        What the models take.
    targets : ndarray or None
        Positions of the classes, ``(T,)``, or the targets of a regression, ``(T,)`` or
        ``(T, outputs)``; None where the risk needs none.
    ids : ndarray of shape (T,)
        The labels of the instances.
    """

    inputs: Any
    targets: NDArray[Any] | None
    ids: NDArray[Any]

    def __len__(self) -> int:
        """Return the number of test instances, T."""
        return len(self.ids)


class Learner(Parameterised, ABC):
    """A recipe that trains a model on any subset of a training set, from a seed.

    ``__init__`` names every hyperparameter and stores each under its own name.

    Attributes
    ----------
    training_version : int
        Of the code that trains and measures. It is raised by hand whenever the same recipe comes
        to other numbers than before: a store that another version wrote is then refused.
    """

    training_version: ClassVar[int] = 1

    @abstractmethod
    def bind(self, train: Instances) -> Trainer:
        """Return the recipe with its training set.

        Raises
        ------
        InvalidInputError
            If the training set is not one that the recipe can be trained on.
        """

    @abstractmethod
    def recipe(self) -> str:
        """Return a text that is the same where, and only where, the recipe is the same.

        It enters the keys of stored submodels.
        """

    def with_common_randomness(self) -> Learner:
        """Return the recipe with the same random numbers for every subset, given the same seed.

        Models of nearly the same subset then differ by the instances that differ. Here it is the
        recipe itself: most have no random numbers that depend on the subset.
        """
        return self


class Trainer(ABC):
    """A recipe and the training set that it was bound to; sent to the workers as it is.

    Attributes
    ----------
    n : int
        Training instances.
    seeded : bool
        Whether the seed changes the model; where not, submodels are shared by all seeds.
    output : str or None
        What ``outputs`` returns: ``"probabilities"`` or ``"logits"`` of every class of the whole
        training set, ``(K, T, C)``; ``"values"``, ``(K, T)`` or ``(K, T, outputs)``; None: there
        are no outputs, only risks.
    at_once : int
        How many submodels one call of ``fit`` had best be given.
    """

    n: int
    seeded: bool = True
    output: Output | None = None
    at_once: int = 1

    @abstractmethod
    def fit(self, counts: Counts, seeds: Seeds) -> Fitted:
        """Train a submodel on each row of counts; no row is empty.

        Parameters
        ----------
        counts : ndarray of shape (K, n)
            How often each training instance is in: boolean, or integers for a bootstrap.
        seeds : ndarray of shape (K,)
            What decides everything random about each.

        Returns
        -------
        Fitted
            An exception while training one becomes one of its failures, never an exception.
        """

    @abstractmethod
    def prepare(self, test: Instances, role: str = "test") -> Prepared:
        """Return test instances as ``risks`` and ``outputs`` take them: once for a test set."""

    @abstractmethod
    def risks(self, fitted: Fitted, test: Prepared) -> Values:
        """Return the risk of each submodel on each test instance, ``(K, T)``; NaN: failed."""

    def outputs(self, fitted: Fitted, test: Prepared) -> Values:
        """Return what each submodel predicts, ``(K, T, ...)``; NaN where it failed.

        Raises
        ------
        MethodCapabilityError
            If the models have only risks.
        """
        raise MethodCapabilityError(
            f"{type(self).__name__} has risks but no predictions; use utility='risk'."
        )

    @abstractmethod
    def constant(self, kind: Empty) -> Fitted:
        """Return what stands for a model without a training instance, as one submodel.

        Parameters
        ----------
        kind : {"prior", "uniform", "init"}
            ``"prior"``: the frequencies of the classes in the whole training set, with one more
            of each (Laplace), or the mean target. ``"uniform"``: every class alike.
            ``"init"``: the untrained network.

        Raises
        ------
        MethodCapabilityError
            If there is no such model.
        """

    def holds_empty(self, counts: Counts) -> NDArray[np.bool_] | None:
        """Return which subsets are worth what the empty set is, whatever that is, ``(K,)``.

        They are not trained. None: there are none beside the empty set.
        """
        return None

    def warnings_of(self, fitted: Fitted) -> Mapping[str, int]:
        """Return how many submodels warned in each category while they were trained."""
        return {}

    def to_arrays(self, fitted: Fitted) -> dict[str, NDArray[Any]] | None:
        """Return the submodels as arrays that can be stored, or None: there is no safe form."""
        return None

    def from_arrays(
        self, arrays: Mapping[str, NDArray[Any]], size: int, failures: Mapping[int, str]
    ) -> Fitted:
        """Return the submodels that ``to_arrays`` stored."""
        raise MethodCapabilityError(f"{type(self).__name__} does not store its submodels.")

    def part(self, fitted: Fitted, start: int, stop: int) -> Fitted | None:
        """Return some of the submodels, or None: they cannot be told apart.

        Here a list of models has them in order, and arrays have them on their first axis.
        """
        failures = {
            row - start: reason for row, reason in fitted.failures.items() if start <= row < stop
        }
        if isinstance(fitted.models, list):
            return Fitted(fitted.models[start:stop], stop - start, failures)
        arrays = self.to_arrays(fitted)
        if arrays is None or any(len(array) != fitted.size for array in arrays.values()):
            return None
        some = {name: array[start:stop] for name, array in arrays.items()}
        return self.from_arrays(some, stop - start, failures)

    def nbytes(self, fitted: Fitted) -> int:
        """Return the memory that the submodels take, in bytes."""
        arrays = self.to_arrays(fitted)
        if arrays is not None:
            return sum(array.nbytes for array in arrays.values())
        return size_of(fitted.models)


class SerialTrainer(Trainer):
    """Base of the trainers whose submodels are trained one after the other.

    A subclass writes ``fit_one``, ``risks_one``, ``prepare``, ``constant`` and, where it has
    predictions, ``outputs_one``; a failed training is recorded here.
    """

    at_once = 1024

    @abstractmethod
    def fit_one(self, positions: NDArray[np.intp], seed: int) -> Any:
        """Train on the instances at ``positions``, an instance as often as it stands there."""

    @abstractmethod
    def risks_one(self, model: Any, test: Prepared) -> Values:
        """Return the risks of one model, ``(T,)``."""

    def outputs_one(self, model: Any, test: Prepared) -> Values:
        """Return what one model predicts, ``(T, ...)``."""
        raise MethodCapabilityError(
            f"{type(self).__name__} has risks but no predictions; use utility='risk'."
        )

    def fit(self, counts: Counts, seeds: Seeds) -> Fitted:
        """Train one after the other, as :meth:`Trainer.fit` says."""
        models: list[Any] = []
        failures: dict[int, str] = {}
        for position, (row, seed) in enumerate(zip(counts, seeds.tolist(), strict=True)):
            try:
                models.append(self.fit_one(positions_of(row), seed))
            except Exception as error:
                models.append(None)
                failures[position] = f"{type(error).__name__}: {error}"
        return Fitted(models, len(models), failures)

    def nbytes(self, fitted: Fitted) -> int:
        """Return about how much memory the submodels take: of many, some are measured."""
        if len(fitted.models) <= WEIGHED:
            return super().nbytes(fitted)
        some = fitted.models[:: -(-len(fitted.models) // WEIGHED)]
        share = len(some) / len(fitted.models)
        return int(super().nbytes(Fitted(some, len(some))) / share)

    def risks(self, fitted: Fitted, test: Prepared) -> Values:
        """Return the risks, as :meth:`Trainer.risks` says."""
        return _rows(self.risks_one, fitted, test)

    def outputs(self, fitted: Fitted, test: Prepared) -> Values:
        """Return the predictions, as :meth:`Trainer.outputs` says."""
        return _rows(self.outputs_one, fitted, test)


def positions_of(counts: NDArray[Any]) -> NDArray[np.intp]:
    """Return the positions that a row of counts holds, each as often as it says."""
    positions = counts.nonzero()[0]  # np.flatnonzero costs four times as much for a short row
    if counts.dtype == np.bool_:
        return positions
    return np.repeat(positions, counts[positions])


def _rows(function: Callable[[Any, Prepared], Values], fitted: Fitted, test: Prepared) -> Values:
    """Return what a function says of each model, ``(K, T, ...)``, with NaN for what failed."""
    rows: Values | None = None
    for position, model in enumerate(fitted.models):
        if model is None:
            continue
        row = np.asarray(function(model, test))
        if rows is None:
            rows = np.full((len(fitted.models), *row.shape), np.nan)
        if row.shape != rows.shape[1:]:
            raise ValueError(f"a model predicts {row.shape} numbers, and others {rows.shape[1:]}")
        rows[position] = row  # at once: a model may use its array again
    return np.full((len(fitted.models), len(test)), np.nan) if rows is None else rows
