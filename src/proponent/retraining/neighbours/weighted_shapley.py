"""The Shapley value, and every other semivalue, of k nearest neighbours with weighted votes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.retraining.checks import check_choice
from proponent.retraining.neighbours.method import NEEDS, NeighbourMethod, Tests, Values, empty_or
from proponent.retraining.neighbours.weighted import Vote, WeightedForm
from proponent.retraining.semivalues import Semivalue, semivalue_of

Weight = Callable[[NDArray[np.float64]], NDArray[np.float64]]
Decision = Literal["share", "majority"]


def _cost(**_: Any) -> float:
    return 0.0


class WeightedKNNShapley(NeighbourMethod):
    r"""The Shapley value of training instances as players in weighted k nearest neighbours.

    ``I(z_i, z_te) = E[v(S + i) - v(S)]``, where v(S) is decided by the k nearest members of S,
    who vote with weights, and S a coalition of the others: uniform by size, and among those of
    its size, for the Shapley value. With w_j the weight of neighbour j, and c_j = 1 where it has
    the label of the test instance and else 0,

    .. math:: v(S) = \frac{\sum_j w_j c_j}{\sum_j w_j} \quad \text{or} \quad
        v(S) = \mathbf{1}\Big[\sum_j w_j c_j \ge \frac{1}{2} \sum_j w_j\Big].

    Weights are rounded to multiples of the largest over ``levels``, for each test instance, and
    for these the values are exact.

    **Source** Wang et al., "Efficient data Shapley for weighted nearest neighbor algorithms",
    AISTATS 2024 (WKNN-Shapley), for the majority; Jia et al., PVLDB 2019, for the share, which
    they compute in O(n^k). Not in the survey.

    **Differs from the paper in** the algorithm: the subsets that it counts for each training
    instance anew are counted once for all, in O(n) and not O(n^2). With more than two classes
    the majority is one against the rest. Other semivalues, and the share, are covered too.

    Scores are ``(n_test, n_train)``, in units of the probability of the right class, or of being
    right; Shapley values of a test instance sum up to v(N) - v(empty). Scores of several test
    instances sum up (the paper takes the mean).

    **Cost** No training. For a test instance O(n k^2 levels^2) for the majority, O(n k^3
    levels^3) for the share. Memorization takes n test instances.

    Parameters
    ----------
    k : int
        Neighbours that vote; 25 at most. It may exceed the number of training instances.
    vote : "share" or "majority"
        Whether the utility is the share of the weight that is right, or whether at least half of
        it is.
    weight : "inverse" or callable
        1 over the distance (only instances at distance 0 count where there are any), or a
        function of distances, an array, to weights, an array of this shape, not negative.
    levels : int
        Steps of the weights, from 0 to the largest.
    semivalue
        As in :class:`~proponent.retraining.neighbours.shapley.KNNShapley`.
    empty : float, optional
        v of the empty set, and of one without any weight if the share counts. None: 1 over the
        number of classes in the training set for the share, 1 for the majority (as in Wang et
        al.).
    progress
        As in :class:`~proponent.retraining.neighbours.method.NeighbourMethod`.

    Examples
    --------
    >>> import numpy as np, proponent as pp
    >>> X, y = np.array([[1.0], [2.0], [4.0]]), np.array([1, 0, 1])
    >>> method = pp.WeightedKNNShapley(k=1).fit((X, y))
    >>> method.influence((np.zeros((1, 1)), [1])).values.round(3)
    array([[ 0.667, -0.333,  0.167]])
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="WeightedKNNShapley",
        title="Weighted k-Nearest-Neighbors Shapley",
        aliases=("WKNN-Shapley",),
        family="retraining",
        paper="Wang et al., AISTATS 2024",
        needs=NEEDS,
        full_complexity="O(n log n + n k^2 w^2), w levels of the weights",
        incremental_complexity="O(n log n + n k^2 w^2), w levels of the weights",
        space_complexity="O(n w)",
        storage_complexity="0",
        original_sign="the same",
        cost=_cost,
    )

    _form: WeightedForm

    def __init__(
        self,
        k: int = 5,
        *,
        vote: Decision = "share",
        weight: Literal["inverse"] | Weight = "inverse",
        levels: int = 8,
        semivalue: str | Semivalue | ArrayLike = "shapley",
        empty: float | None = None,
        progress: bool | None = None,
    ) -> None:
        self.k = k
        self.vote = vote
        self.weight = weight
        self.levels = levels
        self.semivalue = semivalue
        self.empty = empty
        self.progress = progress

    def _prepare(self, n: int) -> None:
        k, levels = as_count(self.k), as_count(self.levels, "levels")
        check_choice("vote", self.vote, get_args(Decision))
        if self.weight != "inverse" and not callable(self.weight):
            raise InvalidInputError(
                f"weight must be 'inverse' or a function of distances; got {self.weight!r}."
            )
        if self.vote == "share":
            vote = Vote.share(k, levels, empty_or(1 / self._n_classes, self.empty))
        else:
            vote = Vote.majority(k, levels, empty_or(1.0, self.empty))
        self._form = WeightedForm.of(semivalue_of(self.semivalue), n, k, vote)

    def _values(self, tests: Tests) -> Iterator[tuple[slice, Values]]:
        n = len(self._neighbours)
        for row, (test, label) in enumerate(zip(*tests, strict=True)):
            squares = self._neighbours.squared_distances(slice(None), test)
            order = np.argsort(squares, kind="stable")
            weights = self._weights(np.sqrt(squares[order]))
            right = self._trained.labels[order] == label
            votes = self.levels + np.where(right, weights, -weights)
            values = np.empty((1, n))
            values[0, order] = self._form.values(votes)
            yield slice(row, row + 1), values

    def _weights(self, distances: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return weights from 0 to ``levels`` by distances, nearest first."""
        if callable(self.weight):
            weights = np.asarray(self.weight(distances), dtype=np.float64)
            if weights.shape != distances.shape:
                raise InvalidInputError(
                    f"weight: for distances of shape {distances.shape} it returned "
                    f"{weights.shape}; a weight for each is needed."
                )
        elif distances[0] == 0:
            weights = (distances == 0).astype(np.float64)
        else:
            weights = distances[0] / distances
        largest = weights.max()
        if not (0 < largest < np.inf and weights.min() >= 0):
            raise InvalidInputError(
                "weight: weights must be finite and not negative, and some of them positive; got "
                f"numbers from {weights.min()} to {largest}."
            )
        rounded: NDArray[np.int64] = np.rint(weights * (self.levels / largest)).astype(np.int64)
        return rounded
