"""CatBoost: steps within a tree, coupled classes, and settings that break the formulas."""

import numpy as np
import pytest
from trees.ensembles import estimator, raw_predictions, slow_derivatives, table

from proponent.exceptions import InvalidInputError
from proponent.trees.read import read

catboost = pytest.importorskip("catboost")
pd = pytest.importorskip("pandas")


def check(view, raw, tolerance=4e-8):
    assert view.residual < tolerance and not view.approximate
    np.testing.assert_allclose(view.raw(view.train), raw, rtol=0, atol=4e-14)


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("method", ["Newton", "Gradient"])
@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_steps_of_the_leaves_by_the_definition(loss, method, steps):
    features, targets = table()
    labels = targets[loss]
    settings = {
        "leaf_estimation_iterations": steps,
        "leaf_estimation_method": method,
        "leaf_estimation_backtracking": "No",
    }
    model = estimator("catboost", loss, **settings).fit(features, labels)
    view = read(model, (features, labels))
    assert view.steps == steps
    check(view, raw_predictions("catboost", model, features))
    tree = 3
    stage = list(view.path(view.train))[tree]
    leaf, outputs = view.train.leaves[tree, 0], view.outputs
    scores = stage.scores.copy()
    for step in range(steps):
        np.testing.assert_allclose(
            view.step_scores(view.train, tree, step, stage.scores), scores, atol=1e-13
        )
        # the library holds targets in float32
        g, h = slow_derivatives(loss, scores, view.train.targets, 1.0)
        p = g + (np.arange(outputs)[:, None] == labels) if loss == "softmax" else None
        theta = view.theta[step, view.tree_span(tree)].reshape(outputs, -1)
        for number in range(theta.shape[1]):
            inside = np.flatnonzero(leaf == number)
            if not len(inside):
                np.testing.assert_array_equal(theta[:, number], 0)
                continue
            if method == "Gradient":
                matrix = np.eye(outputs) * len(inside)
            elif loss == "softmax":
                matrix = sum(np.diag(p[:, i]) - np.outer(p[:, i], p[:, i]) for i in inside)
            else:
                matrix = np.array([[h[0, inside].sum()]])
            matrix = matrix + 3.0 * np.eye(outputs)  # the default l2_leaf_reg
            expected = -np.linalg.solve(matrix, g[:, inside].sum(axis=1))
            np.testing.assert_allclose(theta[:, number], expected, atol=1e-9)
            if view.coupled_inverse is not None:
                at = view.offsets[tree * outputs] // outputs + number
                found = view.coupled_inverse[step, at]
                np.testing.assert_allclose(found, np.linalg.inv(matrix), atol=1e-9)
        scores = scores + theta[:, leaf]


@pytest.mark.parametrize(
    "settings",
    [
        {"leaf_estimation_iterations": 7, "depth": 2},
        {"leaf_estimation_iterations": 10, "grow_policy": "Lossguide", "max_leaves": 4},
        {"leaf_estimation_iterations": 10, "l2_leaf_reg": 0.1},
    ],
)
def test_steps_that_backtracking_halved_are_found(settings):
    features, targets = table()
    train = features, targets["logistic"]
    model = estimator("catboost", "logistic", **settings).fit(*train)
    view = read(model, train)
    check(view, raw_predictions("catboost", model, features), tolerance=2e-8)
    assert "halved" in view.notes[-1]
    assert (view.step_scales < 1).any()
    rates = np.repeat(view.learning_rates, np.diff(view.offsets))
    moved = rates * view.moved(view.steps)
    np.testing.assert_allclose(moved, view.values, atol=2e-8 * np.abs(view.values).max())


def test_the_default_classifier_of_many_iterations():
    features, targets = table()
    train = features, targets["logistic"]
    model = estimator("catboost", "logistic", iterations=1000, learning_rate=None).fit(*train)
    assert model.get_all_params()["leaf_estimation_iterations"] == 10
    check(read(model, train), raw_predictions("catboost", model, features), tolerance=1e-6)


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("squared", {"grow_policy": "Lossguide", "max_leaves": 9}),
        ("logistic", {"grow_policy": "Depthwise"}),
        ("softmax", {"grow_policy": "Lossguide"}),
        ("logistic", {"boosting_type": "Ordered"}),
        ("squared", {"bootstrap_type": "Bernoulli", "subsample": 0.6}),
        ("softmax", {"bootstrap_type": "MVS", "subsample": 0.6}),
        ("logistic", {"class_weights": [1, 3]}),
        ("softmax", {"auto_class_weights": "Balanced"}),
        ("logistic", {"scale_pos_weight": 3}),
        ("logistic", {"boost_from_average": True}),
    ],
)
def test_settings_that_leave_the_formula_whole(loss, settings):
    features, targets = table(missing=True)
    model = estimator("catboost", loss, leaf_estimation_iterations=2, **settings)
    model.fit(features, targets[loss])
    view = read(model, (features, targets[loss]))
    check(view, raw_predictions("catboost", model, features))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"langevin": True}, "langevin=True"),
        ({"posterior_sampling": True}, "posterior_sampling=True"),
        ({"model_shrink_rate": 0.2}, r"model_shrink_rate=0\.2"),
        ({"monotone_constraints": [1, 1, 1, 1, 1]}, "monotone_constraints"),
    ],
)
def test_settings_that_break_the_formula_are_named(settings, named):
    features, targets = table()
    train = features, targets["logistic"]
    model = estimator("catboost", "logistic", **settings).fit(*train)
    with pytest.raises(InvalidInputError, match=named):
        read(model, train)
    assert read(model, train, approximate=True).approximate


@pytest.mark.parametrize("function", ["MAE", "Quantile", "RMSEWithUncertainty"])
def test_other_losses_are_refused(function):
    features, targets = table()
    train = features, targets["squared"]
    model = estimator("catboost", "squared", loss_function=function).fit(*train)
    with pytest.raises(InvalidInputError, match=function):
        read(model, train)


@pytest.mark.parametrize("loss", ["logistic", "softmax"])
def test_categories_are_read_one_hot_and_refused_as_statistics(loss):
    features, targets = table(missing=True)
    rng = np.random.default_rng(3)
    frame = pd.DataFrame(features, columns=list("abcde"))
    frame["many"] = rng.integers(0, 12, len(features)).astype(str)
    labels = targets[loss]
    settings = {"cat_features": ["many"], "leaf_estimation_iterations": 1}
    model = estimator("catboost", loss, one_hot_max_size=20, **settings).fit(frame, labels)
    view = read(model, (frame, labels))
    check(view, raw_predictions("catboost", model, frame))
    labels = (frame["many"].astype(int) % 3 + labels > 1).to_numpy().astype(int)
    model = estimator("catboost", "logistic", one_hot_max_size=2, **settings).fit(frame, labels)
    with pytest.raises(InvalidInputError, match="one_hot_max_size=2"):
        read(model, (frame, labels))


@pytest.mark.parametrize("kind", ["cbm", "json"])
def test_a_reloaded_model(kind, tmp_path):
    features, targets = table()
    labels = np.array(["no", "yes"])[targets["logistic"]]
    model = estimator("catboost", "logistic", class_names=["yes", "no"]).fit(features, labels)
    model.save_model(str(tmp_path / "model"), format=kind)
    again = catboost.CatBoostClassifier()
    again.load_model(str(tmp_path / "model"), format=kind)
    view = read(again, (features, labels))
    check(view, raw_predictions("catboost", model, features))
    assert view.classes.tolist() == ["yes", "no"]
    np.testing.assert_array_equal(view.train.targets, targets["logistic"] == 0)


def test_a_baseline_is_given_by_the_user():
    features, targets = table()
    baseline = np.random.default_rng(4).normal(size=len(features)).astype(np.float32).astype(float)
    pool = catboost.Pool(features, targets["squared"], baseline=baseline)
    model = estimator("catboost", "squared").fit(pool)
    view = read(model, (features, targets["squared"]), base_margin=baseline)
    assert view.residual < 4e-8
    np.testing.assert_allclose(view.raw(view.train)[0], model.predict(pool), atol=1e-6)


def test_early_stopping_shrinks_the_model():
    features, targets = table()
    labels = targets["logistic"]
    model = estimator("catboost", "logistic", iterations=300, early_stopping_rounds=5)
    model.fit(features[:200], labels[:200], eval_set=(features[200:], labels[200:]))
    view = read(model, (features[:200], labels[:200]))
    assert view.n_trees == model.best_iteration_ + 1 < 100
