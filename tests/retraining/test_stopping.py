"""Rules that say when enough submodels have been trained."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from proponent.exceptions import InvalidInputError
from proponent.retraining.stopping import (
    MaxModels,
    MaxSeconds,
    RankStability,
    State,
    TargetStdError,
    rank_correlation,
)

UNKNOWN = np.nan


def state(n_models=0, seconds=0.0, estimates=(), std_errors=()):
    return State(n_models, seconds, [np.array(e, float) for e in estimates], list(std_errors))


def sure(errors, values=(1.0, 2.0, 3.0, 4.0)):
    return state(estimates=[values], std_errors=[np.array(errors, float)])


def test_models_are_counted():
    rule = MaxModels(100)
    assert not rule.done(state(99))
    assert rule.done(state(100))
    assert rule.done(state(101))
    assert rule.most == 100


def test_seconds_are_counted():
    rule = MaxSeconds(1.5)
    assert not rule.done(state(10**6, 1.4))
    assert rule.done(state(1, 1.5))
    assert rule.most == np.inf


def test_errors_at_the_target():
    rule = TargetStdError(0.1)
    assert not rule.done(state(500))  # nothing was estimated yet
    assert rule.done(sure([0.1, 0.1, 0.05, 0]))
    assert not rule.done(sure([0.1, 0.11, 0.05, 0]))
    assert not rule.done(sure([0.1, UNKNOWN, 0.05, 0]))
    # The last look counts.
    later = state(estimates=[[1.0], [1.0]], std_errors=[np.array([0.01]), np.array([0.2])])
    assert not rule.done(later)


def test_errors_of_a_portion_of_the_players():
    rule = TargetStdError(0.1, portion=0.75)
    assert rule.done(sure([0.1, 9, 0.05, 0]))
    assert rule.done(sure([0.1, UNKNOWN, 0.05, 0]))
    assert not rule.done(sure([0.1, UNKNOWN, 9, 0]))


def test_errors_relative_to_the_spread_of_the_values():
    spread = np.std([1, 2, 3, 4])
    rule = TargetStdError(0.1, relative=True)
    assert rule.done(sure([0.0999 * spread] * 4))
    assert not rule.done(sure([0.1001 * spread] * 4))
    assert rule.done(sure([999.0] * 4, values=(1e4, 2e4, 3e4, 4e4)))
    # A player who is not known yet has no part in the spread.
    three = sure([0.08, 0.08, 0.08, UNKNOWN], values=(1, 2, 3, UNKNOWN))
    assert TargetStdError(0.1, portion=0.75, relative=True).done(three)
    assert not TargetStdError(0.09, portion=0.75, relative=True).done(three)


def test_no_errors_to_look_at():
    with pytest.raises(InvalidInputError, match="no standard errors; use RankStability"):
        TargetStdError(0.1).done(state(estimates=[[1.0, 2.0]], std_errors=[None]))


ONE = [1.0, 2, 3, 4, 5]
SAME_ORDER = [-9.0, 0, 3, 40, 500]
SWAPPED = [1.0, 2, 3, 5, 4]  # Spearman's correlation is .9


def test_a_ranking_has_to_be_stable_several_times_in_a_row():
    rule = RankStability(0.95, checks=2)
    assert not rule.done(state())
    assert not rule.done(state(estimates=[ONE, ONE]))
    assert rule.done(state(estimates=[ONE, SAME_ORDER, ONE]))
    assert not rule.done(state(estimates=[ONE, SWAPPED, SWAPPED]))
    assert not rule.done(state(estimates=[ONE, ONE, SWAPPED]))
    # What was before does not count.
    assert rule.done(state(estimates=[SWAPPED, SWAPPED[::-1], ONE, ONE, SAME_ORDER]))
    assert RankStability(0.89, checks=2).done(state(estimates=[ONE, SWAPPED, ONE]))
    assert RankStability(0.95, checks=1).done(state(estimates=[ONE, ONE]))


def test_a_ranking_of_unknown_or_equal_players_is_not_stable():
    rule = RankStability(0.5, checks=1)
    assert not rule.done(state(estimates=[[1, 2, UNKNOWN], [1, 2, UNKNOWN]]))
    assert not rule.done(state(estimates=[[1, 1, 1], [1, 1, 1]]))


def test_rank_correlation_is_spearmans():
    rng = np.random.default_rng(0)
    for _ in range(5):
        one, other = rng.integers(0, 8, (2, 20)).astype(float)  # with ties
        expected = spearmanr(one, other).statistic
        assert rank_correlation(one, other) == pytest.approx(expected, abs=1e-12)
        assert rank_correlation(one, -one) == pytest.approx(-1)
    assert np.isnan(rank_correlation(np.ones(3), np.arange(3.0)))


FEW, MANY = MaxModels(100), MaxModels(300)


@pytest.mark.parametrize(
    ("n_models", "seconds", "both", "either"),
    [(50, 1, False, False), (100, 1, False, True), (50, 10, False, True), (100, 10, True, True)],
)
def test_rules_are_combined(n_models, seconds, both, either):
    time = MaxSeconds(10)
    now = state(n_models, seconds)
    assert (FEW & time).done(now) is both
    assert (FEW | time).done(now) is either
    assert ((FEW & time) | MANY).done(now) is both
    assert ((FEW | time) & MaxModels(1)).done(now) is either


def test_after_how_many_models_a_combination_is_done_for_certain():
    target = TargetStdError(0.1)
    assert (FEW | MANY).most == 100
    assert (FEW & MANY).most == 300
    assert (FEW | target).most == 100
    assert (FEW & target).most == np.inf
    assert ((FEW & MaxSeconds(1)) | MANY).most == 300
    assert target.most == RankStability().most == np.inf


def test_which_rules_look_at_estimates():
    assert TargetStdError(0.1).looks
    assert RankStability().looks
    assert not FEW.looks
    assert not (FEW | MaxSeconds(1)).looks
    assert not (FEW & MaxSeconds(1)).looks
    assert (FEW | RankStability()).looks
    assert (TargetStdError(1) & FEW).looks


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MaxModels(0), "n_models"),
        (lambda: MaxModels(2.5), "n_models"),
        (lambda: MaxSeconds(0), "seconds must be a positive number; got 0"),
        (lambda: MaxSeconds(float("nan")), "seconds"),
        (lambda: TargetStdError(-1), "target must be a positive number; got -1"),
        (lambda: TargetStdError("small"), "target"),
        (lambda: TargetStdError(1, portion=0), "portion must be above 0, and 1 at most; got 0"),
        (lambda: TargetStdError(1, portion=1.1), "portion"),
        (lambda: RankStability(1.0), "threshold must be a rank correlation below 1; got 1.0"),
        (lambda: RankStability(-1), "threshold"),
        (lambda: RankStability(checks=0), "checks"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()
