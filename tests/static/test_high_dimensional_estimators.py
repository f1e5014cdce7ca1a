"""Every scikit-learn objective: solved tightly by its own solver, its optimality is found exact."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.linear_model import (
    ElasticNet,
    ElasticNetCV,
    Lasso,
    LassoCV,
    LassoLars,
    LassoLarsCV,
    LassoLarsIC,
    LogisticRegression,
    MultiTaskLasso,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from static.sparse_estimators import sparse_logistic, sparse_logistic_cv

from proponent.exceptions import InvalidInputError
from proponent.static.high_dimensional_representer import HighDimensionalRepresenter

X, Y = load_diabetes(return_X_y=True)
CANCER, IRIS = load_breast_cancer(return_X_y=True), load_iris(return_X_y=True)
REGRESSION = X, Y
TWO_TARGETS = X, np.column_stack([Y, 100 * X[:, 2] + Y[::-1]])
TWO = (CANCER[0] - CANCER[0].mean(axis=0)) / CANCER[0].std(axis=0), CANCER[1]
THREE = (IRIS[0] - IRIS[0].mean(axis=0)) / IRIS[0].std(axis=0), IRIS[1]
TIGHT = {"tol": 1e-12, "max_iter": 1_000_000}
LIBLINEAR = {"solver": "liblinear", "tol": 1e-10, "max_iter": 10_000}
SAGA = {"tol": 1e-9, "max_iter": 20_000}
SVC = {"penalty": "l1", "dual": False, "tol": 1e-9, "max_iter": 100_000, "random_state": 0}

# Estimators that solve their objective to near machine precision, and the KKT residual to expect.
SOLVED = {
    "Lasso": (Lasso(0.1, **TIGHT), REGRESSION, 1e-9),
    "Lasso without intercept": (Lasso(0.1, fit_intercept=False, **TIGHT), REGRESSION, 1e-9),
    "Lasso, two targets": (Lasso(0.1, **TIGHT), TWO_TARGETS, 1e-9),
    "Lasso, positive": (Lasso(0.1, positive=True, **TIGHT), REGRESSION, 1e-9),
    "LassoCV": (LassoCV(cv=3, **TIGHT), REGRESSION, 1e-6),
    "LassoLars": (LassoLars(0.1), REGRESSION, 1e-9),
    "LassoLarsCV": (LassoLarsCV(cv=3), REGRESSION, 1e-9),
    "LassoLarsIC": (LassoLarsIC(), REGRESSION, 1e-9),
    "ElasticNet": (ElasticNet(0.01, l1_ratio=0.3, **TIGHT), REGRESSION, 1e-9),
    "ElasticNetCV": (ElasticNetCV(cv=3, l1_ratio=[0.5, 0.9], **TIGHT), REGRESSION, 1e-6),
    "liblinear": (sparse_logistic(C=0.3, **LIBLINEAR), TWO, 1e-5),
    "liblinear, weighted": (
        sparse_logistic(C=0.3, intercept_scaling=5, class_weight="balanced", **LIBLINEAR),
        TWO,
        1e-5,
    ),
    "saga": (sparse_logistic(1, C=0.1, **SAGA), TWO, 1e-5),
    "saga, weighted": (
        sparse_logistic(0.7, C=0.1, class_weight={0: 3, 1: 1}, **SAGA),
        TWO,
        1e-5,
    ),
    "softmax": (sparse_logistic(0.5, C=0.1, **SAGA), THREE, 1e-5),
    "softmax, weighted": (
        sparse_logistic(1, C=0.1, class_weight={0: 1, 1: 2, 2: 0.5}, **SAGA),
        THREE,
        1e-5,
    ),
    "LogisticRegressionCV": (
        sparse_logistic_cv(0.5, Cs=[0.1], cv=2, scoring="accuracy", **SAGA),
        TWO,
        1e-5,
    ),
    "LinearSVC": (LinearSVC(C=0.1, intercept_scaling=3, **SVC), TWO, 1e-5),
    "LinearSVC, one against the rest": (LinearSVC(C=0.1, **SVC), THREE, 1e-5),
}


@pytest.mark.parametrize("name", SOLVED)
def test_the_objective_is_scikit_learns(name):
    estimator, train, residual = SOLVED[name]
    method = HighDimensionalRepresenter(signed="loss").fit(estimator.fit(*train), train)
    influence = method.influence(train)
    assert influence.diagnostics["kkt_residual"] < residual
    assert influence.diagnostics["training_decomposition_error"] < residual
    assert influence.diagnostics["nonzero"] > 0
    sums = influence.values.sum(axis=1)
    assert_allclose(sums, by_hand(estimator, *train), atol=2 * residual * np.abs(sums).max())


def by_hand(estimator, inputs, labels):
    """Minus the derivatives of the test risks, times the outputs that are represented."""
    liblinear = isinstance(estimator, LinearSVC) or getattr(estimator, "solver", "") == "liblinear"
    if not hasattr(estimator, "classes_"):
        outputs = estimator.predict(inputs).reshape(len(inputs), -1)
        gaps = labels.reshape(outputs.shape) - outputs
        return (2 / gaps.shape[1] * gaps * (outputs - estimator.intercept_)).sum(axis=1)
    outputs = estimator.decision_function(inputs).reshape(len(inputs), -1)
    k = outputs.shape[1]
    hot = (labels == 1)[:, None] if k == 1 else np.eye(k)[labels]
    if isinstance(estimator, LinearSVC):
        signs = 2 * hot - 1
        pulls = 2 / k * signs * np.maximum(0, 1 - signs * outputs)
    else:
        pulls = hot - estimator.predict_proba(inputs)[:, -k:]
    weighted = getattr(estimator, "class_weight", None)
    if weighted == "balanced":
        pulls = pulls * (len(labels) / (2 * np.bincount(labels)))[labels][:, None]
    elif weighted is not None:
        pulls = pulls * np.array([weighted[label] for label in labels])[:, None]
    return (pulls * (outputs - (not liblinear) * estimator.intercept_)).sum(axis=1)


STOPPED = {
    "SGDRegressor": (SGDRegressor(penalty="l1", alpha=0.5, random_state=0), REGRESSION),
    "SGDClassifier": (
        SGDClassifier(loss="log_loss", penalty="elasticnet", alpha=0.01, random_state=0),
        TWO,
    ),
    "SGDClassifier, one against the rest": (
        SGDClassifier(loss="squared_hinge", penalty="l1", alpha=0.1, random_state=0),
        THREE,
    ),
    "Lasso, raw features": (Lasso(0.1), (CANCER[0], CANCER[0][:, 0] * CANCER[1])),
    "logistic, raw features": (
        sparse_logistic(C=0.1, max_iter=50),
        CANCER,
    ),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", STOPPED)
def test_what_stopped_early_is_refined(name):
    estimator, train = STOPPED[name]
    method = HighDimensionalRepresenter(refine=True).fit(estimator.fit(*train), train)
    diagnostics = method.influence(train).diagnostics
    assert diagnostics["kkt_residual"] < 2e-10
    assert diagnostics["training_decomposition_error"] < 1e-10
    rough = HighDimensionalRepresenter().fit(estimator, train).influence(train).diagnostics
    assert rough["kkt_residual"] > 1e-6


def test_stochastic_gradients_have_the_objective_of_the_lasso():
    """Refined, SGDRegressor comes out where Lasso does, and SGDClassifier where saga does."""
    rough = SGDRegressor(penalty="elasticnet", alpha=0.05, l1_ratio=0.4, random_state=0).fit(X, Y)
    exact = ElasticNet(0.05, l1_ratio=0.4, **TIGHT).fit(X, Y)
    assert_same_sums(rough, exact, REGRESSION, "prediction")
    rough = SGDClassifier(loss="log_loss", penalty="l1", alpha=0.02, random_state=0).fit(*TWO)
    exact = sparse_logistic(C=1 / (0.02 * len(TWO[1])), **SAGA).fit(*TWO)
    assert_same_sums(rough, exact, TWO, "logit")


def assert_same_sums(rough, exact, train, signed):
    method = HighDimensionalRepresenter(signed=signed, refine=True)
    refined = method.fit(rough, train).influence(train).values
    expected = HighDimensionalRepresenter(signed=signed).fit(exact, train).influence(train).values
    assert_allclose(refined, expected, atol=1e-6 * np.abs(expected).max())


def test_a_pipeline_is_studied_behind_its_transformers():
    frame = pd.DataFrame(X, columns=[f"x{i}" for i in range(10)])
    pipeline = make_pipeline(StandardScaler(), Lasso(2.0, **TIGHT)).fit(frame, Y)
    method = HighDimensionalRepresenter().fit(pipeline, (frame, Y))
    scaled = StandardScaler().fit_transform(X), Y
    alone = HighDimensionalRepresenter().fit(Lasso(2.0, **TIGHT).fit(*scaled), scaled)
    expected = alone.influence(scaled).values
    assert_allclose(method.influence((frame, Y)).values, expected, atol=1e-8)


def test_the_labels_of_a_classifier_may_be_anything():
    names = np.array(["setosa", "versicolor", "virginica"])[THREE[1]]
    named = sparse_logistic(C=0.1, max_iter=1000).fit(THREE[0], names)
    numbered = sparse_logistic(C=0.1, max_iter=1000).fit(*THREE)
    one = HighDimensionalRepresenter().fit(named, (THREE[0], names)).influence((THREE[0], names))
    other = HighDimensionalRepresenter().fit(numbered, THREE).influence(THREE)
    assert_allclose(one.values, other.values)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("estimator", "train", "reason"),
    [
        (LogisticRegression(), TWO, "has no L1 penalty; for the L2 penalty use RepresenterPoint"),
        (sparse_logistic(C=np.inf), TWO, "has no L1 penalty"),
        (SGDRegressor(penalty=None), REGRESSION, "has no L1 penalty"),
        (LinearSVC(), TWO, "has no L1 penalty"),
        (SGDClassifier(penalty="l1"), TWO, "loss='hinge': expected one of log_loss"),
        (SGDRegressor(loss="huber", penalty="l1"), REGRESSION, "loss='huber': only"),
        (MultiTaskLasso(), TWO_TARGETS, "MultiTaskLasso is not among"),
        (
            SGDClassifier(loss="log_loss", penalty="l1", class_weight="balanced"),
            THREE,
            "class_weight for classes against the rest",
        ),
        (make_pipeline(StandardScaler(), LogisticRegression()), TWO, "has no L1 penalty"),
    ],
)
def test_refusals_give_the_reason(estimator, train, reason):
    fitted = estimator.fit(*train)
    with pytest.raises(
        InvalidInputError, match="model: HighDimensionalRepresenter needs"
    ) as caught:
        HighDimensionalRepresenter().fit(fitted, train)
    assert reason in str(caught.value)
    assert type(estimator).__name__ in str(caught.value)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_penalty_that_is_named():
    """penalty="l1", which scikit-learn is about to give up."""
    settings = {"penalty": "l1", "solver": "liblinear", "C": 0.3, "tol": 1e-10, "random_state": 0}
    named = LogisticRegression(**settings).fit(*TWO)
    same = sparse_logistic(C=0.3, **LIBLINEAR).fit(*TWO)
    one, other = (
        HighDimensionalRepresenter().fit(estimator, TWO).influence(TWO)
        for estimator in (named, same)
    )
    assert one.diagnostics["kkt_residual"] < 1e-5
    assert_allclose(one.values, other.values, atol=1e-6)


def test_an_estimator_that_is_not_fitted():
    with pytest.raises(InvalidInputError, match="The Lasso is not fitted; call its fit"):
        HighDimensionalRepresenter().fit(Lasso(), REGRESSION)
