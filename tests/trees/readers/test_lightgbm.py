"""LightGBM: settings that leave the formulas whole, and those that break them."""

import numpy as np
import pytest
from trees.ensembles import estimator, raw_predictions, table

from proponent.exceptions import InvalidInputError
from proponent.trees.read import read

lightgbm = pytest.importorskip("lightgbm")
pd = pytest.importorskip("pandas")

SCHEDULE = [lightgbm.reset_parameter(learning_rate=lambda at: 0.3 * 0.9**at)]


def check(view, raw):
    assert view.residual < 2e-7
    np.testing.assert_allclose(view.raw(view.train), raw, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("squared", {"extra_trees": True, "colsample_bytree": 0.5}),
        ("squared", {"reg_alpha": 3.0, "reg_lambda": 2.0}),
        ("logistic", {"max_bin": 15, "min_child_samples": 3, "min_split_gain": 0.1}),
        ("logistic", {"is_unbalance": True}),
        ("logistic", {"scale_pos_weight": 3.0}),
        ("softmax", {"class_weight": "balanced"}),
        ("softmax", {"class_weight": {0: 1, 1: 2.5, 2: 0.3}}),
        ("softmax", {"min_split_gain": 10.0}),  # trees of some classes are not grown
        ("logistic", {"boost_from_average": False}),
        ("logistic", {"monotone_constraints": [-1, 0, 0, 0, 0]}),  # binds no leaf
    ],
)
def test_settings_that_leave_the_formula_whole(loss, settings):
    features, targets = table(missing=True)
    model = estimator("lightgbm", loss, **settings).fit(features, targets[loss])
    view = read(model, (features, targets[loss]))
    check(view, raw_predictions("lightgbm", model, features))


def test_leaves_held_at_zero_by_l1_do_not_move():
    features, targets = table()
    model = estimator("lightgbm", "squared", reg_alpha=30.0).fit(features, targets["squared"])
    view = read(model, (features, targets["squared"]))
    held = view.values == 0
    assert held.any() and not held.all()
    np.testing.assert_array_equal(view.inverse[0] == 0, held)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"subsample": 0.8, "subsample_freq": 1}, r"bagging_fraction=0\.8.*sample_mask"),
        ({"data_sample_strategy": "goss", "n_estimators": 15}, "goss"),
        ({"max_delta_step": 0.05}, r"max_delta_step=0\.05"),
        ({"path_smooth": 5.0}, "path_smooth=5"),
        ({"use_quantized_grad": True}, "use_quantized_grad"),
        ({"monotone_constraints": [1, 1, 1, 1, 1]}, "monotone_constraints=1,1,1,1,1"),
        ({"reg_sqrt": True}, "reg_sqrt=True"),
    ],
)
def test_settings_that_break_the_formula_are_named(settings, named):
    features, targets = table()
    train = features, targets["squared"]
    model = estimator("lightgbm", "squared", **settings).fit(*train)
    with pytest.raises(InvalidInputError, match=named):
        read(model, train)
    view = read(model, train, approximate=True)
    assert view.approximate and view.residual > 1e-3
    assert named.split("=")[0].split(r"\.")[0] in view.reasons[0]
    np.testing.assert_allclose(
        view.raw(view.train),
        np.atleast_2d(model.booster_.predict(features, raw_score=True)),
        atol=1e-13,
    )


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"linear_tree": True}, "linear_tree=True"),
        ({"boosting_type": "rf", "subsample": 0.5, "subsample_freq": 1}, "boosting='rf'"),
        ({"boosting_type": "dart"}, "boosting='dart'"),
        ({"objective": "poisson"}, "objective 'poisson'"),
        ({"objective": "l1"}, "objective 'regression_l1'"),
    ],
)
def test_other_models_are_refused(settings, named):
    features, targets = table()
    train = features, np.abs(targets["squared"])
    model = estimator("lightgbm", "squared", **settings).fit(*train)
    with pytest.raises(InvalidInputError, match=named):
        read(model, train)


def test_another_sigmoid_is_refused():
    features, targets = table()
    model = estimator("lightgbm", "logistic", sigmoid=2.0).fit(features, targets["logistic"])
    with pytest.raises(InvalidInputError, match="sigmoid:2"):
        read(model, (features, targets["logistic"]))


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize("settings", [{}, {"cat_l2": 0.0}, {"reg_lambda": 2.0}])
def test_leaves_under_a_split_by_category_have_their_own_l2(loss, settings):
    features, targets = table(missing=True)
    rng = np.random.default_rng(3)
    category = rng.integers(0, 12, len(features))
    frame = pd.DataFrame(features, columns=list("abcde"))
    frame["many"] = pd.Categorical(category.astype(str))
    frame["few"] = pd.Categorical(rng.integers(0, 3, len(features)).astype(str))
    labels = targets[loss] if loss != "squared" else targets[loss] + category % 3
    if loss == "logistic":
        labels = (targets["squared"] + category % 3 > 1.5).astype(int)
    model = estimator("lightgbm", loss, min_data_per_group=10, **settings).fit(frame, labels)
    view = read(model, (frame, labels))
    check(view, raw_predictions("lightgbm", model, frame))
    own = settings.get("reg_lambda", 0.0)
    if loss == "logistic":
        assert set(view.l2) == {own, own + settings.get("cat_l2", 10.0)}


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_initial_scores_are_given_by_the_user(loss):
    features, targets = table()
    labels, outputs = targets[loss], 1 if loss == "logistic" else 3
    margins = np.random.default_rng(4).normal(size=(len(features), outputs))
    margins = margins[:, 0] if outputs == 1 else margins
    settings = {"objective": "binary"} if outputs == 1 else {"objective": "multiclass"}
    settings |= {"num_leaves": 7, "verbose": -1, "num_class": outputs}
    data = lightgbm.Dataset(features, labels, init_score=margins)
    booster = lightgbm.train(settings, data, 8)
    view = read(booster, (features, labels), base_margin=margins)
    raw = (booster.predict(features, raw_score=True) + margins).reshape(len(features), -1)
    check(view, raw.T)
    placed = view.place((features[:9], labels[:9]), base_margin=margins[:9])
    np.testing.assert_allclose(view.raw(placed), raw[:9].T, atol=1e-14)
    with pytest.raises(InvalidInputError, match="base_margin"):
        read(booster, (features, labels))


def test_a_reloaded_booster_and_scheduled_learning_rates():
    features, targets = table()
    data = lightgbm.Dataset(features, targets["squared"])
    settings = {"objective": "regression", "num_leaves": 7, "verbose": -1, "lambda_l2": 0.7}
    booster = lightgbm.train(settings, data, 8, callbacks=SCHEDULE)
    again = lightgbm.Booster(model_str=booster.model_to_string())
    view = read(again, (features, targets["squared"]))
    check(view, booster.predict(features)[None])
    np.testing.assert_allclose(view.learning_rates, 0.3 * 0.9 ** np.arange(8), rtol=1e-6)


def test_early_stopping_reads_the_best_iteration():
    features, targets = table()
    labels = targets["logistic"]
    model = estimator("lightgbm", "logistic", n_estimators=200, learning_rate=0.3)
    model.fit(
        features[:200],
        labels[:200],
        eval_set=[(features[200:], labels[200:])],
        callbacks=[lightgbm.early_stopping(5, verbose=False)],
    )
    view = read(model, (features[:200], labels[:200]))
    assert view.n_trees == model.best_iteration_ < 100
    check(view, raw_predictions("lightgbm", model, features[:200]))
