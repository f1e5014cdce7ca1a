"""TMC-Shapley: orders that are cut, against the walk of the paper and that of its code."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from retraining.games import enumerated, random_worth, table_game
from retraining.refit_examples import classification, regression
from retraining.sampled import assert_calibrated, deviations, user_game
from retraining.submodel_examples import Failing, Logged, utilities
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

import proponent as pp
from proponent.exceptions import InvalidInputError, ProponentError
from proponent.retraining import tmc_shapley
from proponent.retraining.stopping import MaxModels, MaxSeconds, RankStability, TargetStdError
from proponent.retraining.tmc_shapley import error_bound

NUMBERS = regression(9, 2, tests=3)
CLASSES = classification(8, 2, 2, tests=4)
PRIOR = {"empty": 0.0}


@pytest.fixture(autouse=True)
def _cleared():
    Logged.trainings.clear()


def saturating(n, seed=0):
    """Return an additive game that levels off, of two values, without noise."""
    weights = np.random.default_rng(seed).random((n, 2)) + 0.2
    return lambda masks: 1 - np.exp(-(masks @ weights) * 6 / n)


def wavering(n, seed=0):
    """Return a game whose value comes near to that of the whole set, leaves it and comes back."""
    weights = np.random.default_rng(seed).normal(size=(n, 2))
    return lambda masks: 3 + 0.2 * np.sin(masks @ weights)


def value(game, members, n):
    mask = np.zeros((1, n), bool)
    mask[0, list(members)] = True
    return game(mask)[0]


def paper_walk(game, order, tolerance, redistribute=False):
    """Return the marginals ``(n, T)`` of algorithm 1, and after how many steps it was cut.

    The last step of an order costs nothing, so it is never cut.
    """
    n = len(order)
    whole = value(game, order, n)
    marginals, before, steps = np.zeros((n, len(whole))), value(game, [], n), 0
    for place, player in enumerate(order):
        if tolerance and abs(whole.mean() - before.mean()) <= tolerance and place < n - 1:
            break
        after = value(game, order[: place + 1], n)
        marginals[player] = after - before
        before, steps = after, steps + 1
    if redistribute and steps < n:
        marginals[order[steps:]] = (whole - before) / (n - steps)
    return marginals, steps


def released_walk(game, order, tolerance, redistribute=False):
    """Return the same of the released code, which waits for six near steps in a row."""
    n = len(order)
    whole = value(game, order, n)
    marginals, new, near, steps = np.zeros((n, len(whole))), value(game, [], n), 0, 0
    for place, player in enumerate(order):
        old, new = new, value(game, order[: place + 1], n)
        marginals[player] = new - old
        steps += 1
        if np.abs(new.mean() - whole.mean()) <= tolerance * abs(whole.mean()):
            near += 1
            if near > 5 and steps < n - 1:
                break
        else:
            near = 0
    if redistribute and steps < n:
        marginals[order[steps:]] = (whole - new) / (n - steps)
    return marginals, steps


WALKS = {"paper": paper_walk, "released": released_walk}


@pytest.mark.parametrize("redistribute", [False, True])
@pytest.mark.parametrize("rule", WALKS)
@pytest.mark.parametrize("tolerance", [0.003, 0.02, 0.1])
@pytest.mark.parametrize("kind", [saturating, wavering])
def test_equal_to_the_walk_that_it_is_named_after(kind, tolerance, rule, redistribute):
    n, game = 16, kind(16)
    method = pp.TMCShapley(20, tolerance=tolerance, rule=rule, redistribute=redistribute)
    found = method.fit(user_game(game, n)).influence()
    orders = method._walks.orders
    walked = [WALKS[rule](game, order, tolerance, redistribute) for order in orders]
    marginals = np.array([part for part, _ in walked])
    steps = np.array([count for _, count in walked])
    assert_allclose(found.values, marginals.mean(axis=0).T, atol=1e-12)
    errors = marginals.std(axis=0, ddof=1).T / np.sqrt(20)
    assert_allclose(found.std_error, errors, atol=1e-12)
    assert found.diagnostics["permutations"] == 20
    cut = steps < n
    assert cut.any() or (rule, tolerance) != ("paper", 0.1)
    assert found.diagnostics["mean_steps"] == pytest.approx(steps.mean())
    gap = np.abs(game(np.ones((1, n)))[0] - game(np.zeros((1, n)))[0] - found.values.sum(axis=1))
    assert found.diagnostics["efficiency_gap"] == pytest.approx(gap.max(), abs=1e-12)
    assert gap.max() < 1e-12 or (cut.any() and not redistribute)


def test_the_rules_cut_at_different_steps():
    n, game = 30, saturating(30)

    def steps(**settings):
        found = pp.TMCShapley(10, **settings).fit(user_game(game, n)).influence()
        return found.diagnostics["mean_steps"]

    paper = steps(tolerance=0.05)
    released = steps(tolerance=0.05, rule="released")
    assert paper < released < n == steps(tolerance=0)
    # The code's tolerance is relative, and it looks after a step: it is at the sixth.
    whole = game(np.ones((1, n)))[0].mean()
    assert steps(tolerance=0.05 / whole, rule="released") == pytest.approx(paper + 5, abs=1e-9)


def test_the_deficit_grows_with_the_tolerance_and_redistribution_removes_it():
    n, game = 20, saturating(20)
    deficits = []
    for tolerance in (0.01, 0.05, 0.2):
        kept = pp.TMCShapley(30, tolerance=tolerance).fit(user_game(game, n)).influence()
        deficits.append(kept.diagnostics["efficiency_gap"])
        shared = pp.TMCShapley(30, tolerance=tolerance, redistribute=True)
        assert shared.fit(user_game(game, n)).influence().diagnostics["efficiency_gap"] < 1e-12
    assert 0 < deficits[0] < deficits[1] < deficits[2] < 0.25


@pytest.mark.parametrize("n", [3, 8])
def test_all_within_reach_from_the_first(n):
    game = random_worth(n, 2)
    whole = game[-1] - game[0]
    method = pp.TMCShapley(5, tolerance=100.0).fit(user_game(table_game(game), n))
    assert_array_equal(method.influence().values, 0.0)
    method = pp.TMCShapley(5, tolerance=100.0, redistribute=True)
    found = method.fit(user_game(table_game(game), n)).influence()
    assert_allclose(found.values, np.repeat(whole[:, None], n, axis=1) / n, atol=1e-14)
    assert found.diagnostics["evaluations"] == 2


@pytest.mark.parametrize("n_permutations", [1, 2, 16, 17, 40])
def test_without_a_tolerance_it_is_plain_permutations(n_permutations):
    n, worth = 7, random_worth(7, 3)
    method = pp.TMCShapley(n_permutations, tolerance=0)
    found = method.fit(user_game(table_game(worth), n)).influence()
    orders = method._walks.orders
    assert orders.shape == (n_permutations, n)
    assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(n), (n_permutations, 1)))
    marginals = np.array([paper_walk(table_game(worth), order, 0)[0] for order in orders])
    assert_allclose(found.values, marginals.mean(axis=0).T, atol=1e-12)
    assert_allclose(found.values.sum(axis=1), worth[-1] - worth[0], atol=1e-12)
    assert (found.std_error is None) == (n_permutations == 1)


def test_without_a_tolerance_it_is_unbiased():
    worth = random_worth(6, 2)

    def sampled(seed):
        return pp.TMCShapley(60, tolerance=0, seed=seed)

    truth = enumerated(worth, np.full(6, 1 / 6))
    assert_calibrated(deviations(sampled, user_game(table_game(worth), 6), truth, repeats=25))


@pytest.mark.parametrize("together", [1, 5])
def test_how_many_orders_are_walked_together_does_not_matter(together, monkeypatch):
    game = user_game(saturating(12), 12)
    method = pp.TMCShapley(12, tolerance=0.05)
    expected = method.fit(game).influence()
    monkeypatch.setattr(tmc_shapley, "TOGETHER", together)
    found = method.fit(game).influence()
    assert_allclose(found.values, expected.values, atol=1e-14)
    assert found.diagnostics["mean_steps"] == expected.diagnostics["mean_steps"]


def test_more_orders_begin_with_the_fewer():
    game = user_game(saturating(12), 12)
    few = pp.TMCShapley(5).fit(game)._walks.orders
    assert_array_equal(pp.TMCShapley(30).fit(game)._walks.orders[:5], few)
    assert (pp.TMCShapley(5, seed=1).fit(game)._walks.orders != few).any()


@pytest.mark.parametrize(
    ("model", "data", "utility"),
    [(Ridge(), NUMBERS, "risk"), (KNeighborsClassifier(1), CLASSES, "accuracy")],
)
def test_equal_to_refits_along_the_orders(model, data, utility):
    train, test = data
    n = len(train[1])
    method = pp.TMCShapley(6, tolerance=0.2, utility=utility, empty=-0.5)
    method.fit(model, train, test=test)

    def game(masks, judged=test):
        empty = np.full(len(judged[1]), -0.5)
        return utilities(model, train, judged, masks, utility, empty)

    walks = [paper_walk(game, order, 0.2) for order in method._walks.orders]
    assert min(steps for _, steps in walks) < n
    expected = np.mean([marginals for marginals, _ in walks], axis=0).T
    assert_allclose(method.influence().values, expected, atol=1e-9)
    assert_allclose(method.influence(test, joint=True).values, expected.sum(axis=0), atol=1e-9)
    # Another test set is measured where the first one had cut.
    for judged, found in (
        ((test[0][:2], test[1][:2]), method.influence((test[0][:2], test[1][:2])).values),
        (train, method.influence(train).values),
    ):
        changes = np.zeros((len(walks), n, len(judged[1])))
        for row, (order, (_, steps)) in enumerate(zip(method._walks.orders, walks, strict=True)):
            prefixes = [np.isin(np.arange(n), order[:step]) for step in range(steps + 1)]
            changes[row, order[:steps]] = np.diff(game(prefixes, judged), axis=0)
        assert_allclose(found, changes.mean(axis=0).T, atol=1e-9)
    assert_allclose(method.memorization().values, found.diagonal(), atol=1e-12)


def test_what_is_cut_is_not_trained():
    train, test = NUMBERS
    method = pp.TMCShapley(8, tolerance=0.5, **PRIOR).fit(Logged(), train, test=test)
    sizes = [len(positions) for positions, _ in Logged.trainings]
    steps = method.influence().diagnostics["mean_steps"]
    walked = (method._walks.rows[:, 1:9] >= 0).sum()
    assert len(sizes) == 1 + walked < 1 + 8 * 8
    assert steps < 9
    trained = len(sizes)
    method.influence(train), method.influence()
    assert len(Logged.trainings) == trained
    whole, rest = sizes.count(9), [size for size in sizes if size < 9]
    assert whole == 1 and sorted(set(rest)) == list(range(1, max(rest) + 1))


@pytest.mark.parametrize("tolerance", [0, 1e-9])
def test_an_order_with_a_training_that_failed_is_left_out(tolerance):
    (X, y), test = NUMBERS

    class Picky(Failing):
        def fit(self, X, y, positions):
            if len(positions) == 4 and {0, 1} <= set(positions.tolist()):
                raise ValueError("not these four")
            super().fit(X, y, positions)

    method = pp.TMCShapley(17, tolerance=tolerance, empty=0.0)
    found = method.fit(Picky(), (X, y), test=test).influence()
    orders = [o for o in method._walks.orders if not {0, 1} <= set(o[:4].tolist())]
    assert found.diagnostics["orders_left_out"] == 17 - len(orders) > 0

    def game(masks):
        return np.array(
            [-((y[m].mean() - test[1]) ** 2) if m.any() else np.zeros(3) for m in masks]
        )

    expected = np.mean([paper_walk(game, order, tolerance)[0] for order in orders], axis=0)
    assert_allclose(found.values, expected.T, atol=1e-12)


@pytest.mark.parametrize("tolerance", [0, 1e-9])
@pytest.mark.parametrize("n_permutations", range(1, 18, 4))
def test_a_batch_of_which_all_fail_does_not_fail_the_rest(n_permutations, tolerance):
    # Whichever instance comes first in an order is trained on alone.
    train, test = NUMBERS
    method = pp.TMCShapley(n_permutations, tolerance=tolerance, empty=0.0)

    class Picky(Failing):
        def fit(self, X, y, positions):
            if len(positions) == 1 and positions[0] == last:
                raise ValueError("not alone")
            super().fit(X, y, positions)

    probe = pp.TMCShapley(n_permutations, tolerance=0).fit(pp.Game(9, lambda mask: 0.0))
    last = probe._walks.orders[-1, 0]
    method.fit(Picky(), train, test=test)
    bad = (method._walks.orders[:, 0] == last).sum()
    if bad == n_permutations:
        with pytest.raises(ProponentError, match="Every order has a training that failed"):
            method.influence()
    else:
        assert method.influence().diagnostics["orders_left_out"] == bad


def test_if_the_ends_fail_there_is_nothing_to_walk_to():
    (X, y), test = NUMBERS
    with pytest.raises(ProponentError, match="failed"):
        pp.TMCShapley(5, empty=0.0).fit(Failing(hates=range(9)), (X, y), test=test)

    class NoWhole(Failing):
        def fit(self, X, y, positions):
            if len(positions) == 9:
                raise ValueError("too large")
            super().fit(X, y, positions)

    with pytest.raises(ProponentError, match=r"too large|on all instances, or on none, failed"):
        pp.TMCShapley(5, empty=0.0).fit(NoWhole(), (X, y), test=test)


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("tolerance", [0, 0.01])
def test_few_players(n, tolerance):
    worth = random_worth(n, 2)
    found = pp.TMCShapley(400, tolerance=tolerance).fit(user_game(table_game(worth), n)).influence()
    truth = enumerated(worth, np.full(n, 1 / n))
    error = np.zeros_like(truth) if found.std_error is None else found.std_error
    assert (np.abs(found.values - truth) <= 4 * error + 1e-12).all()


def test_groups_are_players():
    (X, y), test = NUMBERS
    groups = np.array(list("aabbbccca"))
    method = pp.TMCShapley(10, tolerance=0).fit(Ridge(), (X, y), groups=groups)
    found = method.influence(test)

    def game(masks):
        names = np.array(list("abc"))
        rows = [np.isin(groups, names[mask]) for mask in masks]
        return utilities(Ridge(), (X, y), test, rows)

    expected = np.mean([paper_walk(game, order, 0)[0] for order in method._walks.orders], axis=0)
    assert found.train_ids.tolist() == ["a", "b", "c"]
    assert_allclose(found.values, expected.T, atol=1e-9)


def test_where_to_cut_takes_a_test_set():
    train, test = NUMBERS
    with pytest.raises(InvalidInputError, match="test: TMCShapley truncates by the utility"):
        pp.TMCShapley(5).fit(Ridge(), train)
    assert pp.TMCShapley(5, tolerance=0).fit(Ridge(), train).influence(test).values.shape == (3, 9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_permutations": 0}, "n_permutations"),
        ({"n_permutations": 1.5}, "n_permutations"),
        ({"tolerance": -0.1}, "tolerance must be a number of at least 0"),
        ({"tolerance": np.nan}, "tolerance"),
        ({"tolerance": np.inf}, "tolerance"),
        ({"tolerance": "1%"}, "tolerance"),
        ({"rule": "exact"}, "rule must be 'paper' or 'released'"),
        ({"stop": MaxModels(5)}, "stop: one permutation takes 10 submodels"),
        ({"stop": 5}, "stop: expected a rule"),
    ],
)
def test_a_setting_that_makes_no_sense(settings, message):
    train, test = NUMBERS
    with pytest.raises(InvalidInputError, match=message):
        pp.TMCShapley(**settings).fit(Ridge(), train, test=test)


def test_a_negative_utility_is_near_too():
    # Relative to what it is without its sign; the released code's condition would never hold.
    game = saturating(20)

    def negative(masks):
        return game(masks) - 2.0

    found = pp.TMCShapley(5, tolerance=0.05, rule="released").fit(user_game(negative, 20))
    assert found.influence().diagnostics["mean_steps"] < 20


STOPS = {
    "models": (MaxModels(60), 7),  # 2 + 7 * 8 are 60 at most
    "error": (TargetStdError(0.3, relative=True), None),
    "ranks": (RankStability(0.9, checks=2) & MaxModels(600), None),
    "either": (MaxSeconds(1e-9) | TargetStdError(1e-9), 16),
}


@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("tolerance", [0.0, 0.05])
def test_stopping_rules_end_it_after_some_of_the_same_permutations(name, tolerance):
    rule, expected = STOPS[name]
    game, settings = user_game(saturating(9), 9), {"tolerance": tolerance, "seed": 3}
    stopped = pp.TMCShapley(2000, stop=rule, **settings).fit(game).influence()
    used = stopped.diagnostics["permutations"]
    assert used == expected if expected else (16 <= used < 2000 and not used % 16)
    whole = pp.TMCShapley(used, **settings).fit(game).influence()
    assert_allclose(stopped.values, whole.values, rtol=1e-12)
    joint = pp.TMCShapley(used, **settings).fit(game).influence(joint=True)
    met = joint.std_error <= 0.3 * joint.values.std()
    if name == "error":
        assert met.all()


def test_a_rule_that_looks_takes_a_test_set_and_trains_nothing_in_vain():
    train, test = NUMBERS
    method = pp.TMCShapley(500, tolerance=0, stop=TargetStdError(1e9), **PRIOR)
    with pytest.raises(InvalidInputError, match="stop: this rule looks"):
        method.fit(Logged(), train)
    assert not Logged.trainings
    found = method.fit(Logged(), train, test=test).influence()
    assert found.diagnostics["permutations"] == 16
    trained = len(Logged.trainings)
    Logged.trainings.clear()
    pp.TMCShapley(16, tolerance=0, **PRIOR).fit(Logged(), train, test=test)
    assert trained == len(Logged.trainings) >= 1 + 16 * 8
    timed = pp.TMCShapley(500, tolerance=0, stop=MaxSeconds(1e-9)).fit(Ridge(), train)
    assert timed.influence(test).diagnostics["permutations"] == 16


def test_the_bound_of_hoeffding_is_there_for_accuracies_without_truncation():
    # By hand: ln(2 * 100 / 0.05) = 8.294, and 2 * 8.294 / 0.05^2 = 6635.2 permutations.
    assert error_bound(100, 6636, 0.05) <= 0.05 < error_bound(100, 6635, 0.05)
    train, test = CLASSES
    settings = {"tolerance": 0.0, "utility": "accuracy"}
    found = pp.TMCShapley(20, **settings).fit(LogisticRegression(), train).influence(test)
    exact = pp.Shapley(estimator="exact", utility="accuracy").fit(LogisticRegression(), train)
    off = np.abs(found.values - exact.influence(test).values).max()
    assert off <= found.diagnostics["largest_error_bound"] == error_bound(8, 20, 0.05)
    risk = pp.TMCShapley(20, tolerance=0.0).fit(LogisticRegression(), train).influence(test)
    assert "largest_error_bound" not in risk.diagnostics
