"""k nearest neighbours as a learner: no subset is trained, all are read off one order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.data import Instances
from proponent.models.learner import Counts, Fitted, Learner, Seeds, Values
from proponent.models.nearest_points import Neighbours
from proponent.models.neighbour_votes import Orders, blocks_of_tests, neighbour_means, orders_of
from proponent.models.predicting_trainer import PredictingTrainer
from proponent.models.prediction_risk import (
    SMOOTHING,
    Classes,
    Classification,
    ClassificationRisk,
    Regression,
    RegressionRisk,
    labels_of,
    one_of,
    targets_of,
)
from proponent.models.recipe import recipe_of

Task = Literal["classification", "regression"]

# Orders of a test set up to this size are kept; beyond it they are found again for each call.
KEPT_BYTES = 2**28


class NearestNeighboursLearner(Learner):
    r"""The k nearest neighbours of a test instance, which all count alike.

    A classifier's probability of a class is its share among the k nearest members of the subset,
    a regressor predicts the mean of their targets. Distances are Euclidean, and of two instances
    at the same distance the one that stands first is the nearer, as in the neighbours' methods.
    It predicts what scikit-learn's ``KNeighborsClassifier`` and ``KNeighborsRegressor`` do with
    uniform weights, but for ties, which these break in no fixed way.

    **Differs from scikit-learn in** subsets of fewer than k instances, which it refuses: here all
    that are there count, and are divided by their number. An instance that is in a bootstrap
    sample twice is two neighbours.

    **Cost** Nothing to train. The training set is put in order once for each test instance,
    ``O(n d + n log n)``; a subset of m members then takes about ``k n / m`` steps a test instance.
    A submodel is its row of the masks.

    Parameters
    ----------
    k : int
        Neighbours that count.
    task : {"classification", "regression"}
        What the labels are.
    risk : str
        ``"auto"`` is ``"cross_entropy"`` for a classification (or ``"zero_one"``, ``"brier"``)
        and ``"squared"`` for a regression (or ``"absolute"``).
    smoothing : float
        Of the cross-entropy: ``-log((1 - smoothing) p_y + smoothing / C)``.

    Raises
    ------
    InvalidInputError
        When bound to a training set, if a hyperparameter is out of range or the set does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from proponent.data import Instances
    >>> from proponent.models.nearest_learner import NearestNeighboursLearner
    >>> train = Instances.of((np.arange(5.0)[:, None], ["a", "b", "a", "a", "b"]))
    >>> trainer = NearestNeighboursLearner(k=2).bind(train)
    >>> masks = np.array([[True, True, True, True, True], [False, False, False, True, True]])
    >>> fitted = trainer.fit(masks, np.zeros(2, dtype=np.int64))
    >>> test = trainer.prepare(Instances.of((np.zeros((1, 1)), ["a"])))
    >>> trainer.outputs(fitted, test)[:, 0]
    array([[0.5, 0.5],
           [0.5, 0.5]])
    """

    def __init__(
        self,
        k: int = 5,
        *,
        task: Task = "classification",
        risk: Literal["auto"] | ClassificationRisk | RegressionRisk = "auto",
        smoothing: float = SMOOTHING,
    ) -> None:
        self.k = k
        self.task = task
        self.risk = risk
        self.smoothing = smoothing

    @override
    def bind(self, train: Instances) -> NearestTrainer:
        """Return the recipe with its training set."""
        k = as_count(self.k, "k")
        one_of(self.task, get_args(Task), "task")
        risk: Any = self.risk
        if self.task == "regression":
            targets = targets_of(train, "train")
            chosen = Regression.of(targets, "squared" if risk == "auto" else risk)
            return NearestTrainer(train, chosen, targets.reshape(len(targets), -1), k)
        classes = Classes.of(labels_of(train, "train"))
        judged = Classification(
            classes, "cross_entropy" if risk == "auto" else risk, self.smoothing
        )
        # Votes are small whole numbers, so that single precision is exact.
        marks = np.eye(len(classes), dtype=np.float32)[judged.targets(train, "train")]
        return NearestTrainer(train, judged, marks, k)

    @override
    def recipe(self) -> str:
        """Return the learner with all its hyperparameters."""
        return f"{type(self).__name__} {recipe_of(self.get_params(deep=False))}"


class Seen(NamedTuple):
    """Test instances as neighbours see them."""

    features: NDArray[np.float64]  # (T, d)
    orders: Orders | None  # (T, n); None where they would take too much memory


class NearestTrainer(PredictingTrainer):
    """A training set whose subsets vote.

    Parameters
    ----------
    train, judged
        As in :class:`PredictingTrainer`.
    marks : ndarray of shape (n, V)
        What is averaged over the neighbours: one-hot labels, or targets.
    k : int
        Neighbours that count.
    """

    def __init__(
        self,
        train: Instances,
        judged: Classification | Regression,
        marks: NDArray[Any],
        k: int,
    ) -> None:
        super().__init__(train, judged)
        self.marks = marks
        self.k = k
        self._points = Neighbours(self.features)

    @override
    def fit(self, counts: Counts, seeds: Seeds) -> Fitted:
        """Return the subsets: they are the models."""
        return Fitted({"counts": np.array(counts)}, len(counts))

    @override
    def _inputs(self, features: NDArray[np.float64]) -> Seen:
        small = len(features) * self.n * np.dtype(np.int32).itemsize <= KEPT_BYTES
        return Seen(features, orders_of(self._points, features) if small else None)

    @override
    def _predictions(
        self, models: Mapping[str, NDArray[Any]], inputs: Seen
    ) -> Iterator[tuple[slice, Values]]:
        counts, orders = models["counts"], inputs.orders
        flat = isinstance(self.judged, Regression) and self.judged.mean.ndim == 0
        for some in blocks_of_tests(len(inputs.features), self.n, len(counts)):
            if orders is None:
                near = orders_of(self._points, inputs.features[some])
            else:
                near = orders[some]
            means = neighbour_means(near, counts, self.marks, self.k)
            yield some, means[:, :, 0] if flat else means
