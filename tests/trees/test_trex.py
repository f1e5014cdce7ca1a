"""TREX against scikit-learn's linear models on dense features, and the sum of representers."""

from dataclasses import replace

import numpy as np
import pytest
from ensembles import N, table, trained, view_of
from numpy.testing import assert_allclose
from scipy.special import log_softmax, softmax
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from trees.dense_features import dense_features

from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.trees import tree_kernels, trex_surrogate
from proponent.trees.read import read
from proponent.trees.tree_sim import TreeSim
from proponent.trees.trex import TREX

DECAY = 0.02


def oracle(view, kernel, decay):
    """Return the surrogate's logits of features and the gradients ``(n, C)`` at them."""
    features = dense_features(view, view.train, kernel)
    weights = view.weights
    if view.classes is None:
        targets = view.train.targets.reshape(-1)
        model = Ridge(weights.sum() * decay / 2, fit_intercept=False, solver="cholesky")
        model.fit(features, targets, sample_weight=weights)
        return (lambda phi: model.predict(phi)[:, None]), (
            2 * (model.predict(features) - targets)[:, None]
        )
    model = LogisticRegression(
        C=1 / (weights.sum() * decay), fit_intercept=False, tol=1e-12, max_iter=10_000,
        solver="newton-cholesky" if len(view.classes) == 2 else "lbfgs",
    )  # fmt: skip
    model.fit(features, view.train.labels, sample_weight=weights)

    def logits(phi):
        return model.decision_function(phi).reshape(len(phi), -1)

    found = logits(features)
    if found.shape[1] == 1:
        return logits, 1 / (1 + np.exp(-found)) - view.train.labels[:, None]
    return logits, softmax(found, axis=1) - np.eye(len(view.classes))[view.train.labels]


def risks(view, scores, labels):
    """Return the risk of scores ``(..., C)``."""
    if view.classes is None:
        return 0.5 * ((scores - labels.reshape(-1, 1)[:, None, :]) ** 2).sum(axis=-1)
    if scores.shape[-1] == 1:
        scores = np.concatenate([np.zeros_like(scores), scores], axis=-1)
    which = np.broadcast_to(labels[:, None, None], (*scores.shape[:-1], 1))
    return -np.take_along_axis(log_softmax(scores, axis=-1), which, axis=-1)[..., 0]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kernel", ["lpw", "lp", "low", "to"])
@pytest.mark.parametrize("name", ["xgboost binary", "lightgbm classes", "sklearn regression"])
def test_equals_linear_models_on_dense_features(name, kernel, weighted):
    _, train, test, _ = trained(name, weighted=weighted)
    view = view_of(name, weighted=weighted)
    tests = view.place(test)
    method = TREX(kernel=kernel, weight_decay=DECAY).fit(view, train)
    logits, gradients = oracle(view, kernel, DECAY)
    tolerance = 1e-8 if view.outputs == 1 else 1e-5  # of scikit-learn's own solver

    alphas = -view.weights[:, None] * gradients / (DECAY * view.weights.sum())
    assert_allclose(method.alphas_, alphas, rtol=0, atol=tolerance * abs(alphas).max())
    of_tests = logits(dense_features(view, tests, kernel))
    found = method.surrogate_scores(test)
    assert_allclose(found, of_tests, rtol=0, atol=tolerance * abs(of_tests).max())

    products = dense_features(view, tests, kernel) @ dense_features(view, view.train, kernel).T
    without = found[:, None, :] - method.alphas_ * products[:, :, None]
    expected = risks(view, without, tests.labels) - risks(view, found[:, None, :], tests.labels)
    values = method.influence(test).values
    assert_allclose(values, expected, rtol=0, atol=1e-9 * abs(expected).max() + 1e-15)
    assert abs(values).max() > 0


@pytest.mark.parametrize("name", ["lightgbm binary", "catboost classes", "catboost regression"])
def test_predictions_are_sums_over_the_training_instances(name, monkeypatch):
    """In tree-influence the alphas of a regression are half of what makes this so."""
    _, train, test, _ = trained(name)
    view = view_of(name)
    for kernel in ("lpw", "lp"):
        method = TREX(kernel=kernel).fit(view, train)
        features = dense_features(view, view.place(test), kernel)
        products = features @ dense_features(view, view.train, kernel).T
        expected = products @ method.alphas_
        found = method.surrogate_scores(test)
        assert_allclose(found, expected, rtol=0, atol=1e-12 * abs(expected).max())
        diagnostics = method.influence(test).diagnostics
        assert diagnostics["surrogate_residual"] <= 1e-10
        logits, _ = oracle(view, kernel, 0.006)
        atol = (1e-8 if view.outputs == 1 else 1e-4) * abs(found).max()
        assert_allclose(found, logits(features), rtol=0, atol=atol)
    values = method.influence(test).values
    monkeypatch.setattr(tree_kernels, "leaf_loops", lambda: None)
    plain = TREX(kernel="lp").fit(view, train).influence(test).values
    assert_allclose(plain, values, rtol=0, atol=1e-9 * abs(values).max())


@pytest.mark.parametrize("kernel", ["lpw", "lp", "low"])
def test_a_regression_is_the_dual_ridge_and_not_half_of_it(kernel):
    """In tree-influence alpha = -(f - y) / (2 lmbd n), where its own loss is (f - y)^2."""
    _, train, test, _ = trained("sklearn regression")
    view = view_of("sklearn regression")
    lmbd, y = 0.003, view.train.targets.reshape(-1)
    own = dense_features(view, view.train, kernel)
    others = dense_features(view, view.place(test), kernel)
    alphas = np.linalg.solve(own @ own.T + lmbd * N * np.eye(N), y)
    method = TREX(kernel=kernel, weight_decay=2 * lmbd).fit(view, train)
    assert_allclose(method.alphas_[:, 0], alphas, rtol=0, atol=1e-8 * abs(alphas).max())
    predicted = others @ own.T @ alphas
    assert_allclose(method.surrogate_scores(test)[:, 0], predicted, rtol=1e-7, atol=1e-9)

    published = -(own @ own.T @ alphas - y) / (2 * lmbd * N)
    assert_allclose(method.alphas_[:, 0], 2 * published, rtol=0, atol=1e-8 * abs(alphas).max())
    # Half the representer values are no decomposition of the prediction: half of it is missing.
    halved = others @ own.T @ published
    assert_allclose(halved, 0.5 * method.surrogate_scores(test)[:, 0], rtol=1e-7, atol=1e-9)


def test_a_fit_that_fails_leaves_the_method_as_it_was(monkeypatch):
    _, train, test, _ = trained("lightgbm binary")
    method = TREX(kernel="lp").fit(view_of("lightgbm binary"), train)
    values = method.influence(test).values
    method.set_params(kernel="lpw")
    monkeypatch.setattr("proponent.trees.trex.fit_surrogate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        method.fit(view_of("lightgbm binary"), train)
    assert_allclose(method.influence(test).values, values, rtol=0)


@pytest.mark.parametrize("name", ["lightgbm binary", "lightgbm classes", "sklearn regression"])
def test_sums_shards_and_diagonals_agree(name):
    _, train, test, _ = trained(name)
    method = TREX(kernel="lp").fit(view_of(name), train)
    values = method.influence(test).values
    assert_allclose(method.influence(test, joint=True).values, values.sum(axis=0), atol=1e-12)
    parts = [method.influence(test, shard=(i, 3)).values for i in range(3)]
    assert_allclose(np.concatenate(parts, axis=1), values, atol=1e-14)
    diagonal = method.influence(train).values.diagonal()
    assert_allclose(method.memorization().values, diagonal, atol=1e-12)
    with pytest.raises(MethodCapabilityError, match="group influence"):
        method.group_influence([range(3)], test)


def test_small_and_large_changes_of_the_risk_are_both_precise():
    method = TREX(kernel="lp").fit(view_of("lightgbm classes"), table(3)[0])
    scores = np.array([[40.0], [0.0], [-3.0]])
    target = np.array([0])
    for size in (1e-12, 1e-3, 0.09, 0.11, 30.0, 900.0):
        moves = size * np.array([[-1.0], [0.5], [0.25]])
        found = method._change(scores, moves, target)
        # the risk is log(1 + e^-40 + e^-43), and rises with the others' distance
        apart = np.array([-40.0, -43.0])
        moved = apart + size * np.array([1.5, 1.25])
        if size < 1e-2:
            expected = (np.exp(apart) * np.expm1(moved - apart)).sum()
        else:
            expected = np.logaddexp.reduce([0, *moved]) - np.log1p(np.exp(apart).sum())
        assert_allclose(found, expected, rtol=1e-7, atol=1e-16)


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_forests(classes):
    train, test = table(classes)
    made = RandomForestClassifier if classes else RandomForestRegressor
    model = made(20, max_depth=4, random_state=0).fit(*train)
    view = read(model, train)
    method = TREX(kernel="lp").fit(model, train)
    logits, _ = oracle(view, "lp", 0.006)
    found = method.surrogate_scores(test)
    expected = logits(dense_features(view, view.place(test), "lp"))
    tolerance = 1e-4 if classes == 3 else 1e-7
    assert_allclose(found, expected, rtol=0, atol=tolerance * abs(expected).max())
    assert method.influence(test).diagnostics["surrogate_correlation"] > 0.85


def test_two_targets_are_two_regressions():
    (X, y), (X_test, y_test) = table(0)
    both, both_test = np.stack([y, y**2], axis=1), np.stack([y_test, y_test**2], axis=1)
    forest = RandomForestRegressor(5, max_depth=4, random_state=0).fit(X, both)
    view = read(forest, (X, both))
    found = TREX(kernel="lp").fit(view, (X, both)).influence((X_test, both_test)).values
    expected = sum(
        TREX(kernel="lp").fit(
            replace(
                view,
                train=replace(view.train, targets=view.train.targets[[k]]),
            ),
            (X, both),
        )._scores(_one_target(view.place((X_test, both_test)), k), range(N))
        for k in range(2)
    )  # fmt: skip
    assert_allclose(found, expected, rtol=0, atol=1e-9 * abs(found).max())


def _one_target(rows, k):
    return replace(rows, targets=rows.targets[[k]])


def test_a_surrogate_that_hardly_varies_is_told_of_and_ranks_as_leafsim():
    _, train, test, _ = trained("lightgbm binary")
    view = view_of("lightgbm binary")
    influence = TREX().fit(view, train).influence(test)
    (warning,) = influence.diagnostics["warnings"]
    assert "nearly constant" in warning
    assert "kernel='lp'" in warning
    similar = TreeSim().fit(view, train).influence(test).values
    correlations = [
        spearmanr(*pair).statistic for pair in zip(influence.values, similar, strict=True)
    ]
    assert min(correlations) > 0.99
    followed = TREX(kernel="lp").fit(view, train).influence(test).diagnostics
    assert "warnings" not in followed
    assert followed["surrogate_correlation"] > 0.95
    raw = view.raw(view.train)[0]
    surrogate = TREX(kernel="lp").fit(view, train).surrogate_scores(train)[:, 0]
    expected = np.corrcoef(1 / (1 + np.exp(-raw)), 1 / (1 + np.exp(-surrogate)))[0, 1]
    assert_allclose(followed["surrogate_correlation"], expected, rtol=1e-12)


def test_a_fit_that_is_short_of_the_minimum_says_so(monkeypatch):
    _, train, test, _ = trained("lightgbm binary")
    monkeypatch.setattr(trex_surrogate, "NEWTON_STEPS", 2)
    diagnostics = (
        TREX(kernel="lp").fit(view_of("lightgbm binary"), train).influence(test).diagnostics
    )
    assert diagnostics["surrogate_residual"] > 1e-10
    assert any("short of its minimum" in warning for warning in diagnostics["warnings"])


def test_refusals_name_what_is_wrong():
    model, train, _, _ = trained("sklearn binary")
    for settings, message in (
        ({"weight_decay": 0}, "weight_decay=0: expected a finite number above 0"),
        ({"tolerance": np.nan}, "tolerance=nan"),
        ({"kernel": "fp"}, "kernel='fp' looks at every node"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            TREX(**settings).fit(model, train)
