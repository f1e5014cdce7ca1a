"""A closed form: what leaving out instances does, without training again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, ProponentError
from proponent.models.prediction_risk import Classification, Regression
from proponent.retraining.closed_forms.cooks import cooks_distances
from proponent.retraining.closed_forms.differences import Differences

Values = NDArray[np.float64]
Positions = NDArray[np.intp]

BLOCK = 2**21  # numbers that are held at once, beside the answer
OWN = 64  # training instances that are test instances of themselves at once


class NoClosedForm(ProponentError):
    """The model has none with these settings, or on these data; the message says why."""


@dataclass(frozen=True)
class Tests:
    """Test instances as a closed form sees them.

    Attributes
    ----------
    features : ndarray of shape (T, q)
        In the coordinates of the form.
    outputs : ndarray of shape (T, m)
        What the model trained with all instances says: values, or logits.
    targets : ndarray of shape (T,) or (T, m)
        Of the risk.
    ids : ndarray of shape (T,)
    variances : ndarray of shape (T,), optional
        Of a Gaussian process.
    """

    features: Values
    outputs: Values
    targets: NDArray[Any]
    ids: NDArray[Any]
    variances: Values | None = None

    def at(self, some: slice) -> Tests:
        """Return some of them."""
        return replace(
            self,
            features=self.features[some],
            outputs=self.outputs[some],
            targets=self.targets[some],
            ids=self.ids[some],
            variances=None if self.variances is None else self.variances[some],
        )


class ClosedForm(ABC):
    """The model without each instance, or without groups of them, from the model with all.

    A subclass computes the differences of parameters and reads test instances; risks, predictions
    and Cook's distances follow here. Differences in risk are positive where the instances that
    were left out lower it.

    Attributes
    ----------
    n : int
        Training instances.
    exact : bool
        Whether the numbers equal those of training again, up to rounding.
    judge : Regression or Classification
        The risk of outputs.
    weights : ndarray of shape (n,)
        How much each training instance counts.
    """

    exact: bool = True
    n: int
    judge: Regression | Classification
    weights: Values

    # What is asked

    def without_each(self, test: Instances, rows: range | None = None) -> Values:
        """Return the risk without each instance less the risk with all, ``(T, n)``.

        Parameters
        ----------
        test : Instances
            Features and labels as the model takes them, T instances.
        rows : range, optional
            Positions of the training instances to be left out; the default is all, one by one.

        Raises
        ------
        InvalidInputError
            If the test instances do not fit the training set.
        NonFiniteError
            If a number is not finite; the message says why.
        """
        each = self._rows(rows)
        return self._risk_changes(test, len(each), lambda some: self._each(each[some]))

    def without_groups(self, groups: Sequence[Any], test: Instances) -> Values:
        """Return the risk without each group less the risk with all, ``(T, G)``.

        Parameters
        ----------
        groups : sequence of array of int
            The positions of the training instances of each, G groups.
        test : Instances
            As for :meth:`without_each`.

        Raises
        ------
        InvalidInputError
            If a group is empty, has unknown positions, or leaves nothing to train on.
        """
        members = self._members(groups)
        return self._risk_changes(test, len(members), lambda some: self._groups(members[some]))

    def memorization(self, rows: range | None = None) -> Values:
        """Return how much each training instance lowers its own risk, ``(len(rows),)``.

        The diagonal of :meth:`without_each` on the training set.
        """
        positions = self._rows(rows)
        found = np.empty(len(positions))
        for start in range(0, len(positions), OWN):
            some = slice(start, start + OWN)
            each = positions[some]
            tests = self._read(self._train_at(each), "train")
            found[some] = np.diagonal(self._changes(tests, self._each(each)))
        return found

    def predictions_without(self, test: Instances, rows: range | None = None) -> Values:
        """Return what the model predicts without each, ``(T, n)`` or ``(T, n, outputs or C)``.

        Values of a regression, or the probability of each class.
        """
        each = self._rows(rows)
        tests = self._read(test, "test")
        shape = self._predicted(tests.outputs[None]).shape[2:]
        found = np.empty((len(tests.ids), len(each), *shape))
        made = self._blocks(tests, len(each), lambda some: self._each(each[some]))
        for some, columns, differences in made:
            predicted = self._predicted(self._outputs_without(tests.at(some), differences))
            found[some, columns] = np.moveaxis(predicted, 0, 1)
        return found

    def dfbeta(self, rows: range | None = None) -> Values:
        """Return ``theta - theta_without`` for each instance, ``(n, p)``; survey eq. (5).

        Positive where the instance raises the parameter. The parameters are those of each output
        (or class) after the other: its coefficients, then its intercept where there is one. Those
        of a kernel model are the dual coefficients, one for each training instance.
        """
        each = self._rows(rows)
        size = self._rows_at_once()
        parts = [
            self._parameters(self._each(each[start : start + size]))
            for start in range(0, len(each), size)
        ]
        return np.concatenate([part.reshape(len(part), -1) for part in parts])

    def cooks_distance(self) -> Values:
        """Return Cook's distance of each instance, ``(n,)``; see :func:`cooks_distances`.

        Raises
        ------
        InvalidInputError
            If the fit leaves no residuals to compare with.
        """
        each = np.arange(self.n)
        size = self._rows_at_once()
        squares = [
            self._squares(self._each(each[start : start + size]))
            for start in range(0, self.n, size)
        ]
        return cooks_distances(np.concatenate(squares), *self._scale())

    def group_cooks_distance(self, groups: Sequence[Any]) -> Values:
        """Return Cook's distance of each group, ``(G,)``.

        Raises
        ------
        InvalidInputError
            As :meth:`cooks_distance` and :meth:`without_groups`.
        """
        members = self._members(groups)
        squares = [self._squares(self._groups([group])) for group in members]
        return cooks_distances(np.concatenate(squares), *self._scale())

    def noticed(self) -> dict[str, Any]:
        """Return what there is to say about the numbers, as JSON knows it."""
        return {"closed form": type(self).__name__, "exact": self.exact}

    # What a subclass writes

    @abstractmethod
    def _read(self, instances: Instances, role: str) -> Tests:
        """Return test instances in the coordinates of the form."""

    @abstractmethod
    def _train_at(self, positions: Positions) -> Instances:
        """Return training instances as test instances."""

    @abstractmethod
    def _each(self, rows: Positions) -> Differences:
        """Return the differences without each of some training instances."""

    @abstractmethod
    def _groups(self, groups: Sequence[Positions]) -> Differences:
        """Return the differences without each group."""

    @abstractmethod
    def _parameters(self, differences: Differences) -> Values:
        """Return differences as those of the model's own parameters, ``(R, m, p)``."""

    @abstractmethod
    def _squares(self, differences: Differences) -> Values:
        """Return the squared change of the fit to the training set, by output, ``(R, m)``."""

    @abstractmethod
    def _scale(self) -> tuple[Values, Values]:
        """Return the parameters that the fit takes and its dispersion, by output, ``(m,)``."""

    def _rows_at_once(self) -> int:
        """Return for how many training instances differences are computed at once."""
        return self.n

    def _predicted(self, outputs: Values) -> Values:
        """Return predictions ``(R, T, ...)`` from outputs ``(R, T, m)``."""
        return outputs[:, :, 0] if outputs.shape[2] == 1 else outputs

    def _changes(self, tests: Tests, differences: Differences) -> Values:
        """Return changes in risk, ``(T, R)``."""
        judge = self.judge
        if isinstance(judge, Regression) and judge.risk == "squared":
            targets = tests.targets.reshape(tests.outputs.shape)
            falls = differences.outputs(tests.features)
            # ((r - c)^2 - r^2) = c (c - 2r), without the cancellation.
            doubled = 2 * (tests.outputs - targets)
            changes = falls - doubled[:, None, :]
            changes *= falls
            return np.asarray(changes[:, :, 0] if changes.shape[2] == 1 else changes.sum(axis=2))
        with_all = judge.risks(self._predicted(tests.outputs[None])[0], tests.targets, tests.ids)
        predicted = self._predicted(self._outputs_without(tests, differences))
        return np.asarray((judge.risks(predicted, tests.targets, tests.ids) - with_all).T)

    # The blocks

    def _outputs_without(self, tests: Tests, differences: Differences) -> Values:
        """Return outputs without each, ``(R, T, m)``."""
        falls = differences.outputs(tests.features).transpose(1, 0, 2)
        return np.subtract(tests.outputs, falls)

    def _risk_changes(
        self, test: Instances, removals: int, make: Callable[[slice], Differences]
    ) -> Values:
        tests = self._read(test, "test")
        found = np.empty((len(tests.ids), removals))
        for some, columns, differences in self._blocks(tests, removals, make):
            found[some, columns] = self._changes(tests.at(some), differences)
        return found

    def _blocks(
        self, tests: Tests, removals: int, make: Callable[[slice], Differences]
    ) -> Iterator[tuple[slice, slice, Differences]]:
        """Yield some tests, some removals, and the differences of these."""
        count, coordinates = tests.features.shape
        outputs = tests.outputs.shape[1]
        height = min(max(1, BLOCK // max(coordinates, outputs)), max(1, count))
        width = min(max(1, BLOCK // (height * outputs)), self._rows_at_once())
        for left in range(0, removals, width):
            columns = slice(left, left + width)
            differences = make(columns)
            for top in range(0, count, height):
                yield slice(top, top + height), columns, differences

    def _rows(self, rows: range | None) -> Positions:
        return np.arange(self.n)[slice(None) if rows is None else rows]

    def _members(self, groups: Sequence[Any]) -> list[Positions]:
        found = []
        for place, group in enumerate(groups):
            given = np.asarray(group)
            if given.dtype.kind not in "iu" or given.ndim != 1 or not len(given):
                raise InvalidInputError(
                    f"groups: group {place} must be a vector of one position or more; got "
                    f"{group!r:.100}."
                )
            members = np.unique(given).astype(np.intp)
            if members[0] < 0 or members[-1] >= self.n:
                raise InvalidInputError(
                    f"groups: group {place} has the position {members[0 if members[0] < 0 else -1]}"
                    f"; those of the training instances are 0 .. {self.n - 1}."
                )
            left = np.count_nonzero(self.weights) - np.count_nonzero(self.weights[members])
            if not left:
                raise InvalidInputError(
                    f"groups: group {place} is the whole training set, without which there is no "
                    f"model; measure it by training, whose setting `empty` says what stands for "
                    f"none: LeaveOneOut(shortcut=None)."
                )
            found.append(members)
        return found
