"""scikit-learn: boosting with held-out rows, and forests by bootstrap counts."""

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import train_test_split
from trees.ensembles import estimator, raw_predictions, table

from proponent.exceptions import InvalidInputError
from proponent.trees.read import read

pd = pytest.importorskip("pandas")


def check(library, model, view, features, residual):
    assert view.residual < residual
    raw = raw_predictions(library, model, features)
    np.testing.assert_allclose(view.raw(view.train), raw, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        ("squared", {"max_features": 0.5, "min_samples_leaf": 5}),
        ("squared", {"init": LinearRegression()}),
        ("softmax", {"init": LogisticRegression()}),
        ("softmax", {"init": "zero"}),
        ("logistic", {"ccp_alpha": 0.002}),
        ("squared", {"ccp_alpha": 0.02}),
    ],
)
def test_gradient_boosting(loss, settings):
    features, targets = table()
    model = estimator("gradient_boosting", loss, **settings).fit(features, targets[loss])
    view = read(model, (features, targets[loss]))
    check("gradient_boosting", model, view, features, 4e-14)


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_rows_that_gradient_boosting_held_out_have_no_weight(loss):
    features, targets = table()
    weights = np.random.default_rng(1).uniform(0.5, 2.0, len(features))
    settings = {"n_iter_no_change": 3, "random_state": 5, "validation_fraction": 0.2}
    model = estimator("gradient_boosting", loss, **settings)
    model.fit(features, targets[loss], sample_weight=weights)
    view = read(model, (features, targets[loss]), sample_weight=weights)
    check("gradient_boosting", model, view, features, 4e-14)
    stratify = None if loss == "squared" else targets[loss]
    _, held = train_test_split(np.arange(300), test_size=0.2, random_state=5, stratify=stratify)
    np.testing.assert_array_equal(np.flatnonzero(view.weights == 0), np.sort(held))


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
def test_a_sampling_mask_makes_subsampled_trees_exact(loss, monkeypatch):
    import sklearn.ensemble._gb as boosting

    features, targets = table()
    masks, draw = [], boosting._random_sample_mask
    monkeypatch.setattr(
        boosting, "_random_sample_mask", lambda *given: masks.append(draw(*given)) or masks[-1]
    )
    model = estimator("gradient_boosting", loss, subsample=0.7).fit(features, targets[loss])
    train = features, targets[loss]
    with pytest.raises(InvalidInputError, match=r"subsample=0\.7.*sample_mask"):
        read(model, train)
    view = read(model, train, sample_mask=np.array(masks, bool))
    check("gradient_boosting", model, view, features, 4e-14)
    assert read(model, train, approximate=True).residual > 1e-2


def test_a_split_that_cannot_be_drawn_again_is_refused():
    features, targets = table()
    model = estimator("gradient_boosting", "squared", n_iter_no_change=3, random_state=None)
    model.fit(features, targets["squared"])
    with pytest.raises(InvalidInputError, match="n_iter_no_change"):
        read(model, (features, targets["squared"]))


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax"])
@pytest.mark.parametrize(
    "settings",
    [
        {"l2_regularization": 0.7, "max_bins": 16, "max_features": 0.6},
        {"early_stopping": True, "random_state": None},
        {"early_stopping": True, "validation_fraction": None},
    ],
)
def test_hist_gradient_boosting(loss, settings):
    features, targets = table(missing=True)
    model = estimator("hist_gradient_boosting", loss, **settings).fit(features, targets[loss])
    view = read(model, (features, targets[loss]))
    check("hist_gradient_boosting", model, view, features, 2e-7)
    split = settings.get("early_stopping") and "validation_fraction" not in settings
    assert np.count_nonzero(view.weights == 0) == (30 if split else 0)


def test_hist_gradient_boosting_with_a_validation_set_of_the_user():
    features, targets = table(missing=True)
    labels = targets["logistic"]
    model = estimator("hist_gradient_boosting", "logistic", early_stopping=True)
    try:
        model.fit(features, labels, X_val=features[:50], y_val=labels[:50])
    except TypeError:
        pytest.skip("this scikit-learn takes no validation set")
    view = read(model, (features, labels))
    check("hist_gradient_boosting", model, view, features, 2e-7)
    assert view.weights.all()


def test_hist_gradient_boosting_with_categories_and_class_weights():
    features, targets = table(missing=True)
    frame = pd.DataFrame(features, columns=list("abcde"))
    category = np.random.default_rng(3).integers(0, 12, len(features)).astype(str)
    frame.insert(2, "many", pd.Categorical(category))
    labels = targets["softmax"]
    settings = {"categorical_features": "from_dtype", "class_weight": {0: 1, 1: 2.5, 2: 0.3}}
    model = estimator("hist_gradient_boosting", "softmax", **settings).fit(frame, labels)
    view = read(model, (frame, labels))
    check("hist_gradient_boosting", model, view, frame, 2e-7)


def test_settings_of_boosting_that_break_the_formula_are_named():
    features, targets = table()
    train = features, targets["squared"]
    model = estimator("hist_gradient_boosting", "squared", monotonic_cst=[1] * 5).fit(*train)
    with pytest.raises(InvalidInputError, match="monotonic_cst"):
        read(model, train)
    model = estimator("hist_gradient_boosting", "squared")
    model.set_params(loss="absolute_error").fit(*train)
    with pytest.raises(InvalidInputError, match="loss='absolute_error'"):
        read(model, train)
    model = estimator("gradient_boosting", "squared").set_params(loss="huber").fit(*train)
    with pytest.raises(InvalidInputError, match="loss='huber'"):
        read(model, train)
    with pytest.raises(InvalidInputError, match="base_margin"):
        read(model, train, base_margin=np.zeros(300))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("balance", [None, "balanced", "balanced_subsample"])
@pytest.mark.parametrize("library", ["random_forest", "extra_trees"])
def test_forests_of_classes(library, balance, bootstrap, weighted):
    if balance == "balanced_subsample" and not bootstrap:
        return
    features, targets = table(missing=True)
    labels = targets["softmax"]
    weights = np.random.default_rng(1).uniform(0.2, 3.0, len(features)) if weighted else None
    model = estimator(library, "softmax", class_weight=balance, bootstrap=bootstrap)
    model.fit(features, labels, sample_weight=weights)
    view = read(model, (features, labels), sample_weight=weights)
    check(library, model, view, features, 4e-15)
    # A leaf is the weighted share of each class among what its tree drew.
    tree, output = 3, 1
    drawn = view.tree_weights(tree)
    drawn = np.ones(300) if drawn is None else drawn
    leaf = view.train.leaves[tree, output]
    for number in range(int(leaf.max()) + 1):
        inside = leaf == number
        share = drawn[inside & (labels == output)].sum() / drawn[inside].sum()
        at = view.offsets[tree * 3 + output] + number
        np.testing.assert_allclose(view.theta[0, at], share, atol=1e-14)
        np.testing.assert_allclose(view.inverse[0, at], 1 / drawn[inside].sum(), rtol=1e-12)


@pytest.mark.parametrize("library", ["random_forest", "extra_trees"])
@pytest.mark.parametrize("settings", [{}, {"max_samples": 0.5, "bootstrap": True}])
def test_forests_of_one_and_several_targets(library, settings):
    features, targets = table()
    both = np.stack([targets["squared"], features[:, 1]], axis=1)
    for labels in (targets["squared"], both):
        model = estimator(library, "squared", **settings).fit(features, labels)
        view = read(model, (features, labels))
        check(library, model, view, features, 4e-15)
        assert view.kind == "forest" and view.parallel == view.n_trees == 8
    drawn = model.bootstrap
    assert (view.counts is not None) == drawn
    if drawn:
        expected = [np.bincount(rows, minlength=300) for rows in model.estimators_samples_]
        np.testing.assert_array_equal(view.counts, expected)


def test_forests_that_are_refused():
    features, targets = table()
    both = np.stack([targets["logistic"], targets["softmax"]], axis=1)
    model = estimator("random_forest", "logistic").fit(features, both)
    with pytest.raises(InvalidInputError, match="several targets at once"):
        read(model, (features, both))
    train = features, targets["squared"]
    model = estimator("random_forest", "squared", criterion="absolute_error").fit(*train)
    with pytest.raises(InvalidInputError, match="absolute_error"):
        read(model, train)
    model = estimator("random_forest", "squared").fit(*train)
    with pytest.raises(InvalidInputError, match="more than 200 instances"):
        read(model, (features[:200], targets["squared"][:200]))
