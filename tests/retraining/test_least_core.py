"""The least core: certificates from linear programs, games with known ones, and refusals."""

import numpy as np
import pytest
from retraining.games import additive_game, all_masks, measured, random_worth, table_game, without
from retraining.sampled import user_game
from scipy.optimize import linprog
from sklearn.linear_model import Ridge

from proponent.exceptions import InvalidInputError
from proponent.retraining.designs import Bernoulli, PairedComplements
from proponent.retraining.designs.ends import WithEnds
from proponent.retraining.estimators.least_core import LeastCoreValues, least_core, smallest
from proponent.retraining.least_core import LeastCore


def proper(n):
    return all_masks(n)[1:-1]


def assert_least_core(masks, utilities, total, values, subsidy):
    """Check by linear programs of other forms that the values are the smallest of the core.

    A vector x is the one of the smallest norm in a convex set if no y in it has a smaller product
    with x than x itself.
    """
    assert values.sum() == pytest.approx(total, abs=1e-9)
    assert (masks @ values + subsidy - utilities).min() > -1e-8
    everyone = np.ones((1, masks.shape[1]))
    # The dual of the linear program: the largest balanced mean of what coalitions are worth.
    n = masks.shape[1]
    dual = linprog(
        -np.r_[utilities, -total],
        A_eq=np.vstack(
            [np.c_[masks.T.astype(float), -np.ones(n)], np.r_[np.ones(len(masks)), 0.0]]
        ),
        b_eq=np.r_[np.zeros(n), 1.0],
        bounds=[(0, None)] * len(masks) + [(None, None)],
    )
    assert -dual.fun == pytest.approx(subsidy, abs=1e-8)
    nearest = linprog(
        values,
        A_ub=-masks.astype(float),
        b_ub=-(utilities - subsidy - 1e-9),
        A_eq=everyone,
        b_eq=[total],
        bounds=(None, None),
    )
    assert nearest.fun >= values @ values - 1e-6


@pytest.mark.parametrize("n", [2, 3, 6, 9])
@pytest.mark.parametrize("seed", range(3))
def test_random_games(n, seed):
    worth = random_worth(n, 1, seed=seed)[:, 0]
    utilities, total = worth[1:-1] - worth[0], worth[-1] - worth[0]
    values, subsidy = least_core(proper(n), utilities, total)
    assert_least_core(proper(n), utilities, total, values, subsidy)


def test_games_where_a_range_of_values_would_do():
    """With superadditive utilities the core has an interior, and the smallest vector is in it."""
    n = 6
    for seed in range(3):
        rng = np.random.default_rng(seed)
        sizes = proper(n).sum(axis=1)
        utilities = sizes**2 / 10 + 0.3 * rng.random(len(sizes))
        values, subsidy = least_core(proper(n), utilities, n**2 / 10)
        assert_least_core(proper(n), utilities, n**2 / 10, values, subsidy)


def test_an_additive_game_needs_no_subsidy():
    weights = np.random.default_rng(0).normal(size=(2, 7))
    game = user_game(additive_game(weights, empty=3.0), 7)
    found = LeastCore().fit(game).influence()
    assert found.values == pytest.approx(weights, abs=1e-9)
    assert found.diagnostics["subsidy"] == pytest.approx([0, 0], abs=1e-9)


def test_a_majority_of_three_needs_a_third():
    game = user_game(lambda masks: 1.0 * (masks.sum(axis=1) >= 2), 3)
    found = LeastCore().fit(game).influence()
    assert found.values[0] == pytest.approx([1 / 3] * 3, abs=1e-9)
    assert found.diagnostics["subsidy"] == pytest.approx([1 / 3], abs=1e-9)


def test_a_glove_game_gives_all_to_the_scarce_one():
    """One left and two right gloves: the core is the point (1, 0, 0)."""
    game = user_game(lambda masks: 1.0 * (masks[:, 0] & (masks[:, 1] | masks[:, 2])), 3)
    found = LeastCore().fit(game).influence()
    assert found.values[0] == pytest.approx([1, 0, 0], abs=1e-8)
    assert found.diagnostics["subsidy"] == pytest.approx([0], abs=1e-9)


def test_the_subsidy_is_at_least_what_a_pair_of_complements_lacks():
    n = 8
    worth = random_worth(n, 3, seed=5) + 2
    game = user_game(table_game(worth), n)
    for estimator, models in (("exact", 1000), ("sampled", 150)):
        found = LeastCore(models, estimator=estimator).fit(game).influence()
        subsidies = np.array(found.diagnostics["subsidy"])
        sampled = WithEnds(PairedComplements(Bernoulli(0.5))).draw(n, 0, models, 0).masks
        masks = all_masks(n) if estimator == "exact" else sampled
        code = masks[(masks.any(axis=1)) & ~masks.all(axis=1)] @ 2 ** np.arange(n)
        v = worth - worth[0]
        lacks = (v[code] + v[2**n - 1 - code] - v[-1]).max(axis=0) / 2
        assert (subsidies >= lacks - 1e-9).all()
        assert found.values.sum(axis=1) == pytest.approx(v[-1], abs=1e-9)


def test_sampled_constraints_hold_for_nearly_all_coalitions():
    n = 12
    worth = random_worth(n, 1, seed=2) / 5 + np.sqrt(all_masks(n).sum(axis=1))[:, None]
    game = user_game(table_game(worth), n)
    found = LeastCore(600, estimator="sampled").fit(game).influence()
    exact = LeastCore(5000).fit(game).influence()
    subsidy = found.diagnostics["subsidy"][0]
    assert subsidy <= exact.diagnostics["subsidy"][0] + 1e-9
    short = proper(n) @ found.values[0] + subsidy < worth[1:-1, 0] - worth[0, 0] - 1e-9
    assert short.mean() < 0.05


def test_the_core_of_the_sum_is_not_the_sum_of_the_cores():
    n = 6
    worth = random_worth(n, 3)
    game = user_game(table_game(worth), n)
    method = LeastCore().fit(game)
    joint = method.of_sum().values
    total = user_game(lambda masks: table_game(worth)(masks).sum(axis=1), n)
    assert joint == pytest.approx(LeastCore().fit(total).influence().values[0], abs=1e-9)
    assert np.abs(joint - method.influence(joint=True).values).max() > 1e-3
    assert method.of_sum().diagnostics["joint"]["n_test"] == 3


def test_units_do_not_matter():
    n = 6
    worth = random_worth(n, 1)
    values = LeastCore().fit(user_game(table_game(worth), n)).influence().values
    for scale in (1e-6, 1e6):
        found = LeastCore().fit(user_game(table_game(scale * worth), n)).influence().values
        assert found == pytest.approx(scale * values, rel=1e-6, abs=1e-8 * scale)


def test_many_players():
    n = 60
    rng = np.random.default_rng(0)
    weights = rng.normal(size=n)
    half = rng.random((300, n)) < 0.5
    masks = np.vstack([half, ~half])
    utilities = masks @ weights + rng.normal(size=600)
    values, subsidy = least_core(masks, utilities, weights.sum())
    assert_least_core(masks, utilities, weights.sum(), values, subsidy)


def test_the_smallest_vector_is_an_equal_split_where_nothing_forbids_it():
    assert smallest(np.eye(4), np.full(4, 0.2), 1.0) == pytest.approx([0.25] * 4)
    found = smallest(np.eye(4), np.array([0.4, 0, 0, 0]), 1.0)
    assert found == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=1e-9)


def test_one_player_gets_everything():
    found = LeastCore().fit(user_game(lambda masks: 2.0 + masks[:, 0], 1)).influence()
    assert found.values == pytest.approx(np.array([[1.0]]))


def test_too_few_coalitions_are_refused():
    with pytest.raises(InvalidInputError, match="1 coalitions do not bound"):
        least_core(np.array([[True, False, False]]), np.array([1.0]), 1.0)
    table = measured(
        table_game(random_worth(6, 1)), WithEnds(PairedComplements(Bernoulli(0.5))), 6, 100
    )
    with pytest.raises(InvalidInputError, match="of all players has no utility"):
        LeastCoreValues().on(without(table, table.coalitions.sizes == 6))


def test_ends_come_first_and_a_longer_draw_begins_with_the_shorter_one():
    design = WithEnds(PairedComplements(Bernoulli(0.5)))
    whole = design.draw(6, 0, 50, 3)
    assert whole.sizes[:2].tolist() == [0, 6]
    assert (whole.masks[2::2] == ~whole.masks[3::2]).all()
    for start, stop in ((0, 1), (1, 20), (7, 50)):
        part = design.draw(6, start, stop, 3)
        for name in ("masks", "seeds", "blocks"):
            assert (getattr(part, name) == getattr(whole, name)[start:stop]).all()


def test_training_instances_have_values_in_a_model():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(7, 2)), rng.normal(size=7)
    test = X[:2] + 0.1, y[:2]
    found = LeastCore().fit(Ridge(), (X, y)).influence(test)
    game = user_game(lambda masks: ridge_utilities(masks, X, y, test), 7)
    assert found.values == pytest.approx(LeastCore().fit(game).influence().values, abs=1e-7)
    assert found.std_error is None
    with pytest.raises(InvalidInputError, match="estimator must be"):
        LeastCore(estimator="linear").fit(Ridge(), (X, y))


def ridge_utilities(masks, X, y, test):
    found = []
    for mask in masks:
        constant = np.full(2, y.mean())
        predicted = Ridge().fit(X[mask], y[mask]).predict(test[0]) if mask.any() else constant
        found.append(-np.square(predicted - test[1]))
    return np.array(found)
