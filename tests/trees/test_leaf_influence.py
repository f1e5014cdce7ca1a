"""LeafInfluence against finite differences of the weighted refit, and against CatBoost's own."""

from dataclasses import replace

import numpy as np
import pytest
from ensembles import ENSEMBLES, N, table, trained, view_of
from numpy.testing import assert_allclose
from sklearn.ensemble import ExtraTreesRegressor, RandomForestClassifier

from proponent.exceptions import InvalidInputError
from proponent.trees import adjoint, matching
from proponent.trees.leaf_influence import LeafInfluence
from proponent.trees.steps import refit_steps


def refitted(view, weights):
    """Return the view with all leaves fitted again, one tree after the other."""
    view = replace(view, weights=weights, kept=None, values=np.zeros_like(view.values))
    for first in range(0, view.n_trees, view.parallel):
        theta = refit_steps(view, view.steps).theta
        values = view.values.copy()
        for tree in range(first, first + view.parallel):
            span = view.tree_span(tree)
            values[span] = view.learning_rates[tree] * theta[:, span].sum(axis=0)
        view = replace(view, values=values)
    return view


def by_finite_differences(view, tests, chosen, step=1e-4):
    gradient = view.loss.gradient(view.raw(tests), tests.targets)
    scores = np.zeros((len(tests), len(chosen)))
    for column, i in enumerate(chosen):
        raw = []
        for sign in (1, -1):
            weights = view.weights.copy()
            weights[i] += sign * step
            raw.append(refitted(view, weights).raw(tests))
        removal = -view.weights[i] * (raw[0] - raw[1]) / (2 * step)
        scores[:, column] = (gradient * removal).sum(axis=0)
    return scores


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ENSEMBLES)
def test_equals_finite_differences_of_the_refit(name, weighted, monkeypatch):
    model, train, test, weights = trained(name, weighted=weighted)
    view = view_of(name, weighted=weighted)
    # In the library's own digits: what its leaves are rounded to would be seen here.
    exact = refitted(view, view.weights)
    exact = replace(exact, theta=refit_steps(exact, view.steps).theta)
    exact = replace(
        exact,
        inverse=refit_steps(exact, view.steps).inverse,
        coupled_inverse=refit_steps(exact, view.steps).matrices,
    )
    chosen = range(0, N, 9)
    expected = by_finite_differences(exact, exact.place(test), chosen)
    values = LeafInfluence().fit(exact, train).influence(test).values
    assert_allclose(values[:, list(chosen)], expected, rtol=0, atol=1e-6 * abs(expected).max())
    read = LeafInfluence().fit(model, train, sample_weight=weights).influence(test).values
    assert_allclose(read, values, rtol=0, atol=1e-4 * abs(values).max())
    monkeypatch.setattr(matching, "compiled", lambda: None)
    plain = LeafInfluence().fit(exact, train).influence(test).values
    assert_allclose(plain, values, rtol=0, atol=1e-12 * abs(values).max())


@pytest.mark.parametrize(
    ("update", "method"),
    [("all_points", "AllPoints"), ("single_point", "SinglePoint"), (1, "TopKLeaves:top=1"),
     (2, "TopKLeaves:top=2")],
)  # fmt: skip
@pytest.mark.parametrize("name", ["catboost binary", "catboost regression", "catboost gradient"])
def test_equals_catboosts_own(name, update, method):
    catboost = pytest.importorskip("catboost")
    model, train, test, _ = trained(name)
    if name == "catboost regression":
        # CatBoost's own takes the scores to start at 0, whatever the model's start is.
        model = ENSEMBLES[name][1]().set_params(boost_from_average=False).fit(*train)
    indices, scores = model.get_object_importance(
        catboost.Pool(*test), catboost.Pool(*train), type="PerObject", update_method=method,
        thread_count=1,
    )  # fmt: skip
    expected = np.zeros((len(test[1]), N))
    np.put_along_axis(expected, np.array(indices), np.array(scores), axis=1)
    values = LeafInfluence(update=update).fit(model, train).influence(test).values
    assert_allclose(values, -expected, rtol=0, atol=1e-12 * abs(expected).max())


@pytest.mark.parametrize("update", ["all_points", "single_point", 2])
@pytest.mark.parametrize("name", ["lightgbm binary", "lightgbm classes", "catboost steps"])
def test_sums_shards_diagonals_and_blocks_agree(name, update, monkeypatch):
    if update == 2 and name != "lightgbm binary":
        pytest.skip("top-k leaves are for one output and one step")
    model, train, test, _ = trained(name)
    method = LeafInfluence(update=update).fit(model, train)
    values = method.influence(test).values
    size = abs(values).max()
    assert_allclose(method.influence(test, joint=True).values, values.sum(axis=0), atol=1e-12)
    parts = [method.influence(test, shard=(i, 3)).values for i in range(3)]
    assert_allclose(np.concatenate(parts, axis=1), values, atol=1e-12 * size)
    diagonal = method.influence(train).values.diagonal()
    assert_allclose(method.memorization().values, diagonal, atol=1e-12)
    monkeypatch.setattr(adjoint, "NUMBERS", 3 * N)  # a few tests, and a few trees, at once
    monkeypatch.setattr(adjoint, "COLUMNS", 4)
    assert_allclose(method.influence(test).values, values, atol=1e-12 * size)


def test_groups_are_sums_unless_leaves_are_chosen():
    model, train, test, _ = trained("sklearn binary")
    groups = np.arange(N) % 4
    method = LeafInfluence().fit(model, train)
    values = method.influence(test).values
    found = method.group_influence(groups, test)
    for column, group in enumerate(found.train_ids):
        assert_allclose(found.values[:, column], values[:, groups == group].sum(axis=1))
    assert not LeafInfluence(update=1).fit(model, train).influence(test).additive


@pytest.mark.parametrize("kind", [RandomForestClassifier, ExtraTreesRegressor])
def test_forests_to_first_order(kind):
    train, test = table(3 if kind is RandomForestClassifier else 0)
    model = kind(5, max_leaf_nodes=6, bootstrap=True, random_state=0).fit(*train)
    method = LeafInfluence().fit(model, train)
    view = method.view_
    tests, chosen = view.place(test), range(0, N, 9)
    expected = by_finite_differences(view, tests, chosen)
    values = method.influence(test).values[:, list(chosen)]
    assert_allclose(values, expected, rtol=0, atol=1e-6 * abs(expected).max())


def test_refusals_name_what_is_wrong():
    model, train, _, _ = trained("sklearn binary")
    for update in ("AllPoints", 0, True, 1.5):
        with pytest.raises(InvalidInputError, match="update="):
            LeafInfluence(update=update).fit(model, train)
    model, train, _, _ = trained("lightgbm classes")
    with pytest.raises(InvalidInputError, match="one output"):
        LeafInfluence(update=2).fit(model, train)
