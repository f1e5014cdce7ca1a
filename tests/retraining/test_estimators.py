"""Estimators of semivalues: exact ones, unbiased ones, and how sure they say they are."""

from dataclasses import replace
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from retraining.games import (
    FROZEN,
    NeighboursGame,
    additive_game,
    all_masks,
    difference_at,
    enumerated,
    everything,
    few_nearer,
    measured,
    random_worth,
    smooth_game,
    table_game,
    without,
)
from retraining.knn_games import SEMIVALUES

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Table, join
from proponent.retraining.designs import (
    Balanced,
    Bernoulli,
    Exhaustive,
    Permutations,
    SizeStratified,
    UniformSize,
)
from proponent.retraining.estimators.exhaustive import ExactSemivalue
from proponent.retraining.estimators.in_out import InOutMeans
from proponent.retraining.estimators.mask_regression import MaskRegression
from proponent.retraining.estimators.permutations import PermutationMarginals
from proponent.retraining.estimators.size_regression import SizeRegression
from proponent.retraining.estimators.stratified_means import StratifiedMeans
from proponent.retraining.semivalues import (
    AMEWeights,
    BanzhafWeights,
    BetaWeights,
    LeaveOneOutWeights,
    ShapleyWeights,
    semivalue_of,
)

SHAPLEY = ShapleyWeights()
KNOWN = [
    (LeaveOneOutWeights(), "3 5 2"),
    (SHAPLEY, "11/6 10/3 5/6"),
    (BanzhafWeights(), "7/4 13/4 3/4"),
    (BanzhafWeights(0.7), "219/100 389/100 119/100"),
    (BetaWeights(4, 1), "19/15 37/15 4/15"),
    (BetaWeights(1, 4), "37/15 64/15 22/15"),
    (BetaWeights(16, 1), "163/153 325/153 10/153"),
    (AMEWeights(), "9/5 33/10 4/5"),
]
# Estimators of a semivalue with the designs that they are for.
SAMPLED = {
    "regression": (lambda: SizeRegression(SHAPLEY), SizeStratified()),
    "means": (lambda: StratifiedMeans(SHAPLEY), SizeStratified()),
    "permutations": (lambda: PermutationMarginals(SHAPLEY), Permutations()),
    "antithetic": (lambda: PermutationMarginals(SHAPLEY), Permutations(antithetic=True)),
    "reuse": (lambda: InOutMeans(), Bernoulli()),
    "masks": (lambda: MaskRegression(), Bernoulli()),
}
BY_SIZE = [SizeRegression, StratifiedMeans]


def estimate(estimator, table):
    return estimator.on(table).players(range(table.n))


def law_of(semivalue, n):
    return np.asarray(semivalue.sizes(n))


# Exactly


@pytest.mark.parametrize(("semivalue", "values"), KNOWN, ids=lambda part: str(part))
def test_the_frozen_game(semivalue, values):
    found = estimate(ExactSemivalue(semivalue), measured(table_game(FROZEN), Exhaustive(), 3, 8))
    expected = [float(Fraction(value)) for value in values.split()]
    assert found.values[0] == pytest.approx(expected, abs=1e-14)
    assert found.std_errors is None


@pytest.mark.parametrize("name", SEMIVALUES)
@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_from_every_coalition_each_semivalue_is_exact(name, n):
    given, law = SEMIVALUES[name]
    worth = random_worth(n, 3, seed=n) + 1e6  # a common level costs few digits
    found = estimate(ExactSemivalue(semivalue_of(given(n))), Table(everything(n), worth))
    assert found.values == pytest.approx(enumerated(worth - 1e6, law(n)), abs=1e-9)


def test_every_coalition_is_needed():
    table = without(measured(table_game(FROZEN), Exhaustive(), 3, 8), [2, 5])
    with pytest.raises(InvalidInputError, match="2 of the 8 coalitions have no utility"):
        ExactSemivalue(SHAPLEY).on(table)


class AllOrders(Permutations):
    """Every order once, not at random."""

    def ranks(self, n, number, seed):
        return np.argsort(list(permutations(range(n)))[number])


@pytest.mark.parametrize("name", SEMIVALUES)
def test_from_every_order_each_semivalue_is_exact(name):
    n = 4
    given, law = SEMIVALUES[name]
    worth = random_worth(n, 3)
    table = measured(table_game(worth), AllOrders(), n, 2 + 24 * 3)
    found = estimate(PermutationMarginals(semivalue_of(given(n))), table)
    assert found.values == pytest.approx(enumerated(worth, law(n)), abs=1e-12)


def test_means_over_all_coalitions_are_banzhaf_values():
    n, worth = 6, random_worth(6, 3)
    found = estimate(InOutMeans(), Table(everything(n), worth))
    assert found.values == pytest.approx(enumerated(worth, law_of(BanzhafWeights(), n)), abs=1e-12)


def test_means_over_one_size_and_over_two():
    """Over sizes m and m - 1 they are the marginals to m - 1 others, exactly."""
    coalitions = everything(3)
    of_two = Table(coalitions, FROZEN)
    of_two = without(of_two, coalitions.sizes != 2)
    assert estimate(InOutMeans(), of_two).values[0] == pytest.approx([-0.5, 2.5, -2])
    n, worth = 6, random_worth(6, 2)
    whole = Table(everything(n), worth)
    for size in range(2, n):
        apart = without(whole, whole.coalitions.sizes != size)
        assert estimate(InOutMeans(), apart).values == pytest.approx(
            difference_at(worth, size), abs=1e-12
        )
        both = estimate(InOutMeans((size, size - 1)), whole).values
        assert both == pytest.approx(enumerated(worth, np.eye(n)[size - 1]), abs=1e-12)


def test_differences_of_one_size_and_the_learning_curve_make_every_semivalue():
    """The identity that the estimators by size stand on, and their two parts."""
    n, worth = 6, random_worth(6, 2)
    sizes = all_masks(n).sum(axis=1)
    curve = np.array([worth[sizes == k].mean(axis=0) for k in range(n + 1)])
    for semivalue in (SHAPLEY, BetaWeights(4, 1), BanzhafWeights(0.3)):
        law = law_of(semivalue, n)
        values = (law @ (curve[1:] - curve[:-1]))[:, None] + sum(
            (law[k - 1] * (1 - k / n) + law[k] * k / n) * difference_at(worth, k)
            for k in range(1, n)
        )
        assert values == pytest.approx(enumerated(worth, law), abs=1e-12)


# What they satisfy


@pytest.mark.parametrize("name", SAMPLED)
def test_values_add_up_over_tests_whatever_the_others(name):
    estimator, design = SAMPLED[name]
    table = measured(smooth_game(9, 2), design, 9, 120)
    a, b = table.utilities.T
    odd = np.random.default_rng(0).normal(size=120) * 1e3
    coalitions = table.coalitions
    found = estimate(estimator(), Table(coalitions, np.stack([a, b, a + b, odd], axis=1))).values
    assert found[2] == pytest.approx(found[0] + found[1], abs=1e-10)
    assert estimate(estimator(), Table(coalitions, a[:, None])).values[0] == pytest.approx(
        found[0], abs=1e-10
    )
    assert estimate(estimator(), table.total()).values[0] == pytest.approx(found[2], abs=1e-10)


@pytest.mark.parametrize("name", SAMPLED)
def test_a_level_does_not_matter_and_a_unit_does(name):
    estimator, design = SAMPLED[name]
    table = measured(smooth_game(9, 2), design, 9, 120)
    plain = estimate(estimator(), table)
    other = estimate(estimator(), Table(table.coalitions, 1000 - 3 * table.utilities))
    assert other.values == pytest.approx(-3 * plain.values, abs=1e-9)
    assert other.std_errors == pytest.approx(3 * plain.std_errors, rel=1e-7)


@pytest.mark.parametrize("name", [*SAMPLED, "exact"])
def test_shards_of_players_are_parts_of_the_whole(name):
    estimator, design = (SAMPLED | {"exact": (lambda: ExactSemivalue(SHAPLEY), Exhaustive())})[name]
    estimated = estimator().on(measured(smooth_game(7, 3), design, 7, 128))
    whole = estimated.players(range(7))
    for rows in (range(0, 2), range(2, 3), range(3, 7)):
        some, part = estimated.players(rows), slice(rows.start, rows.stop)
        assert some.values == pytest.approx(whole.values[:, part], abs=1e-13)
        if whole.std_errors is not None:
            assert some.std_errors == pytest.approx(whole.std_errors[:, part], abs=1e-13)


def test_a_caller_may_write_on_what_it_got():
    for estimator, design in SAMPLED.values():
        estimated = estimator().on(measured(smooth_game(5, 1), design, 5, 100))
        first = estimated.players(range(5))
        kept = first.values.copy(), first.std_errors.copy()
        first.values[:], first.std_errors[:] = 0, 0
        again = estimated.players(range(5))
        assert np.array_equal(again.values, kept[0])
        assert np.array_equal(again.std_errors, kept[1])


@pytest.mark.parametrize("name", ["regression", "means", "permutations", "antithetic"])
@pytest.mark.parametrize("n", [2, 9, 30])
def test_shapley_values_sum_to_what_all_are_worth(name, n):
    estimator, design = SAMPLED[name]
    game = smooth_game(n, 3)
    orders = 24 // (n - 1) * 10 + 6
    found = estimate(estimator(), measured(game, design, n, 2 + orders * (n - 1))).values
    whole = game(np.ones((1, n))) - game(np.zeros((1, n)))
    assert found.sum(axis=1) == pytest.approx(whole[0], abs=1e-11)


def test_differences_of_one_size_sum_to_nothing():
    """Weighted by in how many coalitions a player is, and in how many not."""
    table = measured(smooth_game(9, 3), UniformSize(6), 9, 40)
    often = table.coalitions.masks.sum(axis=0)
    values = estimate(InOutMeans(), table).values
    assert values @ (often * (40 - often)) == pytest.approx(np.zeros(3), abs=1e-11)
    balanced = estimate(InOutMeans(), measured(smooth_game(9, 3), Balanced(6), 9, 60)).values
    assert balanced.sum(axis=1) == pytest.approx(np.zeros(3), abs=1e-12)


def test_players_alike_and_players_without_effect():
    n = 6
    base = random_worth(4, 2)
    masks = all_masks(n)
    # Player 4 does nothing; 0 and 5 do the same.
    twins = masks[:, 0].astype(int) + masks[:, 5]
    worth = base[masks[:, 1:4] @ [2, 4, 8]] * (1 + twins[:, None] ** 2)
    for name, (given, _) in SEMIVALUES.items():
        table = Table(everything(n), worth)
        values = estimate(ExactSemivalue(semivalue_of(given(n))), table).values
        assert values[:, 4] == pytest.approx([0, 0], abs=1e-13), name
        assert values[:, 0] == pytest.approx(values[:, 5], abs=1e-13), name
    orders = measured(table_game(worth), Permutations(), n, 102)
    assert (estimate(PermutationMarginals(SHAPLEY), orders).values[:, 4] == 0).all()


@pytest.mark.parametrize("semivalue", [SHAPLEY, BanzhafWeights(), BetaWeights(16, 1)], ids=str)
@pytest.mark.parametrize("kind", BY_SIZE)
def test_of_a_game_that_counts_heads_everyone_gets_one(kind, semivalue):
    """Sizes without a coalition are interpolated: exact where the learning curve is a line."""
    n = 40
    game = additive_game(np.ones((1, n)))
    for rows in (12, 30, 200):
        found = estimate(kind(semivalue), measured(game, SizeStratified(), n, rows))
        assert found.values == pytest.approx(np.ones((1, n)), abs=1e-9)
        assert found.std_errors == pytest.approx(np.zeros((1, n)), abs=1e-9)


def test_what_the_functions_explain():
    rng = np.random.default_rng(0)
    additive = additive_game(rng.normal(size=(1, 20)))
    table = measured(additive, SizeStratified(), 20, 2000)
    noise = Table(table.coalitions, rng.normal(size=(2000, 1)))
    for estimator in (SizeRegression(SHAPLEY), MaskRegression()):
        assert estimator.on(table).noticed()["variance_explained"] > 0.9
        assert estimator.on(noise).noticed()["variance_explained"] < 0.02
    constant = Table(table.coalitions, np.ones((2000, 1)))
    found = SizeRegression(SHAPLEY).on(constant)
    assert found.noticed()["bins"] > 5
    assert found.players(range(20)).values == pytest.approx(np.zeros((1, 20)), abs=1e-12)


# What is missing


def test_a_step_is_never_from_one_order_to_another():
    """Where the end of an order and the start of the next are missing, sizes alone would fit."""
    n = 8
    weights = np.random.default_rng(0).normal(size=(2, n))
    for antithetic in (False, True):
        table = measured(additive_game(weights), Permutations(antithetic), n, 2 + 20 * (n - 1))
        for seed in range(20):
            kept = np.random.default_rng(seed).random(len(table.coalitions)) < 0.4
            kept[:2] = True  # nobody and everybody
            found = estimate(PermutationMarginals(SHAPLEY), without(table, ~kept)).values
            known = np.isfinite(found).all(axis=0)
            assert known.any()
            assert found[:, known] == pytest.approx(weights[:, known], abs=1e-12)


@pytest.mark.parametrize("antithetic", [False, True])
def test_steps_that_fail_by_size_leave_no_bias(antithetic):
    """Most small coalitions fail, where a player adds most."""
    n, rows = 6, 2 + 40 * 5
    worth = random_worth(n, 1, seed=3) + 10 * np.sqrt(all_masks(n).sum(axis=1))[:, None]
    game, exact = table_game(worth), enumerated(worth, np.full(n, 1 / n))
    values = []
    for seed in range(60):
        table = measured(game, Permutations(antithetic), n, rows, seed)
        failed = np.random.default_rng(seed).random(rows) < 0.7
        failed &= (table.coalitions.sizes <= 2) & (table.coalitions.sizes > 0)
        estimator = PermutationMarginals(SHAPLEY).on(without(table, failed))
        values.append(estimator.players(range(n)).values)
        assert estimator.noticed()["steps_missing"] > 40
    off = np.mean(values, axis=0) - exact
    assert np.abs(off).max() < 0.15  # of about 4; surviving steps alone are off by 1.2


def test_sizes_that_always_fail_are_named():
    n = 5
    table = measured(smooth_game(n, 2), Permutations(), n, 2 + 10 * 4)
    estimator = PermutationMarginals(SHAPLEY).on(without(table, table.coalitions.sizes == 1))
    assert estimator.noticed()["steps_missing"] == 20
    assert "no step is known after 0, 1 players" in estimator.noticed()["warnings"][0]
    assert "weigh 0.6 of 1" in estimator.noticed()["warnings"][0]


def test_an_end_that_failed_says_why():
    n = 5
    table = measured(smooth_game(n, 2), Permutations(), n, 2 + 10 * 4)
    table = replace(without(table, 1), failures={n: "ValueError: too many"})
    with pytest.raises(InvalidInputError, match=r"of all players .* failed: ValueError: too many"):
        PermutationMarginals(SHAPLEY).on(table)


def test_players_without_a_step_are_unknown():
    table = measured(smooth_game(4, 2), Permutations(), 4, 3)  # nobody, all, the first of an order
    found = estimate(PermutationMarginals(SHAPLEY), table)
    first = int(table.coalitions.masks[2].argmax())
    assert np.flatnonzero(np.isfinite(found.values).all(axis=0)).tolist() == [first]
    assert np.isnan(found.std_errors).all()
    whole = estimate(
        PermutationMarginals(SHAPLEY), measured(smooth_game(4, 2), Permutations(), 4, 5)
    )
    assert np.isfinite(whole.values).all()
    assert np.isnan(whole.std_errors).all()  # of one order nothing is known


@pytest.mark.parametrize("kind", BY_SIZE)
def test_the_ends_are_needed_where_they_count(kind):
    table = measured(smooth_game(6, 1), SizeStratified(), 6, 90)
    for row, what in ((0, "no player"), (1, "all players")):
        with pytest.raises(InvalidInputError, match=f"coalition of {what} has no utility"):
            kind(SHAPLEY).on(without(table, row))
    # Leave-one-out never asks for the empty coalition.
    last = LeaveOneOutWeights()
    with_it, without_it = (estimate(kind(last), t).values for t in (table, without(table, 0)))
    assert without_it == pytest.approx(with_it, abs=1e-12)
    with pytest.raises(InvalidInputError, match="all players"):
        kind(last).on(without(table, 1))


@pytest.mark.parametrize("kind", BY_SIZE)
def test_fewer_coalitions_than_sizes(kind):
    n = 100
    game = NeighboursGame.random(n, 3)
    exact = game.exact(few_nearer("shapley", n, 5))
    off = []
    for seed in range(30):
        found = estimate(kind(SHAPLEY), measured(game, SizeStratified(), n, 60, seed))
        off.append((found.values - exact) / found.std_errors)
        whole = game(np.ones((1, n))) - game(np.zeros((1, n)))
        assert found.values.sum(axis=1) == pytest.approx(whole[0], abs=1e-11)
    assert np.isfinite(off).all()
    assert np.mean(np.abs(off) < 1.96) > 0.85


@pytest.mark.parametrize("kind", BY_SIZE)
def test_a_coalition_alone_in_its_size_does_not_carry_the_line(kind):
    """A line through it would fit it exactly, and what is left without it would be 0 / 0."""
    n = 6
    parts = [
        SizeStratified().draw(n, 0, 2, 0),
        UniformSize(3).draw(n, 0, 25, 0),
        UniformSize(4).draw(n, 0, 1, 0),
    ]
    blank = [Coalitions(part.masks, part.seeds) for part in parts]
    worth = random_worth(n, 2)
    coalitions = join(blank)
    found = estimate(kind(SHAPLEY), Table(coalitions, table_game(worth)(coalitions.masks)))
    exact = enumerated(worth, law_of(SHAPLEY, n))
    assert np.abs(found.values - exact).max() < 2  # utilities are standard normal


@pytest.mark.parametrize(
    ("estimator", "ends"),
    [
        (InOutMeans(), False),
        (MaskRegression(), False),
        (SizeRegression(SHAPLEY), True),
        (StratifiedMeans(SHAPLEY), True),
    ],
    ids=["reuse", "masks", "regression", "means"],
)
def test_a_player_always_in_or_never_in_is_unknown(estimator, ends):
    n = 7
    masks = Bernoulli().draw(n, 0, 60, 0).masks.copy()
    masks[:, 2], masks[:, 5] = True, False
    if ends:
        masks = np.vstack([np.zeros((1, n), bool), np.ones((1, n), bool), masks])
    coalitions = Coalitions(masks, np.arange(len(masks)))
    found = estimate(estimator, Table(coalitions, smooth_game(n, 2)(masks)))
    for array in (found.values, found.std_errors):
        assert np.isnan(array[:, [2, 5]]).all()
        assert np.isfinite(array[:, [0, 1, 3, 4, 6]]).all()


def test_one_coalition_with_a_player_has_no_error():
    masks = np.array([[1, 0], [0, 1], [0, 1], [0, 0]], bool)
    found = estimate(
        InOutMeans(), Table(Coalitions(masks, np.arange(4)), np.array([[5.0], [1], [2], [6]]))
    )
    assert found.values[0] == pytest.approx([2.0, -4.0])
    assert np.isnan(found.std_errors[0, 0])
    assert found.std_errors[0, 1] == pytest.approx(np.sqrt(0.25 + 0.25))


def test_counts_of_a_bootstrap_mean_in():
    masks = np.array([[2, 0], [1, 1], [0, 2], [0, 2]], np.uint8)
    utilities = np.array([[1.0], [3], [7], [9]])
    found = estimate(InOutMeans(), Table(Coalitions(masks, np.arange(4)), utilities))
    assert found.values[0] == pytest.approx([2 - 8, 19 / 3 - 1])


@pytest.mark.parametrize(
    ("estimator", "design", "rows", "message"),
    [
        (SizeRegression(SHAPLEY), SizeStratified(), 4, "n_models: 2 coalitions are neither"),
        (StratifiedMeans(SHAPLEY), SizeStratified(), 4, r"as there are players \(5\)"),
        (MaskRegression(), Bernoulli(), 3, "n_models: 3 coalitions say nothing about 5 players"),
        (InOutMeans(), Bernoulli(), 0, "n_models: there is no coalition"),
        (PermutationMarginals(SHAPLEY), Permutations(), 2, "n_models: no two coalitions differ"),
        (PermutationMarginals(SHAPLEY), Bernoulli(), 9, "not those of orders"),
    ],
)
def test_too_few_coalitions(estimator, design, rows, message):
    with pytest.raises(InvalidInputError, match=message):
        estimator.on(measured(smooth_game(5, 1), design, 5, rows))


@pytest.mark.parametrize("kind", BY_SIZE)
def test_one_player_is_not_sampled(kind):
    with pytest.raises(InvalidInputError, match=r"one player.*estimator='exact'"):
        kind(SHAPLEY).on(measured(smooth_game(1, 1), SizeStratified(), 1, 9))


def test_one_player_in_orders():
    game = smooth_game(1, 2)
    found = estimate(PermutationMarginals(SHAPLEY), measured(game, Permutations(), 1, 5)).values
    assert found == pytest.approx((game(np.ones((1, 1))) - game(np.zeros((1, 1)))).T)


def test_coalitions_that_are_all_the_same():
    masks = np.repeat([[True, True, False, False]], 6, axis=0)
    table = Table(Coalitions(masks, np.arange(6)), np.arange(6.0)[:, None])
    assert np.isnan(estimate(MaskRegression(), table).values).all()


# Many players


@pytest.mark.parametrize("kind", BY_SIZE)
def test_thousands_of_players(kind):
    n = 2000
    weights = np.zeros((1, n))
    weights[0, :5] = 100.0
    table = measured(additive_game(weights), SizeStratified(), n, 500)
    found = kind(SHAPLEY).on(table)
    values, errors = found.players(range(n)).values[0], found.players(range(n)).std_errors[0]
    assert values.sum() == pytest.approx(500, abs=1e-8)
    assert set(np.argsort(-values)[:5]) == set(range(5))
    assert np.mean(np.abs(values - weights[0]) < 1.96 * errors) > 0.9
