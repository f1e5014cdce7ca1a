"""Logistic regression as a learner: many subsets at once, by Newton's method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.gathered_rows import (
    centred_rows,
    gather,
    principal_rows,
    subsets_at_once,
)
from proponent.models.learner import Counts, Fitted, Learner, Seeds, Values
from proponent.models.logistic_directions import LARGEST_FACTORISED
from proponent.models.logistic_losses import BinaryLoss, Loss, SoftmaxLoss
from proponent.models.logistic_newton import Solution, newton
from proponent.models.predicting_trainer import PredictingTrainer
from proponent.models.prediction_risk import (
    SMOOTHING,
    Classes,
    Classification,
    ClassificationRisk,
    labels_of,
)
from proponent.models.recipe import recipe_of

ENTRIES_AT_ONCE = 2**20  # probabilities of (subset, test, class) that are held together


class LogisticLearner(Learner):
    r"""Logistic regression with a squared penalty, binary or multinomial.

    .. math:: \min_{W, b} \; C \sum_{i \in S} -\log p_{W, b}(y_i | x_i) + \tfrac12 \|W\|^2

    with the intercepts b unpenalised. It is what scikit-learn's ``LogisticRegression`` with its
    default penalty minimises, at its minimum: of two classes in a subset W is the difference of
    their coefficients, of more it has a row for each, and p is the softmax. A subset is fitted to
    the classes that it has; the others have probability 0, and where it has only one, that one
    has probability 1. An instance that is in a bootstrap sample twice counts twice.

    **Differs from scikit-learn in** the precision: its default tolerance (``1e-4``) stops short of
    the minimum; with ``solver="newton-cholesky"`` and ``tol=1e-12`` it arrives at the same
    coefficients to about 1e-10.

    **Cost** 4 to 7 Newton steps, more where C is large. With p features and an intercept, and q
    one less than the classes, a step takes ``n q^2 p^2 / 2`` multiplications for the Hessian and
    ``(q p)^3 / 6`` for its factor, or where ``q p > 64`` some 5 to 50 times ``4 n q p`` for
    conjugate gradients; of subsets that are small beside n or p, their size stands for n, and for
    p. A submodel is ``C p`` numbers (p where there are two classes), and takes as many
    multiplications a test instance.

    Parameters
    ----------
    C : float
        Inverse of the strength of the penalty; the sum of the losses is multiplied by it.
    fit_intercept : bool
        Whether there are intercepts.
    max_iter : int
        Newton steps at most. A subset that has not converged by then fails: it is counted, and
        its risks are NaN.
    tol : float
        Error of the coefficients (as the quadratic convergence estimates it) that is left at
        most, relative to the largest coefficient, at least 1.
    risk : {"auto", "cross_entropy", "zero_one", "brier"}
        As :func:`~proponent.models.prediction_risk.classification_risks` has them; ``"auto"`` is
        the cross-entropy.
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
    >>> from proponent.models.logistic_learner import LogisticLearner
    >>> X = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> trainer = LogisticLearner().bind(Instances.of((X, ["a", "a", "b", "b"])))
    >>> masks = np.array([[True, True, True, True], [True, False, False, True]])
    >>> fitted = trainer.fit(masks, np.zeros(2, dtype=np.int64))
    >>> test = trainer.prepare(Instances.of((np.array([[1.5]]), ["a"])))
    >>> trainer.outputs(fitted, test).round(6)
    array([[[0.5, 0.5]],
    <BLANKLINE>
           [[0.5, 0.5]]])
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        fit_intercept: bool = True,
        max_iter: int = 100,
        tol: float = 1e-10,
        risk: Literal["auto"] | ClassificationRisk = "auto",
        smoothing: float = SMOOTHING,
    ) -> None:
        self.C = C
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.risk = risk
        self.smoothing = smoothing

    @override
    def bind(self, train: Instances) -> LogisticTrainer:
        """Return the recipe with its training set."""
        strength = _positive(
            self.C,
            "C",
            "without a penalty, subsets whose classes a plane separates have no minimum",
        )
        tol = _positive(self.tol, "tol", "1e-10 leaves no error that counts")
        classes = Classes.of(labels_of(train, "train"))
        if len(classes) < 2:
            only = classes.names.tolist()[0]
            raise InvalidInputError(
                f"train: a classifier needs two classes; all labels are {only!r}."
            )
        risk: Any = "cross_entropy" if self.risk == "auto" else self.risk
        return LogisticTrainer(
            train,
            Classification(classes, risk, self.smoothing),
            1.0 / strength,
            bool(self.fit_intercept),
            as_count(self.max_iter, "max_iter"),
            tol,
        )

    @override
    def recipe(self) -> str:
        """Return the learner with all its hyperparameters."""
        return f"{type(self).__name__} {recipe_of(self.get_params(deep=False))}"


class LogisticTrainer(PredictingTrainer):
    """A training set whose subsets are fitted together; made by :meth:`LogisticLearner.bind`.

    The models are ``"coefficients"``, ``(K, C, d)``, and ``"intercepts"``, ``(K, C)``, of
    features from which the mean of the training set was subtracted where there are intercepts;
    where the set has two classes, ``(K, 1, d)`` and ``(K, 1)``, the second's. The intercept of a
    class that a subset lacks is minus infinity.

    Parameters
    ----------
    train, judged
        As in :class:`PredictingTrainer`.
    ridge : float
        The penalty's factor, 1 / C.
    intercept, max_iter, tol
        As in :class:`LogisticLearner`.
    """

    def __init__(
        self,
        train: Instances,
        judged: Classification,
        ridge: float,
        intercept: bool,
        max_iter: int,
        tol: float,
    ) -> None:
        super().__init__(train, judged)
        self._n_classes = len(judged.classes)
        self._codes = judged.targets(train, "train")
        self._marks = np.eye(self._n_classes, dtype=np.float32)[self._codes]
        self._intercept, self._ridge = intercept, ridge
        self._max_iter, self._tol = max_iter, tol
        self._rows, self._mean = centred_rows(self.features, intercept)
        self._basis: Values | None = None
        if not self._factorises(self._n_classes, self._rows.width):
            # Conjugate gradients need fewer steps where the features are not correlated.
            self._rows, self._basis = principal_rows(self._rows)
        width = self._rows.width
        self.at_once = self._width(self._n_classes)
        # Where to begin: the model of the whole set, class by class.
        self._start = np.zeros((self._n_classes, width))
        everyone = np.arange(self._n_classes)[None]
        whole = self._solve(np.ones((1, self.n), np.bool_), everyone)
        if whole.converged[0]:
            self._start[1:] = whole.coefficients[:, :, 0]

    def _factorises(self, number: int, features: int) -> bool:
        """Whether the Hessians of models of some classes and features are factorised."""
        return (number - 1) * features <= LARGEST_FACTORISED

    def _width(self, number: int) -> int:
        """Return how many models of some classes to fit together."""
        factorised = self._factorises(number, self._rows.width)
        order = (number - 1) * self._rows.width if factorised else 0
        # A matrix of float32, and what it is made from.
        return subsets_at_once(self.n, order**2, number)

    @override
    def fit(self, counts: Counts, seeds: Seeds) -> Fitted:
        """Fit subsets with as many classes, and of about the same size, together."""
        members = np.asarray(counts != 0)
        present = (members.astype(np.float32) @ self._marks) > 0
        numbers, sizes = present.sum(axis=1), members.sum(axis=1)
        coefficients = np.zeros((len(counts), self._n_classes, self._rows.width))
        # 0 for a class that is there, and where it is missing no chance at all.
        absent = np.where(present, 0.0, -np.inf)
        failures: dict[int, str] = {}
        for number in range(2, self._n_classes + 1):
            order = np.flatnonzero(numbers == number)
            order = order[np.argsort(sizes[order], kind="stable")]
            if not len(order):
                continue
            # Parts of about the same number: of a few subsets, each takes longer.
            for some in np.array_split(order, -(-len(order) // self._width(number))):
                classes = np.nonzero(present[some])[1].reshape(-1, number)
                solution = self._solve(counts[some], classes)
                found = np.zeros((len(some), number, coefficients.shape[2]))
                found[:, 1:] = solution.coefficients.transpose(2, 0, 1)
                found -= found.mean(axis=1, keepdims=True)
                coefficients[some[:, None], classes] = found
                failed = some[~solution.converged]
                coefficients[failed] = np.nan
                failures |= dict.fromkeys(failed.tolist(), self._reason())
        return Fitted(self._models(coefficients, absent), len(counts), failures)

    def _solve(self, counts: Counts, classes: NDArray[np.intp]) -> Solution:
        """Fit subsets with as many classes: which ones, ``(K, q)``."""
        number = classes.shape[1]
        # The space of a subset's rows has no more dimensions than there are rows.
        most = int(np.count_nonzero(counts, axis=1).max()) + self._intercept
        grams = self._factorises(number, min(most, self._rows.width))
        gathered = gather(self._rows, counts, rotate=True, grams=grams)
        codes = gathered.entries(self._codes)
        if number < self._n_classes:
            ranks = np.zeros((len(counts), self._n_classes), np.intp)
            np.put_along_axis(ranks, classes, np.arange(number)[None], axis=1)
            codes = ranks[np.arange(len(counts)), codes]
        loss: Loss
        if number == 2:
            loss = BinaryLoss(gathered.counts, codes)
        else:
            loss = SoftmaxLoss(gathered.counts, codes, number)
        # From smaller coefficients full steps overshoot less often, the more so the less a subset
        # has in common with the whole set.
        share = np.count_nonzero(counts, axis=1) / self.n
        start = self._start[classes].transpose(1, 2, 0) * share
        start = gathered.rows.project(np.ascontiguousarray(start[1:] - start[:1]))
        ridge = np.full(start.shape[1], self._ridge)
        ridge[: int(self._intercept)] = 0.0
        found = newton(gathered.rows, loss, ridge, start, max_iter=self._max_iter, tol=self._tol)
        return Solution(gathered.rows.lift(found.coefficients), found.converged)

    def _reason(self) -> str:
        return (
            f"logistic regression did not converge to tol={self._tol:g} in {self._max_iter} steps "
            f"of Newton's method; raise max_iter, lower C, or standardise the features"
        )

    def _models(self, coefficients: Values, absent: Values) -> dict[str, NDArray[Any]]:
        if self._n_classes == 2:
            coefficients = coefficients[:, 1:] - coefficients[:, :1]
            absent = absent[:, 1:] - absent[:, :1]
        if self._basis is not None:
            coefficients = coefficients @ self._basis.T
        first = int(self._intercept)
        intercepts = coefficients[:, :, 0] if self._intercept else np.zeros_like(absent)
        return {
            "coefficients": np.ascontiguousarray(coefficients[:, :, first:]),
            "intercepts": intercepts + absent,
        }

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
            logits = (flat @ some.T).reshape(*intercepts.shape, len(some))
            logits += intercepts[:, :, None]
            yield slice(start, start + size), _softmax(logits).transpose(0, 2, 1)


def _softmax(logits: Values) -> Values:
    """Return the probabilities of the classes, ``(K, C, T)``; of one logit, of two classes."""
    if logits.shape[1] == 1:
        with np.errstate(over="ignore"):
            return np.asarray(1.0 / (1.0 + np.exp(np.concatenate([logits, -logits], axis=1))))
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def _positive(value: Any, name: str, why: str) -> float:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not 0 < value < np.inf:
        raise InvalidInputError(
            f"{name}: expected a positive, finite number ({why}); got {value!r}."
        )
    return float(value)
