"""The base of the trainers whose submodels are arrays, and predict many at once."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.data import Instances
from proponent.models.feature_matrix import feature_matrix
from proponent.models.learner import Empty, Fitted, Prepared, Trainer, Values
from proponent.models.prediction_risk import Classification, Regression

CONSTANT = "constant"  # the only array of what stands for a model without training instances


class PredictingTrainer(Trainer):
    """Base of trainers that predict for all submodels together, some tests at a time.

    The models of a :class:`Fitted` are arrays by name, with K on the first axis, or the single
    array ``"constant"``, a prediction for every test. A subclass implements ``fit`` and
    ``_predictions``.

    Parameters
    ----------
    train : Instances
        The training set.
    judged : Classification or Regression
        What turns labels into targets, and predictions into risks.

    Attributes
    ----------
    features : ndarray of shape (n, d)
        Of the training set.
    """

    seeded = False
    at_once = 256

    def __init__(self, train: Instances, judged: Classification | Regression) -> None:
        self.features = feature_matrix(train, "train")
        self.judged = judged
        self.output = judged.output
        self.n = len(train)
        # The columns of a test set are held against this.
        self._first = train.select(slice(0, 1))

    @abstractmethod
    def _predictions(
        self, models: Mapping[str, NDArray[Any]], inputs: Any
    ) -> Iterator[tuple[slice, Values]]:
        """Yield some of the tests at a time, and what the models predict, ``(K, some, ...)``."""

    def _inputs(self, features: NDArray[np.float64]) -> Any:
        """Return test instances as ``_predictions`` takes them."""
        return features

    @override
    def prepare(self, test: Instances, role: str = "test") -> Prepared:
        """Return test instances as ``risks`` and ``outputs`` take them."""
        features = feature_matrix(test, role, like=self._first)
        return Prepared(self._inputs(features), self.judged.targets(test, role), test.ids)

    @override
    def risks(self, fitted: Fitted, test: Prepared) -> Values:
        """Return the risk of each submodel on each test instance, ``(K, T)``; NaN: failed."""
        targets = self._targets(test)
        risks = np.empty((fitted.size, len(test)))
        for some, predicted in self._by_block(fitted, test):
            risks[:, some] = self.judged.risks(predicted, targets[some], test.ids[some])
        return risks

    @override
    def outputs(self, fitted: Fitted, test: Prepared) -> Values:
        """Return what each submodel predicts, ``(K, T, ...)``; NaN where it failed."""
        parts = [predicted for _, predicted in self._by_block(fitted, test)]
        return np.concatenate(parts, axis=1)

    @override
    def constant(self, kind: Empty) -> Fitted:
        """Return what stands for a model without a training instance, as one submodel."""
        return Fitted({CONSTANT: np.asarray(self.judged.constant(kind), np.float64)}, 1)

    @override
    def to_arrays(self, fitted: Fitted) -> dict[str, NDArray[Any]]:
        """Return the submodels as arrays."""
        return dict(fitted.models)

    @override
    def from_arrays(
        self, arrays: Mapping[str, NDArray[Any]], size: int, failures: Mapping[int, str]
    ) -> Fitted:
        """Return the submodels that ``to_arrays`` stored."""
        return Fitted(dict(arrays), size, dict(failures))

    def _by_block(self, fitted: Fitted, test: Prepared) -> Iterator[tuple[slice, Values]]:
        constant = fitted.models.get(CONSTANT)
        if constant is None:
            return self._predictions(fitted.models, test.inputs)
        everywhere = np.broadcast_to(constant, (1, len(test), *constant.shape))
        return iter([(slice(0, len(test)), everywhere.copy())])

    def _targets(self, test: Prepared) -> NDArray[Any]:
        targets = test.targets
        if targets is None:
            raise TypeError("The test set was not prepared by this trainer.")
        return targets
