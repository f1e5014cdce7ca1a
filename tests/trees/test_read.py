"""Every library and loss is rebuilt: leaf values by the definition, and raw predictions."""

import pickle

import numpy as np
import pytest
from trees.ensembles import (
    LIBRARIES,
    LOSSES,
    TOLERANCES,
    estimator,
    raw_predictions,
    slow_values,
    table,
)

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.trees.read import read

FACTORS = {"xgboost": 2.0, "lightgbm": 1.5, "gradient_boosting": 1.5, "hist_gradient_boosting": 1.0}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("library", LIBRARIES)
def test_leaf_values_and_raw_predictions_are_rebuilt(library, loss, weighted):
    features, targets = table()
    weights = np.random.default_rng(1).uniform(0.5, 2.0, len(features)) if weighted else None
    model = estimator(library, loss).fit(features, targets[loss], sample_weight=weights)
    view = read(model, (features, targets[loss]), sample_weight=weights)
    leaf_tolerance, raw_tolerance = TOLERANCES[library]
    raw = raw_predictions(library, model, features)
    np.testing.assert_allclose(view.raw(view.train), raw, rtol=0, atol=raw_tolerance)
    placed = view.place((features[:40], targets[loss][:40]))
    np.testing.assert_allclose(view.raw(placed), raw[:, :40], rtol=0, atol=raw_tolerance)
    assert view.residual < leaf_tolerance and not view.approximate
    assert view.loss.name == loss
    if library == "catboost" and loss != "squared":
        return  # several steps, or coupled classes: see test_catboost.py
    found = slow_values(view, targets[loss], FACTORS.get(library, 1.0), weights)
    scale = np.abs(view.values).max()
    np.testing.assert_allclose(view.values, found, rtol=0, atol=leaf_tolerance * scale)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "gradient_boosting"])
def test_what_a_view_says_of_its_leaves(library, loss):
    features, targets = table()
    model = estimator(library, loss).fit(features, targets[loss])
    view = read(model, (features, targets[loss]))
    rates = np.repeat(view.learning_rates, np.diff(view.offsets[:: view.outputs]))
    np.testing.assert_allclose(view.values, rates * view.moved(view.steps), rtol=1e-12)
    for tree, derivatives in view.train_path():
        span = view.tree_span(tree[0])
        gradient, hessian = view.leaf_sums(
            view.train, tree[0], derivatives.gradient, derivatives.hessian
        )
        np.testing.assert_allclose(view.inverse[0, span], 1 / (hessian + view.l2[span]), rtol=1e-12)
        scale = np.abs(view.theta[0, span]).max()
        np.testing.assert_allclose(
            view.theta[0, span], -gradient * view.inverse[0, span], atol=1e-6 * scale
        )


@pytest.mark.parametrize("library", ["xgboost", "lightgbm"])
def test_walks_forwards_backwards_and_from_what_was_kept_agree(library):
    features, targets = table()
    model = estimator(library, "softmax").fit(features, targets["softmax"])
    view = read(model, (features, targets["softmax"]))
    forwards = [(stage.trees, stage.scores) for stage in view.path(view.train)]
    backwards = [(stage.trees, stage.scores) for stage in view.path(view.train, reverse=True)]
    assert [trees for trees, _ in forwards] == [trees for trees, _ in backwards[::-1]]
    for (_, there), (_, back) in zip(forwards, backwards[::-1], strict=True):
        np.testing.assert_allclose(there, back, atol=1e-13)
    kept = list(view.train_path())
    turned = list(view.train_path(reverse=True))[::-1]
    for (_, scores), (_, one), (_, other) in zip(forwards, kept, turned, strict=True):
        expected = view.loss.derivatives(scores, view.train.targets)
        for name in ("gradient", "hessian", "slope"):
            np.testing.assert_allclose(getattr(one, name), getattr(expected, name), atol=1e-14)
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_blocks_of_rows_are_read_like_the_whole(monkeypatch):
    features, targets = table()
    model = estimator("lightgbm", "softmax").fit(features, targets["softmax"])
    whole = read(model, (features, targets["softmax"]))
    monkeypatch.setattr("proponent.trees.reading.BLOCK_LEAVES", 24 * 7)
    blocks = read(model, (features, targets["softmax"]))
    np.testing.assert_array_equal(whole.train.leaves, blocks.train.leaves)


def test_a_walk_is_the_same_where_nothing_was_kept(monkeypatch):
    features, targets = table()
    model = estimator("lightgbm", "logistic").fit(features, targets["logistic"])
    kept = read(model, (features, targets["logistic"]))
    monkeypatch.setattr("proponent.trees.calibrate.KEPT", 0)
    view = read(model, (features, targets["logistic"]))
    assert view.kept is None and kept.kept is not None
    for (_, one), (_, other) in zip(view.train_path(), kept.train_path(), strict=True):
        np.testing.assert_array_equal(one.gradient, other.gradient)


def test_leaves_take_one_byte_each():
    features, targets = table()
    model = estimator("lightgbm", "squared").fit(features, targets["squared"])
    assert read(model, (features, targets["squared"])).train.leaves.dtype == np.uint8


@pytest.mark.parametrize("library", [*LIBRARIES, "random_forest"])
def test_ids_and_missing_values(library):
    features, targets = table(missing=library != "gradient_boosting")
    labels = targets["logistic"]
    model = estimator(library, "logistic").fit(features, labels)
    view = read(model, Instances.of((features, labels), ids=np.arange(300) + 7))
    assert view.train.ids[0] == 7
    assert view.residual < TOLERANCES[library][0]
    raw = raw_predictions(library, model, features)
    np.testing.assert_allclose(view.raw(view.train), raw, atol=TOLERANCES[library][1])


@pytest.mark.parametrize("library", ["lightgbm", "catboost", "gradient_boosting", "random_forest"])
def test_labels_may_be_text(library):
    features, targets = table()
    labels = np.array(["maybe", "no", "yes"])[targets["softmax"]]
    model = estimator(library, "softmax").fit(features, labels)
    view = read(model, (features, labels))
    assert view.classes.tolist() == ["maybe", "no", "yes"]
    np.testing.assert_array_equal(view.train.labels, targets["softmax"])
    with pytest.raises(InvalidInputError, match="perhaps"):
        view.place((features[:2], np.array(["no", "perhaps"])))


def test_a_view_is_read_as_it_is():
    features, targets = table()
    model = estimator("lightgbm", "squared").fit(features, targets["squared"])
    view = read(model, (features, targets["squared"]))
    assert read(view, None) is view


@pytest.mark.parametrize("library", [*LIBRARIES, "random_forest", "extra_trees"])
def test_a_model_that_is_not_trained_is_refused(library):
    features, targets = table()
    with pytest.raises(InvalidInputError, match="not fitted"):
        read(estimator(library, "logistic"), (features, targets["logistic"]))


def test_other_models_and_training_sets_are_refused():
    from sklearn.linear_model import LinearRegression

    features, targets = table()
    labels = targets["logistic"]
    with pytest.raises(InvalidInputError, match=r"XGBoost, LightGBM.*got LinearRegression"):
        read(LinearRegression(), (features, labels))
    model = estimator("lightgbm", "logistic").fit(features, labels)
    with pytest.raises(InvalidInputError, match=r"no instance has the label of the output.*\[1\]"):
        read(model, (features, np.zeros(300, int)))
    with pytest.raises(InvalidInputError, match="training set is the one"):
        read(model, (features[::-1], labels))
    with pytest.raises(InvalidInputError, match="training set is the one"):
        read(model, (features[:100], labels[:100]))
    with pytest.raises(InvalidInputError, match="no labels"):
        read(model, features)
    with pytest.raises(InvalidInputError, match=r"sample_weight: expected shape \(300,\)"):
        read(model, (features, labels), sample_weight=np.ones(3))
    with pytest.raises(InvalidInputError, match="none negative"):
        read(model, (features, labels), sample_weight=-np.ones(300))
    with pytest.raises(InvalidInputError, match="base_margin: expected shape"):
        read(model, (features, labels), base_margin=np.ones((300, 2)))
    with pytest.raises(InvalidInputError, match=r"sample_mask: expected shape \(8, 300\)"):
        read(model, (features, labels), sample_mask=np.ones((300, 8), bool))
    with pytest.raises(InvalidInputError, match="approximate"):
        read(model, (features, labels), approximate="yes")
    regressor = estimator("lightgbm", "squared").fit(features, targets["squared"])
    with pytest.raises(NonFiniteError, match="targets of 1 instances"):
        broken = targets["squared"].copy()
        broken[3] = np.nan
        read(regressor, (features, broken))


@pytest.mark.parametrize("library", LIBRARIES)
def test_reading_leaves_the_model_as_it_was(library):
    features, targets = table()
    model = estimator(library, "logistic").fit(features, targets["logistic"])
    before = raw_predictions(library, model, features)
    again = pickle.loads(pickle.dumps(model))
    view = read(again, (features, targets["logistic"]))
    view.place((features[:5], targets["logistic"][:5]))
    np.testing.assert_array_equal(raw_predictions(library, again, features), before)
