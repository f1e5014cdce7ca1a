"""Any scikit-learn estimator or pipeline, and what has the same interface, as a learner."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.learner import (
    Counts,
    Empty,
    Fitted,
    Learner,
    Output,
    Prepared,
    SerialTrainer,
)
from proponent.models.prediction_risk import (
    SMOOTHING,
    Classes,
    Classification,
    ClassificationRisk,
    Regression,
    RegressionRisk,
    Values,
    check_smoothing,
    labels_of,
    one_of,
    targets_of,
)
from proponent.models.recipe import recipe_of
from proponent.models.rows import check_features, same_kind, take_rows
from proponent.models.sklearn_template import Template

Risk = Literal["auto"] | ClassificationRisk | RegressionRisk
MissingClasses = Literal["train_anyway", "prior", "hold_empty"]


class SklearnLearner(Learner):
    """Trains clones of a scikit-learn estimator on subsets.

    Anything with scikit-learn's interface will do: classifiers, regressors, pipelines, searches,
    and the estimators of XGBoost, LightGBM and CatBoost. A data frame stays one, so that
    pipelines find columns by name and see categorical types.

    - Every parameter that ends in ``random_state``, those of nested estimators too, is set to the
      seed (modulo 2^31 - 1), whatever it was set to; ``n_jobs`` and its like stand for one thread.
    - Labels may be text, whole numbers or booleans. A subset's classes are handed to the estimator
      as 0, 1, ..., as XGBoost needs them, and what it predicts is mapped back; the labels stay
      as they are where a parameter may name them (``class_weight={...}``, ``scoring=...``).
    - An instance that a bootstrap holds twice is two rows.
    - What a fit warns of is counted, not printed (``SklearnTrainer.warnings_of``).

    Parameters
    ----------
    estimator : estimator
        Fitted or not: only its parameters count.
    risk : {"auto", "cross_entropy", "zero_one", "brier", "squared", "absolute"}
        Of a classifier one of the first three, of a regressor one of the last two, as
        :mod:`proponent.models.prediction_risk` defines them. ``"auto"`` is the squared error of
        a regressor, the cross-entropy of a classifier that has ``predict_proba``, and
        ``"zero_one"`` of one that has not (``LinearSVC``, ``RidgeClassifier``, ``SVC``), whose
        outputs are then probability 1 for the class it predicts.
    smoothing : float
        Share of the uniform distribution that is mixed into probabilities for the cross-entropy.
        A tree, or a subset without the class, gives probability 0, whose cost this bounds: at
        most ``log(C / smoothing)``.
    missing_classes : {"train_anyway", "prior", "hold_empty"}
        What a classifier makes of a subset in which a class of the training set is missing.
        ``"train_anyway"``: it is trained on the classes there are, and the others have
        probability 0; of a single class, that class has probability 1 without a call of the
        estimator. ``"prior"``: the frequencies of the classes in the whole training set, with
        one more of each. ``"hold_empty"``: what the empty set is worth, until every class is in
        (Ghorbani and Zou 2019).

    Examples
    --------
    >>> import numpy as np
    >>> from proponent.data import Instances
    >>> from sklearn.tree import DecisionTreeClassifier
    >>> train = Instances.of((np.array([[0.0], [1.0], [4.0]]), np.array(["no", "no", "yes"])))
    >>> trainer = SklearnLearner(DecisionTreeClassifier(), risk="zero_one").bind(train)
    >>> masks, seeds = np.array([[True, True, False], [True, False, True]]), np.arange(2)
    >>> trainer.risks(trainer.fit(masks, seeds), trainer.prepare(train))
    array([[0., 0., 1.],
           [0., 0., 0.]])
    """

    def __init__(
        self,
        estimator: Any,
        *,
        risk: Risk = "auto",
        smoothing: float = SMOOTHING,
        missing_classes: MissingClasses = "train_anyway",
    ) -> None:
        self.estimator = estimator
        self.risk = risk
        self.smoothing = smoothing
        self.missing_classes = missing_classes

    def bind(self, train: Instances) -> SklearnTrainer:
        """Return a trainer of clones of the estimator.

        Raises
        ------
        InvalidInputError
            If the estimator cannot be cloned or is neither classifier nor regressor, a setting
            does not go with it, or the set is not made of (X, y) pairs with fitting labels.
        NonFiniteError
            If a target of a regression is NaN or infinite.
        """
        one_of(self.missing_classes, get_args(MissingClasses), "missing_classes")
        check_smoothing(self.smoothing)
        template = Template.of(self.estimator)
        risk = self._risk_of(template)
        features = train.features("train")
        labels = labels_of(train, "train")
        labels = labels[:, 0] if labels.shape[1:] == (1,) else labels
        if template.kind == "classifier":
            classes = Classes.of(labels)
            task = Classification(classes, cast(ClassificationRisk, risk), self.smoothing)
            codes = classes.positions(labels, "train")
            return SklearnTrainer(template, task, features, labels, codes, self.missing_classes)
        targets = targets_of(train, "train")
        regression = Regression.of(targets, cast(RegressionRisk, risk))
        given = targets if labels.dtype.kind == "O" else labels
        return SklearnTrainer(template, regression, features, given, None, self.missing_classes)

    def recipe(self) -> str:
        """Return the settings and what clones are made from."""
        settings = f"{self.risk}, {self.smoothing!r}, {self.missing_classes}"
        return f"SklearnLearner({settings}, {recipe_of(Template.of(self.estimator).estimator)})"

    def _risk_of(self, template: Template) -> str:
        if template.kind == "regressor":
            one_of(self.risk, ("auto", *get_args(RegressionRisk)), "risk of a regressor")
            return "squared" if self.risk == "auto" else self.risk
        one_of(self.risk, ("auto", *get_args(ClassificationRisk)), "risk of a classifier")
        if template.probabilistic:
            return "cross_entropy" if self.risk == "auto" else self.risk
        if self.risk in ("auto", "zero_one"):
            return "zero_one"
        raise InvalidInputError(
            f"risk: {self.risk!r} needs probabilities, which {type(self.estimator).__name__} does "
            f"not predict; choose risk='zero_one', or wrap it in CalibratedClassifierCV."
        )


@dataclass(frozen=True)
class Submodel:
    """One fitted estimator, or a constant.

    Attributes
    ----------
    estimator : object
        The fitted estimator; None: a constant.
    columns : ndarray of shape (k,)
        Of a classifier: the position of each of its classes among all of the training set's.
    constant : ndarray of shape (C,), (outputs,) or (), optional
        What is predicted for every instance.
    warned : tuple of str
        The categories of what the fit warned of.
    """

    estimator: Any
    columns: NDArray[np.intp] | None = None
    constant: Values | None = None
    warned: tuple[str, ...] = ()


class SklearnTrainer(SerialTrainer):
    """Trains clones of an estimator; made by :meth:`SklearnLearner.bind`.

    Parameters
    ----------
    template : Template
        What is cloned.
    task : Classification or Regression
        Judges predictions.
    features : ndarray or DataFrame, n rows
    labels : ndarray of shape (n,) or (n, outputs)
        As the user gave them.
    codes : ndarray of shape (n,), optional
        Positions of the classes; None: a regression.
    missing_classes : {"train_anyway", "prior", "hold_empty"}
    """

    def __init__(
        self,
        template: Template,
        task: Classification | Regression,
        features: Any,
        labels: NDArray[Any],
        codes: NDArray[np.intp] | None,
        missing_classes: MissingClasses,
    ) -> None:
        self.n = len(labels)
        self.seeded = template.seeded
        self.output: Output = task.output
        self.task = task
        self._template = template
        self._features = features
        self._labels = labels
        self._codes = codes
        self._missing_classes = missing_classes
        self._warned = False

    def fit_one(self, positions: NDArray[np.intp], seed: int) -> Submodel:
        """Train a clone, or say what is constant where classes are missing."""
        if self._codes is None or not isinstance(self.task, Classification):
            estimator, warned = self._fitted(positions, self._labels[positions], seed)
            return Submodel(estimator, warned=warned)
        classes, codes = self.task.classes, self._codes[positions]
        present = np.flatnonzero(np.bincount(codes, minlength=len(classes)))
        if len(present) < len(classes) and self._missing_classes != "train_anyway":
            return Submodel(None, constant=classes.prior)
        if len(present) == 1:
            return Submodel(None, constant=classes.only(int(present[0])))
        if self._template.names_labels:
            estimator, warned = self._fitted(positions, self._labels[positions], seed)
            known = getattr(estimator, "classes_", None)
            columns = present if known is None else classes.positions(np.asarray(known), "train")
        else:
            encoded = codes if len(present) == len(classes) else np.searchsorted(present, codes)
            estimator, warned = self._fitted(positions, encoded, seed)
            known = getattr(estimator, "classes_", np.arange(len(present)))
            columns = present[np.asarray(known).astype(np.intp)]
        return Submodel(estimator, columns, warned=warned)

    def prepare(self, test: Instances, role: str = "test") -> Prepared:
        """Return the features in the training set's form, and targets.

        Raises
        ------
        InvalidInputError
            If the columns are not the training set's, or a label is of none of its classes.
        """
        features = same_kind(test.features(role), self._features, role)
        check_features(features, self._features, role)
        return Prepared(features, self.task.targets(test, role), test.ids)

    def risks_one(self, model: Submodel, test: Prepared) -> Values:
        """Return the risks, ``(T,)``; NaN throughout where the model cannot predict."""
        targets = cast(NDArray[Any], test.targets)
        return self.task.risks(self.outputs_one(model, test), targets, test.ids)

    def outputs_one(self, model: Submodel, test: Prepared) -> Values:
        """Return probabilities ``(T, C)`` or values; NaN throughout where it cannot predict."""
        if model.constant is not None:
            return np.broadcast_to(model.constant, (len(test), *model.constant.shape))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = self._predicted(model, test)
            if np.isfinite(found).all():
                return found
            reason = "it predicts NaN or infinite values"
        except Exception as error:  # such as a category of the test set that its subset lacked
            reason = f"{type(error).__name__}: {error}"
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"a submodel ({type(model.estimator).__name__}) cannot predict the test set, and "
                f"counts as failed: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
        return np.full((len(test), *self.task.constant("prior").shape), np.nan)

    def constant(self, kind: Empty) -> Fitted:
        """Return the prior, the uniform distribution, or the mean target."""
        return Fitted([Submodel(None, constant=self.task.constant(kind))], 1)

    def holds_empty(self, counts: Counts) -> NDArray[np.bool_] | None:
        """Return which subsets lack a class, where such are worth what the empty set is.

        Who trains them all the same gets the prior.
        """
        if self._codes is None or self._missing_classes != "hold_empty":
            return None
        # Numbers of instances are exact in single precision.
        marks = np.eye(int(self._codes.max()) + 1, dtype=np.float32)[self._codes]  # (n, C)
        members = (np.asarray(counts) != 0).astype(np.float32)
        return np.asarray((members @ marks == 0).any(axis=1))

    def warnings_of(self, fitted: Fitted) -> Mapping[str, int]:
        """Return how many submodels warned in each category while they were trained."""
        models = (model for model in fitted.models if model is not None)
        return dict(Counter(name for model in models for name in model.warned))

    def _fitted(
        self, positions: NDArray[np.intp], labels: NDArray[Any], seed: int
    ) -> tuple[Any, tuple[str, ...]]:
        """Return a fitted clone, and the categories of what it warned of."""
        estimator = self._template.fresh(seed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            estimator.fit(take_rows(self._features, positions), labels)
        return estimator, tuple(sorted({warning.category.__name__ for warning in caught}))

    def _predicted(self, model: Submodel, test: Prepared) -> Values:
        if model.columns is None:
            values = np.asarray(model.estimator.predict(test.inputs), np.float64)
            return values.reshape(len(test), *self.task.constant("prior").shape)
        classes = cast(Classification, self.task).classes
        found = np.zeros((len(test), len(classes)))
        if self._template.probabilistic:
            found[:, model.columns] = model.estimator.predict_proba(test.inputs)
            return found
        predicted = np.asarray(model.estimator.predict(test.inputs)).reshape(len(test))
        if self._template.names_labels:
            places = classes.positions(predicted, "predictions")
        else:
            places = np.sort(model.columns)[predicted.astype(np.intp)]  # as they were encoded
        found[np.arange(len(test)), places] = 1.0
        return found
