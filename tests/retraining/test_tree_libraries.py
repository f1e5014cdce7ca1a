"""Retraining-based methods reach every library of trees: the values are those of plain loops."""

from importlib import import_module
from itertools import combinations
from math import comb

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone

import proponent as pp

# Nothing is drawn at random, so that the seeds that the methods set do not matter.
MODELS = {
    "sklearn.ensemble HistGradientBoosting": {"max_iter": 4, "min_samples_leaf": 2},
    "xgboost XGB": {"n_estimators": 4, "max_depth": 2, "n_jobs": 1},
    "lightgbm LGBM": {
        "n_estimators": 4, "num_leaves": 3, "min_child_samples": 2, "n_jobs": 1, "verbose": -1,
    },
    "catboost CatBoost": {
        "iterations": 4, "depth": 2, "thread_count": 1, "verbose": False, "random_seed": 0,
        "allow_writing_files": False, "bootstrap_type": "No", "random_strength": 0,
    },
}  # fmt: skip
N, SMOOTHING = 24, 1e-3


def data(kind):
    rng = np.random.default_rng(3)
    X = rng.normal(size=(N + 4, 3))
    y = X[:, 0] + 0.5 * X[:, 1] ** 2 + 0.3 * rng.normal(size=N + 4)
    if kind == "Classifier":
        y = (y > 0.4).astype(int)
    return (X[:N], y[:N]), (X[N:], y[N:])


def made(name, kind):
    module, prefix = name.split()
    pytest.importorskip(module)
    return getattr(import_module(module), prefix + kind)(**MODELS[name])


def risks(model, test):
    X, y = test
    if not hasattr(model, "predict_proba"):
        return (model.predict(X) - y) ** 2
    chances = model.predict_proba(X)[np.arange(len(y)), y]
    return -np.log((1 - SMOOTHING) * chances + SMOOTHING / 2)


@pytest.mark.parametrize("kind", ["Classifier", "Regressor"])
@pytest.mark.parametrize("name", MODELS)
def test_leave_one_out_is_a_plain_loop(name, kind):
    model, (train, test) = made(name, kind), data(kind)
    found = pp.LeaveOneOut(progress=False).fit(model, train).influence(test)
    everyone = np.ones(N, bool)

    def risk(keep):
        return risks(clone(model).fit(train[0][keep], train[1][keep]), test)

    whole = risk(everyone)
    expected = []
    for i in range(N):
        keep = everyone.copy()
        keep[i] = False
        expected.append(risk(keep) - whole)
    assert np.abs(expected).max() > 1e-3
    assert_allclose(found.values.T, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_shapley_value_of_groups_is_that_of_all_subsets(name):
    model, (train, test) = made(name, "Regressor"), data("Regressor")
    groups = np.arange(N) % 4
    method = pp.Shapley(estimator="exact", progress=False).fit(model, train, groups=groups)
    values = {(): -((test[1] - train[1].mean()) ** 2)}
    for size in range(1, 5):
        for members in combinations(range(4), size):
            keep = np.isin(groups, members)
            fitted = clone(model).fit(train[0][keep], train[1][keep])
            values[members] = -risks(fitted, test)
    for i in range(4):
        expected = sum(
            (values[tuple(sorted((*members, i)))] - values[members]) / (4 * comb(3, size))
            for size in range(4)
            for members in combinations([j for j in range(4) if j != i], size)
        )
        assert_allclose(method.influence(test).values[:, i], expected, rtol=0, atol=1e-10)
