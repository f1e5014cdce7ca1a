"""LeafRefit against the libraries' own refits, and against plain loops over removals."""

import numpy as np
import pytest
from ensembles import ENSEMBLES, N, table, trained, view_of
from numpy.testing import assert_allclose
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.metrics import roc_auc_score

from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.trees import leaf_refit, leaf_refit_boosting
from proponent.trees.leaf_refit import LeafRefit
from proponent.trees.leaf_refit_removals import Removals
from proponent.trees.read import read


def derivatives(view, scores, y):
    """Gradient (K, n), the Hessian's diagonal, and the full Hessian (n, K, K) or None."""
    if view.loss.name == "squared":
        return scores - y, np.ones_like(scores), None
    if view.loss.name == "logistic":
        p = 1 / (1 + np.exp(-scores))
        return p - y, p * (1 - p), None
    p = np.exp(scores) / np.exp(scores).sum(axis=0)
    one_hot = (np.arange(len(p))[:, None] == y).astype(float)
    full = p.T[:, :, None] * (np.eye(len(p)) - p.T[:, None, :])
    return p - one_hot, view.loss.factor * p * (1 - p), full


def refit_by_loops(view, tests, keep):
    """Raw predictions (K, m) and leaf values after a refit on the instances to keep."""
    train = view.train
    scores, raw = train.start.copy(), tests.start.copy()
    values = np.zeros(view.n_leaves)
    for first in range(0, view.n_trees, view.parallel):
        before = scores.copy()
        for t in range(first, first + view.parallel):
            weights = view.tree_weights(t)
            weights = np.ones(len(train)) if weights is None else weights
            inner, moved = before.copy(), np.zeros(view.n_leaves)
            for s in range(view.steps):
                g, h, full = derivatives(view, inner, train.targets)
                if view.estimation == "gradient":
                    h = np.ones_like(g)
                step = np.zeros(view.n_leaves)
                for k in range(view.outputs):
                    span = view.span(t, k)
                    for leaf in range(span.stop - span.start):
                        inside = np.flatnonzero((train.leaves[t, k] == leaf) & keep)
                        if not len(inside):
                            continue
                        if view.loss.coupled:
                            stacked = span.start - view.tree_span(t).start
                            if stacked:  # all classes are solved for at once
                                continue
                            w = weights[inside]
                            matrix = np.einsum("i,icd->cd", w, full[inside])
                            matrix += view.l2[span][leaf] * np.eye(view.outputs)
                            solved = -np.linalg.solve(matrix, g[:, inside] @ w)
                            for c in range(view.outputs):
                                step[view.span(t, c).start + leaf] = solved[c]
                            continue
                        total = (weights[inside] * g[k, inside]).sum()
                        total = np.sign(total) * max(abs(total) - view.l1, 0)
                        below = (weights[inside] * h[k, inside]).sum() + view.l2[span][leaf]
                        step[span.start + leaf] = -total / below
                moved += view.step_scales[s, t] * step
                inner += view.step_scales[s, t] * view.tree_values(train, t, step)
            span = view.tree_span(t)
            values[span] = view.learning_rates[t] * moved[span]
            scores += view.tree_values(train, t, values)
            raw += view.tree_values(tests, t, values)
    return raw, values


def expected_of(view, tests, sets):
    everyone = np.ones(len(view.train), dtype=bool)
    risk = view.loss.risk(refit_by_loops(view, tests, everyone)[0], tests.targets)
    columns = []
    for members in sets:
        keep = everyone.copy()
        keep[members] = False
        raw = refit_by_loops(view, tests, keep)[0]
        columns.append(view.loss.risk(raw, tests.targets) - risk)
    return np.stack(columns, axis=1)


@pytest.fixture(params=["fastest", "numpy"])
def engine(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(leaf_refit, "refits_of", leaf_refit_boosting.BoostingRefits)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_equals_plain_loops(name, weighted, engine):
    model, train, test, weights = trained(name, weighted=weighted)
    view = view_of(name, weighted=weighted)
    chosen = [0, 37, 38, 118, 119]
    expected = expected_of(view, view.place(test), [[i] for i in chosen])
    method = LeafRefit().fit(model, train, sample_weight=weights)
    values = method.influence(test).values
    assert abs(expected).max() > 1e-4
    assert_allclose(values[:, chosen], expected, rtol=0, atol=1e-10)
    assert_allclose(method.memorization().values[chosen],
                    expected_of(view, view.train, [[i] for i in chosen])[chosen].diagonal(),
                    rtol=0, atol=1e-10)  # fmt: skip


@pytest.mark.parametrize("name", ["lightgbm binary", "catboost steps", "catboost classes"])
def test_groups_are_removed_together(name, engine):
    model, train, test, _ = trained(name)
    view = view_of(name)
    groups = np.arange(N) % 4
    sets = [np.flatnonzero(groups == group) for group in range(4)]
    expected = expected_of(view, view.place(test), sets)
    method = LeafRefit().fit(model, train)
    found = method.group_influence(groups, test)
    assert_allclose(found.values, expected, rtol=0, atol=1e-10)
    assert not found.additive
    grouped = LeafRefit().fit(model, train, groups=groups)
    assert_allclose(grouped.influence(test).values, expected, rtol=0, atol=1e-10)
    with pytest.raises(MethodCapabilityError, match="groups are scored"):
        grouped.memorization()
    single = method.group_influence({"one": [5]}, test).values[:, 0]
    assert_allclose(single, method.influence(test).values[:, 5], rtol=0, atol=1e-14)


def forest_by_loops(view, tests, members):
    total, speaking = np.zeros((view.outputs, len(tests))), np.zeros(len(tests))
    y = np.broadcast_to(np.atleast_2d(view.train.targets), (view.outputs, N))
    keep = np.ones(N, dtype=bool)
    keep[members] = False
    for t in range(view.n_trees):
        weights = view.tree_weights(t)
        weights = np.ones(N) if weights is None else weights
        for e in range(len(tests)):
            inside = keep & (view.train.leaves[t, 0] == tests.leaves[t, 0, e]) & (weights > 0)
            if inside.any():
                total[:, e] += (y * weights)[:, inside].sum(axis=1) / weights[inside].sum()
                speaking[e] += 1
    left = np.average(y[:, keep], axis=1, weights=view.weights[keep])
    return np.where(speaking > 0, total / np.maximum(speaking, 1), left[:, None])


@pytest.mark.parametrize(
    ("kind", "classes"),
    [(RandomForestClassifier, 3), (RandomForestRegressor, 0), (ExtraTreesRegressor, 0)],
)
@pytest.mark.parametrize("leaves", [6, None])
def test_forests_equal_plain_loops(kind, classes, leaves):
    train, test = table(classes)
    bootstrap = kind is not ExtraTreesRegressor
    model = kind(5, max_leaf_nodes=leaves, bootstrap=bootstrap, random_state=0).fit(*train)
    method = LeafRefit().fit(model, train)
    view = method.view_
    sets = [[i] for i in range(0, N, 7)] + [np.arange(0, N, 3)]
    for tests, instances in ((view.place(test), test), (view.train, train)):
        before = view.loss.risk(forest_by_loops(view, tests, []), tests.targets)
        expected = np.stack(
            [view.loss.risk(forest_by_loops(view, tests, members), tests.targets) - before
             for members in sets], axis=1,
        )  # fmt: skip
        values = method.influence(instances).values
        assert_allclose(values[:, ::7], expected[:, :-1], rtol=0, atol=1e-12)
        found = method.group_influence({"third": sets[-1]}, instances).values
        assert_allclose(found[:, 0], expected[:, -1], rtol=0, atol=1e-12)
    assert_allclose(method.memorization().values, values.diagonal(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["lightgbm binary", "xgboost classes", "xgboost parallel"])
def test_sums_shards_diagonals_and_blocks_agree(name, engine, monkeypatch):
    model, train, test, _ = trained(name)
    method = LeafRefit().fit(model, train)
    values = method.influence(test).values
    assert_allclose(method.influence(test, joint=True).values, values.sum(axis=0), atol=1e-12)
    parts = [method.influence(test, shard=(i, 3)).values for i in range(3)]
    assert_allclose(np.concatenate(parts, axis=1), values, atol=1e-13)
    diagonal = method.influence(train).values.diagonal()
    assert_allclose(method.memorization().values, diagonal, atol=1e-13)
    for size in (1, 7, 50):
        monkeypatch.setattr(leaf_refit, "NUMBERS", size * len(test[1]) * method.view_.outputs)
        assert_allclose(method.influence(test).values, values, atol=1e-13)


def test_changes_of_leaves_and_cooks_distance(engine):
    model, train, _, weights = trained("lightgbm binary", weighted=True)
    view = view_of("lightgbm binary", weighted=True)
    method = LeafRefit().fit(model, train, sample_weight=weights)
    distances = method.cooks_distance().values
    everyone = np.ones(N, dtype=bool)
    raw, values = refit_by_loops(view, view.train, everyone)
    p = 1 / (1 + np.exp(-raw[0]))
    changes = method.parameter_changes([3, 119])["leaf_values"]
    for row, i in enumerate((3, 119)):
        without, moved = refit_by_loops(view, view.train, np.arange(N) != i)
        assert_allclose(changes[row], values - moved, rtol=0, atol=1e-12)
        squares = view.weights * p * (1 - p) * (raw - without)[0] ** 2
        assert_allclose(distances[i], squares.sum() / view.n_leaves, rtol=1e-9)
    with pytest.raises(InvalidInputError, match="positions must be in"):
        method.parameter_changes([N])


@pytest.mark.parametrize(("rate", "trees"), [(0.5, 30), (1.0, 8)])
def test_scores_that_move_far_are_followed_as_others_are(rate, trees):
    """The compiled loops follow odds until a score has moved by 4, and scores from there on."""
    lightgbm = pytest.importorskip("lightgbm")
    X, y = table(2)[0]
    settings = {"num_leaves": 6, "min_child_samples": 3, "min_child_weight": 1e-9}
    model = lightgbm.LGBMClassifier(
        n_estimators=trees, learning_rate=rate, n_jobs=1, verbose=-1, **settings
    ).fit(X, y)
    view = read(model, (X, y))
    classes = [np.flatnonzero(y == label)[3:] for label in (0, 1)]
    removals = Removals.groups([*classes, np.arange(0, N, 4), [5]])
    found = leaf_refit.refits_of(view).changes(removals, view.train, train=True, leaves=True)
    plain = leaf_refit_boosting.BoostingRefits(view)
    expected = plain.changes(removals, view.train, train=True, leaves=True)
    far = abs(expected.train).max(axis=(0, 1))
    assert far[:2].min() > 6 > 2 > far[3]
    for name in ("train", "tests", "leaves"):
        assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-11)
    alone = leaf_refit.refits_of(view).changes(Removals.groups([[5]]), view.train)
    assert_allclose(alone.tests[..., 0], expected.tests[..., 3], rtol=0, atol=1e-11)


def test_gradients_are_those_before_each_tree_and_scores_start_where_they_did():
    """The published package takes gradients after each tree, or scores to start at 0."""
    model, train, test, _ = trained("sklearn binary")
    view = read(model, train)
    tests = view.place(test)
    values = LeafRefit().fit(model, train).influence(test).values

    def published(i, start, late):
        """One removal, with the gradients of scores after the tree that they are fitted for."""
        found = []
        for keep in (np.ones(N, dtype=bool), np.arange(N) != i):
            scores = view.train.start[0] * start
            raw, library = tests.start[0] * start, scores.copy()
            for t in range(view.n_trees):
                leaf = view.train.leaf(t, 0)
                library = library + view.tree_values(view.train, t)[0]
                p = 1 / (1 + np.exp(-(library if late and not keep.all() else scores)))
                above = np.bincount(leaf, keep * (p - view.train.targets))
                below = np.bincount(leaf, keep * p * (1 - p))
                v = np.divide(-view.learning_rates[t] * above, below, out=0 * above,
                              where=below > 0)  # fmt: skip
                scores, raw = scores + v[leaf], raw + v[tests.leaf(t, 0)]
            found.append(view.loss.risk(raw[None], tests.targets))
        return found[1] - found[0]

    size = abs(values[:, 7]).max()
    assert_allclose(published(7, 1.0, False), values[:, 7], rtol=0, atol=1e-10)
    assert abs(published(7, 0.0, False) - values[:, 7]).max() > 0.005 * size
    assert abs(published(7, 1.0, True) - values[:, 7]).max() > 0.5 * size


def test_flipped_labels_are_opponents():
    X, y = load_breast_cancer(return_X_y=True)
    train, test = (X[:400], y[:400].copy()), (X[400:], y[400:])
    flipped = np.arange(400) % 20 == 0
    train[1][flipped] = 1 - train[1][flipped]
    model = GradientBoostingClassifier(n_estimators=10, random_state=0).fit(*train)
    values = LeafRefit().fit(model, train).influence(test, joint=True).values
    assert roc_auc_score(flipped, -values) > 0.8
