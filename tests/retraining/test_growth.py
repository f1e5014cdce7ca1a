"""Drawing coalitions a batch at a time until a rule has seen enough."""

import numpy as np
import pytest
from retraining.games import NeighboursGame, measured, smooth_game, without

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Table, join
from proponent.retraining.designs import Bernoulli, Exhaustive, Permutations, SizeStratified
from proponent.retraining.estimators.exhaustive import ExactSemivalue
from proponent.retraining.estimators.in_out import InOutMeans
from proponent.retraining.estimators.permutations import PermutationMarginals
from proponent.retraining.estimators.size_regression import SizeRegression
from proponent.retraining.growth import FIRST, LEAST, PORTION, grow
from proponent.retraining.semivalues import ShapleyWeights
from proponent.retraining.stopping import (
    MaxModels,
    MaxSeconds,
    RankStability,
    State,
    StoppingRule,
    TargetStdError,
)
from proponent.retraining.submodels import AllFailedError

N = 12
GAME = smooth_game(N, 3)
SHAPLEY = ShapleyWeights()


class Watched(StoppingRule):
    """Notes what it is shown, and stops at a number of models."""

    def __init__(self, n_models=10**9):
        self.n_models = n_models
        self.seen = []

    def done(self, state: State) -> bool:
        estimate = state.estimates[-1].copy() if state.estimates else None
        errors = state.std_errors[-1] if state.std_errors else None
        self.seen.append((state.n_models, state.seconds, estimate, errors, len(state.estimates)))
        return state.n_models >= self.n_models


class Recorder:
    """Trains and measures, and keeps what it was asked for."""

    def __init__(self, game=GAME):
        self.game = game
        self.trained = []
        self.measured = []

    def train(self, coalitions):
        self.trained.append(coalitions)

    def measure(self, coalitions):
        self.measured.append(coalitions)
        return Table(coalitions, self.game(coalitions.masks))


def grown(design, estimator, size, stop, seed=0, n=N, game=GAME, looks=True):
    recorder = Recorder(game)
    measure = recorder.measure if looks else None
    found = grow(design, estimator, n, size, seed, stop, recorder.train, measure)
    return found, recorder


def same(one: Coalitions, other: Coalitions) -> bool:
    return np.array_equal(one.masks, other.masks) and np.array_equal(one.seeds, other.seeds)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 127, 128, 129, 700])
@pytest.mark.parametrize("design", [Bernoulli(), SizeStratified(), Permutations()], ids=str)
def test_what_is_returned_is_the_start_of_the_design(design, size):
    found, recorder = grown(design, InOutMeans(), size, Watched(), seed=4, looks=False)
    assert len(found) == size
    assert same(found, design.draw(N, 0, size, 4))
    assert same(join(recorder.trained), found)


def test_batches_double_and_then_grow_by_a_quarter():
    _, recorder = grown(Bernoulli(), InOutMeans(), 3000, Watched(), looks=False)
    batches = [len(part) for part in recorder.trained]
    assert batches[:3] == [FIRST, FIRST, 2 * FIRST]  # few are enough for an easy game
    done = np.cumsum(batches)
    for before, more in zip(done[2:-2], batches[3:-1], strict=True):
        assert more == max(LEAST, before // PORTION)
    assert batches[-1] >= LEAST
    # Small batches would make looking dear, large ones training.
    assert len(batches) < 25


def test_every_batch_is_trained_once_then_measured_then_looked_at():
    rule = Watched()
    found, recorder = grown(Bernoulli(), InOutMeans(), 400, rule)
    assert [len(part) for part in recorder.measured] == [len(part) for part in recorder.trained]
    assert all(same(*pair) for pair in zip(recorder.trained, recorder.measured, strict=True))
    counts = [seen[0] for seen in rule.seen]
    assert counts == np.cumsum([len(part) for part in recorder.trained]).tolist()
    assert counts[-1] == len(found) == 400
    seconds = [seen[1] for seen in rule.seen]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 0


def test_a_batch_of_which_all_failed_is_not_the_end():
    batches = []

    def train(part):
        batches.append(len(part))
        if len(batches) <= 2:
            raise AllFailedError("all failed, the first with: no")

    def measure(part):
        return Table(part, GAME(part.masks))

    rule = Watched()
    found = grow(Bernoulli(), InOutMeans(), N, 200, 0, rule, train, measure)
    assert len(found) == 200
    assert [seen[0] for seen in rule.seen] == np.cumsum(batches).tolist()
    assert [seen[4] for seen in rule.seen] == [0, 0, 1, 2, 3]  # estimates
    batches.clear()
    with pytest.raises(AllFailedError, match="with: no"):
        grow(Bernoulli(), InOutMeans(), N, 30, 0, Watched(), train, measure)


def test_it_looks_at_the_sum_over_the_tests():
    rule = Watched()
    grown(Bernoulli(), InOutMeans(), 300, rule, seed=2)
    for n_models, _, values, errors, _ in rule.seen:
        table = measured(GAME, Bernoulli(), N, n_models, seed=2)
        each = InOutMeans().on(table).players(range(N))
        assert values == pytest.approx(each.values.sum(axis=0), abs=1e-12)
        joint = InOutMeans().on(table.total()).players(range(N)).std_errors[0]
        assert errors == pytest.approx(joint, abs=1e-12)


def test_it_stops_after_the_batch_in_which_the_rule_is_done():
    rule = Watched(150)
    found, recorder = grown(Bernoulli(), InOutMeans(), 1000, rule)
    counts = [seen[0] for seen in rule.seen]
    assert counts[-2] < 150 <= counts[-1] == len(found)
    assert len(join(recorder.trained)) == len(found)


@pytest.mark.parametrize("most", [1, 64, 100, 333])
def test_no_more_models_than_the_rule_allows(most):
    """To the model, not to the batch."""
    for stop in (MaxModels(most), MaxModels(most) | TargetStdError(1e-9), MaxModels(most)):
        found, _ = grown(Bernoulli(), InOutMeans(), 1000, stop)
        assert len(found) == most
    both, _ = grown(Bernoulli(), InOutMeans(), 1000, MaxModels(most) & TargetStdError(1e-9))
    assert len(both) == 1000
    fewer, _ = grown(Bernoulli(), InOutMeans(), 10, MaxModels(most))
    assert len(fewer) == min(10, most)


def test_time_runs_out_after_a_batch():
    found, recorder = grown(Bernoulli(), InOutMeans(), 1000, MaxSeconds(1e-9), looks=False)
    assert len(recorder.trained) == 1
    assert len(found) == FIRST


def test_a_target_for_the_error_is_reached_and_not_long_before():
    game = NeighboursGame.random(30, 4)
    estimator, rule = SizeRegression(SHAPLEY), Watched()
    target = 0.15
    found, _ = grown(SizeStratified(), estimator, 20_000, TargetStdError(target), n=30, game=game)
    assert LEAST < len(found) < 20_000
    grown(SizeStratified(), estimator, len(found), rule, n=30, game=game)
    largest = [seen[3].max() for seen in rule.seen]
    assert largest[-1] <= target
    assert min(largest[:-1]) > target


def test_a_ranking_that_is_stable_stops_it():
    found, recorder = grown(
        SizeStratified(), SizeRegression(SHAPLEY), 50_000, RankStability(0.98, checks=2)
    )
    assert len(recorder.trained) >= 3
    assert len(found) < 50_000


def test_a_longer_run_continues_a_shorter_one():
    short, _ = grown(Permutations(), PermutationMarginals(SHAPLEY), 200, Watched(), seed=1)
    long, _ = grown(Permutations(), PermutationMarginals(SHAPLEY), 500, Watched(), seed=1)
    assert same(short, long.take(slice(0, 200)))
    assert np.array_equal(short.blocks, long.blocks[:200])


def test_as_long_as_there_are_too_few_there_is_no_estimate():
    """Of the first batch only nobody and everybody do not fail, of the second two more."""

    class Failing(Recorder):
        def measure(self, coalitions):
            table = super().measure(coalitions)
            return without(table, slice(2, None)) if len(self.measured) <= 2 else table

    recorder, rule = Failing(), Watched()
    grow(
        SizeStratified(), SizeRegression(SHAPLEY), N, 400, 0, rule, recorder.train, recorder.measure
    )
    assert [seen[4] for seen in rule.seen][:4] == [0, 0, 1, 2]
    assert rule.seen[1][2] is None
    assert np.isfinite(rule.seen[2][2]).all()


def test_a_design_that_ends_ends_it():
    found, _ = grown(Exhaustive(), ExactSemivalue(SHAPLEY), 10_000, Watched(), n=7, looks=False)
    assert len(found) == 128
    assert same(found, Exhaustive().draw(7, 0, 128, 0))


def test_exact_values_have_no_errors_to_aim_at():
    game = smooth_game(6, 1)
    with pytest.raises(InvalidInputError, match="no standard errors"):
        grown(Exhaustive(), ExactSemivalue(SHAPLEY), 64, TargetStdError(1), n=6, game=game)
