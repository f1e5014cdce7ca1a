"""Small trained ensembles of every library and loss, and leaf values by plain loops."""

from functools import lru_cache

import numpy as np
import pytest

LOSSES = ("squared", "logistic", "softmax")
LIBRARIES = ("xgboost", "lightgbm", "catboost", "gradient_boosting", "hist_gradient_boosting")
TOLERANCES = {  # of leaf values relative to the largest, and of raw predictions
    "xgboost": (3e-7, 2e-6),
    "lightgbm": (2e-7, 4e-15),
    "catboost": (4e-8, 4e-14),
    "gradient_boosting": (4e-14, 3e-15),
    "hist_gradient_boosting": (2e-7, 5e-15),
    "random_forest": (2e-15, 4e-15),
    "extra_trees": (2e-15, 4e-15),
}


@lru_cache
def table(n=300, missing=False, seed=0):
    """Features and the targets of each loss; labels of classes are text."""
    rng = np.random.default_rng(seed)
    # In float32, in which XGBoost and CatBoost compare, so that every library sees the same.
    features = rng.normal(size=(n, 5)).astype(np.float32).astype(float)
    signal = features[:, 0] + 0.5 * features[:, 1] ** 2 + rng.normal(size=n)
    if missing:
        features[rng.random(features.shape) < 0.1] = np.nan
    targets = {
        "squared": signal,
        "logistic": (signal > 0.5).astype(int),
        "softmax": np.digitize(signal, [0.0, 1.0]),
    }
    features.setflags(write=False)
    return features, targets


def estimator(library, loss, **settings):
    """An estimator of a library, not trained."""
    regression = loss == "squared"
    if library in ("gradient_boosting", "hist_gradient_boosting", "random_forest", "extra_trees"):
        import sklearn.ensemble as ensemble

        name = {
            "gradient_boosting": "GradientBoosting",
            "hist_gradient_boosting": "HistGradientBoosting",
            "random_forest": "RandomForest",
            "extra_trees": "ExtraTrees",
        }[library]
        kind = getattr(ensemble, name + ("Regressor" if regression else "Classifier"))
        rounds = "max_iter" if library == "hist_gradient_boosting" else "n_estimators"
        shape = {"max_leaf_nodes": 7, "random_state": 0, rounds: 8}
    elif library == "xgboost":
        xgboost = pytest.importorskip("xgboost")
        kind = xgboost.XGBRegressor if regression else xgboost.XGBClassifier
        shape = {"n_estimators": 8, "max_depth": 3, "n_jobs": 1}
    elif library == "lightgbm":
        lightgbm = pytest.importorskip("lightgbm")
        kind = lightgbm.LGBMRegressor if regression else lightgbm.LGBMClassifier
        shape = {"n_estimators": 8, "num_leaves": 7, "verbose": -1, "n_jobs": 1}
    else:
        catboost = pytest.importorskip("catboost")
        kind = catboost.CatBoostRegressor if regression else catboost.CatBoostClassifier
        shape = {
            "iterations": 8,
            "depth": 3,
            "learning_rate": 0.2,
            "verbose": 0,
            "thread_count": 1,
            "allow_writing_files": False,
        }
    return kind(**{**shape, **settings})


def raw_predictions(library, model, features):
    """The library's own raw predictions, ``(K, n)``."""
    if library == "xgboost":
        raw = model.predict(features, output_margin=True)
    elif library == "lightgbm":
        raw = model.predict(features, raw_score=True)
    elif library == "catboost":
        raw = model.predict(features, prediction_type="RawFormulaVal")
    elif library in ("random_forest", "extra_trees"):
        raw = getattr(model, "predict_proba", model.predict)(features)
    else:
        raw = getattr(model, "decision_function", model.predict)(features)
    raw = np.asarray(raw, dtype=float)
    return raw.reshape(len(raw), -1).T


def slow_values(view, labels, factor, weights=None, l1=0.0):
    """Leaf values by the definition, tree by tree and leaf by leaf, for one step a leaf."""
    rows, outputs = view.train, view.outputs
    n = len(rows)
    weights = np.ones(n) if weights is None else weights
    scores, found = rows.start.copy(), np.empty(view.n_leaves)
    for tree in range(view.n_trees):
        gradients, hessians = slow_derivatives(view.loss.name, scores, labels, factor)
        added = np.zeros_like(scores)
        for k in range(outputs):
            span = view.span(tree, k)
            for leaf in range(span.stop - span.start):
                inside = rows.leaves[tree, k] == leaf
                total = sum(weights[i] * gradients[k, i] for i in np.flatnonzero(inside))
                total = np.sign(total) * max(abs(total) - l1, 0.0)
                below = sum(weights[i] * hessians[k, i] for i in np.flatnonzero(inside))
                below += view.l2[span][leaf]
                value = -view.learning_rates[tree] * total / below if below else 0.0
                found[span.start + leaf] = value
                added[k, inside] = view.values[span.start + leaf]
        scores = scores + added
    return found


def slow_derivatives(loss, scores, labels, factor):
    if loss == "squared":
        return scores - labels, np.ones_like(scores)
    if loss == "logistic":
        p = 1 / (1 + np.exp(-scores))
        return p - labels, p * (1 - p)
    p = np.exp(scores) / np.exp(scores).sum(axis=0)
    one_hot = (np.arange(len(scores))[:, None] == labels).astype(float)
    return p - one_hot, factor * p * (1 - p)
