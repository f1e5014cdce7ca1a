"""Settings that change what the methods answer: sampling, held-out rows, initial scores, and more.

What cannot be read exactly is refused by its name, or marked on the result where that was asked
for.
"""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from trees.ensembles import estimator, raw_predictions, table
from trees.test_leaf_influence import by_finite_differences
from trees.test_leaf_refit import expected_of

from proponent.exceptions import InvalidInputError
from proponent.trees.boost_in import BoostIn
from proponent.trees.leaf_influence import LeafInfluence
from proponent.trees.leaf_refit import LeafRefit
from proponent.trees.read import read
from proponent.trees.tree_sim import TreeSim
from proponent.trees.trex import TREX
from proponent.trees.view import LeafView

N = 150


def split(loss="logistic", *, missing=False):
    features, targets = table(missing=missing)
    y = targets[loss]
    return (features[:N], y[:N]), (features[N : N + 20], y[N : N + 20])


def sampled(library, train, masks):
    """A booster whose trees have each seen other rows, as sampling makes them."""
    X, y = train
    model = None
    if library == "xgboost":
        xgboost = pytest.importorskip("xgboost")
        settings = {"objective": "binary:logistic", "base_score": 0.5, "max_depth": 3, "nthread": 1}
        for mask in masks:
            data = xgboost.DMatrix(X, y, weight=mask.astype(float))
            model = xgboost.train(settings, data, 1, xgb_model=model)
        return model
    lightgbm = pytest.importorskip("lightgbm")
    settings = {"objective": "binary", "boost_from_average": False, "num_leaves": 6, "verbose": -1}
    for mask in masks:
        data = lightgbm.Dataset(X, y, weight=mask.astype(float), free_raw_data=False)
        model = lightgbm.train(settings, data, 1, init_model=model, keep_training_booster=True)
    return model


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_trees_that_saw_samples_are_exact_with_their_mask(library):
    train, test = split(missing=True)
    masks = np.random.default_rng(0).random((5, N)) < 0.7
    model = sampled(library, train, masks)
    with pytest.raises(InvalidInputError, match="row sampling"):
        read(model, train)
    view = read(model, train, sample_mask=masks)
    assert view.residual < 5e-7 and view.n_trees == 5
    chosen = [0, 7, 120]
    tests = view.place(test)
    method = LeafRefit().fit(model, train, sample_mask=masks)
    expected = expected_of(view, tests, [[i] for i in chosen])
    values = method.influence(test).values
    assert_allclose(values[:, chosen], expected, rtol=0, atol=1e-6)
    method = LeafInfluence().fit(model, train, sample_mask=masks)
    expected = by_finite_differences(view, tests, chosen)
    values = method.influence(test).values
    assert_allclose(values[:, chosen], expected, rtol=0, atol=1e-5 * abs(expected).max())
    never = masks.copy()
    never[:, 3] = False  # a row that no tree saw
    model = sampled(library, train, never)
    for kind in (BoostIn, LeafInfluence, LeafRefit):
        values = kind().fit(model, train, sample_mask=never).influence(test).values
        assert_allclose(values[:, 3], 0.0, atol=1e-15)
        assert abs(values[:, 4]).max() > 1e-5


@pytest.mark.parametrize("library", ["gradient_boosting", "hist_gradient_boosting"])
def test_rows_that_were_held_out_have_no_influence(library):
    train, test = split()
    settings = (
        {"early_stopping": True}
        if library == "hist_gradient_boosting"
        else {"n_iter_no_change": 50, "random_state": 4}
    )
    model = estimator(library, "logistic", **settings).fit(*train)
    held = read(model, train).weights == 0
    assert np.count_nonzero(held) == N // 10
    for kind in (BoostIn, LeafInfluence, LeafRefit, TREX):
        values = kind().fit(model, train).influence(test).values
        assert_allclose(values[:, held], 0.0, atol=1e-15)
        assert (abs(values[:, ~held]).max(axis=0) > 0).mean() > 0.9


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
def test_initial_scores_are_asked_for_and_decide(library):
    train, test = split("squared")
    X, y = train

    def margin(features):
        return np.round(2.0 * features[:, 1], 3).astype(np.float32).astype(float)

    name = {"xgboost": "base_margin", "lightgbm": "init_score"}.get(library, "baseline")
    model = estimator(library, "squared")
    model.fit(X, y, **{name: margin(X)})
    with pytest.raises(InvalidInputError, match="base_margin"):
        LeafRefit().fit(model, train)
    found = {}
    for kind in (BoostIn, LeafInfluence, LeafRefit):
        with pytest.raises(InvalidInputError, match="test instances need initial scores"):
            kind().fit(model, train, base_margin=margin(X)).influence(test)
        found[kind] = kind().fit(model, train, base_margin=margin).influence(test).values
    view = read(model, train, base_margin=margin(X))
    tests = view.place(test, base_margin=margin(test[0]))
    expected = expected_of(view, tests, [[3], [100]])
    assert_allclose(found[LeafRefit][:, [3, 100]], expected, rtol=0, atol=1e-6)


def test_approximate_use_is_asked_for_and_marked_on_the_result():
    train, test = split()
    model = estimator("gradient_boosting", "logistic", subsample=0.6).fit(*train)
    for kind in (BoostIn, LeafInfluence, LeafRefit, TREX):
        with pytest.raises(InvalidInputError, match=r"subsample=0\.6.*approximate=True"):
            kind().fit(model, train)
        found = kind(approximate=True).fit(model, train).influence(test)
        assert "subsample=0.6" in found.diagnostics["approximate"][0]
        assert any("these scores are approximate" in each for each in found.diagnostics["warnings"])
        assert found.settings["approximate"] is True
        assert found.diagnostics["leaf_residual"] > 1e-3
    exact = estimator("gradient_boosting", "logistic").fit(*train)
    found = BoostIn(approximate=True).fit(exact, train).influence(test)
    assert "approximate" not in found.diagnostics and "warnings" not in found.diagnostics


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_dart_is_refused_and_read_approximately_with_its_own_predictions(library):
    train, test = split()
    name = "booster" if library == "xgboost" else "boosting_type"
    drop = {"rate_drop": 0.5} if library == "xgboost" else {"drop_rate": 0.5, "skip_drop": 0.0}
    model = estimator(library, "logistic", **{name: "dart"}, **drop).fit(*train)
    with pytest.raises(InvalidInputError, match="='dart' drops trees"):
        BoostIn().fit(model, train)
    view = read(model, train, approximate=True)
    assert view.approximate and "dart" in view.reasons[0]
    assert_allclose(view.raw(view.train), raw_predictions(library, model, train[0]), atol=2e-6)
    found = LeafRefit(approximate=True).fit(model, train).influence(test)
    assert "dart" in found.diagnostics["approximate"][0]


def absolute(y, scores):
    return np.sign(scores - y), np.ones_like(y, dtype=float)


def logistic(y, scores):
    p = 1 / (1 + np.exp(-scores))
    return p - y, p * (1 - p)


class Own:
    """An objective of the user's own, as CatBoost takes it."""

    def calc_ders_range(self, approxes, targets, weights):
        return [(targets[i] - approxes[i], -1.0) for i in range(len(targets))]


def test_objectives_of_ones_own_are_refused():
    train, _ = split("squared")
    model = estimator("xgboost", "squared", objective=absolute, base_score=0.5).fit(*train)
    with pytest.raises(InvalidInputError, match=r"objective=absolute.*the loss is not known"):
        read(model, train)
    model = estimator("lightgbm", "squared", objective=absolute).fit(*train)
    with pytest.raises(InvalidInputError, match="objective 'none'"):
        read(model, train)
    settings = {"loss_function": Own(), "eval_metric": "RMSE"}
    model = estimator("catboost", "squared", leaf_estimation_method="Gradient", **settings)
    with pytest.raises(InvalidInputError, match="PythonUserDefinedPerObject"):
        read(model.fit(*train), train)


def test_a_booster_of_an_objective_that_its_file_does_not_name_is_refused():
    xgboost = pytest.importorskip("xgboost")
    train, _ = split()
    booster = xgboost.train(
        {"max_depth": 3, "base_score": 0.0},
        xgboost.DMatrix(*train),
        5,
        obj=lambda scores, data: logistic(data.get_label(), scores),
    )
    with pytest.raises(InvalidInputError, match=r"leaf values .* are not what its training set"):
        read(booster, train)


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost"])
@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_boosters_and_estimators_give_the_same_numbers(library, loss):
    train, test = split(loss)
    if library == "catboost":
        catboost = pytest.importorskip("catboost")
        settings = {"iterations": 6, "depth": 3, "verbose": 0, "allow_writing_files": False}
        settings["learning_rate"] = 0.2
        model = estimator("catboost", loss, iterations=6).fit(*train)
        name = {"squared": "RMSE", "logistic": "Logloss", "softmax": "MultiClass"}[loss]
        booster = catboost.CatBoost({"loss_function": name, "thread_count": 1, **settings})
        booster.fit(*train)
    else:
        model = estimator(library, loss).fit(*train)
        booster = model.get_booster() if library == "xgboost" else model.booster_
    for kind in (BoostIn, LeafInfluence, LeafRefit, TreeSim):
        one = kind().fit(model, train).influence(test).values
        assert_array_equal(kind().fit(booster, train).influence(test).values, one)
        assert abs(one).max() > 0


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost", "hist_gradient_boosting"])
def test_instances_of_weight_zero_are_as_good_as_absent(library):
    train, test = split()
    weights = (np.random.default_rng(5).random(N) < 0.8).astype(float)
    model = estimator(library, "logistic").fit(*train, sample_weight=weights)
    for kind in (BoostIn, LeafInfluence, LeafRefit):
        found = kind().fit(model, train, sample_weight=weights).influence(test).values
        assert_allclose(found[:, weights == 0], 0.0, atol=1e-15)
        assert (abs(found[:, weights > 0]).max(axis=0) > 0).all()


def test_early_stopping_leaves_later_trees_out_of_the_scores():
    xgboost = pytest.importorskip("xgboost")
    train, test = split()
    model = estimator("xgboost", "logistic", n_estimators=100, early_stopping_rounds=4)
    model.fit(*train, eval_set=[test], verbose=False)
    best = model.best_iteration + 1
    again = xgboost.XGBClassifier(n_estimators=best, max_depth=3, n_jobs=1).fit(*train)
    assert model.get_booster().num_boosted_rounds() > best
    for kind in (BoostIn, LeafInfluence, LeafRefit):
        one = kind().fit(model, train).influence(test).values
        assert_allclose(one, kind().fit(again, train).influence(test).values, rtol=0, atol=1e-12)


def test_a_view_is_taken_with_what_it_was_read_with_only():
    xgboost = pytest.importorskip("xgboost")
    train, test = split()
    X, y = train

    def margin(features):
        return features[:, 1]

    model = xgboost.XGBClassifier(n_estimators=3, max_depth=2).fit(X, y, base_margin=margin(X))
    view = LeafView.read(model, train, base_margin=margin(X))
    one = BoostIn().fit(view, train, base_margin=margin).influence(test).values
    assert_array_equal(BoostIn().fit(model, train, base_margin=margin).influence(test).values, one)
    with pytest.raises(InvalidInputError, match="base_margin: the initial scores are not those"):
        BoostIn().fit(view, train)
    view = read(estimator("xgboost", "logistic").fit(X, y), train)
    with pytest.raises(InvalidInputError, match="read with 150 training instances; got 149"):
        BoostIn().fit(view, (X[1:], y[1:]))
    with pytest.raises(InvalidInputError, match="train: its labels are not those"):
        BoostIn().fit(view, (X, 1 - y))
    with pytest.raises(InvalidInputError, match="sample_weight: a leaf view has those"):
        BoostIn().fit(view, train, sample_weight=np.ones(N))
    with pytest.raises(InvalidInputError, match="sample_mask: a leaf view has those"):
        BoostIn().fit(view, train, sample_mask=np.ones((8, N)))
    with pytest.raises(InvalidInputError, match="base_margin: the initial scores are not those"):
        BoostIn().fit(view, train, base_margin=margin)


def test_trees_that_were_not_grown_do_not_move():
    pytest.importorskip("lightgbm")
    train, test = split("softmax")
    model = estimator("lightgbm", "softmax", min_split_gain=10.0).fit(*train)
    view = read(model, train)
    sizes = np.diff(view.offsets)
    single = np.repeat(sizes == 1, sizes)
    assert single.any() and not single.all()
    changes = LeafRefit().fit(model, train).parameter_changes(range(N))["leaf_values"]
    assert_array_equal(changes[:, single], 0.0)
    assert (changes[:, ~single] != 0).any(axis=1).all()
    tests, chosen = view.place(test), [0, 60, 149]
    values = LeafInfluence().fit(model, train).influence(test).values[:, chosen]
    changes = changes[chosen]
    moved = np.stack([view.raw(tests) for _ in chosen])
    for row in range(len(chosen)):
        for tree in range(view.n_trees):
            moved[row] -= view.tree_values(tests, tree, changes[row])
    expected = [view.loss.risk(raw, tests.targets) for raw in moved]
    expected = np.stack(expected, axis=1) - view.loss.risk(view.raw(tests), tests.targets)[:, None]
    assert_allclose(values, expected, rtol=0, atol=0.1 * abs(expected).max())
