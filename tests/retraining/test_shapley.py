"""Shapley, Beta Shapley and Banzhaf: equal to enumeration, and to closed forms of neighbours."""

from fractions import Fraction as F

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from retraining.games import (
    FROZEN,
    NeighboursGame,
    additive_game,
    enumerated,
    few_nearer,
    random_worth,
    smooth_game,
    table_game,
)
from retraining.knn_games import beta_law, binomial_law
from retraining.refit_examples import classification, regression
from retraining.sampled import assert_calibrated, deviations, user_game
from retraining.submodel_examples import Failing, worth_of_all
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVR

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.retraining.semivalues import BanzhafWeights, BetaWeights

NUMBERS = regression(6, 2, tests=4)
CLASSES = classification(7, 2, 2, seed=4, tests=5)
NAMES = tuple((X, np.array(["yes", "no"])[y]) for X, y in CLASSES)
SAMPLED = ["regression", "means", "permutations", "antithetic"]

# A method, and the law of sizes p_0 .. p_{n-1} that it stands for.
METHODS = {
    "Shapley": (pp.Shapley, {}, lambda n: np.full(n, 1 / n)),
    "Beta(4, 1)": (pp.BetaShapley, {}, lambda n: beta_law(n, 4, 1)),
    "Beta(1, 4)": (pp.BetaShapley, {"alpha": 1, "beta": 4}, lambda n: beta_law(n, 1, 4)),
    "Beta(2, 0.5)": (pp.BetaShapley, {"alpha": 2, "beta": 0.5}, lambda n: beta_law(n, 2, 0.5)),
    "Banzhaf": (pp.Banzhaf, {}, lambda n: binomial_law(n, 0.5)),
    "Banzhaf 0.7": (pp.Banzhaf, {"q": 0.7}, lambda n: binomial_law(n, 0.7)),
}
LEARNED = [
    (Ridge(alpha=0.5), NUMBERS, "risk"),
    (SVR(C=3.0), NUMBERS, "risk"),
    (KNeighborsClassifier(1), NAMES, "risk"),
    (KNeighborsClassifier(1), NAMES, "accuracy"),
]


def method_of(name, **settings):
    kind, own, law = METHODS[name]
    return kind(**own, **settings), law


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (pp.Shapley(), [F(11, 6), F(10, 3), F(5, 6)]),
        (pp.Banzhaf(), [F(7, 4), F(13, 4), F(3, 4)]),
        (pp.Banzhaf(q=0.7), [F(219, 100), F(389, 100), F(119, 100)]),
        (pp.BetaShapley(4, 1), [F(19, 15), F(37, 15), F(4, 15)]),
        (pp.BetaShapley(1, 4), [F(37, 15), F(64, 15), F(22, 15)]),
        (pp.BetaShapley(16, 1), [F(163, 153), F(325, 153), F(10, 153)]),
    ],
)
def test_the_frozen_game(method, expected):
    found = method.fit(user_game(table_game(FROZEN), 3)).influence()
    assert_allclose(found.values, [[float(value) for value in expected]], rtol=1e-14)
    assert found.std_error is None
    assert found.diagnostics["estimator"] == "exact"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("name", METHODS)
def test_exact_is_equal_to_enumeration(name, n):
    worth = random_worth(n, 3)
    method, law = method_of(name, estimator="exact")
    found = method.fit(user_game(table_game(worth), n)).influence()
    assert_allclose(found.values, enumerated(worth, law(n)), atol=1e-13)
    joint = method.influence(joint=True)
    assert_allclose(joint.values, found.values.sum(axis=0), atol=1e-13)


@pytest.mark.parametrize(("model", "data", "utility"), LEARNED)
def test_equal_to_fitting_to_every_subset(model, data, utility):
    train, test = data
    n, m = len(train[1]), len(test[1])
    both = tuple(np.concatenate(parts) for parts in zip(test, train, strict=True))
    # The empty set: the mean target, or the classes' frequencies with one more each; or a number.
    empty = {"empty": 0.25} if utility == "accuracy" else {}
    given = np.full(m + n, 0.25) if empty else None
    worth = worth_of_all(model, train, both, utility=utility, empty=given)
    for name in ("Shapley", "Beta(4, 1)", "Banzhaf 0.7"):
        method, law = method_of(name, utility=utility, **empty)
        found = method.fit(model, train).influence(test)
        expected = enumerated(worth, law(n))
        assert_allclose(found.values, expected[:m], atol=1e-8)
        assert np.abs(expected[:m]).max() > 0.05
        assert found.diagnostics["trained"] == 2**n - 1
        assert_allclose(method.memorization().values, expected[m:].diagonal(), atol=1e-8)


def test_what_a_model_without_data_is():
    train, test = NAMES
    model = KNeighborsClassifier(1)
    prior = worth_of_all(model, train, test)[0]

    def values(method, empty, utility="risk"):
        return method(empty=empty, utility=utility).fit(model, train).influence(test).values

    uniform = np.full(5, np.log(0.5))
    for method, share in ((pp.Shapley, 1 / 7), (pp.Banzhaf, 1 / 2**6)):
        reference = values(method, "prior")
        moved = values(method, "uniform") - reference
        assert_allclose(moved, np.repeat((prior - uniform)[:, None], 7, axis=1) * share, atol=1e-12)
        moved = values(method, 2.5) - reference
        assert_allclose(moved, np.repeat((prior - 2.5)[:, None], 7, axis=1) * share, atol=1e-12)
    labels = test[1].tolist()
    most = max(labels.count(label) for label in set(labels)) / 5
    moved = values(pp.Shapley, "max_class_freq", "accuracy") - values(pp.Shapley, 0.0, "accuracy")
    assert_allclose(moved, -most / 7, atol=1e-12)


@pytest.mark.parametrize("estimator", ["exact", *SAMPLED])
def test_shapley_values_share_out_what_the_whole_set_is_worth(estimator):
    n = 9
    worth = random_worth(n, 3)
    method = pp.Shapley(2 + 8 * 10, estimator=estimator)
    found = method.fit(user_game(table_game(worth), n)).influence()
    assert_allclose(found.values.sum(axis=1), worth[-1] - worth[0], atol=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_axioms(name):
    n, worth = 5, random_worth(5, 2)
    bits = np.arange(2**n)
    null = worth[bits & ~1]  # player 0 changes nothing
    alike = (worth + worth[(bits & ~6) | (bits & 2) << 1 | (bits & 4) >> 1]) / 2  # 1 and 2
    method, _ = method_of(name)

    def values(table):
        return method.fit(user_game(table_game(table), n)).influence().values

    assert_allclose(values(null)[:, 0], 0.0, atol=1e-13)
    assert_allclose(values(alike)[:, 1], values(alike)[:, 2], atol=1e-13)
    assert_allclose(values(2 * null - 3 * alike), 2 * values(null) - 3 * values(alike), atol=1e-12)
    assert np.abs(values(alike)).max() > 0.1


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("name", ["Shapley", "Beta(4, 1)", "Beta(1, 4)"])
def test_an_additive_game_pays_the_weights(name, estimator):
    weights = np.random.default_rng(0).normal(size=(2, 12))
    method, _ = method_of(name, n_models=2 + 11 * 60, estimator=estimator)
    found = method.fit(user_game(additive_game(weights, empty=3.0), 12)).influence()
    if name == "Shapley" and estimator in ("permutations", "antithetic"):
        assert_allclose(found.values, weights, atol=1e-12)
    assert found.std_error.max() < 0.6
    assert (np.abs(found.values - weights) <= 4.5 * found.std_error + 1e-12).all()


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("name", ["Shapley", "Beta(4, 1)", "Beta(1, 4)"])
def test_sampled_against_enumeration(name, estimator):
    n, worth = 8, random_worth(8, 2) + 3 * np.sqrt([[bin(j).count("1")] for j in range(256)])
    game = user_game(table_game(worth), n)
    _, law = method_of(name)

    def sampled(seed):
        return method_of(name, n_models=400, estimator=estimator, seed=seed)[0]

    assert_calibrated(deviations(sampled, game, enumerated(worth, law(n)), repeats=25))


@pytest.mark.parametrize("estimator", ["regression", "means"])
@pytest.mark.parametrize("q", [0.5, 0.7])
def test_sampled_banzhaf_against_enumeration(q, estimator):
    worth = random_worth(8, 2) + 100.0
    game, truth = user_game(table_game(worth), 8), enumerated(worth, binomial_law(8, q))

    def sampled(seed):
        return pp.Banzhaf(400, q=q, estimator=estimator, seed=seed)

    assert_calibrated(deviations(sampled, game, truth, repeats=25))


LARGE = [
    *[("Shapley", estimator, "shapley", ()) for estimator in SAMPLED],
    ("Beta(4, 1)", "regression", "beta", (4, 1)),
    ("Beta(1, 4)", "means", "beta", (1, 4)),
    ("Banzhaf", "regression", "banzhaf", (0.5,)),
    ("Banzhaf 0.7", "means", "banzhaf", (0.7,)),
]


@pytest.mark.parametrize(("name", "estimator", "law", "parameters"), LARGE)
def test_sampled_against_the_closed_form_of_neighbours(name, estimator, law, parameters):
    n = 150
    game = NeighboursGame.random(n, n_tests=2)
    truth = game.exact(few_nearer(law, n, game.k, *parameters))

    def sampled(seed):
        return method_of(name, n_models=2 + 149 * 8, estimator=estimator, seed=seed)[0]

    z = deviations(sampled, user_game(game, n), truth, repeats=4)
    assert 0.88 < (np.abs(z) < 1.96).mean() < 0.985
    assert np.abs(z.mean()) < 0.5  # what all players have in common errs alike for all


@pytest.mark.parametrize(
    ("method", "semivalue"),
    [
        (pp.Shapley(2000), "shapley"),
        (pp.Shapley(2000, estimator="means"), "shapley"),
        (pp.BetaShapley(4, 1, n_models=3000), BetaWeights(4, 1)),
        (pp.Banzhaf(2000, q=0.05), BanzhafWeights(0.05)),
    ],
)
def test_a_thousand_instances_against_knn_shapley(method, semivalue):
    # The whole way, from data and an estimator: what KNNShapley finds in closed form.
    random = np.random.default_rng(7)
    X, y = random.normal(size=(1003, 3)), random.integers(0, 3, 1003)
    train, test = (X[:1000], y[:1000]), (X[1000:], y[1000:])
    closed = pp.KNNShapley(k=5, divide_by="neighbours", semivalue=semivalue).fit(train)
    truth = closed.influence(test).values

    def votes(outputs, labels):
        return outputs[np.arange(len(labels)), labels]

    method.set_params(utility=votes, empty="uniform")
    found = method.fit(KNeighborsClassifier(5), train).influence(test)
    z = (found.values - truth) / found.std_error
    assert 0.92 < (np.abs(z) < 1.96).mean() < 0.985
    assert np.abs(z).max() < 5.5 and np.abs(z.mean()) < 0.5
    assert np.abs(truth / found.std_error).max() > 3  # there is something to find


def test_the_regression_needs_fewer_models_than_orders_do():
    n = 60
    game = NeighboursGame.random(n, n_tests=4)
    truth = game.exact(few_nearer("shapley", n, game.k))

    def error(estimator):
        found = [
            pp.Shapley(6002, estimator=estimator, seed=seed).fit(user_game(game, n)).influence()
            for seed in range(2)
        ]
        return np.sqrt(np.mean([(result.values - truth) ** 2 for result in found]))

    assert error("regression") < 0.6 * error("permutations")


def test_auto_is_exact_where_that_costs_no_more():
    game = user_game(smooth_game(9, 1), 9)

    def chosen(method):
        return method.fit(game).influence().diagnostics["estimator"]

    assert chosen(pp.Shapley(512)) == "exact"
    assert chosen(pp.Shapley(511)) == "regression"
    assert chosen(pp.BetaShapley(n_models=512)) == "exact"
    assert chosen(pp.Banzhaf(511)) == "regression"
    one = pp.Shapley(1).fit(user_game(additive_game(np.array([[2.5]]), 1.0), 1)).influence()
    assert one.diagnostics["estimator"] == "exact" and one.values == [[2.5]]


def test_groups_are_the_players_of_the_merged_game():
    (X, y), test = regression(9, 2, tests=3)
    groups = np.array(list("abbcccdda"))
    names = list("abcd")
    worth = np.array(
        [
            -((Ridge(alpha=0.5).fit(X[m], y[m]).predict(test[0]) - test[1]) ** 2)
            if (m := np.isin(groups, [name for at, name in enumerate(names) if j >> at & 1])).any()
            else -((y.mean() - test[1]) ** 2)
            for j in range(16)
        ]
    )
    for name in METHODS:
        method, law = method_of(name)
        method.fit(Ridge(alpha=0.5), (X, y), groups=groups)
        found = method.influence(test)
        assert found.train_ids.tolist() == names
        assert_allclose(found.values, enumerated(worth, law(4)), atol=1e-10)
        with pytest.raises(MethodCapabilityError, match="players here are groups"):
            method.memorization()


def test_relatives():
    worth = random_worth(7, 2)
    game = user_game(table_game(worth), 7)
    shapley = pp.Shapley().fit(game).influence().values
    assert_allclose(pp.BetaShapley(1, 1).fit(game).influence().values, shapley, atol=1e-13)
    loo = pp.LeaveOneOut().fit(game).influence().values
    large = pp.BetaShapley(1, 1e9).fit(game).influence().values
    assert_allclose(large, loo, atol=1e-6)
    small = pp.BetaShapley(1e9, 1).fit(game).influence().values
    assert_allclose(small, (worth[2 ** np.arange(7)] - worth[0]).T, atol=1e-6)
    assert np.abs(loo - shapley).max() > 0.1


@pytest.mark.parametrize("estimator", ["means", "regression"])
def test_banzhaf_leaves_open_who_is_in_all_subsets_or_in_none(estimator):
    game = user_game(smooth_game(60, 2), 60)
    method = pp.Banzhaf(5, estimator=estimator).fit(game)
    masks = method._coalitions.masks
    unknown = masks.all(axis=0) | ~masks.any(axis=0)
    assert 0 < unknown.sum() < 60
    found = method.influence()
    assert_array_equal(np.isnan(found.values), np.tile(unknown, (2, 1)))
    assert np.isnan(found.std_error[:, unknown]).all()


def test_one_seed_for_all_that_is_sampled():
    game = user_game(smooth_game(15, 2), 15)
    for kind in (pp.Shapley, pp.BetaShapley, pp.Banzhaf):
        first, again, other = (
            kind(n_models=100, seed=seed).fit(game).influence() for seed in (3, 3, 4)
        )
        assert_array_equal(first.values, again.values)
        assert_array_equal(first.std_error, again.std_error)
        assert np.abs(first.values - other.values).max() > 0


def test_the_same_subsets_serve_all_parameters():
    train, test = regression(30, 2, tests=2)
    submodels = pp.Submodels(Ridge(), train)
    first = pp.Shapley(90).fit(submodels).influence(test).diagnostics
    assert first["trained"] == submodels.report()["trained"] > 80
    for method in (
        pp.BetaShapley(16, 1, n_models=90, sizes="uniform"),
        pp.Shapley(60, estimator="means"),
    ):
        assert method.fit(submodels).influence(test).diagnostics["trained"] == first["trained"]


def test_exact_needs_every_training():
    train, test = NUMBERS
    method = pp.Shapley(empty=0.0).fit(Failing(least=2), train)
    with pytest.raises(InvalidInputError, match="6 of the 64 coalitions have no utility"):
        method.influence(test)


def test_a_training_that_fails_is_left_out_and_counted():
    train, test = regression(9, 2, tests=2)
    for estimator in SAMPLED:
        method = pp.Shapley(2 + 8 * 12, estimator=estimator, empty=0.0)
        found = method.fit(Failing(least=3), train).influence(test)
        assert found.diagnostics["failed"] > 0
        assert np.isfinite(found.values).all()
    banzhaf = pp.Banzhaf(100, empty=0.0, estimator="means").fit(Failing(least=3), train)
    masks = banzhaf._coalitions.masks
    sizes = masks.sum(axis=1)
    assert banzhaf.influence(test).diagnostics["failed"] == ((sizes > 0) & (sizes < 3)).sum()


def test_without_the_ends_there_is_no_common_part():
    train, test = regression(9, 2, tests=2)
    for estimator in ("regression", "means"):
        method = pp.Shapley(100, estimator=estimator, empty=0.0).fit(NoWhole(), train)
        with pytest.raises(InvalidInputError, match="coalition of all players has no utility"):
            method.influence(test)


class NoWhole(Failing):
    def fit(self, X, y, positions):
        if len(positions) == 9:
            raise ValueError("too large")
        super().fit(X, y, positions)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (pp.Shapley(estimator="montecarlo"), "estimator must be 'auto' or 'regression'"),
        (pp.Shapley(n_models=0), "n_models"),
        (pp.Shapley(n_models="many"), "n_models"),
        (pp.Shapley(estimator="exact"), r"25 players have 2\^25 coalitions"),
        (pp.BetaShapley(0, 1), "alpha"),
        (pp.BetaShapley(1, -2), "beta"),
        (pp.BetaShapley(np.nan, 1), "alpha"),
        (pp.Banzhaf(q=0), "q"),
        (pp.Banzhaf(q=1.0), "q"),
        (pp.Banzhaf(q="half"), "q"),
        (pp.Banzhaf(estimator="permutations"), "estimator must be 'auto' or 'regression'"),
        (pp.Shapley(4), "n_models: 2 coalitions are neither empty nor full"),
        (pp.Shapley(2, estimator="permutations"), "n_models: no two coalitions differ"),
        (pp.Banzhaf(3), "n_models: 3 coalitions say nothing about 25 players"),
        (pp.Shapley(empty="zero"), "empty"),
    ],
)
def test_a_setting_that_makes_no_sense(method, message):
    train, test = regression(25, 2, tests=2)
    with pytest.raises(InvalidInputError, match=message):
        method.fit(Ridge(), train).influence(test)
