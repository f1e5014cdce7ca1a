"""Small trained ensembles of every library, for the tests of the tree methods."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

from proponent.trees.read import read
from proponent.trees.view import LeafView

N, N_TEST, T = 120, 15, 6


@cache
def table(classes: int) -> tuple[Any, Any]:
    """Return (train, test) of a table; a regression where there are no classes."""
    rng = np.random.default_rng(classes)
    X = rng.normal(size=(N + N_TEST, 5))
    score = X[:, 0] + X[:, 1] * X[:, 2] + 0.5 * rng.normal(size=len(X))
    if classes == 0:
        y = score
    else:
        y = np.searchsorted(np.quantile(score, np.arange(1, classes) / classes), score)
    return (X[:N], y[:N]), (X[N:], y[N:])


def _module(name: str) -> Any:
    pytest.importorskip(name)
    return import_module(name)


def _lightgbm(kind: str, **settings: Any) -> Any:
    made = getattr(_module("lightgbm"), f"LGBM{kind}")
    settings = {"min_child_samples": 8, "learning_rate": 0.3, "reg_lambda": 0.1} | settings
    return made(n_estimators=T, num_leaves=6, n_jobs=1, verbose=-1, **settings)


def _xgboost(kind: str, **settings: Any) -> Any:
    made = getattr(_module("xgboost"), f"XGB{kind}")
    return made(n_estimators=T, max_depth=3, learning_rate=0.3, n_jobs=1, **settings)


def _catboost(kind: str, **settings: Any) -> Any:
    made = getattr(_module("catboost"), f"CatBoost{kind}")
    settings = {"leaf_estimation_iterations": 1, "learning_rate": 0.3} | settings
    return made(
        n_estimators=T,
        depth=3,
        thread_count=1,
        allow_writing_files=False,
        verbose=False,
        random_seed=0,
        **settings,
    )


ENSEMBLES: dict[str, tuple[int, Callable[[], Any]]] = {
    "lightgbm binary": (2, lambda: _lightgbm("Classifier")),
    "lightgbm classes": (3, lambda: _lightgbm("Classifier")),
    "lightgbm regression": (0, lambda: _lightgbm("Regressor")),
    "xgboost binary": (2, lambda: _xgboost("Classifier")),
    "xgboost classes": (3, lambda: _xgboost("Classifier")),
    "xgboost parallel": (2, lambda: _xgboost("Classifier", num_parallel_tree=2)),
    "catboost binary": (2, lambda: _catboost("Classifier")),
    "catboost steps": (2, lambda: _catboost("Classifier", leaf_estimation_iterations=4)),
    "catboost gradient": (2, lambda: _catboost("Classifier", leaf_estimation_method="Gradient")),
    "catboost classes": (3, lambda: _catboost("Classifier", loss_function="MultiClass")),
    "catboost regression": (0, lambda: _catboost("Regressor")),
    "sklearn binary": (2, lambda: GradientBoostingClassifier(n_estimators=T, random_state=0)),
    "sklearn regression": (0, lambda: GradientBoostingRegressor(n_estimators=T, random_state=0)),
}


@cache
def trained(name: str, *, weighted: bool = False) -> tuple[Any, Any, Any, Any]:
    """Return (model, train, test, sample weights or None) of an ensemble."""
    classes, make = ENSEMBLES[name]
    train, test = table(classes)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, N) if weighted else None
    return make().fit(*train, sample_weight=weights), train, test, weights


@cache
def view_of(name: str, *, weighted: bool = False) -> LeafView:
    """Return the leaf view of an ensemble."""
    model, train, _, weights = trained(name, weighted=weighted)
    return read(model, train, sample_weight=weights)
