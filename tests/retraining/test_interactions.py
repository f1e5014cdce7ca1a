"""Interaction indices: exact, against sums over all coalitions, and what they satisfy."""

from fractions import Fraction
from itertools import combinations
from math import comb, factorial

import numpy as np
import pytest
from retraining.games import (
    FROZEN,
    additive_game,
    enumerated,
    everything,
    measured,
    random_worth,
    table_game,
    without,
)
from retraining.sampled import assert_calibrated, deviations, user_game
from sklearn.linear_model import Ridge

from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.retraining.banzhaf_interaction import BanzhafInteraction
from proponent.retraining.coalitions import Table
from proponent.retraining.designs.derivatives import Derivatives
from proponent.retraining.estimators.interactions import (
    BanzhafIndex,
    CellMeans,
    ExactInteractions,
    SampledInteractions,
    ShapleyIndex,
    TaylorIndex,
    every_group,
)
from proponent.retraining.shapley_interaction import ShapleyInteraction
from proponent.retraining.shapley_taylor import ShapleyTaylor


def by_enumeration(worth, group, weight):
    """Sum the derivatives of a group, each with a weight that depends on the size of D."""
    n = int(np.log2(len(worth)))
    inside = sum(1 << player for player in group)
    total = np.zeros(worth.shape[1])
    for code in range(2**n):
        if code & inside:
            continue
        derivative = np.zeros(worth.shape[1])
        for size in range(len(group) + 1):
            for members in combinations(group, size):
                joined = code | sum(1 << player for player in members)
                derivative += (-1) ** (len(group) - size) * worth[joined]
        total += weight(code.bit_count()) * derivative
    return total


def shapley_weight(n, a):
    return lambda s: factorial(n - a - s) * factorial(s) / factorial(n - a + 1)


def taylor_weight(n, a, order):
    if a < order:
        return lambda s: float(s == 0)
    return lambda s: order / n / comb(n - 1, s)


def banzhaf_weight(n, a):
    return lambda s: 2.0 ** (a - n)


def exact(worth, groups, index):
    n = int(np.log2(len(worth)))
    table = Table(everything(n), worth)
    return ExactInteractions(groups, index).on(table).players(range(len(groups))).values


@pytest.mark.parametrize(
    ("index", "weight"),
    [
        (ShapleyIndex(), shapley_weight),
        (BanzhafIndex(), banzhaf_weight),
        (TaylorIndex(3), lambda n, a: taylor_weight(n, a, 3)),
        (TaylorIndex(2), lambda n, a: taylor_weight(n, a, 2)),
    ],
    ids=["Shapley", "Banzhaf", "Taylor 3", "Taylor 2"],
)
@pytest.mark.parametrize("n", [3, 6])
def test_exact_indices_are_the_sums_over_all_coalitions(index, weight, n):
    worth = random_worth(n, 2, seed=n)
    orders = [1, 2] if index == TaylorIndex(2) else [1, 2, 3]
    groups = every_group(n, orders)
    found = exact(worth, groups, index)
    for column, group in enumerate(groups):
        expected = by_enumeration(worth, group, weight(n, len(group)))
        assert found[:, column] == pytest.approx(expected, abs=1e-12)


def test_the_game_of_three_players_has_the_known_interactions():
    game = user_game(table_game(FROZEN), 3)
    pairs = ShapleyInteraction().fit(game).influence()
    assert pairs.train_ids.tolist() == ["0&1", "0&2", "1&2"]
    expected = [float(Fraction(text)) for text in ("3/2", "1/2", "3/2")]
    assert pairs.values[0] == pytest.approx(expected, abs=1e-14)
    assert ShapleyInteraction(order=3).fit(game).influence().values == pytest.approx(1, abs=1e-14)
    taylor = ShapleyTaylor().fit(game).influence()
    assert taylor.train_ids.tolist() == ["0", "1", "2", "0&1", "0&2", "1&2"]
    expected = [1, 2, 0] + [float(Fraction(text)) for text in ("4/3", "1/3", "4/3")]
    assert taylor.values[0] == pytest.approx(expected, abs=1e-14)
    assert taylor.values.sum() == pytest.approx(6, abs=1e-13)


def test_single_players_have_their_semivalues():
    n = 6
    worth = random_worth(n, 2)
    groups = every_group(n, [1])
    shapley = enumerated(worth, np.full(n, 1 / n))
    assert exact(worth, groups, ShapleyIndex()) == pytest.approx(shapley, abs=1e-12)
    assert exact(worth, groups, TaylorIndex(1)) == pytest.approx(shapley, abs=1e-12)
    banzhaf = enumerated(worth, np.array([comb(n - 1, s) / 2 ** (n - 1) for s in range(n)]))
    assert exact(worth, groups, BanzhafIndex()) == pytest.approx(banzhaf, abs=1e-12)


def test_a_pair_s_interaction_is_what_merging_it_adds():
    """I_ij = phi of the merged player, less phi of each where the other is not there."""
    n = 5
    worth = random_worth(n, 1, seed=3)
    merged = np.array([worth[(code & 7) | (24 if code & 8 else 0)] for code in range(2 ** (n - 1))])
    fewer = np.array([worth[code] for code in range(2 ** (n - 1))])  # without player 4
    other = np.array([worth[(code & 7) | (code & 8) * 2] for code in range(2 ** (n - 1))])
    law = np.full(n - 1, 1 / (n - 1))
    alone = [enumerated(game, law)[0, 3] for game in (merged, fewer, other)]
    found = exact(worth, [(3, 4)], ShapleyIndex())[0, 0]
    assert found == pytest.approx(alone[0] - alone[1] - alone[2], abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_shapley_taylor_shares_out_the_utility(order):
    n = 5
    worth = random_worth(n, 3, seed=order)
    game = user_game(table_game(worth), n)
    found = ShapleyTaylor(order=order).fit(game).influence().values.sum(axis=1)
    assert found == pytest.approx(worth[-1] - worth[0], abs=1e-12)


def test_and_attracts_or_repels_and_addition_does_nothing():
    games = {
        1: lambda masks: 1.0 * (masks[:, 0] & masks[:, 1]),
        -1: lambda masks: 1.0 * (masks[:, 0] | masks[:, 1]),
        0: lambda masks: additive_game(np.array([[1.0, 2.0, 5.0, 0.0]]))(masks)[:, 0],
    }
    for expected, game in games.items():
        for method in (ShapleyInteraction(), BanzhafInteraction()):
            found = method.fit(user_game(game, 4)).influence().values[0]
            assert found == pytest.approx([expected] + [0] * 5, abs=1e-12)


def test_cells_of_all_coalitions_give_the_exact_banzhaf_interactions():
    n = 6
    worth = random_worth(n, 2)
    groups = every_group(n, [1, 2, 3])
    table = Table(everything(n), worth)
    found = CellMeans(groups).on(table).players(range(len(groups))).values
    assert found == pytest.approx(exact(worth, groups, BanzhafIndex()), abs=1e-12)


@pytest.mark.parametrize(
    "method",
    [
        lambda seed: ShapleyInteraction(30 * 4 * 60, estimator="sampled", seed=seed),
        lambda seed: BanzhafInteraction(1000, estimator="sampled", seed=seed),
        lambda seed: BanzhafInteraction(1500, order=3, estimator="sampled", seed=seed),
    ],
    ids=["Shapley", "Banzhaf", "Banzhaf 3"],
)
def test_sampled_interactions_are_within_their_errors(method):
    n = 6
    worth = random_worth(n, 2, seed=1) + 10  # a level must not matter
    game = user_game(table_game(worth), n)
    kind = type(method(0))
    truth = kind(order=method(0).order, estimator="exact").fit(game).influence().values
    assert_calibrated(deviations(method, game, truth))


def test_sampled_shapley_taylor_is_within_its_errors_and_shares_out_the_utility():
    n = 6
    worth = random_worth(n, 2, seed=1)
    game = user_game(table_game(worth), n)
    truth = ShapleyTaylor(estimator="exact").fit(game).influence().values
    z, singles = [], slice(0, n)
    for seed in range(20):
        found = ShapleyTaylor(3000, estimator="sampled", seed=seed).fit(game).influence()
        assert found.values.sum(axis=1) == pytest.approx(worth[-1] - worth[0], abs=1e-11)
        assert found.values[:, singles] == pytest.approx(truth[:, singles], abs=1e-13)
        assert (found.std_error[:, singles] == 0).all()
        z.append((found.values - truth)[:, n:] / found.std_error[:, n:])
    assert_calibrated(np.array(z))


def test_a_longer_draw_begins_with_the_shorter_one():
    n = 5
    pairs, singles = every_group(n, [2]), every_group(n, [1])
    for place, alone in (("slot", []), ("first", singles)):
        design = Derivatives(pairs, place, alone)
        whole = design.draw(n, 0, 200, 3)
        for start, stop in ((0, 3), (8, 30), (39, 51), (120, 200)):
            part = design.draw(n, start, stop, 3)
            assert (part.masks == whole.masks[start:stop]).all()
            assert (part.seeds == whole.seeds[start:stop]).all()
            assert (part.blocks == whole.blocks[start:stop]).all()


def test_a_failed_training_costs_the_derivatives_that_need_it_alone():
    n = 4
    worth = random_worth(n, 1)
    pairs = every_group(n, [2])
    design = Derivatives(pairs, "slot")
    table = measured(table_game(worth), design, n, design.a_sample * 3)
    estimator = SampledInteractions(pairs, pairs)
    whole = estimator.on(table).players(range(6)).values
    # A row of the first pair's derivative in the second of three samples.
    hurt = estimator.on(without(table, [design.a_sample + 1])).players(range(6))
    assert hurt.values[:, 1:] == pytest.approx(whole[:, 1:], abs=0)
    two = [by_rows(table, slice(first, first + 4), pairs[0]) for first in (0, 2 * design.a_sample)]
    assert hurt.values[0, 0] == pytest.approx(np.mean(two), abs=1e-14)


def by_rows(table, rows, pair):
    inside = table.coalitions.masks[rows][:, list(pair)].sum(axis=1)
    return float(np.where(inside == 1, -1, 1) @ table.utilities[rows, 0])


def test_tuples_are_named_by_ids_and_may_be_chosen():
    worth = random_worth(4, 2)
    names = np.array(["ann", "bob", "cy", "dee"])
    game = user_game(table_game(worth), 4)
    game.players = names
    every = ShapleyInteraction(order=2).fit(game).influence()
    some = ShapleyInteraction(tuples=[("dee", "ann"), ("bob", "cy")]).fit(game).influence()
    assert some.train_ids.tolist() == ["ann&dee", "bob&cy"]
    assert some.values == pytest.approx(every.select(train=["ann&dee", "bob&cy"]).values, abs=0)


def test_the_matrix_is_symmetric_with_the_singles_of_shapley_taylor():
    worth = random_worth(4, 2)
    game = user_game(table_game(worth), 4)
    method = ShapleyTaylor().fit(game)
    matrix, values = method.matrix(), method.influence()
    assert matrix.shape == (2, 4, 4)
    assert (matrix == matrix.transpose(0, 2, 1)).all()
    assert matrix[:, 2, 2] == pytest.approx(values.select(train=["2"]).values[:, 0])
    assert matrix[1, 0, 3] == values.select(train=["0&3"]).values[1, 0]
    with pytest.raises(InvalidInputError, match="pairs make a matrix"):
        ShapleyInteraction(order=3).fit(game).matrix()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tuples": [(0, 9)]}, "no player 9"),
        ({"tuples": [(0, 0)]}, "2 different members"),
        ({"tuples": [(0, 1, 2)]}, "2 different members"),
        ({"tuples": [(0, 1), (1, 0)]}, "each once"),
        ({"tuples": []}, "at least one"),
        ({"tuples": "pairs"}, "tuples must be 'all'"),
        ({"order": 5}, "no tuple of 5"),
        ({"order": 0}, "order"),
        ({"estimator": "fast"}, "estimator must be"),
        ({"estimator": "sampled", "n_models": 40}, "less than 2 samples of 6 tuples, 48"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    game = user_game(table_game(random_worth(4, 1)), 4)
    with pytest.raises(InvalidInputError, match=message):
        ShapleyInteraction(**settings).fit(game)


def test_training_instances_interact_in_a_model():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(7, 2)), rng.normal(size=7)
    X[6], y[6] = X[5], y[5]  # twins: each makes the other superfluous
    test = X[5:6] + 0.01, y[5:6]
    every = ShapleyInteraction().fit(Ridge(), (X, y), ids=list("abcdefg")).influence(test)
    game = user_game(lambda masks: ridge_utilities(masks, X, y, test), 7)
    expected = ShapleyInteraction().fit(game).influence()
    assert every.values == pytest.approx(expected.values, abs=1e-9)
    assert every.select(train=["f&g"]).values[0, 0] < 0
    merged = ShapleyInteraction(300, estimator="sampled").fit(
        Ridge(), (X, y), groups=[0, 0, 1, 1, 2, 2, 2]
    )
    assert merged.influence(test).train_ids.tolist() == ["0&1", "0&2", "1&2"]
    with pytest.raises(MethodCapabilityError):
        merged.memorization()


def ridge_utilities(masks, X, y, test):
    found = []
    for mask in masks:
        predicted = y.mean() if not mask.any() else Ridge().fit(X[mask], y[mask]).predict(test[0])
        found.append(-np.square(predicted - test[1]).sum())
    return np.array(found)


def test_coalitions_that_tuples_share_are_evaluated_once():
    worth = random_worth(6, 1)
    calls = []

    def value(masks):
        calls.append(len(masks))
        return table_game(worth)(masks)

    pairs = every_group(6, [2])
    method = ShapleyInteraction(4 * len(pairs) * 5, estimator="sampled")
    method.fit(user_game(value, 6)).influence()
    # A sample of all pairs takes a coalition and those with one or two players flipped.
    assert max(calls) <= 5 * (1 + 6 + len(pairs))
    assert len(method._coalitions) == 5 * 4 * len(pairs)


def test_a_stopping_rule_looks_at_tuples():
    from proponent.retraining.stopping import TargetStdError

    game = user_game(table_game(random_worth(6, 2)), 6)
    method = BanzhafInteraction(4000, estimator="sampled", stop=TargetStdError(0.5)).fit(game)
    used = len(method._coalitions)
    assert 64 <= used < 4000
    assert method.influence(joint=True).std_error.max() <= 0.5
