"""Leave-one-out: equal to fitting again without each instance, in a plain loop."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from retraining.games import FROZEN, table_game
from retraining.refit_examples import classification, regression
from retraining.submodel_examples import Failing, Noisy, factor, utilities
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NotFittedError

N = 14
NUMBERS = regression(N, 3, tests=5)
CLASSES = classification(N, 3, 3, tests=5)
NAMES = tuple((X, np.array(["ant", "bee", "cow"])[y]) for X, y in CLASSES)
MODELS = {
    "one by one": (SVR(C=5.0), NUMBERS),
    "ridge": (Ridge(alpha=0.7), NUMBERS),
    "neighbours": (KNeighborsRegressor(3), NUMBERS),
    "Bayes": (GaussianNB(), CLASSES),
    "strings": (GaussianNB(), NAMES),
    "pipeline": (make_pipeline(StandardScaler(), GaussianNB()), NAMES),
    "votes": (KNeighborsClassifier(3), NAMES),
}


def all_but(*groups):
    masks = np.ones((len(groups), N), bool)
    for mask, group in zip(masks, groups, strict=True):
        mask[group] = False
    return masks


def refitted(model, train, test, *groups, **settings):
    """Return what is lost without each group, ``(T, G)``."""
    masks = np.concatenate([np.ones((1, N), bool), all_but(*groups)])
    found = utilities(model, train, test, masks, **settings)
    return (found[0] - found[1:]).T


def singles():
    return [[row] for row in range(N)]


@pytest.fixture(autouse=True)
def _cleared():
    Noisy.trainings.clear()


CASES = [(name, "risk") for name in MODELS]
CASES += [(name, "accuracy") for name in ("Bayes", "strings", "pipeline", "votes")]


@pytest.mark.parametrize(("name", "utility"), CASES)
def test_equal_to_fitting_without_each(name, utility):
    model, (train, test) = MODELS[name]
    expected = refitted(model, train, test, *singles(), utility=utility)
    method = pp.LeaveOneOut(utility=utility, shortcut=None).fit(model, train, ids=np.arange(N) + 50)
    found = method.influence(test, ids=list("vwxyz"))
    assert_allclose(found.values, expected, atol=1e-9)
    assert found.train_ids.tolist() == list(range(50, 50 + N))
    assert found.test_ids.tolist() == list("vwxyz")
    assert found.std_error is None
    assert np.abs(expected).max() > 0.1
    on_itself = refitted(model, train, train, *singles(), utility=utility).diagonal()
    assert_allclose(method.memorization().values, on_itself, atol=1e-9)
    assert_allclose(method.influence(test, joint=True).values, expected.sum(axis=0), atol=1e-9)
    assert found.diagnostics["trained"] == N + 1


@pytest.mark.parametrize("shortcut", ["exact", None])
def test_with_and_without_the_closed_form(shortcut):
    train, test = NUMBERS
    method = pp.LeaveOneOut(shortcut=shortcut).fit(Ridge(alpha=2.0), train, test=test)
    expected = refitted(Ridge(alpha=2.0), train, test, *singles())
    assert_allclose(method.influence().values, expected, atol=1e-10)
    assert_allclose(method.influence(joint=True).values, expected.sum(axis=0), atol=1e-10)
    on_itself = refitted(Ridge(alpha=2.0), train, train, *singles()).diagonal()
    assert_allclose(method.memorization().values, on_itself, atol=1e-10)
    groups = [[0, 3], [5], list(range(6, 12))]
    found = method.group_influence({"a": [0, 3], "b": [5], "c": list(range(6, 12))})
    assert_allclose(
        found.values, refitted(Ridge(alpha=2.0), train, test, *groups), rtol=1e-9, atol=1e-10
    )
    assert ("trained" in found.diagnostics) == (shortcut is None)


def test_another_utility_has_no_closed_form():
    train, test = NUMBERS
    method = pp.LeaveOneOut(utility=lambda outputs, targets: outputs).fit(Ridge(), train)
    full = Ridge().fit(*train).predict(test[0])
    expected = [
        full - Ridge().fit(train[0][m], train[1][m]).predict(test[0]) for m in all_but(*singles())
    ]
    assert_allclose(method.influence(test).values, np.transpose(expected), atol=1e-10)


def test_a_newton_step_is_taken_only_where_it_is_asked_for():
    train, test = classification(120, 3, 2, tests=9)
    model = LogisticRegression(tol=1e-10, max_iter=1000)
    trained = pp.LeaveOneOut().fit(model, train)
    stepped = pp.LeaveOneOut(shortcut="newton").fit(model, train)
    expected, found = trained.influence(test), stepped.influence(test)
    assert expected.diagnostics["trained"] == 121 and "trained" not in found.diagnostics
    off = np.abs(found.values - expected.values).max() / np.abs(expected.values).max()
    assert 1e-8 < off < 0.1


@pytest.mark.parametrize("shape", ["mapping", "array"])
@pytest.mark.parametrize("model", [SVR(C=5.0), KNeighborsRegressor(2)])
def test_groups_are_left_out_as_a_whole(model, shape):
    train, test = NUMBERS
    names = np.array(list("aababbcccddddd"))
    members = {name: np.flatnonzero(names == name) for name in "abcd"}
    expected = refitted(model, train, test, *members.values())
    method = pp.LeaveOneOut().fit(model, train)
    found = method.group_influence(members if shape == "mapping" else names, test)
    assert found.train_ids.tolist() == list("abcd")
    assert_allclose(found.values, expected, atol=1e-9)
    each = method.influence(test).values
    assert (
        np.abs(expected - np.stack([each[:, m].sum(axis=1) for m in members.values()], 1)).max()
        > 0.1
    )
    # The group as a player of its own is the same deletion.
    as_players = pp.LeaveOneOut().fit(model, train, groups=names)
    assert_allclose(as_players.influence(test).values, expected, atol=1e-9)


@pytest.mark.parametrize("n_groups", [1, 3])
def test_a_group_of_everyone_leaves_the_empty_set(n_groups):
    train, test = NUMBERS
    method = pp.LeaveOneOut(shortcut=None, empty=-7.0).fit(Ridge(), train)
    groups = {"all": range(N)} | {str(row): [row] for row in range(n_groups - 1)}
    found = method.group_influence(groups, test)
    whole = utilities(Ridge(), train, test, np.ones((1, N), bool))[0]
    assert_allclose(found.values[:, 0], whole + 7.0, atol=1e-10)


def test_one_instance_against_none():
    (X, y), test = NUMBERS
    found = pp.LeaveOneOut(shortcut=None).fit(Ridge(), (X[:1], y[:1])).influence(test)
    assert_allclose(found.values, 0.0, atol=1e-12)  # the mean target is the model of one instance
    found = pp.LeaveOneOut(shortcut=None, empty=0.5).fit(Ridge(), (X[:1], y[:1])).influence(test)
    assert_allclose(found.values[:, 0], -((y[0] - test[1]) ** 2) - 0.5, atol=1e-12)


def test_the_frozen_game():
    found = pp.LeaveOneOut().fit(pp.Game(3, table_game(FROZEN), vectorized=True)).influence()
    assert_allclose(found.values, [[3, 5, 2]], atol=1e-15)


def test_of_a_pair_that_is_the_same_neither_is_missed():
    X = np.array([[0.0], [0.0], [5.0], [9.0]])
    y = np.array([1, 1, 0, 0])
    method = pp.LeaveOneOut(utility="accuracy").fit(KNeighborsClassifier(1), (X, y))
    values = method.influence(([[0.1], [4.0]], [1, 0])).values
    # Without the instance at 5, that at 4 goes to the pair.
    assert_array_equal(values, [[0, 0, 0, 0], [0, 0, 1, 0]])


def test_the_last_of_a_class_costs_a_finite_amount():
    X, y = np.array([[0.0], [0.1], [5.0]]), np.array(["a", "a", "b"])
    model = GaussianNB(var_smoothing=0.5)
    values = pp.LeaveOneOut().fit(model, (X, y)).influence(([[5.0]], ["b"])).values
    expected = utilities(model, (X, y), ([[5.0]], ["b"]), ~np.eye(3, dtype=bool))
    whole = utilities(model, (X, y), ([[5.0]], ["b"]), np.ones((1, 3), bool))
    assert_allclose(values, whole - expected.T, atol=1e-9)
    assert values[0, 2] == pytest.approx(whole[0, 0] - np.log(0.0005))


def test_common_random_numbers_leave_the_instance_alone():
    # What a seed adds is a thousand times what an instance makes; the same seed takes it out.
    (X, y), test = NUMBERS
    found = pp.LeaveOneOut(repeats=3).fit(Noisy(), (X, y)).influence(test)
    seeds = list(dict.fromkeys(Noisy.trainings))
    assert len(seeds) == 3 and len(Noisy.trainings) == 3 * (N + 1)
    without = (y.sum() - y) / (N - 1)
    each = np.array([factor(seed) * (without - y.mean()) for seed in seeds])
    assert_allclose(found.values, np.tile(each.mean(axis=0), (5, 1)), atol=1e-10)
    errors = each.std(axis=0, ddof=1) / np.sqrt(3)
    assert_allclose(found.std_error, np.tile(errors, (5, 1)), atol=1e-10)
    assert errors.min() < 0.1


def test_one_repeat_has_no_standard_error_and_is_the_first_of_many():
    (X, y), test = NUMBERS
    once = pp.LeaveOneOut().fit(Noisy(), (X, y)).influence(test)
    (seed,) = set(Noisy.trainings)
    pp.LeaveOneOut(repeats=4).fit(Noisy(), (X, y))
    assert once.std_error is None and Noisy.trainings[N + 1] == seed


def test_groups_have_the_seeds_of_the_repeats():
    (X, y), test = NUMBERS
    method = pp.LeaveOneOut(repeats=2).fit(Noisy(), (X, y))
    seeds = list(dict.fromkeys(Noisy.trainings))
    found = method.group_influence({"few": [0, 1], "many": range(2, N)}, test)
    change = np.array([y[2:].mean(), y[:2].mean()]) - y.mean()
    each = np.array([factor(seed) * change for seed in seeds])
    assert_allclose(found.values, np.tile(each.mean(axis=0), (5, 1)), atol=1e-10)
    errors = np.abs(each[0] - each[1]) / 2
    assert_allclose(found.std_error, np.tile(errors, (5, 1)), atol=1e-10)
    assert len(Noisy.trainings) == 2 * (N + 1) + 4


def test_an_estimator_with_randomness_of_its_own():
    # With the same draws only the leaves that the instance is in change; with others all do.
    train, test = regression(40, 3, tests=6)
    model = RandomForestRegressor(n_estimators=3, bootstrap=False, max_features=1)
    method = pp.LeaveOneOut().fit(model, train)
    again = pp.LeaveOneOut().fit(model, train).influence(test).values
    assert_array_equal(method.influence(test).values, again)
    assert np.abs(again - pp.LeaveOneOut(seed=1).fit(model, train).influence(test).values).max() > 0
    assert (method.influence(test).values == 0).mean() > 0.1


def test_a_deletion_that_fails_is_not_scored():
    (X, y), test = NUMBERS
    method = pp.LeaveOneOut().fit(Failing(misses=[4, 9]), (X, y))
    found = method.influence(test)
    assert_array_equal(np.isnan(found.values), np.tile(np.isin(np.arange(N), [4, 9]), (5, 1)))
    known = ~np.isin(np.arange(N), [4, 9])
    mean = (y.sum() - y) / (N - 1)
    expected = (test[1][:, None] - mean) ** 2 - (test[1][:, None] - y.mean()) ** 2
    assert_allclose(found.values[:, known], expected[:, known], atol=1e-12)
    assert found.diagnostics["failed"] == 2
    assert np.isnan(method.memorization().values[[4, 9]]).all()
    assert not np.isnan(method.memorization().values[known]).any()
    groups = method.group_influence({"with": [1, 4], "none": [1, 2]}, test).values
    assert np.isnan(groups[:, 0]).all() and not np.isnan(groups[:, 1]).any()


def test_without_the_whole_set_there_is_nothing_to_compare():
    with pytest.raises(InvalidInputError, match="all instances failed"):
        pp.LeaveOneOut().fit(Failing(hates=[0]), NUMBERS[0]).influence(NUMBERS[1])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"repeats": 0}, "repeats"),
        ({"repeats": 1.5}, "repeats"),
        ({"shortcut": "fast"}, "shortcut must be 'exact' or 'newton' or None"),
        ({"shortcut": True}, "shortcut"),
        ({"utility": "loss"}, "utility"),
        ({"shortcut": None, "empty": "nothing"}, "empty"),
    ],
)
def test_a_setting_that_makes_no_sense(settings, named):
    with pytest.raises(InvalidInputError, match=named):
        pp.LeaveOneOut(**settings).fit(SVR(), NUMBERS[0])


def test_groups_that_make_no_sense():
    method = pp.LeaveOneOut().fit(KNeighborsRegressor(2), NUMBERS[0])
    for groups in ({}, {"a": []}, {"a": [99]}, np.zeros(N - 1, int)):
        with pytest.raises(InvalidInputError):
            method.group_influence(groups, NUMBERS[1])
    with pytest.raises(InvalidInputError, match="test: pass the test set"):
        method.group_influence({"a": [0]})
    with pytest.raises(NotFittedError):
        pp.LeaveOneOut().group_influence({"a": [0]}, NUMBERS[1])


def test_cooks_distance_needs_a_closed_form():
    method = pp.LeaveOneOut(shortcut=None).fit(Ridge(), NUMBERS[0])
    with pytest.raises(MethodCapabilityError, match="shortcut"):
        method.cooks_distance()
