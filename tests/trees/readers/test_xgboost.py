"""XGBoost: settings that leave the formulas whole, and those that break them."""

import numpy as np
import pytest
from trees.ensembles import estimator, raw_predictions, table

from proponent.exceptions import InvalidInputError
from proponent.trees.read import read

xgboost = pytest.importorskip("xgboost")
pd = pytest.importorskip("pandas")


def check(view, raw):
    assert view.residual < 7e-7
    np.testing.assert_allclose(view.raw(view.train), raw, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("squared", {"colsample_bynode": 0.5, "min_child_weight": 9, "gamma": 0.3}),
        ("squared", {"num_parallel_tree": 3, "colsample_bynode": 0.4}),
        ("softmax", {"num_parallel_tree": 2, "colsample_bynode": 0.4}),
        ("logistic", {"tree_method": "exact", "gamma": 1.0}),  # prunes
        ("logistic", {"tree_method": "approx", "grow_policy": "lossguide", "max_leaves": 6}),
        ("logistic", {"scale_pos_weight": 3.0}),
        ("logistic", {"objective": "binary:logitraw"}),
        ("logistic", {"base_score": 0.3}),
        ("softmax", {"max_bin": 8, "reg_lambda": 0.0}),
        ("logistic", {"reg_alpha": 2.0}),
        ("softmax", {"objective": "multi:softmax"}),
    ],
)
def test_settings_that_leave_the_formula_whole(loss, settings):
    features, targets = table(missing=True)
    model = estimator("xgboost", loss, **settings).fit(features, targets[loss])
    view = read(model, (features, targets[loss]))
    check(view, raw_predictions("xgboost", model, features))
    assert view.parallel == settings.get("num_parallel_tree", 1)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"subsample": 0.8}, r"subsample=0\.8.*sample_mask"),
        ({"max_delta_step": 0.1}, r"max_delta_step=0\.1"),
        ({"monotone_constraints": "(1,1,1,1,1)"}, "monotone_constraints"),
        ({"booster": "dart", "rate_drop": 0.5}, "booster='dart'"),
    ],
)
def test_settings_that_break_the_formula_are_named(settings, named):
    features, targets = table()
    train = features, targets["squared"]
    model = estimator("xgboost", "squared", **settings).fit(*train)
    with pytest.raises(InvalidInputError, match=named):
        read(model, train)
    view = read(model, train, approximate=True)
    assert view.approximate and view.residual > 1e-3
    raw = raw_predictions("xgboost", model, features)
    np.testing.assert_allclose(view.raw(view.train), raw, atol=2e-6)


@pytest.mark.parametrize(
    ("loss", "settings", "named"),
    [
        ("softmax", {"multi_strategy": "multi_output_tree"}, "multi_output_tree"),
        ("logistic", {"objective": "binary:hinge"}, "binary:hinge"),
        ("squared", {"objective": "reg:absoluteerror"}, "reg:absoluteerror"),
        ("squared", {"booster": "gblinear"}, "gblinear"),
    ],
)
def test_other_models_are_refused(loss, settings, named):
    features, targets = table()
    model = estimator("xgboost", loss, **settings).fit(features, targets[loss])
    with pytest.raises(InvalidInputError, match=named):
        read(model, (features, targets[loss]))


def test_columns_of_categories():
    features, targets = table(missing=True)
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(features, columns=list("abcde"))
    frame["many"] = pd.Categorical(rng.integers(0, 12, len(features)).astype(str))
    frame["few"] = pd.Categorical(rng.integers(0, 3, len(features)).astype(str))
    labels = targets["softmax"]
    model = estimator("xgboost", "softmax", enable_categorical=True).fit(frame, labels)
    view = read(model, (frame, labels))
    check(view, raw_predictions("xgboost", model, frame))
    placed = view.place((frame.iloc[:9], labels[:9]))
    np.testing.assert_array_equal(placed.leaves, view.train.leaves[:, :, :9])


@pytest.mark.parametrize("kind", ["json", "ubj"])
@pytest.mark.parametrize("l1", [0.0, 1.5])
def test_a_reloaded_model_is_calibrated_from_its_leaves(kind, l1, tmp_path):
    features, targets = table()
    train = features, targets["squared"]
    settings = {"reg_lambda": 3.3, "learning_rate": 0.17, "reg_alpha": l1}
    model = estimator("xgboost", "squared", **settings).fit(*train)
    path = tmp_path / f"model.{kind}"
    model.save_model(path)
    booster = xgboost.Booster()
    booster.load_model(path)
    view = read(booster, train)
    check(view, raw_predictions("xgboost", model, features))
    np.testing.assert_allclose(view.learning_rates, 0.17, rtol=1e-6)
    np.testing.assert_allclose(view.l2, 3.3, rtol=1e-5)
    np.testing.assert_allclose(view.l1, l1, rtol=1e-5)
    assert "calibrated" in view.notes[0]
    estimator_again = xgboost.XGBRegressor()
    estimator_again.load_model(path)
    np.testing.assert_array_equal(read(estimator_again, train).values, view.values)


def test_scheduled_learning_rates():
    features, targets = table()
    rates = xgboost.callback.LearningRateScheduler(lambda at: 0.3 * 0.9**at)
    data = xgboost.DMatrix(features, targets["squared"])
    booster = xgboost.train({"max_depth": 3}, data, 8, callbacks=[rates])
    view = read(booster, (features, targets["squared"]))
    # XGBoost sets the rate after a round, so the first two have the first one.
    expected = 0.3 * 0.9 ** np.array([0, *range(7)])
    np.testing.assert_allclose(view.learning_rates, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_base_margins_take_the_place_of_the_base_score(loss):
    features, targets = table()
    labels, outputs = targets[loss], 1 if loss == "logistic" else 3
    margins = np.random.default_rng(4).normal(size=(len(features), outputs))
    data = xgboost.DMatrix(features, labels, base_margin=margins)
    settings = {"objective": "binary:logistic"} if outputs == 1 else {"objective": "multi:softprob"}
    if outputs > 1:
        settings["num_class"] = outputs
    booster = xgboost.train({**settings, "max_depth": 3}, data, 8)
    view = read(booster, (features, labels), base_margin=margins)
    check(view, booster.predict(data, output_margin=True).reshape(len(features), -1).T)
    with pytest.raises(InvalidInputError, match="base_margin"):
        read(booster, (features, labels))


def test_several_targets():
    features, targets = table()
    both = np.stack([targets["squared"], features[:, 1]], axis=1)
    model = estimator("xgboost", "squared").fit(features, both)
    view = read(model, (features, both))
    assert view.outputs == 2
    check(view, raw_predictions("xgboost", model, features))


def test_early_stopping_follows_the_predictions_of_what_was_given():
    features, targets = table()
    labels = targets["logistic"]
    model = estimator("xgboost", "logistic", n_estimators=200, early_stopping_rounds=5)
    evaluation = [(features[200:], labels[200:])]
    model.fit(features[:200], labels[:200], eval_set=evaluation, verbose=False)
    view = read(model, (features[:200], labels[:200]))
    assert view.n_trees == model.best_iteration + 1
    check(view, raw_predictions("xgboost", model, features[:200]))
    booster = model.get_booster()  # predicts with all rounds
    whole = read(booster, (features[:200], labels[:200]))
    assert whole.n_trees == booster.num_boosted_rounds() == view.n_trees + 5
    raw = booster.predict(xgboost.DMatrix(features[:200]), output_margin=True)
    check(whole, raw[None])


def test_leaves_that_are_rounding_only_are_counted():
    features, targets = table()
    settings = {"n_estimators": 60, "max_depth": 8, "reg_lambda": 0.0, "min_child_weight": 0.0}
    train = features, targets["logistic"]
    view = read(estimator("xgboost", "logistic", **settings).fit(*train), train)
    assert "rounding" in view.notes[0] and not view.approximate


def test_a_booster_with_names_reads_arrays():
    features, targets = table()
    data = xgboost.DMatrix(features, targets["squared"], feature_names=list("abcde"))
    booster = xgboost.train({"max_depth": 3}, data, 4)
    view = read(booster, (features, targets["squared"]))
    check(view, booster.predict(data)[None])
