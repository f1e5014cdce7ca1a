"""TreeSim against dense features: one-hot leaves, made with plain numpy."""

from dataclasses import replace

import numpy as np
import pytest
from ensembles import N, table, trained, view_of
from numpy.testing import assert_allclose
from scipy.spatial.distance import cdist
from sklearn.ensemble import ExtraTreesClassifier, RandomForestRegressor
from trees.dense_features import dense_features
from trees.ensembles import estimator
from trees.ensembles import table as missing_table

from proponent.exceptions import InvalidInputError
from proponent.trees import matching, tree_kernels
from proponent.trees.read import read
from proponent.trees.tree_kernels import tree_kernel
from proponent.trees.tree_sim import TreeSim

KERNELS = ("lpw", "lp", "lo", "low", "to")


def signs(view, tests):
    """Return whether labels agree, or targets lie on one side of the prediction, by a loop."""
    found = np.empty((len(tests), len(view.train)))
    raw = view.raw(tests)
    for e in range(len(tests)):
        for i in range(len(view.train)):
            if view.classes is not None:
                same = tests.labels[e] == view.train.labels[i]
            else:
                at = raw[0, e]
                same = (tests.targets.flat[e] >= at) == (view.train.targets.flat[i] >= at)
            found[e, i] = 1 if same else -1
    return found


def similarities(view, tests, kernel, measure):
    train = dense_features(view, view.train, kernel)
    test = dense_features(view, tests, kernel)
    if measure == "dot":
        return test @ train.T
    if measure == "cosine":
        return 1 - cdist(test, train, "cosine")
    return 1 / (1 + cdist(test, train, {"euclidean": "euclidean", "l1": "cityblock"}[measure]))


@pytest.mark.parametrize("measure", ["dot", "cosine", "euclidean", "l1"])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", ["lightgbm classes", "catboost classes", "sklearn regression"])
def test_equals_dense_features(name, kernel, measure, monkeypatch):
    _, train, test, _ = trained(name)
    view = view_of(name)
    tests = view.place(test)
    expected = signs(view, tests) * similarities(view, tests, kernel, measure)
    method = TreeSim(kernel=kernel, measure=measure).fit(view, train)
    for without_numba in (False, True):
        if without_numba:
            monkeypatch.setattr(matching, "compiled", lambda: None)
            monkeypatch.setattr(tree_kernels, "leaf_loops", lambda: None)
        values = method.influence(test).values
        # A distance is known to the root of the rounding in its square.
        atol = (1e-8 if measure == "euclidean" else 1e-12) * abs(expected).max()
        assert_allclose(values, expected, rtol=0, atol=atol)
        joint = method.influence(test, joint=True).values
        assert_allclose(joint, values.sum(axis=0), atol=1e-12 * abs(values).sum(axis=0).max())
        diagonal = method.influence(train).values.diagonal()
        assert_allclose(method.memorization().values, diagonal, rtol=1e-12)
    monkeypatch.setattr(tree_kernels, "NUMBERS", 1)  # one tree at a time
    assert_allclose(method.influence(test).values, values, rtol=0, atol=atol)
    parts = [method.influence(test, shard=(i, 3)).values for i in range(3)]
    assert_allclose(np.concatenate(parts, axis=1), values, rtol=0, atol=atol)


def test_the_default_is_leafsim():
    _, train, test, _ = trained("xgboost parallel")
    view = view_of("xgboost parallel")
    tests, expected = view.place(test), np.zeros((len(test[1]), N))
    for tree in range(view.n_trees):
        leaf = view.train.leaf(tree, 0)
        for e, at in enumerate(tests.leaf(tree, 0)):
            expected[e, leaf == at] += 1 / np.count_nonzero(leaf == at) ** 2
    expected *= np.where(test[1][:, None] == train[1], 1, -1)
    assert_allclose(TreeSim().fit(view, train).influence(test).values, expected, atol=1e-15)


@pytest.mark.parametrize("classes", [0, 3])
def test_forests(classes):
    train, test = table(classes)
    made = ExtraTreesClassifier if classes else RandomForestRegressor
    model = made(7, random_state=0).fit(*train)
    view = read(model, train)
    tests = view.place(test)
    for kernel in ("lpw", "lo"):
        expected = signs(view, tests) * similarities(view, tests, kernel, "dot")
        values = TreeSim(kernel=kernel).fit(model, train).influence(test).values
        assert_allclose(values, expected, atol=1e-14)


def test_targets_on_both_sides_of_predictions_matter():
    """Otherwise the test of the regression's signs would not see much."""
    _, _, test, _ = trained("sklearn regression")
    view = view_of("sklearn regression")
    found = signs(view, view.place(test))
    assert 0.1 < (found > 0).mean() < 0.9
    assert len(np.unique(found, axis=0)) > 3


def test_an_instance_that_shares_all_leaves_is_as_near_as_can_be():
    _, train, _, _ = trained("lightgbm binary")
    view = view_of("lightgbm binary")
    for kernel in ("lpw", "lo"):
        for measure in ("euclidean", "l1", "cosine"):
            method = TreeSim(kernel=kernel, measure=measure).fit(view, train)
            diagonal = method.influence(train).values.diagonal()
            assert_allclose(diagonal, 1.0, rtol=1e-15 if measure != "cosine" else 1e-14)


def test_a_leaf_without_training_instances_adds_nothing():
    """CatBoost has such leaves, and test instances that fall into them."""
    view = view_of("catboost classes")
    sizes = np.concatenate(
        [
            np.bincount(view.train.leaf(tree, 0), minlength=view.span(tree, 0).stop - start)
            for tree in range(view.n_trees)
            for start in [view.span(tree, 0).start]
        ]
    )
    assert (sizes == 0).any()
    assert not tree_kernel(view, "lpw").features[sizes == 0].any()


def test_features_that_are_all_zero_have_cosine_zero():
    _, train, test, _ = trained("lightgbm binary")
    view = view_of("lightgbm binary")
    values, tests = view.values.copy(), view.place(test)
    for tree in range(view.n_trees):  # the first training instance's leaves, and its alone
        values[view.span(tree, 0).start + view.train.leaf(tree, 0)[0]] = 0.0
    without = replace(view, values=values)
    empty = ~dense_features(without, view.train, "lo").any(axis=1)
    assert empty[0]
    assert not empty.all()
    method = TreeSim(kernel="lo", measure="cosine").fit(without, train)
    scores = method.influence(test).values
    assert not scores[:, empty].any()
    train_features = dense_features(without, view.train, "lo")[~empty]
    expected = 1 - cdist(dense_features(without, tests, "lo"), train_features, "cosine")
    some = dense_features(without, tests, "lo").any(axis=1)
    found = abs(scores[:, ~empty])[some]
    assert_allclose(found, abs(expected[some]), rtol=0, atol=1e-14)
    assert_allclose(method.memorization().values, ~empty, rtol=1e-14)


@pytest.mark.parametrize("library", ["lightgbm", "hist_gradient_boosting"])
def test_missing_values_go_where_the_library_sends_them(library):
    X, targets = missing_table(missing=True)
    y = targets["logistic"]
    train, test = (X[:250], y[:250]), (X[250:], y[250:])
    assert np.isnan(X).any()
    model = estimator(library, "logistic").fit(*train)
    view = read(model, train)
    tests = view.place(test)
    expected = signs(view, tests) * similarities(view, tests, "lpw", "dot")
    values = TreeSim().fit(model, train).influence(test).values
    assert_allclose(values, expected, atol=1e-15)
    if library == "lightgbm":  # leaves by the library's own call, and pairs one by one
        own, other = (model.predict(part, pred_leaf=True) for part in (train[0], test[0]))
        size = np.stack([(own == leaf).sum(axis=0) for leaf in own])
        shared = (other[:, None] == own) / size**2
        sign = np.where(test[1][:, None] == train[1], 1, -1)
        assert_allclose(values, sign * shared.sum(axis=2), atol=1e-15)


def test_refusals_name_what_is_wrong():
    model, train, _, _ = trained("sklearn binary")
    with pytest.raises(InvalidInputError, match="measure='manhattan'"):
        TreeSim(measure="manhattan").fit(model, train)
    with pytest.raises(InvalidInputError, match="kernel='rbf'"):
        TreeSim(kernel="rbf").fit(model, train)
    with pytest.raises(InvalidInputError, match="kernel='fpw' looks at every node on the path"):
        TreeSim(kernel="fpw").fit(model, train)
    (X, y), _ = table(0)
    forest = RandomForestRegressor(3, random_state=0).fit(X, np.stack([y, -y], axis=1))
    with pytest.raises(InvalidInputError, match="2 targets"):
        TreeSim().fit(forest, (X, np.stack([y, -y], axis=1)))
