"""The tree methods against what the libraries do themselves, under the settings they are used with.

LightGBM's and XGBoost's own refits of leaves, CatBoost's own influence, and honest retraining of
ensembles whose leaves cannot change. Missing values, categories, L1, sample weights and initial
scores are in, as the libraries handle them.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from trees.ensembles import estimator, raw_predictions, table

from proponent.trees.boost_in import BoostIn
from proponent.trees.leaf_influence import LeafInfluence
from proponent.trees.leaf_refit import LeafRefit

LOSSES = ("squared", "logistic", "softmax")
OBJECTIVES = {
    "lightgbm": {"squared": "regression", "logistic": "binary", "softmax": "multiclass"},
    "xgboost": {
        "squared": "reg:squarederror",
        "logistic": "binary:logistic",
        "softmax": "multi:softprob",
    },
}
N = 250


def risks(loss, raw, y):
    """Risk of each instance at raw predictions ``(n,)`` or ``(n, K)``."""
    if loss == "squared":
        return (raw - y) ** 2 / 2
    if loss == "logistic":
        return np.logaddexp(0, raw) - y * raw
    return np.log(np.exp(raw).sum(axis=1)) - raw[np.arange(len(y)), y]


def split(loss, *, categories=False):
    features, targets = table(missing=True)
    y = targets[loss]
    if categories:
        features = features.copy()
        features[:, 4] = np.random.default_rng(2).integers(0, 6, len(features))
        y = (targets["squared"] + features[:, 4] % 2 > 0.8).astype(int)
    return (features[:N], y[:N]), (features[N:], y[N:])


class OfLightGBM:
    """A booster, and what it becomes when its leaves are fitted again."""

    def __init__(self, loss, *, weights=None, categorical="auto", **settings):
        lightgbm = pytest.importorskip("lightgbm")
        self.loss, self.weights = loss, np.ones(N) if weights is None else weights
        self.train, self.test = split(loss, categories=categorical != "auto")
        self._more = {"categorical_feature": categorical} if categorical != "auto" else {}
        data = lightgbm.Dataset(*self.train, weight=self.weights, **self._more)
        settings = {"num_leaves": 7, "verbose": -1, "num_threads": 1} | settings
        settings |= {"objective": OBJECTIVES["lightgbm"][loss], "boost_from_average": False}
        settings |= {"num_class": 3} if loss == "softmax" else {}
        self.model = lightgbm.train(settings, data, 10)

    def risks_at(self, weights):
        """Test risks ``(m,)`` with all leaves fitted with other weights; 0 removes."""
        keep = weights > 0
        refitted = self.model.refit(
            self.train[0][keep], self.train[1][keep], decay_rate=0.0, weight=weights[keep],
            **self._more,
        )  # fmt: skip
        return risks(self.loss, refitted.predict(self.test[0], raw_score=True), self.test[1])

    def without(self, i):
        weights = self.weights.copy()
        weights[i] = 0
        return self.risks_at(weights) - self.risks_at(self.weights)


@pytest.mark.parametrize(
    ("loss", "settings", "weighted"),
    [
        ("squared", {}, False),
        ("logistic", {}, False),
        ("softmax", {}, False),
        ("softmax", {"lambda_l2": 0.7}, True),
        ("logistic", {"lambda_l1": 1.0}, True),
        ("squared", {"lambda_l1": 8.0, "lambda_l2": 0.5}, False),
        ("logistic", {"categorical": [4], "max_cat_to_onehot": 8}, False),
    ],
)
def test_leaf_refit_is_lightgbms_own(loss, settings, weighted):
    weights = np.random.default_rng(1).uniform(0.5, 2.0, N) if weighted else None
    own = OfLightGBM(loss, weights=weights, **settings)
    method = LeafRefit().fit(own.model, own.train, sample_weight=weights)
    values = method.influence(own.test).values
    for i in (0, 50, N - 1):
        expected = own.without(i)
        assert abs(expected).max() > 1e-4
        assert_allclose(values[:, i], expected, rtol=0, atol=2e-8)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_leaf_influence_is_the_slope_of_lightgbms_own_refit(loss, weighted):
    weights = np.random.default_rng(1).uniform(0.5, 2.0, N) if weighted else np.ones(N)
    own = OfLightGBM(loss, weights=weights, lambda_l2=0.3)
    values = LeafInfluence().fit(own.model, own.train, sample_weight=weights)
    values = values.influence(own.test).values
    for i in (3, 77):
        sides = []
        for step in (0.02, -0.02):
            moved = weights.copy()
            moved[i] += step
            sides.append(own.risks_at(moved))
        expected = -weights[i] * (sides[0] - sides[1]) / 0.04
        assert_allclose(values[:, i], expected, rtol=0, atol=1e-3 * abs(expected).max())


@pytest.mark.parametrize(
    ("loss", "settings", "extra"),
    [
        ("squared", {}, ""),
        ("logistic", {}, ""),
        ("softmax", {}, ""),
        ("softmax", {"lambda": 0.5}, "weights"),
        ("logistic", {"alpha": 0.5}, "weights"),
        ("logistic", {"num_parallel_tree": 2, "colsample_bynode": 0.4}, ""),
        ("logistic", {}, "base margin"),
        ("logistic", {"max_cat_to_onehot": 1}, "categories"),
    ],
)
def test_leaf_refit_is_xgboosts_own_refresh(loss, settings, extra):
    xgboost = pytest.importorskip("xgboost")
    train, test = split(loss, categories=extra == "categories")
    weights = np.random.default_rng(1).uniform(0.5, 2.0, N).astype(np.float32)
    weights = weights if extra == "weights" else None
    types = ["q"] * 4 + ["c"] if extra == "categories" else None

    def margin(features):
        return np.nan_to_num(features[:, 0]) * 0.7

    def matrix(features, y=None, keep=slice(None)):
        return xgboost.DMatrix(
            features[keep],
            None if y is None else y[keep],
            weight=None if weights is None or y is None else weights[keep],
            base_margin=margin(features)[keep] if extra == "base margin" else None,
            feature_types=types,
            enable_categorical=True,
        )

    settings = {"max_depth": 3, "base_score": 0.5, "min_child_weight": 0, "nthread": 1} | settings
    settings |= {"objective": OBJECTIVES["xgboost"][loss]}
    settings |= {"num_class": 3} if loss == "softmax" else {}
    model = xgboost.train(settings, matrix(*train), 6)
    method = LeafRefit().fit(
        model, train, sample_weight=weights,
        base_margin=margin if extra == "base margin" else None,
    )  # fmt: skip
    values = method.influence(test).values

    def risk(booster):
        raw = booster.predict(matrix(test[0]), output_margin=True).astype(float)
        return risks(loss, raw, test[1])

    refresh = {"process_type": "update", "updater": "refresh", "refresh_leaf": True}
    rounds = model.num_boosted_rounds()
    for i in (0, 50, N - 1):
        keep = np.arange(N) != i
        again = xgboost.train(
            settings | refresh, matrix(*train, keep), rounds, xgb_model=model.copy()
        )
        expected = risk(again) - risk(model)
        assert abs(expected).max() > 1e-4
        scale = max(1.0, abs(train[1]).max())
        assert_allclose(values[:, i], expected, rtol=0, atol=5e-7 * scale)


@pytest.mark.parametrize(
    ("update", "named"), [("all_points", "AllPoints"), ("single_point", "SinglePoint")]
)
@pytest.mark.parametrize("loss", ["squared", "logistic"])
def test_leaf_influence_is_catboosts_own_to_its_last_digits(loss, update, named):
    catboost = pytest.importorskip("catboost")
    train, test = split(loss)
    settings = {"leaf_estimation_iterations": 1, "iterations": 20, "boost_from_average": False}
    model = estimator("catboost", loss, **settings).fit(*train)
    indices, scores = model.get_object_importance(
        catboost.Pool(*test), catboost.Pool(*train), type="PerObject", update_method=named,
        thread_count=1,
    )  # fmt: skip
    expected = np.zeros((len(test[1]), N))
    np.put_along_axis(expected, np.array(indices), np.array(scores), axis=1)
    values = LeafInfluence(update=update).fit(model, train).influence(test).values
    assert_allclose(values, -expected, rtol=0, atol=1e-12 * abs(expected).max())


RETRAINED = {
    "xgboost": {"base_score": 0.5, "min_child_weight": 0.0, "max_depth": 2, "reg_lambda": 0.0},
    "lightgbm": {
        "boost_from_average": False,
        "min_child_samples": 1,
        "min_child_weight": 0.0,
        "num_leaves": 4,
    },
    "gradient_boosting": {"init": "zero", "max_leaf_nodes": 4},
    "random_forest": {"bootstrap": False, "max_leaf_nodes": None},
}


@pytest.mark.parametrize(
    ("library", "loss"),
    [
        *((library, loss) for library in list(RETRAINED)[:3] for loss in LOSSES),
        ("random_forest", "squared"),
        ("random_forest", "softmax"),
    ],
)
def test_leaf_refit_is_retraining_where_the_leaves_cannot_change(library, loss):
    """Two features of two values make four cells, and every tree splits them all."""
    rng = np.random.default_rng(6)
    cell = rng.integers(0, 4, 88)
    X = np.stack([cell // 2, cell % 2], axis=1).astype(float)
    y = rng.normal(size=88) + np.array([0.0, 3.0, 5.0, 11.0])[cell]
    if loss == "logistic":
        y = (rng.random(88) < np.array([0.1, 0.4, 0.65, 0.95])[cell]).astype(int)
    elif loss == "softmax":
        chances = np.array([[8, 1, 1], [1, 6, 3], [2, 2, 6], [1, 4, 1]])
        y = np.array([rng.choice(3, p=chances[c] / chances[c].sum()) for c in cell])
    train, test = (X[:80], y[:80]), (X[80:], y[80:])
    shape = {"n_estimators": 4, "learning_rate": 0.2} | RETRAINED[library]
    if library == "random_forest":
        shape.pop("learning_rate")

    def risk(keep):
        model = estimator(library, loss, **shape).fit(train[0][keep], train[1][keep])
        raw = raw_predictions(library, model, test[0])
        if library == "random_forest" and loss == "softmax":
            return ((raw - np.eye(3)[test[1]].T) ** 2).sum(axis=0) / 2
        return risks(loss, raw.T if loss == "softmax" else raw[0], test[1])

    whole = estimator(library, loss, **shape).fit(*train)
    values = LeafRefit().fit(whole, train).influence(test).values
    everyone = np.ones(80, dtype=bool)
    tolerance = {"xgboost": 1e-5, "lightgbm": 1e-6}.get(library, 1e-12)
    found = []
    for i in (0, 17, 42, 79):
        keep = everyone.copy()
        keep[i] = False
        found.append(risk(keep) - risk(everyone))
        assert_allclose(values[:, i], found[-1], rtol=0, atol=tolerance)
    assert np.abs(found).max() > 1e-3


def test_the_scores_of_boost_in_sum_the_moves_of_the_leaves_that_xgboost_sends_to():
    """Missing values, class starts and learning rates are the library's, by its own calls alone."""
    xgboost = pytest.importorskip("xgboost")
    train, test = split("softmax")
    model = estimator("xgboost", "softmax", n_estimators=4).fit(*train)
    values = BoostIn(leaf_step="theta").fit(model, train).influence(test).values
    booster = model.get_booster()

    def by_round(features, rounds):
        data = xgboost.DMatrix(features)
        if rounds:
            return booster.predict(data, output_margin=True, iteration_range=(0, rounds))
        leaves = booster.predict(data, pred_leaf=True, strict_shape=True, iteration_range=(0, 1))
        frame = booster.trees_to_dataframe()
        first = booster.predict(data, output_margin=True, iteration_range=(0, 1))
        for k in range(3):
            nodes = frame[frame.Tree == k].set_index("Node").Gain  # of a leaf, its value
            first[:, k] -= nodes.loc[leaves[:, 0, k, 0]].to_numpy()
        return first

    expected = np.zeros_like(values)
    own, other = (model.apply(part[0]).reshape(-1, 4, 3) for part in (train, test))
    for t in range(4):
        p, q = (np.exp(by_round(part[0], t).astype(float)) for part in (train, test))
        p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
        g, at_test = p - np.eye(3)[train[1]], q - np.eye(3)[test[1]]
        h = 2 * p * (1 - p)
        for k in range(3):
            for leaf in np.unique(own[:, t, k]):
                inside = own[:, t, k] == leaf
                below = h[inside, k].sum() + 1
                moved = g[inside, k] - g[inside, k].sum() / below * h[inside, k]
                tests = other[:, t, k] == leaf
                expected[np.ix_(tests, inside)] += np.outer(at_test[tests, k], 0.3 * moved / below)
    assert np.isnan(train[0]).any()
    assert_allclose(values, expected, rtol=0, atol=5e-7 * abs(expected).max())
