"""What becomes of what a user has: a learner that trains it exactly, or a message what to do."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.as_learner import as_learner
from proponent.models.bayes_learner import GaussianNaiveBayesLearner
from proponent.models.linear_learner import LinearLearner
from proponent.models.logistic_learner import LogisticLearner
from proponent.models.nearest_learner import NearestNeighboursLearner
from proponent.models.sklearn_learner import SklearnLearner
from proponent.models.user_learner import UserLearner

TIGHT = {"tol": 1e-12, "max_iter": 10_000}
AT_ONCE = {
    "least squares": (LinearRegression(), LinearLearner),
    "least squares, no intercept": (LinearRegression(fit_intercept=False), LinearLearner),
    "ridge": (Ridge(alpha=3.0, solver="svd"), LinearLearner),
    "ridge, no intercept": (Ridge(alpha=np.float32(0.5), fit_intercept=False), LinearLearner),
    "logistic": (LogisticRegression(C=0.3, **TIGHT), LogisticLearner),
    "logistic, no intercept": (LogisticRegression(fit_intercept=False, **TIGHT), LogisticLearner),
    "logistic, another solver": (
        LogisticRegression(solver="newton-cholesky", C=4, **TIGHT),
        LogisticLearner,
    ),
    "neighbours": (KNeighborsClassifier(3, algorithm="brute"), NearestNeighboursLearner),
    "neighbours, by name": (KNeighborsClassifier(4, metric="euclidean"), NearestNeighboursLearner),
    "neighbours' mean": (KNeighborsRegressor(n_neighbors=3), NearestNeighboursLearner),
    "naive Bayes": (GaussianNB(), GaussianNaiveBayesLearner),
    "naive Bayes, smoothed": (GaussianNB(var_smoothing=0.1), GaussianNaiveBayesLearner),
    "naive Bayes, priors": (GaussianNB(priors=[0.2, 0.3, 0.5]), GaussianNaiveBayesLearner),
}


def data(estimator, rng, n=40):
    X = rng.normal(size=(n, 3))
    if hasattr(estimator, "predict_proba"):
        y = np.array(["v", "w", "u"])[np.clip(np.rint(X[:, 0] + 1), 0, 2).astype(int)]
    else:
        y = X @ [1.0, -1.0, 0.5] + rng.normal(size=n)
    return X, y


@pytest.mark.parametrize(("estimator", "kind"), AT_ONCE.values(), ids=AT_ONCE.keys())
def test_learners_of_many_at_once_are_the_same_as_a_loop_over_the_estimator(estimator, kind, rng):
    X, y = data(estimator, rng)
    X_test, y_test = X[30:] + 0.01, y[30:]
    learner = as_learner(estimator)
    assert type(learner) is kind
    masks, seeds = rng.random((6, 40)) < 0.7, np.arange(6)
    found = []
    for chosen in (learner, SklearnLearner(estimator)):
        trainer = chosen.bind(Instances.of((X, y)))
        test = trainer.prepare(Instances.of((X_test, y_test)))
        fitted = trainer.fit(masks, seeds)
        assert not fitted.failures
        found.append((trainer.outputs(fitted, test), trainer.risks(fitted, test), trainer.output))
    tolerance = 1e-6 if kind is LogisticLearner else 1e-9
    assert found[0][2] == found[1][2]
    for ours, theirs in zip(found[0][:2], found[1][:2], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


ONE_BY_ONE = [
    LinearRegression(positive=True),
    LinearRegression(tol=1e-3),
    Ridge(alpha=np.array([1.0, 2.0])),
    Ridge(positive=True),
    LogisticRegression(solver="liblinear"),
    LogisticRegression(class_weight="balanced"),
    LogisticRegression(class_weight={0: 1.0, 1: 2.0}),
    LogisticRegression(l1_ratio=0.5, solver="saga"),
    LogisticRegression(C=np.inf),
    LogisticRegression(max_iter=5),
    KNeighborsClassifier(weights="distance"),
    KNeighborsClassifier(metric="manhattan"),
    KNeighborsClassifier(p=1),
    KNeighborsRegressor(metric_params={"w": [1.0, 2.0]}),
    Lasso(),
    SVC(),
    make_pipeline(StandardScaler(), LogisticRegression()),
]


@pytest.mark.parametrize("estimator", ONE_BY_ONE, ids=str)
def test_what_they_do_not_have_is_trained_one_by_one(estimator):
    learner = as_learner(estimator)
    assert type(learner) is SklearnLearner
    assert learner.estimator is estimator


def test_a_subclass_may_do_anything_and_is_trained_one_by_one():
    class Own(Ridge):
        pass

    assert type(as_learner(Own())) is SklearnLearner


def test_a_parameter_of_a_later_version_must_stand_at_its_default(monkeypatch):
    def initialise(self, alpha=1.0, *, fit_intercept=True, robust=False):
        self.alpha, self.fit_intercept, self.robust = alpha, fit_intercept, robust

    monkeypatch.setattr(Ridge, "__init__", initialise)
    # Its tags need the parameters of the real one.
    monkeypatch.setattr(Ridge, "_estimator_type", "regressor", raising=False)
    assert type(as_learner(Ridge())) is LinearLearner
    assert type(as_learner(Ridge(robust=True))) is SklearnLearner


class Own:
    def fit(self, X, y):
        return self

    def risk(self, X, y):
        return np.zeros(len(X))


class OwnEstimator(Own, BaseEstimator):
    def predict(self, X):
        return np.zeros(len(X))


def test_learners_and_objects_with_fit_and_risk():
    for model in (Own(), Own, OwnEstimator()):
        learner = as_learner(model)
        assert type(learner) is UserLearner
        assert learner.model is model
        assert as_learner(learner) is learner


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Ridge, r"got the class Ridge; pass an instance, such as Ridge\(\)"),
        (StandardScaler(), "StandardScaler cannot be trained on subsets"),
        (lambda: Own(), r"pp\.UserLearner\(function"),
        (None, "NoneType cannot be trained"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_what_is_needed(model, words):
    with pytest.raises(InvalidInputError, match=words):
        as_learner(model)


def test_networks_need_to_say_how_they_are_trained():
    torch = pytest.importorskip("torch")
    from proponent.models.torch import TorchModel

    module = torch.nn.Linear(2, 1)
    for model in (module, torch.nn.Linear, TorchModel(module, loss="mse")):
        with pytest.raises(InvalidInputError, match=r"Linear|TorchModel.*pp\.TorchLearner\("):
            as_learner(model)


@pytest.mark.parametrize("package", ["xgboost", "lightgbm"])
def test_native_boosters_are_refused(package):
    module = pytest.importorskip(package)
    X, y = np.random.default_rng(0).normal(size=(30, 2)), np.arange(30) % 2
    if package == "xgboost":
        booster = module.train({}, module.DMatrix(X, y), num_boost_round=1)
    else:
        booster = module.train({"verbosity": -1}, module.Dataset(X, y), num_boost_round=1)
    with pytest.raises(InvalidInputError, match=f"the scikit-learn estimator of {package}"):
        as_learner(booster)


def test_nothing_is_imported_that_is_not_needed():
    script = (
        "import sys\n"
        "from proponent.models.as_learner import as_learner\n"
        "print(sorted({'torch', 'sklearn', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
