"""Group testing and Kernel SHAP's regression: against exact Shapley values, and their bound."""

import numpy as np
import pytest
from retraining.games import (
    FROZEN,
    NeighboursGame,
    additive_game,
    all_masks,
    enumerated,
    everything,
    few_nearer,
    measured,
    random_worth,
    table_game,
    without,
)
from retraining.sampled import assert_calibrated, deviations, user_game
from sklearn.linear_model import Ridge

from proponent.exceptions import InvalidInputError
from proponent.retraining import designs
from proponent.retraining.coalitions import Table
from proponent.retraining.estimators.group_testing import (
    GroupTestingMeans,
    error_bound,
    needed_models,
    size_law,
    without_curve,
)
from proponent.retraining.estimators.kernel_shap import KernelShap
from proponent.retraining.group_testing import GroupTesting

SAMPLED = ("adjusted", "plain", "kernel_shap")


def shapley(worth):
    n = int(np.log2(len(worth)))
    return enumerated(worth, np.full(n, 1 / n))


def uneven_worth(n, n_tests):
    """Random utilities that grow with the size, the empty coalition's far from 0."""
    sizes = all_masks(n).sum(axis=1)[:, None]
    return random_worth(n, n_tests) + 7 + np.sqrt(sizes)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_the_regression_on_all_coalitions_is_the_shapley_value(n):
    worth = uneven_worth(n, 2)
    found = KernelShap(drawn_by_weight=False).on(Table(everything(n), worth)).players(range(n))
    assert found.values == pytest.approx(shapley(worth), abs=1e-11)
    assert found.std_errors is None


def test_the_law_of_group_testing_makes_the_covariance_the_shapley_value():
    """Over all coalitions with their probabilities, exactly; whatever is taken off by size."""
    n = 6
    worth, masks = uneven_worth(n, 2), all_masks(n)
    size = masks.sum(axis=1)
    proper = (size > 0) & (size < n)
    each = np.zeros(n + 1)
    counts = np.bincount(size)
    each[1:n] = size_law(n) / counts[1:n]
    law = each[size] * proper
    constant = 2 * sum(1 / k for k in range(1, n))
    for curve in (0.0, 3 * size**2):
        utilities = worth - np.reshape(curve, (-1, 1))
        centred = masks - size[:, None] / n
        part = constant * (law[:, None] * utilities).T @ centred
        expected = part + (worth[-1] - worth[0])[:, None] / n
        assert expected == pytest.approx(shapley(worth), abs=1e-12)


def test_the_game_of_three_players_has_its_values():
    game = user_game(table_game(FROZEN), 3)
    found = GroupTesting().fit(game).influence()
    assert found.values[0] == pytest.approx([11 / 6, 10 / 3, 5 / 6], abs=1e-14)
    assert found.diagnostics["estimator"] == "exact"


@pytest.mark.parametrize("estimator", SAMPLED)
@pytest.mark.parametrize("paired", [False, True])
def test_values_are_within_their_errors_and_share_out_the_utility(estimator, paired):
    n = 9
    worth = uneven_worth(n, 2)

    def method(seed):
        return GroupTesting(800, estimator=estimator, paired=paired, seed=seed)

    game = user_game(table_game(worth), n)
    found = method(0).fit(game).influence().values.sum(axis=1)
    assert found == pytest.approx(worth[-1] - worth[0], abs=1e-11)
    z = deviations(method, game, shapley(worth), repeats=30)
    if paired and estimator != "kernel_shap":
        # A coalition and its complement are not independent; errors take them to be.
        assert np.abs(z).max() < 6
        return
    assert_calibrated(z)


def test_additive_games_are_exact_by_regression():
    weights = np.random.default_rng(0).normal(size=(2, 20))
    game = user_game(additive_game(weights, empty=4.0), 20)
    found = GroupTesting(60, estimator="kernel_shap").fit(game).influence().values
    assert found == pytest.approx(weights, abs=1e-11)


def test_a_null_player_and_twins_are_treated_as_such_by_the_exact_regression():
    rng = np.random.default_rng(2)
    masks = all_masks(6)
    code = masks @ 2 ** np.arange(6)
    worth = rng.normal(size=(16, 1))[code & 15] + 2.0 * (masks[:, 4] | masks[:, 5])[:, None]
    worth += masks.sum(axis=1, keepdims=True) * 0
    found = KernelShap(drawn_by_weight=False).on(Table(everything(6), worth)).players(range(6))
    assert found.values[0, 4:] == pytest.approx([1.0, 1.0], abs=1e-11)


def test_the_curve_lowers_the_error_on_neighbours_at_n_60():
    n, k = 60, 5
    game = NeighboursGame.random(n, 4, k)
    truth = game.exact(few_nearer("shapley", n, k))
    errors = {}
    for estimator in ("adjusted", "plain"):
        found = GroupTesting(3000, estimator=estimator).fit(user_game(game, n)).influence()
        errors[estimator] = np.sqrt(np.square(found.values - truth).mean())
        assert np.abs((found.values - truth) / found.std_error).max() < 5
    assert errors["adjusted"] < 0.5 * errors["plain"]


def test_what_a_coalition_is_compared_with_comes_from_the_others():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 30, 80)
    utilities = rng.normal(size=(80, 2)) + np.log(sizes)[:, None]
    left = without_curve(sizes, utilities, 30)
    changed = utilities.copy()
    changed[5] += 100
    moved = without_curve(sizes, changed, 30) - left
    assert moved[5] == pytest.approx(100, abs=1e-9)


def test_the_bound_is_the_note_s():
    """By a literal transcription, and that it holds where there are so many."""
    n, epsilon, delta = 8, 0.9, 0.05
    constant = 2 * sum(1 / k for k in range(1, n))
    q = [n / (k * (n - k)) / constant for k in range(1, n)]
    total = (n - 2) / n * q[0] + sum(
        q[k - 1] * (1 + 2 * k * (k - n) / (n * (n - 1))) for k in range(2, n)
    )
    u = epsilon / (2 * constant * np.sqrt(n) * (1 - total))
    needed = np.log(n * (n - 1) / delta) / ((1 - total) * ((1 + u) * np.log(1 + u) - u))
    assert needed_models(n, epsilon, delta) == pytest.approx(needed, rel=1e-9)
    assert needed_models(n, error_bound(n, 2000)) == pytest.approx(2000, rel=1e-9)
    worth = np.random.default_rng(0).random((2**n, 5))
    found = GroupTesting(2000, estimator="plain").fit(user_game(table_game(worth), n)).influence()
    missed = np.linalg.norm(found.values - shapley(worth), axis=1)
    assert missed.max() < found.diagnostics["l2_error_bound_over_range"]
    with pytest.raises(InvalidInputError, match="three players"):
        needed_models(2, 0.1)


@pytest.mark.parametrize("estimator", [GroupTestingMeans(), KernelShap()])
def test_the_two_ends_and_enough_of_the_others_are_needed(estimator):
    n = 6
    table = measured(table_game(random_worth(n, 1)), designs.GroupTesting(), n, 200)
    with pytest.raises(InvalidInputError, match="of no player has no utility"):
        estimator.on(without(table, table.coalitions.sizes == 0))
    with pytest.raises(InvalidInputError, match="of all players has no utility"):
        estimator.on(without(table, table.coalitions.sizes == n))
    with pytest.raises(InvalidInputError, match="n_models"):
        estimator.on(without(table, slice(3, None)))


def test_settings_that_make_no_sense_are_refused():
    game = user_game(table_game(random_worth(4, 1)), 4)
    with pytest.raises(InvalidInputError, match="paired must be"):
        GroupTesting(paired="yes").fit(game)
    with pytest.raises(InvalidInputError, match="estimator must be"):
        GroupTesting(estimator="means").fit(game)


def test_training_instances_have_their_shapley_values_in_a_model():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(9, 2)), rng.normal(size=9)
    test = X[:2] + 0.1, y[:2]
    exact = GroupTesting(estimator="exact").fit(Ridge(), (X, y)).influence(test)
    for estimator in SAMPLED:
        found = GroupTesting(600, estimator=estimator).fit(Ridge(), (X, y)).influence(test)
        assert np.abs((found.values - exact.values) / found.std_error).max() < 5
