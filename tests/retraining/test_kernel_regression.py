"""Kernel regression on coalitions: against enumeration, refits and closed forms."""

import numpy as np
import pytest
from retraining.games import (
    NeighboursGame,
    additive_game,
    all_masks,
    difference_at,
    few_nearer,
    measured,
    random_worth,
    smooth_game,
    table_game,
    without,
)

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Table
from proponent.retraining.designs import SizeStratified
from proponent.retraining.estimators import kernel_regression
from proponent.retraining.estimators.by_size import Sizes, common_part
from proponent.retraining.estimators.kernel_regression import NOISE, KernelRegression
from proponent.retraining.estimators.overlap_kernel import kernel, semivalues_of_kernel
from proponent.retraining.estimators.permutations import PermutationMarginals
from proponent.retraining.estimators.size_regression import SizeRegression
from proponent.retraining.semivalues import BanzhafWeights, BetaWeights, ShapleyWeights

SHAPLEY = ShapleyWeights()
SEMIVALUES = [SHAPLEY, BanzhafWeights(0.3), BetaWeights(4, 1)]


def portions_of(semivalue, n):
    """The weights of the differences by size: the identity of the specification."""
    law, k = semivalue.sizes(n), np.arange(1, n)
    return law[k - 1] * (1 - k / n) + law[k] * k / n


def kernel_of(one, other):
    """By its formula, for two masks."""
    n = len(one)
    p, q = one.mean(), other.mean()
    alike = np.mean((one - p) * (other - q)) / np.sqrt(p * (1 - p) * q * (1 - q))
    apart = np.log(p / (1 - p)) - np.log(q / (1 - q))
    assert n * p == one.sum()
    return (0.6 * alike + 0.1 * alike**2) / np.sqrt(1 + (apart / 1.5) ** 2)


def inner(n):
    masks = all_masks(n)
    return masks[(masks.sum(axis=1) > 0) & (masks.sum(axis=1) < n)]


def estimate(table, semivalue=SHAPLEY):
    return KernelRegression(semivalue).on(table).players(range(table.n))


def relative(values, exact):
    return np.sqrt(np.mean((values - exact) ** 2) / np.mean(exact**2))


# The kernel


@pytest.mark.parametrize("n", [2, 5])
def test_the_kernel_is_its_formula_and_positive(n):
    masks = inner(n)
    found = kernel(masks.astype(np.float32), masks.sum(axis=1).astype(float))
    expected = [[kernel_of(one * 1.0, other * 1.0) for other in masks] for one in masks]
    assert found == pytest.approx(np.array(expected), abs=1e-12)
    assert np.linalg.eigvalsh(found).min() > -1e-10


@pytest.mark.parametrize("semivalue", SEMIVALUES, ids=str)
@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_semivalue_of_the_kernel_is_that_by_enumeration(n, semivalue, monkeypatch):
    monkeypatch.setattr("proponent.retraining.estimators.overlap_kernel.SIZES_AT_ONCE", 7)
    portions = portions_of(semivalue, n)
    others = inner(n)
    inside, outside = semivalues_of_kernel(portions, others.sum(axis=1).astype(float))
    worth = np.zeros((2**n, len(others)))
    for j, mask in enumerate(all_masks(n)):
        if 0 < mask.sum() < n:
            worth[j] = [kernel_of(mask * 1.0, other * 1.0) for other in others]
    expected = sum(portions[k - 1] * difference_at(worth, k) for k in range(1, n))
    found = np.where(others, inside[:, None], outside[:, None])
    assert found == pytest.approx(expected, abs=1e-12)


# The estimate


@pytest.mark.parametrize("semivalue", SEMIVALUES, ids=str)
def test_values_and_errors_are_those_of_their_formulas(semivalue):
    """With dense matrices, a refit without each coalition, and the prior by enumeration."""
    n = 6
    table = measured(smooth_game(n, 2), SizeStratified(), n, 50)
    masks, k = table.coalitions.masks, table.coalitions.sizes
    chosen = np.flatnonzero((k > 0) & (k < n))
    unit = np.sqrt(1 - np.arange(n + 1) / n)
    sizes = Sizes(table)
    y = sizes.deviations()[chosen] / unit[k[chosen], None]
    K = kernel(masks[chosen].astype(np.float32), k[chosen].astype(float))
    portions = portions_of(semivalue, n) * unit[1:n]

    def functional(of):
        inside, outside = semivalues_of_kernel(portions, of.sum(axis=1).astype(float))
        return np.where(of, inside[:, None], outside[:, None])  # (m, n)

    A = functional(masks[chosen])
    noisy = K + NOISE * np.eye(len(K))
    L = np.linalg.solve(noisy, A)
    common, common_error = common_part(table, semivalue, sizes)
    found = estimate(table, semivalue)
    assert found.values == pytest.approx((y.T @ L) + common[:, None], abs=1e-9)

    residuals = np.empty_like(y)
    for row in range(len(y)):
        rest = np.arange(len(y)) != row
        fitted = np.linalg.solve(noisy[np.ix_(rest, rest)], y[rest])
        residuals[row] = y[row] - K[row, rest] @ fitted
    # What is known of a player's value before: its covariance, from the function's own semivalue.
    whole = functional(inner(n))
    prior = 0.0
    for size in range(1, n):
        rows = inner(n).sum(axis=1) == size
        members = inner(n)[rows][:, 0]
        with_player = whole[rows][members, 0].mean()
        without_player = whole[rows][~members, 0].mean()
        prior += portions[size - 1] * (with_player - without_player)
    unknown = prior - (A * L).sum(axis=0) - NOISE * (L**2).sum(axis=0)
    assert unknown.min() > 0
    # Two equations for the two variances.
    inverse = np.linalg.inv(noisy)
    P, Q = inverse @ K @ inverse, inverse @ inverse
    left = [[np.trace(P @ K), np.trace(P)], [np.trace(Q @ K), np.trace(Q)]]
    right = [[y[:, t] @ form @ y[:, t] for t in range(2)] for form in (P, Q)]
    scale = np.maximum(np.linalg.solve(left, right)[0], 0)
    expected = (residuals**2).T @ L**2 + np.outer(scale, unknown) + common_error[:, None] ** 2
    assert found.std_errors == pytest.approx(np.sqrt(expected), rel=1e-6)


def test_parts_are_averaged(monkeypatch):
    n = 30
    table = measured(smooth_game(n, 2), SizeStratified(), n, 202)
    monkeypatch.setattr(kernel_regression, "ROWS_AT_ONCE", 100)
    estimated = KernelRegression(SHAPLEY).on(table)
    found = estimated.players(range(n))
    assert estimated.noticed()["regressions"] == 2
    monkeypatch.setattr(kernel_regression, "ROWS_AT_ONCE", 300)
    whole = estimate(table)
    spread = whole.values.std()
    assert np.abs(found.values - whole.values).max() < 0.3 * spread
    assert not np.allclose(found.values, whole.values, atol=1e-3 * spread)


def test_values_sum_to_what_all_are_worth_and_add_up_over_tests():
    n = 12
    table = measured(table_game(random_worth(n, 3)), SizeStratified(), n, 100)
    found = estimate(table).values
    worth = table.utilities[1] - table.utilities[0]
    assert found.sum(axis=1) == pytest.approx(worth, abs=1e-10)
    assert estimate(table.total()).values[0] == pytest.approx(found.sum(axis=0), abs=1e-10)
    one = estimate(table.tests(slice(1, 2)))
    assert one.values[0] == pytest.approx(found[1], abs=1e-12)
    assert one.std_errors[0] == pytest.approx(estimate(table).std_errors[1], rel=1e-9)


def test_a_unit_matters_and_a_level_does_not():
    n = 12
    table = measured(smooth_game(n, 2), SizeStratified(), n, 100)
    found = estimate(table)
    other = estimate(Table(table.coalitions, 3 * table.utilities + 1000))
    assert other.values == pytest.approx(3 * found.values, abs=1e-8)
    assert other.std_errors == pytest.approx(3 * found.std_errors, rel=1e-6)


def test_shards_of_players_are_parts_of_the_whole():
    n = 12
    estimated = KernelRegression(SHAPLEY).on(measured(smooth_game(n, 2), SizeStratified(), n, 100))
    whole = estimated.players(range(n))
    for start, stop in ((0, 5), (5, 12)):
        part = estimated.players(range(start, stop))
        assert part.values == pytest.approx(whole.values[:, start:stop], abs=1e-12)
        assert part.std_errors == pytest.approx(whole.std_errors[:, start:stop], rel=1e-9)


def test_a_player_never_in_is_unknown():
    n = 10
    table = measured(smooth_game(n, 2), SizeStratified(), n, 300)
    rows = table.coalitions.masks[:, 3] & (table.coalitions.sizes < n)
    found = estimate(without(table, rows))
    for part in (found.values, found.std_errors):
        assert np.isnan(part[:, 3]).all()
        assert np.isfinite(np.delete(part, 3, axis=1)).all()


def test_constant_utilities_have_no_values_and_no_errors():
    n = 10
    coalitions = SizeStratified().draw(n, 0, 60, 0)
    found = estimate(Table(coalitions, np.full((60, 1), 2.0)))
    assert found.values == pytest.approx(0, abs=1e-12)
    assert found.std_errors == pytest.approx(0, abs=1e-12)


def test_too_few_coalitions():
    with pytest.raises(InvalidInputError, match="n_models"):
        estimate(measured(smooth_game(10, 1), SizeStratified(), 10, 4))


def test_with_very_many_coalitions_it_is_the_regression_within_sizes():
    table = measured(smooth_game(6, 2), SizeStratified(), 6, 241)
    expected = SizeRegression(SHAPLEY).on(table).players(range(6))
    assert (estimate(table).values == expected.values).all()
    fewer = table.coalitions.take(slice(0, 240)), table.utilities[:240]
    assert not np.allclose(estimate(Table(*fewer)).values, expected.values, rtol=1e-3)


# How far off, and whether it says so


@pytest.mark.parametrize(("n", "rows", "least"), [(60, 300, 1.2), (200, 1000, 1.8), (1000, 700, 3)])
def test_few_coalitions_say_much_more_than_within_sizes(n, rows, least):
    """And the intervals cover, a little more often than they say."""
    game = NeighboursGame.random(n, 6)
    exact = game.exact(few_nearer("shapley", n, 5))
    off, bins, inside = [], [], []
    for seed in range(1 if n == 1000 else 4):
        table = measured(game, SizeStratified(), n, rows, seed)
        found = estimate(table)
        off.append(relative(found.values, exact))
        bins.append(relative(SizeRegression(SHAPLEY).on(table).players(range(n)).values, exact))
        inside.append(np.abs(found.values - exact) <= 1.96 * found.std_errors)
    assert np.mean(bins) > least * np.mean(off)
    assert 0.92 <= np.mean(inside) <= 0.995


def test_half_the_error_of_orders_with_a_quarter_of_their_coalitions():
    n = 60
    game = NeighboursGame.random(n, 6)
    exact = game.exact(few_nearer("shapley", n, 5))
    orders = PermutationMarginals(SHAPLEY)
    from proponent.retraining.designs import Permutations

    found, theirs = [], []
    for seed in range(3):
        table = measured(game, SizeStratified(), n, 1500, seed)
        found.append(relative(estimate(table).values, exact))
        table = measured(game, Permutations(), n, 1500, seed)
        theirs.append(relative(orders.on(table).players(range(n)).values, exact))
    assert np.mean(found) < 0.55 * np.mean(theirs)
    assert np.mean(found) < 0.2


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_intervals_cover_with_random_training_too(noise):
    n, rng = 40, np.random.default_rng(0)
    weights = rng.normal(size=(4, n))
    inside = []
    for seed in range(10):
        table = measured(additive_game(weights), SizeStratified(), n, 400, seed)
        noisy = table.utilities + noise * rng.normal(size=table.utilities.shape)
        noisy[:2] = table.utilities[:2]
        found = estimate(Table(table.coalitions, noisy))
        inside.append(np.abs(found.values - weights) <= 1.96 * found.std_errors)
    assert np.mean(inside) >= 0.92


def test_the_estimated_variance_is_right_on_average():
    rng = np.random.default_rng(0)
    masks = inner(7)
    K = kernel(masks.astype(np.float32), masks.sum(axis=1).astype(float))
    factor = np.linalg.cholesky(K + 1e-9 * np.eye(len(K)))
    draws = 4000
    shape = (len(K), draws)
    y = np.sqrt(2.0) * factor @ rng.normal(size=shape) + 0.5 * rng.normal(size=shape)
    inverse = np.linalg.inv(K + NOISE * np.eye(len(K)))
    found = kernel_regression._scale(inverse, inverse @ y, y)
    assert found.mean() == pytest.approx(2.0, abs=4 * found.std() / np.sqrt(draws))
    assert (found > 0).all()


def test_copies_of_a_player_have_the_same_value_in_a_symmetrical_design():
    n = 6
    worth = random_worth(n, 1)
    swapped = all_masks(n)[:, [1, 0, 2, 3, 4, 5]] @ 2 ** np.arange(n)
    worth = (worth + worth[swapped]) / 2  # players 0 and 1 are alike
    masks = np.concatenate([all_masks(n), all_masks(n)])
    coalitions = Coalitions(masks, np.zeros(len(masks), np.int64))
    found = estimate(Table(coalitions, table_game(worth)(masks))).values[0]
    assert found[0] == pytest.approx(found[1], abs=1e-10)
    assert np.abs(found[0] - found[2]) > 1e-3
