"""Sampled estimators of semivalues: without a bias, and as far off as they say."""

import numpy as np
import pytest
from retraining.games import (
    NeighboursGame,
    all_masks,
    difference_at,
    enumerated,
    few_nearer,
    measured,
    random_worth,
    smooth_game,
    table_game,
    without,
)

from proponent.retraining.designs import (
    AMEGrid,
    Bernoulli,
    Permutations,
    SizeStratified,
    TwoSizes,
    UniformSize,
    WeighedSizes,
)
from proponent.retraining.designs.chosen_sizes import ChosenSizes
from proponent.retraining.estimators import in_out
from proponent.retraining.estimators.in_out import InOutMeans
from proponent.retraining.estimators.marginal_effects import ChanceMeans
from proponent.retraining.estimators.mask_regression import MaskRegression
from proponent.retraining.estimators.permutations import PermutationMarginals
from proponent.retraining.estimators.size_regression import SizeRegression, ridge_without_each
from proponent.retraining.estimators.stratified_means import StratifiedMeans
from proponent.retraining.semivalues import (
    BanzhafWeights,
    BetaWeights,
    LeaveOneOutWeights,
    ShapleyWeights,
    SizeWeights,
)

SHAPLEY = ShapleyWeights()


# Estimators with the designs that they are for.
SAMPLED = {
    "regression": (lambda: SizeRegression(SHAPLEY), SizeStratified()),
    "means": (lambda: StratifiedMeans(SHAPLEY), SizeStratified()),
    "permutations": (lambda: PermutationMarginals(SHAPLEY), Permutations()),
    "antithetic": (lambda: PermutationMarginals(SHAPLEY), Permutations(antithetic=True)),
    "reuse": (lambda: InOutMeans(), Bernoulli()),
    "masks": (lambda: MaskRegression(), Bernoulli()),
}


def estimate(estimator, table):
    return estimator.on(table).players(range(table.n))


def law_of(semivalue, n):
    return np.asarray(semivalue.sizes(n))


# Without a bias

# Of a law on few sizes, coalitions of others are not needed.
FEW = SizeWeights([0, 0.5, 0.5, 0, 0, 0])
UNBIASED = {
    "regression, Shapley": (SizeRegression(SHAPLEY), SizeStratified(), SHAPLEY, 42),
    "regression, Beta": (
        SizeRegression(BetaWeights(4, 1)), SizeStratified(), BetaWeights(4, 1), 72,
    ),
    "regression, Banzhaf": (
        SizeRegression(BanzhafWeights()), SizeStratified(), BanzhafWeights(), 72,
    ),
    "means, Shapley": (StratifiedMeans(SHAPLEY), SizeStratified(), SHAPLEY, 42),
    "means, leave-one-out": (
        StratifiedMeans(LeaveOneOutWeights()), SizeStratified(), LeaveOneOutWeights(), 72,
    ),
    "masks, Banzhaf": (MaskRegression(), Bernoulli(), BanzhafWeights(), 20),
    "masks, weighted": (MaskRegression(0.3), Bernoulli(0.3), BanzhafWeights(0.3), 50),
    "reuse, Banzhaf": (InOutMeans(), Bernoulli(), BanzhafWeights(), 40),
    "reuse, weighted": (InOutMeans(), Bernoulli(0.3), BanzhafWeights(0.3), 60),
    "orders, Shapley": (PermutationMarginals(SHAPLEY), Permutations(), SHAPLEY, 34),
    "antithetic, Beta": (
        PermutationMarginals(BetaWeights(1, 4)), Permutations(antithetic=True),
        BetaWeights(1, 4), 42,
    ),
    "regression, two sizes": (SizeRegression(FEW), ChosenSizes((1, 2, 3)), FEW, 60),
    "means, two sizes": (StratifiedMeans(FEW), ChosenSizes((1, 2, 3)), FEW, 60),
}  # fmt: skip


@pytest.mark.parametrize("name", UNBIASED)
def test_over_many_seeds_the_mean_is_the_exact_value(name):
    estimator, design, semivalue, rows = UNBIASED[name]
    n, repeats = 6, 250
    worth = random_worth(n, 2, seed=5) + np.linspace(0, 3, 2**n)[:, None]
    game = table_game(worth)
    values = np.array(
        [
            estimate(estimator, measured(game, design, n, rows, seed)).values
            for seed in range(repeats)
        ]
    )
    error = values.std(axis=0, ddof=1) / np.sqrt(repeats)
    off = (values.mean(axis=0) - enumerated(worth, law_of(semivalue, n))) / error
    assert np.abs(off).max() < 4


def test_two_sizes_have_no_bias_and_one_size_has_that_of_the_learning_curve():
    n, size, repeats = 6, 4, 300
    worth = random_worth(n, 1, seed=5) + all_masks(n).sum(axis=1)[:, None] ** 1.5
    game = table_game(worth)
    exact = enumerated(worth, np.eye(n)[size - 1])
    for estimator, design, expected in (
        (InOutMeans((size, size - 1)), TwoSizes(size), exact),
        (InOutMeans(), UniformSize(size), difference_at(worth, size)),
    ):
        tables = (measured(game, design, n, 60, seed) for seed in range(repeats))
        values = np.array([estimate(estimator, table).values for table in tables])
        error = values.std(axis=0, ddof=1) / np.sqrt(repeats)
        assert np.abs((values.mean(axis=0) - expected) / error).max() < 4
    # The curve rises, so that the bias is far from nothing.
    assert np.abs(difference_at(worth, size) - exact).min() > 1


# How sure

NEIGHBOURS = NeighboursGame.random(60, 4)
EXACT = {
    "shapley": NEIGHBOURS.exact(few_nearer("shapley", 60, 5)),
    "banzhaf": NEIGHBOURS.exact(few_nearer("banzhaf", 60, 5, 0.5)),
    "beta": NEIGHBOURS.exact(few_nearer("beta", 60, 5, 4, 1)),
}


@pytest.mark.parametrize("semivalue", ["shapley", "banzhaf", "beta"])
def test_the_closed_form_of_the_neighbours_game(semivalue):
    """The ground truth of what follows, against going through all coalitions."""
    law = {"shapley": SHAPLEY, "banzhaf": BanzhafWeights(0.3), "beta": BetaWeights(4, 1)}[semivalue]
    parameters = {"shapley": (), "banzhaf": (0.3,), "beta": (4, 1)}[semivalue]
    for n, k in ((8, 3), (4, 5)):
        game = NeighboursGame.random(n, 3, k=k)
        found = game.exact(few_nearer(semivalue, n, k, *parameters))
        assert found == pytest.approx(enumerated(game(all_masks(n)), law_of(law, n)), abs=1e-14)


@pytest.mark.parametrize(
    ("estimator", "design", "semivalue"),
    [
        (SizeRegression(SHAPLEY), SizeStratified(), "shapley"),
        (SizeRegression(BetaWeights(4, 1)), SizeStratified(), "beta"),
        (SizeRegression(BanzhafWeights()), SizeStratified(), "banzhaf"),
        (StratifiedMeans(SHAPLEY), SizeStratified(), "shapley"),
        (MaskRegression(), Bernoulli(), "banzhaf"),
        (InOutMeans(), Bernoulli(), "banzhaf"),
        (PermutationMarginals(SHAPLEY), Permutations(), "shapley"),
    ],
    ids=["regression", "Beta", "Banzhaf", "means", "masks", "reuse", "orders"],
)
def test_intervals_cover_the_exact_values(estimator, design, semivalue):
    inside, squares, variances = [], [], []
    for seed in range(10):
        found = estimate(estimator, measured(NEIGHBOURS, design, 60, 2500, seed))
        off = found.values - EXACT[semivalue]
        inside.append(np.abs(off) <= 1.96 * found.std_errors)
        squares.append(off**2)
        variances.append(found.std_errors**2)
    assert 0.90 <= np.mean(inside) <= 0.98
    assert np.mean(variances) / np.mean(squares) == pytest.approx(1, abs=0.2)


THOUSAND = NeighboursGame.random(1000, 2)


@pytest.mark.parametrize(
    ("estimator", "design", "known"),
    [
        (SizeRegression(SHAPLEY), SizeStratified(), ("shapley",)),
        (StratifiedMeans(SHAPLEY), SizeStratified(), ("shapley",)),
        (SizeRegression(BetaWeights(16, 1)), WeighedSizes(BetaWeights(16, 1)), ("beta", 16, 1)),
        (SizeRegression(BetaWeights(16, 1)), SizeStratified(), ("beta", 16, 1)),
        (SizeRegression(BetaWeights(4, 1)), WeighedSizes(BetaWeights(4, 1)), ("beta", 4, 1)),
        (MaskRegression(), Bernoulli(), ("banzhaf", 0.5)),
        (ChanceMeans((0.2, 0.6), adjust=True), AMEGrid((0.2, 0.6)), ("ame",)),
    ],
    ids=["Shapley", "means", "Beta(16, 1)", "shared Beta(16, 1)", "Beta(4, 1)", "Banzhaf", "AME"],
)
def test_intervals_cover_for_a_thousand_players(estimator, design, known):
    laws = [("banzhaf", 0.2), ("banzhaf", 0.6)] if known == ("ame",) else [known]
    parts = [THOUSAND.exact(few_nearer(law[0], 1000, 5, *law[1:])) for law in laws]
    exact = np.mean(parts, axis=0)
    strongest = np.argsort(-np.abs(exact), axis=1)[:, :50]
    inside = []
    for seed in range(3):
        found = estimate(estimator, measured(THOUSAND, design, 1000, 800, seed))
        inside.append(np.abs(found.values - exact) <= 1.96 * found.std_errors)
    assert 0.90 <= np.mean(inside) <= 0.98
    if not (known == ("beta", 16, 1) and isinstance(design, SizeStratified)):
        assert np.take_along_axis(np.array(inside), strongest[None], 2).mean() >= 0.90


def test_a_law_on_small_sizes_needs_coalitions_of_its_own():
    exact = THOUSAND.exact(few_nearer("beta", 1000, 5, 16, 1))
    off, effective = [], []
    for design in (SizeStratified(), WeighedSizes(BetaWeights(16, 1))):
        fitted = SizeRegression(BetaWeights(16, 1)).on(measured(THOUSAND, design, 1000, 2000))
        off.append(np.square(fitted.players(range(1000)).values - exact).mean())
        effective.append(fitted.noticed())
    assert off[1] < 0.05 * off[0]
    assert effective[0]["effective_coalitions"]["median"] < 5
    assert "coalitions or fewer in effect" in effective[0]["warnings"][0]
    assert effective[1]["effective_coalitions"]["median"] > 20
    assert "warnings" not in effective[1]


@pytest.mark.parametrize("antithetic", [False, True])
def test_intervals_of_orders_cover_in_a_dense_game(antithetic):
    """Where marginals are seldom 0, a few orders are enough."""
    n, game = 8, smooth_game(8, 4)
    exact = enumerated(game(all_masks(n)), law_of(SHAPLEY, n))
    inside = []
    for seed in range(60):
        table = measured(game, Permutations(antithetic), n, 2 + 40 * 7, seed)
        found = estimate(PermutationMarginals(SHAPLEY), table)
        inside.append(np.abs(found.values - exact) <= 1.96 * found.std_errors)
    assert 0.90 <= np.mean(inside) <= 0.98


def test_the_regression_has_half_the_error_of_orders_at_most():
    """At 6,000 utilities, as the method promises."""
    errors = {}
    for name in ("regression", "means", "permutations"):
        estimator, design = SAMPLED[name]
        off = [
            estimate(estimator(), measured(NEIGHBOURS, design, 60, 6000, seed)).values
            - EXACT["shapley"]
            for seed in range(3)
        ]
        errors[name] = np.sqrt(np.mean(np.square(off)) / np.mean(EXACT["shapley"] ** 2))
    assert errors["regression"] <= 0.5 * errors["permutations"]
    assert errors["regression"] < 0.08
    assert errors["means"] < errors["permutations"]


def test_the_regression_on_masks_has_half_the_error_of_means():
    off = {"masks": [], "reuse": []}
    for name, found in off.items():
        estimator, design = SAMPLED[name]
        for seed in range(4):
            table = measured(NEIGHBOURS, design, 60, 2500, seed)
            found.append(estimate(estimator(), table).values - EXACT["banzhaf"])
    masks, reuse = (np.sqrt(np.mean(np.square(found))) for found in off.values())
    assert masks < 0.55 * reuse


@pytest.mark.parametrize("part", [1, 8 * 6 * 7, 2**20])
def test_errors_are_welchs(part, monkeypatch):
    """However many coalitions are added up at a time."""
    monkeypatch.setattr(in_out, "PART_BYTES", part)
    table = measured(smooth_game(6, 3), Bernoulli(), 6, 50)
    found = estimate(InOutMeans(), table)
    for i in range(6):
        into = table.coalitions.masks[:, i]
        one, other = table.utilities[into], table.utilities[~into]
        assert found.values[:, i] == pytest.approx(one.mean(axis=0) - other.mean(axis=0))
        welch = one.var(axis=0, ddof=1) / len(one) + other.var(axis=0, ddof=1) / len(other)
        assert found.std_errors[:, i] == pytest.approx(np.sqrt(welch), rel=1e-12)


def test_errors_of_orders_pool_the_variance_of_three():
    n, orders = 5, 7
    game = smooth_game(n, 2)
    for antithetic, block in ((False, 1), (True, 2)):
        count = orders * block
        table = measured(game, Permutations(antithetic), n, 2 + count * (n - 1))
        marginals = np.empty((count, n, 2))
        for number in range(count):
            ranks = Permutations(antithetic).ranks(n, number, 0)
            for i in range(n):
                before = ranks < ranks[i]
                after = ranks <= ranks[i]
                marginals[number, i] = (game(after[None]) - game(before[None]))[0]
        blocks = marginals.reshape(orders, block, n, 2).mean(axis=1)
        squares = np.square(blocks - blocks.mean(axis=0)).sum(axis=0)
        pooled = squares.mean(axis=0) / (orders - 1)
        variance = (squares + 3 * pooled) / (orders - 1 + 3)
        found = estimate(PermutationMarginals(SHAPLEY), table)
        assert found.values == pytest.approx(blocks.mean(axis=0).T, abs=1e-12)
        assert found.std_errors == pytest.approx(np.sqrt(variance / orders).T, rel=1e-9)


@pytest.mark.parametrize(("rows", "n"), [(30, 8), (9, 14)])
def test_the_ridge_without_each_row_is_that_fitted_without_it(rows, n):
    rng = np.random.default_rng(0)
    features, utilities = rng.normal(size=(rows, n)), rng.normal(size=(rows, 2))
    line = np.linalg.qr(np.stack([np.ones(rows), np.arange(rows)], axis=1))[0]
    weights = rng.random(rows)
    fit = ridge_without_each(features, utilities, line)
    # The penalty: the mean of the eigenvalues that are not 0, times n / rows.
    left = features - line @ (line.T @ features)
    eigenvalues = np.linalg.svd(left)[1] ** 2
    kept = eigenvalues[eigenvalues > 1e-9]
    penalty = np.diag([0, 0] + [kept.mean() * n / rows] * n)
    whole = np.hstack([line, features])
    slopes = np.zeros((n, 2))
    for row in range(rows):
        others = np.arange(rows) != row
        A, b = whole[others], utilities[others]
        solved = np.linalg.solve(A.T @ A + penalty, A.T @ b)
        assert fit.left[row] == pytest.approx(utilities[row] - whole[row] @ solved, abs=1e-10)
        slopes += weights[row] * solved[2:]
    assert fit.mean_slopes(weights) == pytest.approx(slopes, abs=1e-10)


@pytest.mark.parametrize("name", SAMPLED)
def test_failed_trainings_leave_the_others(name):
    """Every tenth row is missing, but not the first two."""
    estimator, design = SAMPLED[name]
    semivalue = "banzhaf" if name in ("reuse", "masks") else "shapley"
    table = without(measured(NEIGHBOURS, design, 60, 3000), slice(5, None, 10))
    found = estimate(estimator(), table)
    off = (found.values - EXACT[semivalue]) / found.std_errors
    assert np.isfinite(off).all()
    assert np.abs(off).mean() < 1.1  # .8 is that of a normal variable
