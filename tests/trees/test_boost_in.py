"""BoostIn against finite differences of each tree's leaves, and the published code's formula."""

from dataclasses import replace

import numpy as np
import pytest
from ensembles import ENSEMBLES, table, trained, view_of
from numpy.testing import assert_allclose
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.metrics import roc_auc_score

import proponent as pp
from proponent.exceptions import InvalidInputError
from proponent.trees import matching
from proponent.trees.boost_in import BoostIn
from proponent.trees.read import read
from proponent.trees.steps import refit_steps


def leaf_values(view, weights):
    """Return what every leaf would be with other weights, all earlier trees as they are."""
    theta = refit_steps(replace(view, weights=weights, kept=None), view.steps).theta
    rates = np.concatenate(
        [np.full(np.ptp(view.offsets[[t * view.outputs, (t + 1) * view.outputs]]), rate)
         for t, rate in enumerate(view.learning_rates)]
    )  # fmt: skip
    return rates * theta.sum(axis=0)


def gradients_before_each_tree(view, tests):
    found = np.empty((view.n_trees, view.outputs, len(tests)))
    for stage in view.path(tests):
        for tree in stage.trees:
            found[tree] = view.loss.gradient(stage.scores, tests.targets)
    return found


def by_finite_differences(view, tests, step=1e-4):
    gradients = gradients_before_each_tree(view, tests)
    scores = np.zeros((len(tests), len(view.train)))
    for i, weight in enumerate(view.weights):
        moved = []
        for sign in (1, -1):
            weights = view.weights.copy()
            weights[i] += sign * step
            moved.append(leaf_values(view, weights))
        removal = -weight * (moved[0] - moved[1]) / (2 * step)
        for tree in range(view.n_trees):
            scores[:, i] += (gradients[tree] * view.tree_values(tests, tree, removal)).sum(axis=0)
    return scores


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_equals_finite_differences_of_the_leaves(name, weighted):
    model, train, test, weights = trained(name, weighted=weighted)
    method = BoostIn(leaf_step="theta").fit(model, train, sample_weight=weights)
    values = method.influence(test).values
    view = view_of(name, weighted=weighted)
    expected = by_finite_differences(view, view.place(test))
    assert_allclose(values, expected, rtol=0, atol=2e-6 * abs(expected).max())


def published(view, tests):
    """Return the published code's scores by plain loops over pairs and trees."""
    scores = np.zeros((len(tests), len(view.train)))
    gradients = gradients_before_each_tree(view, tests)
    for stage in view.path(view.train):
        found = view.loss.derivatives(stage.scores, view.train.targets)
        for tree in stage.trees:
            for k in range(view.outputs):
                span, eta = view.span(tree, k), view.learning_rates[tree]
                train_leaf, test_leaf = view.train.leaf(tree, k), tests.leaf(tree, k)
                for i, leaf in enumerate(train_leaf):
                    same = train_leaf == leaf
                    denominator = found.hessian[k, same].sum() + view.l2[span][leaf]
                    own = found.gradient[k, i] + view.values[span][leaf] * found.hessian[k, i]
                    hit = test_leaf == leaf
                    scores[hit, i] += gradients[tree, k, hit] * eta * own / denominator
    return scores


@pytest.mark.parametrize(
    "name", ["lightgbm binary", "lightgbm classes", "xgboost parallel", "sklearn regression"]
)
def test_the_default_is_the_published_formula(name):
    model, train, test, _ = trained(name)
    view = view_of(name)
    expected = published(view, view.place(test))
    assert_allclose(BoostIn().fit(model, train).influence(test).values, expected, atol=1e-7)


@pytest.mark.parametrize(
    "name",
    [
        "lightgbm binary", "catboost gradient", "sklearn regression",
        "lightgbm classes", "catboost steps", "catboost classes",
    ],
)  # fmt: skip
def test_sums_shards_diagonals_and_blocks_agree(name, monkeypatch):
    model, train, test, _ = trained(name)
    method = BoostIn(leaf_step="theta", weighting="size").fit(model, train)
    values = method.influence(test).values
    assert_allclose(method.influence(test, joint=True).values, values.sum(axis=0), atol=1e-12)
    parts = [method.influence(test, shard=(i, 3)).values for i in range(3)]
    assert_allclose(np.concatenate(parts, axis=1), values, atol=1e-14)
    diagonal = method.influence(train).values.diagonal()
    assert_allclose(method.memorization().values, diagonal, atol=1e-12)
    monkeypatch.setattr("proponent.trees.boost_in.NUMBERS", 1)  # one tree at a time
    assert_allclose(method.influence(test).values, values, atol=1e-14)
    monkeypatch.setattr(matching, "compiled", lambda: None)
    assert_allclose(method.influence(test).values, values, atol=1e-13)


def test_weightings_divide_each_tree_by_the_size_of_the_leaf():
    _, train, test, _ = trained("sklearn regression")
    view = view_of("sklearn regression")
    for tree in range(view.n_trees):  # every instance in its own tree alone
        sizes = np.bincount(view.train.leaf(tree, 0))[view.train.leaf(tree, 0)]
        only = replace(
            view, values=np.zeros_like(view.values), learning_rates=np.eye(view.n_trees)[tree]
        )
        plain = BoostIn(leaf_step="theta").fit(only, train).influence(test).values
        assert abs(plain).max() > 0
        for weighting, power in (("size", 1), ("squared_size", 2)):
            method = BoostIn(leaf_step="theta", weighting=weighting).fit(only, train)
            assert_allclose(method.influence(test).values, plain / sizes**power, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "new_labels"),
    [
        ("lightgbm binary", "flip"),
        ("catboost steps", "flip"),
        ("lightgbm classes", lambda y: (y + 1) % 3),
        ("catboost classes", lambda y: (y + 2) % 3),
        ("sklearn regression", lambda y: y - 2.0),
    ],
)
def test_label_edits_are_finite_differences(name, new_labels):
    """A share of the weight goes over to an instance with the new label."""
    model, train, test, _ = trained(name)
    view = view_of(name)
    labels = 1 - train[1] if isinstance(new_labels, str) else new_labels(train[1])
    given = "flip" if isinstance(new_labels, str) else labels
    tests = view.place(test)
    twice = replace(
        view,
        train=replace(
            view.train,
            leaves=np.concatenate([view.train.leaves] * 2, axis=2),
            start=np.concatenate([view.train.start] * 2, axis=1),
            targets=np.concatenate([view.train.targets, labels]),
        ),
        weights=np.repeat([1.0, 0.0], len(view.train)),
        kept=None,
    )
    gradients = gradients_before_each_tree(view, tests)
    chosen = range(0, len(view.train), 17)
    expected = np.zeros((len(tests), len(chosen)))
    for column, i in enumerate(chosen):
        moved = []
        for step in (1e-4, -1e-4):
            weights = twice.weights.copy()
            weights[[i, i + len(view.train)]] += [-step, step]
            moved.append(leaf_values(twice, weights))
        change = (moved[0] - moved[1]) / 2e-4
        for tree in range(view.n_trees):
            added = view.tree_values(tests, tree, change)
            expected[:, column] += (gradients[tree] * added).sum(axis=0)
    values = BoostIn(leaf_step="theta", new_labels=given).fit(model, train).influence(test).values
    assert_allclose(values[:, list(chosen)], expected, atol=2e-6 * abs(expected).max())


def test_flipped_labels_are_opponents():
    X, y = load_breast_cancer(return_X_y=True)
    train, test = (X[:400], y[:400].copy()), (X[400:], y[400:])
    flipped = np.arange(400) % 20 == 0
    train[1][flipped] = 1 - train[1][flipped]
    model = GradientBoostingClassifier(n_estimators=20, random_state=0).fit(*train)
    values = BoostIn().fit(model, train).influence(test, joint=True).values
    assert roc_auc_score(flipped, -values) > 0.85


def test_refusals_name_what_is_wrong():
    model, train, _, _ = trained("sklearn regression")
    with pytest.raises(InvalidInputError, match="leaf_step='published'"):
        BoostIn(leaf_step="published").fit(model, train)
    with pytest.raises(InvalidInputError, match="new_labels='flip' needs two classes"):
        BoostIn(new_labels="flip").fit(model, train)
    with pytest.raises(InvalidInputError, match="one for each of the 120"):
        BoostIn(new_labels=[1.0]).fit(model, train)
    classifier, train, _, _ = trained("sklearn binary")
    with pytest.raises(InvalidInputError, match="7 is not a class"):
        BoostIn(new_labels=np.full(120, 7)).fit(classifier, train)
    forest = RandomForestClassifier(3, random_state=0).fit(*train)
    with pytest.raises(InvalidInputError, match="forest"):
        BoostIn().fit(forest, train)


def test_it_is_not_fitted_to_a_network():
    with pytest.raises(InvalidInputError, match="needs a fitted gradient-boosted"):
        BoostIn().fit(pp.methods, table(2)[0])


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles_are_read_alike_without_numba(name, monkeypatch):
    model, train, _, weights = trained(name, weighted=True)
    view = view_of(name, weighted=True)
    monkeypatch.setattr(matching, "compiled", lambda: None)
    plain = read(model, train, sample_weight=weights)
    for field in ("theta", "inverse", "values", "learning_rates", "l2"):
        assert_allclose(getattr(plain, field), getattr(view, field), rtol=1e-12, atol=1e-15)
    assert (plain.kept is None) == (view.kept is None)
    if plain.kept is not None:
        assert_allclose(plain.kept, view.kept, rtol=1e-13)
