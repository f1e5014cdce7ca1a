"""Least squares and ridge regression as a learner: many subsets at once, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.gathered_rows import centred_rows, subsets_at_once
from proponent.models.learner import Counts, Fitted, Learner, Seeds, Values
from proponent.models.least_squares import least_squares
from proponent.models.predicting_trainer import PredictingTrainer
from proponent.models.prediction_risk import Regression, RegressionRisk, one_of, targets_of
from proponent.models.recipe import recipe_of

Penalty = Literal["sum", "mean"]

ENTRIES_AT_ONCE = 2**20  # values of (subset, test, output) that are held together


class LinearLearner(Learner):
    r"""Linear regression: least squares, with or without a squared penalty.

    With m instances in a subset, and an instance that is in a bootstrap sample twice counted
    twice, it minimises

    .. math::

        \sum_{i \in S} (y_i - w \cdot x_i - b)^2 + \alpha \|w\|^2 \quad (\text{penalty="sum"})
        \qquad
        \frac1m \sum_{i \in S} (y_i - w \cdot x_i - b)^2 + \alpha \|w\|^2
        \quad (\text{penalty="mean"})

    with the intercept b unpenalised. The first is scikit-learn's ``Ridge``, the second ``Ridge``
    with ``m alpha``: there the penalty weighs as much in every subset, so that leaving an
    instance out changes it too. With ``alpha=0`` both are ``LinearRegression``. Where a subset
    does not determine the coefficients, they are, as scikit-learn has them, the shortest that fit
    best; as in its version 1.9, a direction counts as undetermined when its singular value is
    below 1e-6 of the largest.

    **Cost** With p features and an intercept, ``n p^2 / 2`` multiplications a subset for its Gram
    matrix (one product of matrices for many subsets; for a subset that is small beside n,
    ``m p^2 / 2`` of its own), and ``p^3 / 6`` to factorise it. A subset with fewer instances than
    that takes ``m^3 / 6`` to factorise their inner products, and one whose features are nearly
    dependent a singular value decomposition, ``O(m p min(m, p))``. A submodel is p numbers an
    output.

    Parameters
    ----------
    alpha : float
        Strength of the penalty.
    fit_intercept : bool
        Whether there is an intercept.
    penalty : {"sum", "mean"}
        Whether the squared errors are summed, or averaged.
    risk : {"auto", "squared", "absolute"}
        As :func:`~proponent.models.prediction_risk.regression_risks` has them; ``"auto"`` is the
        squared error.

    Raises
    ------
    InvalidInputError
        When bound to a training set, if a hyperparameter is out of range or the set does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from proponent.data import Instances
    >>> from proponent.models.linear_learner import LinearLearner
    >>> train = Instances.of((np.array([[0.0], [1.0], [2.0]]), np.array([0.0, 1.0, 4.0])))
    >>> trainer = LinearLearner().bind(train)
    >>> masks = np.array([[True, True, True], [True, True, False]])
    >>> fitted = trainer.fit(masks, np.zeros(2, dtype=np.int64))
    >>> test = trainer.prepare(Instances.of((np.array([[3.0]]), np.array([5.0]))))
    >>> trainer.risks(fitted, test).round(6)
    array([[0.444444],
           [4.      ]])
    """

    def __init__(
        self,
        alpha: float = 0.0,
        *,
        fit_intercept: bool = True,
        penalty: Penalty = "sum",
        risk: Literal["auto"] | RegressionRisk = "auto",
    ) -> None:
        self.alpha = alpha
        self.fit_intercept = fit_intercept
        self.penalty = penalty
        self.risk = risk

    @override
    def bind(self, train: Instances) -> LinearTrainer:
        """Return the recipe with its training set."""
        number = isinstance(self.alpha, (int, float, np.number))
        if not number or isinstance(self.alpha, bool) or not 0 <= self.alpha < np.inf:
            raise InvalidInputError(
                f"alpha: expected a finite number that is not negative; got {self.alpha!r}."
            )
        one_of(self.penalty, get_args(Penalty), "penalty")
        targets = targets_of(train, "train")
        risk: Any = "squared" if self.risk == "auto" else self.risk
        judged = Regression.of(targets, risk)
        averaged = self.penalty == "mean"
        return LinearTrainer(
            train, judged, targets, float(self.alpha), bool(self.fit_intercept), averaged
        )

    @override
    def recipe(self) -> str:
        """Return the learner with all its hyperparameters."""
        return f"{type(self).__name__} {recipe_of(self.get_params(deep=False))}"


class LinearTrainer(PredictingTrainer):
    """A training set whose subsets are fitted together; made by :meth:`LinearLearner.bind`.

    The models are ``"coefficients"``, ``(K, outputs, d)``, and ``"intercepts"``,
    ``(K, outputs)``, of features from which the mean of the training set was subtracted where
    there is an intercept.

    Parameters
    ----------
    train, judged
        As in :class:`PredictingTrainer`.
    targets : ndarray of shape (n,) or (n, outputs)
        Of the training set.
    alpha, intercept
        As in :class:`LinearLearner`.
    averaged : bool
        Whether the squared errors are averaged.
    """

    def __init__(
        self,
        train: Instances,
        judged: Regression,
        targets: Values,
        alpha: float,
        intercept: bool,
        averaged: bool,
    ) -> None:
        super().__init__(train, judged)
        self._alpha, self._intercept, self._averaged = alpha, intercept, averaged
        self._flat = targets.ndim == 1
        self._responses = targets.reshape(self.n, -1)
        self._rows, self._mean = centred_rows(self.features, intercept)
        # The targets are centred for the sake of their digits, as the features are.
        outputs = self._responses.shape[1]
        self._level: Values = np.zeros(outputs)
        if intercept:
            self._level = np.asarray(self._responses.mean(axis=0))
        order = min(self.n, self._rows.width)
        self.at_once = subsets_at_once(self.n, 2 * order**2, outputs)

    @override
    def fit(self, counts: Counts, seeds: Seeds) -> Fitted:
        """Fit subsets of about the same size together."""
        sizes = np.count_nonzero(counts, axis=1)
        width, outputs = self._rows.matrix.shape[1], self._responses.shape[1]
        coefficients = np.empty((len(counts), outputs, width))
        order = np.argsort(sizes, kind="stable")
        failures: dict[int, str] = {}
        for first in range(0, len(order), self.at_once):
            some = order[first : first + self.at_once]
            members = counts[some].sum(axis=1, dtype=np.float64)
            ridge = self._alpha * (members if self._averaged else np.ones_like(members))
            found, failed = least_squares(
                self._rows, counts[some], self._responses - self._level, ridge
            )
            coefficients[some] = found
            reason = "the singular value decomposition of the subset's features did not converge"
            failures |= dict.fromkeys(some[failed].tolist(), reason)
        intercepts = np.broadcast_to(self._level, coefficients.shape[:2]).copy()
        if self._intercept:
            intercepts += coefficients[:, :, 0]
        kept = np.ascontiguousarray(coefficients[:, :, int(self._intercept) :])
        return Fitted({"coefficients": kept, "intercepts": intercepts}, len(counts), failures)

    @override
    def _inputs(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        return features - self._mean

    @override
    def _predictions(
        self, models: Mapping[str, NDArray[Any]], inputs: NDArray[np.float64]
    ) -> Iterator[tuple[slice, Values]]:
        coefficients, intercepts = models["coefficients"], models["intercepts"]
        flat = coefficients.reshape(-1, coefficients.shape[2])
        size = max(1, ENTRIES_AT_ONCE // len(flat))
        for start in range(0, len(inputs), size):
            some = inputs[start : start + size]
            values = (flat @ some.T).reshape(*intercepts.shape, len(some))
            values += intercepts[:, :, None]
            yield slice(start, start + size), self._shaped(values)

    def _shaped(self, values: Values) -> Values:
        """Return values ``(K, outputs, T)`` as ``(K, T)`` or ``(K, T, outputs)``."""
        return values[:, 0] if self._flat else values.transpose(0, 2, 1)
