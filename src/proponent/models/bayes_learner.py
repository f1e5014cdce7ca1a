"""Gaussian naive Bayes as a learner: its statistics are sums, so many subsets are one product."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import override

from proponent._content import as_numpy
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.class_gaussians import ClassGaussians, Gaussians
from proponent.models.learner import Counts, Fitted, Learner, Seeds, Values
from proponent.models.predicting_trainer import PredictingTrainer
from proponent.models.prediction_risk import (
    SMOOTHING,
    Classes,
    Classification,
    ClassificationRisk,
    labels_of,
)
from proponent.models.recipe import recipe_of

FLAT = (
    "a feature of a class does not vary in the subset; set var_smoothing to a positive number, "
    "such as 1e-9"
)
NO_PRIOR = "the priors of all classes in the subset are 0"

ENTRIES_AT_ONCE = 2**20  # probabilities of (subset, test, class) that are held together


class GaussianNaiveBayesLearner(Learner):
    r"""Classes with a Gaussian of its own for every feature.

    .. math:: p(c | x) \propto \pi_c \prod_j N(x_j; \mu_{cj}, \sigma^2_{cj} + \epsilon)

    with the frequencies, means and variances of the subset, and ``epsilon = var_smoothing`` times
    the largest variance of a feature over the subset. It predicts what scikit-learn's
    ``GaussianNB`` does that is fitted to the subset. A class that a subset lacks has probability
    0; where all members of a subset are the same point, so that there is no variance at all, the
    probabilities are the frequencies.

    **Cost** Adding and removing instances from sums: ``2 n d`` multiplications a subset, in
    products of matrices, and ``C d`` a test instance. A submodel takes ``2 C d`` numbers.

    Parameters
    ----------
    var_smoothing : float
        Portion of the largest variance that is added to all. With 0 a subset in which a feature of
        a class does not vary cannot be trained: it fails.
    priors : array-like of shape (C,), optional
        Probabilities of the classes, in the order of their sorted labels; None: their frequencies
        in the subset. A subset that lacks a class divides its share among the others.
    risk : {"cross_entropy", "zero_one", "brier"}
        As :func:`~proponent.models.prediction_risk.classification_risks` has them.
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
    >>> from proponent.models.bayes_learner import GaussianNaiveBayesLearner
    >>> X = np.array([[0.0], [1.0], [4.0], [5.0]])
    >>> trainer = GaussianNaiveBayesLearner().bind(Instances.of((X, [0, 0, 1, 1])))
    >>> fitted = trainer.fit(np.ones((1, 4), dtype=bool), np.zeros(1, dtype=np.int64))
    >>> test = trainer.prepare(Instances.of((np.array([[2.5]]), [0])))
    >>> trainer.outputs(fitted, test).round(6)
    array([[[0.5, 0.5]]])
    """

    def __init__(
        self,
        var_smoothing: float = 1e-9,
        *,
        priors: ArrayLike | None = None,
        risk: Literal["auto"] | ClassificationRisk = "auto",
        smoothing: float = SMOOTHING,
    ) -> None:
        self.var_smoothing = var_smoothing
        self.priors = priors
        self.risk = risk
        self.smoothing = smoothing

    @override
    def bind(self, train: Instances) -> BayesTrainer:
        """Return the recipe with its training set."""
        smoothing = self.var_smoothing
        if not isinstance(smoothing, (int, float, np.number)) or not 0 <= smoothing < np.inf:
            raise InvalidInputError(
                f"var_smoothing: expected a finite number that is not negative; got {smoothing!r}."
            )
        classes = Classes.of(labels_of(train, "train"))
        risk: Any = "cross_entropy" if self.risk == "auto" else self.risk
        judged = Classification(classes, risk, self.smoothing)
        return BayesTrainer(train, judged, float(smoothing), self._priors(len(classes)))

    @override
    def recipe(self) -> str:
        """Return the learner with all its hyperparameters."""
        return f"{type(self).__name__} {recipe_of(self.get_params(deep=False))}"

    def _priors(self, n_classes: int) -> NDArray[np.float64] | None:
        if self.priors is None:
            return None
        priors = as_numpy(self.priors)
        if priors.shape != (n_classes,) or priors.dtype.kind not in "iuf":
            raise InvalidInputError(
                f"priors: expected {n_classes} numbers, one for each class of the training set; "
                f"got {self.priors!r}."
            )
        if not (priors >= 0).all() or not np.isclose(priors.sum(), 1):
            raise InvalidInputError(
                f"priors: expected probabilities that sum to 1; got {self.priors!r}."
            )
        return priors.astype(np.float64)


class BayesTrainer(PredictingTrainer):
    """A training set whose subsets are summed up, class by class.

    Parameters
    ----------
    train, judged
        As in :class:`PredictingTrainer`.
    var_smoothing, priors
        As in :class:`GaussianNaiveBayesLearner`.
    """

    def __init__(
        self,
        train: Instances,
        judged: Classification,
        var_smoothing: float,
        priors: NDArray[np.float64] | None,
    ) -> None:
        super().__init__(train, judged)
        self._gaussians = ClassGaussians(self.features, judged.targets(train, "train"))
        self._var_smoothing = var_smoothing
        self._priors = priors

    @override
    def fit(self, counts: Counts, seeds: Seeds) -> Fitted:
        """Sum up each subset."""
        found = self._gaussians.of(counts, self._var_smoothing, self._priors)
        counted = found.priors > 0
        found.variances[~counted] = 1
        flat = (found.variances == 0).any(axis=(1, 2))
        found.variances[flat] = np.nan
        failures = dict.fromkeys(np.flatnonzero(flat).tolist(), FLAT)
        failures |= dict.fromkeys(np.flatnonzero(~counted.any(axis=1)).tolist(), NO_PRIOR)
        models = {
            "priors": found.priors,
            "shifts": found.shifts,
            "variances": found.variances,
        }
        return Fitted(models, len(counts), failures)

    @override
    def _predictions(
        self, models: Mapping[str, NDArray[Any]], inputs: NDArray[np.float64]
    ) -> Iterator[tuple[slice, Values]]:
        gaussians = Gaussians(models["priors"], models["shifts"], models["variances"])
        size = max(1, ENTRIES_AT_ONCE // gaussians.priors.size)
        for start in range(0, len(inputs), size):
            some = slice(start, start + size)
            yield some, self._probabilities(gaussians, inputs[some])

    def _probabilities(self, gaussians: Gaussians, tests: NDArray[np.float64]) -> Values:
        """Return the probabilities of the classes, ``(K, T, C)``; NaN for a failed submodel."""
        joint = self._gaussians.log_densities(gaussians, tests)
        with np.errstate(divide="ignore", invalid="ignore"):
            joint += np.log(gaussians.priors)[:, None]
            joint -= joint.max(axis=2, keepdims=True)  # exp cannot overflow
        np.exp(joint, out=joint)
        joint /= joint.sum(axis=2, keepdims=True)
        return joint
