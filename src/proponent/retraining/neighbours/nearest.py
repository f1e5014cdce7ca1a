"""The base of the methods in which all k nearest neighbours count alike."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from proponent._results.checks import as_count
from proponent.models.nearest_points import Positions
from proponent.retraining.checks import check_choice
from proponent.retraining.neighbours.averages import AverageForm
from proponent.retraining.neighbours.coalitions import Coalitions
from proponent.retraining.neighbours.method import NeighbourMethod, Tests, Values, empty_or
from proponent.retraining.neighbours.squares import SquareForm
from proponent.retraining.semivalues import Semivalue

Utility = Literal["classification", "regression"]
Divisor = Literal["k", "neighbours"]


class NearestMethod(NeighbourMethod):
    r"""Base of the methods whose model predicts the average label of the k nearest neighbours.

    Trained on a subset S it predicts

    .. math:: f(S) = \frac{1}{K(S)} \sum_{j \le \min(k, |S|)} y_{(j)}

    where K(S) is k or min(k, \|S\|), and the utility of S for a test instance is the predicted
    probability of its class, for which y is 1 where a neighbour has this label, else 0; or minus
    the squared error ``-(f(S) - y_te)^2``.

    Parameters
    ----------
    k : int
        Neighbours that count. It may exceed the number of training instances.
    utility : "classification" or "regression"
        The probability of the right class, or minus the squared error.
    divide_by : "k" or "neighbours"
        By what a sum over fewer than k neighbours is divided: k, as if those that lack predicted
        0; or the number of neighbours that are there, the soft-label classifier of the
        literature.
    empty : float, optional
        The prediction without a neighbour: the probability of the right class, or the target.
        None: 0, but for a classification that divides by the neighbours 1 over the number of
        classes in the training set.
    progress
        As in :class:`~proponent.retraining.neighbours.method.NeighbourMethod`.
    """

    k: int
    utility: Utility
    divide_by: Divisor
    empty: float | None
    _average: AverageForm
    _square: SquareForm | None  # None for a classification
    _reach: int  # how many neighbours of a test instance are looked at

    @abstractmethod
    def _semivalue(self) -> Semivalue:
        """Return which marginal contributions are averaged."""

    @abstractmethod
    def _neighbours_needed(self, n: int, k: int) -> int:
        """Return how many of the nearest have values that are not (or not taken as) 0."""

    def _classifies(self) -> bool:
        check_choice("utility", self.utility, get_args(Utility))
        return self.utility == "classification"

    def _prepare(self, n: int) -> None:
        k = as_count(self.k)
        check_choice("divide_by", self.divide_by, get_args(Divisor))
        soft, classifies = self.divide_by == "neighbours", self._classifies()
        empty = empty_or(1 / self._n_classes if soft and classifies else 0.0, self.empty)
        coalitions = Coalitions.of(self._semivalue(), n, k)
        self._average = AverageForm.of(coalitions, soft=soft, empty=empty)
        self._square = None if classifies else SquareForm.of(coalitions, soft=soft, empty=empty)
        self._reach = min(n, self._neighbours_needed(n, k))

    def _values(self, tests: Tests) -> Iterator[tuple[slice, Values]]:
        n = len(self._neighbours)
        room = np.zeros((0, n))
        for some, order in self._neighbours.orders(tests.features, self._reach):
            if len(room) < len(order):
                room = np.zeros((len(order), n))  # new memory costs more than to fill it
            values = room[: len(order)]
            if self._reach < n:
                values[:] = 0
            for row, at, found in zip(
                values, order, self._by_rank(order, tests.labels[some]), strict=True
            ):
                row[at] = found  # half of what np.put_along_axis takes
            yield some, values

    def _by_rank(self, order: Positions, labels: NDArray[Any]) -> Values:
        """Return the values of the nearest, nearest first."""
        nearest, wanted = self._trained.labels[order], labels[:, None]
        if self._square is None:
            return self._average.values((nearest == wanted).view(np.int8))
        # -(f - y)^2 = 2 y f - f^2 - y^2, and semivalues are linear in the utility.
        return 2 * wanted * self._average.values(nearest) - self._square.values(nearest)

    def _diagnostics(self, query: Tests | None) -> dict[str, Any]:
        return super()._diagnostics(query) | {"neighbours": self._reach}
