"""Downsampling: equal to plain means over fitted models; unbiased where it says so."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from retraining.games import (
    FROZEN,
    NeighboursGame,
    difference_at,
    enumerated,
    few_nearer,
    random_worth,
    table_game,
)
from retraining.knn_games import binomial_law
from retraining.refit_examples import classification, regression
from retraining.sampled import assert_calibrated, deviations, user_game
from retraining.submodel_examples import Failing, Logged, in_less_out, logged_masks, utilities
from scipy.stats import binom, hypergeom
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import GaussianNB

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError, ProponentError
from proponent.retraining.downsampling import error_bound
from proponent.retraining.utility import Accuracy

N = 10
NUMBERS = regression(N, 2, tests=4)
CLASSES = classification(24, 3, 3, tests=5)
NAMES = tuple((X, np.array(["ant", "bee", "cow"])[y]) for X, y in CLASSES)
SAMPLING = ["balanced", "uniform", "two_sizes", "bernoulli"]
LOGGED = Ridge(alpha=1.0, fit_intercept=False)  # what Logged is


@pytest.fixture(autouse=True)
def _cleared():
    Logged.trainings.clear()


def two_sizes(masks, found, larger):
    """Return means with each player over the larger sets less those without over the others."""
    is_larger = masks.sum(axis=1) == larger
    values = np.empty((found.shape[1], masks.shape[1]))
    errors = values.copy()
    for i, column in enumerate(masks.T):
        inside, outside = found[column & is_larger], found[~column & ~is_larger]
        values[:, i] = inside.mean(axis=0) - outside.mean(axis=0)
        spreads = (part.var(axis=0, ddof=1) / len(part) for part in (inside, outside))
        errors[:, i] = np.sqrt(sum(spreads))
    return values, errors


@pytest.mark.parametrize("sampling", SAMPLING)
def test_equal_to_means_over_fitted_models(sampling):
    train, test = NUMBERS
    method = pp.Downsampling(80, fraction=0.62, sampling=sampling, empty=-3.0).fit(Logged(), train)
    masks = logged_masks(N)
    assert masks.shape == (80, N)
    estimate = (lambda m, v: two_sizes(m, v, 6)) if sampling == "two_sizes" else in_less_out
    values, errors = estimate(masks, utilities(LOGGED, train, test, masks))
    found = method.influence(test)
    assert_allclose(found.values, values, atol=1e-9)
    assert_allclose(found.std_error, errors, atol=1e-9)
    summed, error = estimate(masks, utilities(LOGGED, train, test, masks).sum(1, keepdims=True))
    joint = method.influence(test, joint=True)
    assert_allclose(joint.values, summed[0], atol=1e-9)
    assert_allclose(joint.values, found.values.sum(axis=0), atol=1e-9)
    assert_allclose(joint.std_error, error[0], atol=1e-9)
    on_themselves = estimate(masks, utilities(LOGGED, train, train, masks))[0]
    assert_allclose(method.memorization().values, on_themselves.diagonal(), atol=1e-9)
    assert len(Logged.trainings) == 80  # nothing was trained for them


def test_the_sizes_of_the_subsets():
    for sampling, sizes in [
        ("balanced", {6}),
        ("uniform", {6}),
        ("two_sizes", {6, 5}),
        ("bernoulli", set(range(1, 11))),
    ]:
        Logged.trainings.clear()
        pp.Downsampling(60, fraction=0.6, sampling=sampling, empty=0.0).fit(Logged(), NUMBERS[0])
        masks = logged_masks(N)
        assert set(masks.sum(axis=1)) <= sizes
        assert len(set(masks.sum(axis=1))) == 1 + (sampling == "two_sizes") or len(sizes) > 2
        if sampling == "balanced":
            assert_array_equal(masks.sum(axis=0), 36)
        elif sampling == "two_sizes":
            assert (masks.sum(axis=1) == 6).sum() == 30
        else:  # independent of one another: in 36 give or take 3.8
            assert 2 < masks.sum(axis=0).std() < 7


@pytest.mark.parametrize("utility", ["risk", "accuracy"])
def test_a_classifier_with_names_for_labels(utility):
    train, test = NAMES
    method = pp.Downsampling(40, utility=utility).fit(GaussianNB(), train)
    masks = method._coalitions.masks
    expected, errors = in_less_out(masks, utilities(GaussianNB(), train, test, masks, utility))
    found = method.influence(test)
    assert_allclose(found.values, expected, atol=1e-8)
    assert_allclose(found.std_error, errors, atol=1e-8)
    assert np.abs(expected).max() > 0.05


@pytest.mark.parametrize("sampling", ["balanced", "uniform"])
@pytest.mark.parametrize("n_models", [30, 200])
def test_weighted_by_how_often_all_sum_to_zero(sampling, n_models):
    train, test = NUMBERS
    method = pp.Downsampling(n_models, fraction=0.4, sampling=sampling).fit(Logged(), train)
    count = logged_masks(N).sum(axis=0)
    values = method.influence(test).values
    assert np.abs(values).max() > 0.01
    assert_allclose(values @ (count * (n_models - count)), 0.0, atol=1e-7)


@pytest.mark.parametrize("n", [3, 10])
def test_of_subsets_that_lack_one_it_is_leave_one_out_less_its_mean(n):
    (X, y), test = NUMBERS
    train = X[:n], y[:n]
    fraction = (n - 1) / n
    down = pp.Downsampling(60, fraction=fraction).fit(Ridge(), train).influence(test).values
    loo = pp.LeaveOneOut(shortcut=None).fit(Ridge(), train).influence(test).values
    expected = n / (n - 1) * (loo - loo.mean(axis=1, keepdims=True))
    assert_allclose(down, expected, atol=1e-9)
    assert np.abs(expected).max() > 0.01


@pytest.mark.parametrize("sampling", ["balanced", "uniform"])
def test_the_frozen_game(sampling):
    game = user_game(table_game(FROZEN), 3)
    method = pp.Downsampling(20_000, fraction=2 / 3, sampling=sampling)
    found = method.fit(game).influence()
    assert_allclose(found.values, [[-1 / 2, 5 / 2, -2]], atol=0.08)
    assert (np.abs(found.values - [-1 / 2, 5 / 2, -2]) < 4 * found.std_error).all()


@pytest.mark.parametrize("size", [2, 4, 5])
def test_two_sizes_are_unbiased_and_one_size_is_not(size):
    # A steep learning curve: what all players have in common is lost with subsets of one size.
    n = 6
    worth = random_worth(n, 2) + 5 * np.sqrt([[bin(j).count("1")] for j in range(2**n)])
    game, law = user_game(table_game(worth), n), np.eye(n)[size - 1]
    influence = enumerated(worth, law)  # on subsets of size - 1 others
    settings = {"n_models": 30_000, "fraction": size / n}
    found = pp.Downsampling(**settings, sampling="two_sizes").fit(game).influence()
    assert (np.abs(found.values - influence) < 4 * found.std_error).all()
    assert found.std_error.max() < 0.05
    at_size = difference_at(worth, size)
    for sampling in ("uniform", "balanced"):
        found = pp.Downsampling(**settings, sampling=sampling).fit(game).influence()
        assert (np.abs(found.values - at_size) < 4 * found.std_error).all()
    assert np.abs(at_size - influence).min() > 0.3


def test_independent_players_give_a_weighted_banzhaf_value():
    n, q = 5, 0.7
    worth = random_worth(n, 2)
    method = pp.Downsampling(30_000, fraction=q, sampling="bernoulli")
    found = method.fit(user_game(table_game(worth), n)).influence()
    expected = enumerated(worth, binomial_law(n, q))
    assert (np.abs(found.values - expected) < 4 * found.std_error).all()
    assert found.std_error.max() < 0.03 < np.abs(expected).max()


@pytest.mark.parametrize("n", [100, 1000])
def test_two_sizes_against_the_closed_form_of_neighbours(n):
    game = NeighboursGame.random(n, n_tests=2)
    exact = game.exact(hypergeom.cdf(game.k - 1, n - 1, np.arange(n), n // 5 - 1))

    def method(seed):
        return pp.Downsampling(400, fraction=0.2, sampling="two_sizes", seed=seed)

    assert_calibrated(deviations(method, user_game(game, n), exact, repeats=8))


def test_independent_players_against_the_closed_form_of_neighbours():
    n = 500
    game = NeighboursGame.random(n, n_tests=2)
    exact = game.exact(binom.cdf(game.k - 1, np.arange(n), 0.3))
    assert_allclose(exact, game.exact(few_nearer("banzhaf", n, game.k, 0.3)))

    def method(seed):
        return pp.Downsampling(400, fraction=0.3, sampling="bernoulli", seed=seed)

    assert_calibrated(deviations(method, user_game(game, n), exact, repeats=8))


@pytest.mark.parametrize("n_models", [1, 2, 3])
def test_who_is_in_all_subsets_or_in_none_is_not_scored(n_models):
    train, test = NUMBERS
    method = pp.Downsampling(n_models, sampling="uniform").fit(Logged(), train)
    masks = logged_masks(N)
    unknown = masks.all(axis=0) | ~masks.any(axis=0)
    expected, errors = in_less_out(masks, utilities(LOGGED, train, test, masks))
    found = method.influence(test)
    assert unknown.any() and (n_models == 1) == unknown.all()
    assert_array_equal(np.isnan(found.values), np.tile(unknown, (4, 1)))
    assert_allclose(found.values, expected, atol=1e-9)
    assert_allclose(found.std_error, errors, atol=1e-9)
    assert_array_equal(np.isnan(method.memorization().values), unknown)
    assert_array_equal(np.isnan(method.influence(test, joint=True).values), unknown)


def test_trainings_that_fail_are_left_out_and_counted():
    (X, y), test = NUMBERS
    method = pp.Downsampling(90, sampling="bernoulli", fraction=0.5, empty=0.25)
    found = method.fit(Failing(least=5), (X, y)).influence(test)
    masks = method._coalitions.masks
    kept = (masks.sum(axis=1) >= 5) | ~masks.any(axis=1)
    table = np.array([-((y[mask].mean() - test[1]) ** 2) for mask in masks[masks.sum(1) >= 5]])
    assert 0 < (~kept).sum() < 60
    expected, errors = in_less_out(masks[masks.sum(1) >= 5], table)
    assert_allclose(found.values, expected, atol=1e-12)
    assert_allclose(found.std_error, errors, atol=1e-12)
    assert found.diagnostics["failed"] == (~kept).sum()
    assert found.diagnostics["coalitions"] == 90
    assert "cannot be trained" in str(found.diagnostics["failures"])


def test_the_bound_is_there_however_the_accuracy_is_named():
    (X, y), test = classification(20, 3, 2, tests=4)
    method = pp.Downsampling(60, sampling="two_sizes", utility=Accuracy())
    whole = method.fit(GaussianNB(), (X, y)).influence(test).diagnostics
    assert whole["mean_squared_error_bound"] == error_bound(60, 14 / 20)


def test_if_all_fail_the_reason_is_raised():
    with pytest.raises(ProponentError, match="cannot be trained"):
        pp.Downsampling(20).fit(Failing(least=8), NUMBERS[0])


@pytest.mark.parametrize("n_models", [50, 1000])
def test_the_bound_of_lemma_2_1(n_models):
    method = pp.Downsampling(n_models, fraction=0.75, sampling="two_sizes", utility="accuracy")
    noticed = method.fit(GaussianNB(), CLASSES[0]).influence(CLASSES[1]).diagnostics
    p = 0.25
    bound = 1 / (p * n_models) + 1 / ((1 - p) * n_models) + np.exp(-p * n_models / 16) / 2
    assert noticed["mean_squared_error_bound"] == pytest.approx(bound)
    other = pp.Downsampling(20, sampling="two_sizes").fit(GaussianNB(), CLASSES[0])
    assert "mean_squared_error_bound" not in other.influence(CLASSES[1]).diagnostics


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_models": 0}, "n_models"),
        ({"n_models": 2.5}, "n_models"),
        ({"fraction": 0.0}, "fraction must be a number between 0 and 1"),
        ({"fraction": 1}, "fraction"),
        ({"fraction": "half"}, "fraction"),
        ({"fraction": 0.04}, "fraction: 0.04 of 10 training instances makes subsets of 0"),
        ({"fraction": 0.96}, "makes subsets of 10"),
        ({"fraction": 0.1, "sampling": "two_sizes"}, "makes subsets of 1"),
        ({"sampling": "bootstrap"}, "sampling must be 'balanced' or 'uniform'"),
        ({"utility": "margin"}, "utility='margin' needs a classifier"),
    ],
)
def test_a_setting_that_makes_no_sense(settings, message):
    with pytest.raises((InvalidInputError, MethodCapabilityError), match=message):
        pp.Downsampling(**{"n_models": 10, **settings}).fit(Ridge(), *NUMBERS[:1], test=NUMBERS[1])
