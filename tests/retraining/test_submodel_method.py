"""What all methods that train submodels share: seeds, stores, failures, rules, refusals."""

import json
from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from retraining.games import enumerated, random_worth, smooth_game, table_game
from retraining.refit_examples import classification, regression
from retraining.sampled import user_game
from retraining.submodel_examples import Failing, Logged, in_less_out, logged_masks, utilities
from retraining.toy_learners import MeanLearner, StackedLearner, trainings
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neural_network import MLPRegressor
from sklearn.svm import SVR

import proponent as pp
from proponent.exceptions import (
    InvalidInputError,
    MethodCapabilityError,
    NotFittedError,
    ProponentError,
)
from proponent.retraining.coalitions import Estimate, Estimated, Estimator
from proponent.retraining.stopping import (
    MaxModels,
    MaxSeconds,
    RankStability,
    State,
    TargetStdError,
)

N = 12
NUMBERS = regression(N, 2, tests=4)
CLASSES = classification(30, 3, 2, tests=4)
NOISY_TRAIN = (np.arange(float(N)), NUMBERS[0][1])
NOISY_TEST = (np.zeros(3), np.array([0.5, -1.0, 4.0]))

# One of each kind of design, with about 60 submodels.
METHODS = {
    "leave-one-out": lambda **settings: pp.LeaveOneOut(shortcut=None, **settings),
    "two repeats": lambda **settings: pp.LeaveOneOut(2, shortcut=None, **settings),
    "balanced": lambda **settings: pp.Downsampling(60, **settings),
    "two sizes": lambda **settings: pp.Downsampling(60, sampling="two_sizes", **settings),
    "folds": lambda **settings: pp.GenerativeDownsampling(6, 10, **settings),
    "regression": lambda **settings: pp.Shapley(62, **settings),
    "orders": lambda **settings: pp.BetaShapley(n_models=62, estimator="antithetic", **settings),
    "Banzhaf": lambda **settings: pp.Banzhaf(60, **settings),
    "TMC": lambda **settings: pp.TMCShapley(6, tolerance=0.0, **settings),
}
SAMPLED = [name for name in METHODS if name not in ("leave-one-out", "two repeats")]


@pytest.fixture(autouse=True)
def _cleared():
    Logged.trainings.clear()


@pytest.mark.parametrize("name", METHODS)
def test_the_same_numbers_from_the_same_seed(name):
    train, test = NOISY_TRAIN, NOISY_TEST
    first, again, other = (
        METHODS[name](seed=seed).fit(MeanLearner(noise=1.0), train).influence(test)
        for seed in (0, 0, 1)
    )
    assert_array_equal(first.values, again.values)
    if first.std_error is not None:
        assert_array_equal(first.std_error, again.std_error)
    assert (first.values != other.values).all()


@pytest.mark.parametrize("kind", [MeanLearner, StackedLearner])
def test_the_same_numbers_from_two_workers(kind):
    train, test = NOISY_TRAIN, NOISY_TEST
    for name in METHODS:
        alone, together = (
            METHODS[name](n_jobs=n_jobs).fit(kind(noise=1.0), train) for n_jobs in (None, 2)
        )
        expected, found = alone.influence(test), together.influence(test)
        assert_array_equal(found.values, expected.values)
        assert_array_equal(together.memorization().values, alone.memorization().values)
        assert found.settings == expected.settings


@pytest.mark.parametrize("name", METHODS)
def test_a_test_set_ahead_a_slice_and_the_strongest_are_the_same_numbers(name):
    train, test = NOISY_TRAIN, NOISY_TEST
    learner = MeanLearner(noise=1.0)
    method = METHODS[name]().fit(learner, train)
    whole = method.influence(test)
    ahead = METHODS[name]().fit(learner, train, test=test)
    assert_array_equal(ahead.influence().values, whole.values)
    assert_array_equal(ahead.influence(NOISY_TEST).values, whole.values)
    parts = [method.influence(test, shard=(i, 3)).values for i in range(3)]
    assert_allclose(np.concatenate(parts, axis=1), whole.values, atol=1e-12)
    joint = method.influence(test, joint=True)
    assert_allclose(joint.values, whole.values.sum(axis=0), atol=1e-10)
    top = method.influence(test, top_k=2).proponents(2)
    assert_array_equal(top.ids, whole.proponents(2).ids)
    on_itself = method.influence(NOISY_TRAIN).values.diagonal()
    assert_allclose(method.memorization().values, on_itself, atol=1e-12)
    own = method.memorization(shard=(1, 2)).values
    assert_allclose(own, on_itself[N // 2 :], atol=1e-12)


def test_submodels_that_do_not_fit_the_memory_give_the_same_numbers(tmp_path):
    train, test = NOISY_TRAIN, NOISY_TEST
    expected = pp.Downsampling(60).fit(MeanLearner(noise=1.0), train).influence(test)
    log = tmp_path / "log"
    method = pp.Downsampling(60, memory=0).fit(MeanLearner(noise=1.0, log=log), train)
    assert len(trainings(log)) < 60
    found = method.influence(test)
    assert_array_equal(found.values, expected.values)
    assert found.diagnostics["deferred"] == 60
    assert "every test set" in found.diagnostics["trained_in_one_pass"]


# What is trained once


def test_two_methods_with_a_store_train_only_what_is_missing(tmp_path):
    train, test = NOISY_TRAIN, NOISY_TEST
    store, log = tmp_path / "store", tmp_path / "log"
    learner = StackedLearner(noise=1.0, log=log)
    first = pp.Downsampling(40, store=store).fit(learner, train).influence(test)
    assert first.diagnostics["trained"] == len(trainings(log)) == 40
    more = pp.Downsampling(60, store=store).fit(learner, train).influence(test)
    assert (more.diagnostics["trained"], more.diagnostics["reused"]) == (20, 40)
    again = pp.Downsampling(60, store=store).fit(learner, train).influence(test)
    assert (again.diagnostics["trained"], again.diagnostics["reused"]) == (0, 60)
    other = pp.Banzhaf(30, store=store).fit(learner, train).influence(test)
    assert (other.diagnostics["trained"], other.diagnostics["reused"]) == (30, 0)
    assert len(trainings(log)) == 90 == len(set(trainings(log)))
    plain = pp.Downsampling(60).fit(MeanLearner(noise=1.0), train).influence(test)
    assert_allclose(again.values, plain.values, atol=1e-12)
    assert_array_equal(again.values, more.values)
    assert "store" not in first.settings and "n_jobs" not in first.settings


def test_a_store_belongs_to_one_training_set(tmp_path):
    train, _ = NOISY_TRAIN, NOISY_TEST
    pp.Downsampling(10, store=tmp_path).fit(StackedLearner(noise=1.0), train)
    for learner, data in (
        (StackedLearner(noise=2.0), train),
        (StackedLearner(noise=1.0), (train[0], train[1] + 1)),
    ):
        with pytest.raises(InvalidInputError):
            pp.Downsampling(10, store=tmp_path).fit(learner, data)


def test_submodels_are_shared_by_methods(tmp_path):
    log = tmp_path / "log"
    submodels = pp.Submodels(MeanLearner(noise=1.0, log=log), NOISY_TRAIN, ids=np.arange(N) + 5)
    values = pp.Downsampling(50).fit(submodels).influence(NOISY_TEST)
    assert len(trainings(log)) == 50
    assert values.train_ids.tolist() == list(range(5, N + 5))
    alone = pp.Downsampling(50).fit(MeanLearner(noise=1.0), NOISY_TRAIN).influence(NOISY_TEST)
    assert_array_equal(values.values, alone.values)
    score = pp.ConsistencyScore(20, utility="risk").fit(submodels)
    assert len(trainings(log)) == 70 and score.scores(NOISY_TEST).values.shape == (3,)
    again = pp.Downsampling(30).fit(submodels).influence(NOISY_TEST)
    assert len(trainings(log)) == 70 and again.diagnostics["trained"] == 70


@pytest.mark.parametrize("given", ["train", "ids", "groups"])
def test_submodels_have_their_own_sets(given):
    submodels = pp.Submodels(MeanLearner(), NOISY_TRAIN)
    with pytest.raises(InvalidInputError, match=rf"{given}: Submodels\(.*leave it out"):
        pp.Downsampling(10).fit(submodels, **{given: np.arange(N)})


# Groups


@pytest.mark.parametrize("names", [list("abc"), [3, 10, 7]])
def test_groups_are_in_or_out_as_a_whole(names):
    train, test = NUMBERS
    groups = np.repeat(names, [2, 3, 7])
    method = pp.Downsampling(30, fraction=0.67).fit(Logged(), train, groups=groups)
    masks = logged_masks(N)
    inside = np.stack([masks[:, groups == name] for name in names][:1], axis=0)[0]
    assert (inside.all(axis=1) | ~inside.any(axis=1)).all()
    columns = np.sort(names)
    by_group = np.stack([masks[:, np.flatnonzero(groups == name)[0]] for name in columns], axis=1)
    found = utilities(Ridge(alpha=1.0, fit_intercept=False), train, test, masks)
    expected, errors = in_less_out(by_group, found)
    result = method.influence(test)
    assert_array_equal(result.train_ids, columns)
    assert_allclose(result.values, expected, atol=1e-9)
    assert_allclose(result.std_error, errors, atol=1e-9)
    with pytest.raises(MethodCapabilityError, match="groups"):
        method.memorization()


def test_influence_of_groups_is_no_sum():
    method = pp.Shapley(62).fit(Ridge(), NUMBERS[0])
    with pytest.raises(MethodCapabilityError, match=r"fit\(model, train, groups=names\)"):
        method.group_influence({"a": [0, 1]}, NUMBERS[1])


# In expectation over seeds


class Wobbly(Logged):
    def fit(self, X, y, positions, seed):
        super().fit(X, y, positions, seed)
        self.weights = self.weights * (1 + 0.3 * np.random.default_rng(seed).normal())


@pytest.mark.parametrize("repeats", [2, 5])
def test_in_expectation_over_seeds(repeats):
    train, test = NUMBERS
    method = pp.Downsampling(40).fit(Wobbly(), train)
    found = method.expected(test, repeats=repeats)
    log = Logged.trainings.copy()
    assert len(log) == 40 * repeats == len({seed for _, seed in log})
    each = []
    for repeat in range(repeats):
        part = log[40 * repeat : 40 * (repeat + 1)]
        Logged.trainings[:] = part
        masks = logged_masks(N)
        assert_array_equal(masks, logged_masks(N))
        table = []
        for mask, (_, seed) in zip(masks, part, strict=True):
            model = Ridge(alpha=1.0, fit_intercept=False).fit(train[0][mask], train[1][mask])
            scale = 1 + 0.3 * np.random.default_rng(seed).normal()
            table.append(-((model.predict(test[0]) * scale - test[1]) ** 2))
        each.append(in_less_out(masks, np.array(table))[0])
        if repeat:
            assert [p.tolist() for p, _ in part] == [p.tolist() for p, _ in log[:40]]
    each = np.array(each)
    assert_allclose(found.values, each.mean(axis=0), atol=1e-9)
    deviation = each.std(axis=0, ddof=1)
    assert_allclose(found.std_error, deviation / np.sqrt(repeats), atol=1e-9)
    assert found.diagnostics["influence_std"] == pytest.approx(deviation.mean())
    assert found.diagnostics["repeats"] == repeats
    halves = [each[start::2].sum(axis=(0, 1)) for start in (0, 1)]
    stability = spearmanr(*halves).statistic
    assert found.diagnostics["rank_stability"] == pytest.approx(stability)
    assert_allclose(each[0], method.influence(test).values, atol=1e-9)


def test_common_random_numbers_stay_common_in_expectation():
    # The seed adds a thousand times what an instance does; differences are free of it.
    class Shifted(Failing):
        def fit(self, X, y, positions, seed):
            super().fit(X, y, positions)
            self.mean = self.mean + 1000 * np.random.default_rng(seed).normal()

        def risk(self, X, y):
            return np.full(len(X), self.mean)

    (_, y), test = NUMBERS
    found = pp.LeaveOneOut().fit(Shifted(), NUMBERS[0]).expected(test, repeats=3)
    expected = (y.sum() - y) / (N - 1) - y.mean()
    assert_allclose(found.values, np.tile(expected, (4, 1)), atol=1e-9)
    assert_allclose(found.std_error, 0.0, atol=1e-9)


def test_an_expectation_needs_randomness_and_repeats():
    method = pp.Downsampling(20).fit(Ridge(), NUMBERS[0])
    with pytest.raises(InvalidInputError, match="no randomness"):
        method.expected(NUMBERS[1])
    method = pp.Downsampling(20).fit(MeanLearner(noise=1.0), NOISY_TRAIN)
    for repeats in (1, 0, 2.5):
        with pytest.raises(InvalidInputError, match="repeats: expected an integer of 2 or more"):
            method.expected(NOISY_TEST, repeats=repeats)
    with pytest.raises(NotFittedError):
        pp.Downsampling().expected(NOISY_TEST)


# Failures


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("leave-one-out", "two repeats")])
def test_a_failed_training_is_no_zero(name):
    # All risks are a thousand higher than they are: a zero among them would be seen.
    class Picky(Failing):
        def fit(self, X, y, positions, seed):
            if seed % 10 == 3:
                raise ValueError("an unlucky number")
            super().fit(X, y, positions)

        def risk(self, X, y):
            return super().risk(X, y) + 1000.0

    method = METHODS[name](empty=-1000.0).fit(Picky(), NUMBERS[0], test=NUMBERS[1])
    found = method.influence()
    assert found.diagnostics["failed"] > 0
    assert list(found.diagnostics["failures"]) == ["ValueError: an unlucky number"]
    assert json.loads(json.dumps(dict(found.diagnostics))) == dict(found.diagnostics)
    assert np.nanmax(np.abs(found.values)) < 100
    assert np.isfinite(found.values).mean() > 0.9


@pytest.mark.parametrize("name", METHODS)
def test_if_all_fail_that_is_an_error(name):
    with pytest.raises(ProponentError, match="cannot be trained"):
        METHODS[name](empty=0.0).fit(Failing(least=N + 1), NUMBERS[0], test=NUMBERS[1])


@pytest.mark.parametrize("model", [GaussianNB(var_smoothing=0.1), LogisticRegression()])
def test_subsets_of_one_class_are_trained_too(model):
    random = np.random.default_rng(2)
    X, y = random.normal(size=(8, 2)), np.array(list("aaaaaabb"))
    test = X[[0, 7]] + 0.1, np.array(["a", "b"])
    found = pp.Downsampling(200, fraction=0.4, utility="accuracy").fit(model, (X, y))
    masks = found._coalitions.masks
    one_class = ~masks[:, 6:].any(axis=1)
    assert one_class.sum() > 20
    right = np.zeros((200, 2))
    right[one_class] = [1, 0]  # of the only class
    for row in np.flatnonzero(~one_class):
        if masks[row, :6].any():
            fitted = type(model)(**model.get_params()).fit(X[masks[row]], y[masks[row]])
            right[row] = fitted.predict(test[0]) == test[1]
        else:
            right[row] = [0, 1]
    result = found.influence(test)
    assert "failed" not in result.diagnostics or result.diagnostics["failed"] == 0
    assert_allclose(result.values, in_less_out(masks, right)[0], atol=1e-12)


# When to stop


def test_to_stop_after_so_many_models(tmp_path):
    log = tmp_path / "log"
    for most in (1, 10, 64, 100, 200, 333):
        log.unlink(missing_ok=True)
        method = pp.Downsampling(300, stop=MaxModels(most))
        method.fit(MeanLearner(noise=1.0, log=log), NOISY_TRAIN)
        assert len(trainings(log)) == min(most, 300)
    # Those that were drawn are the first of all.
    whole = pp.Downsampling(333).fit(MeanLearner(noise=1.0, log=log), NOISY_TRAIN)
    stopped = pp.Downsampling(333, stop=MaxModels(100)).fit(MeanLearner(noise=1.0), NOISY_TRAIN)
    assert_array_equal(stopped._coalitions.masks, whole._coalitions.masks[:100])
    few = pp.Downsampling(100).fit(MeanLearner(noise=1.0), NOISY_TRAIN).influence(NOISY_TEST)
    assert_array_equal(stopped.influence(NOISY_TEST).values, few.values)


@pytest.mark.parametrize("name", SAMPLED)
def test_rules_that_count_need_no_test_set(name):
    if name == "TMC":
        return
    method = METHODS[name](stop=MaxModels(50) | MaxSeconds(3600.0))
    found = method.fit(MeanLearner(noise=1.0), NOISY_TRAIN).influence(NOISY_TEST)
    assert found.diagnostics["coalitions"] == 50
    assert json.loads(json.dumps(dict(found.settings)))["stop"].count("MaxModels") == 1


OWN = {"empty": "uniform", "n_jobs": 2, "store": "elsewhere", "memory": 10, "progress": False}


@pytest.mark.parametrize("name", OWN)
def test_what_the_submodels_decide_is_refused_and_not_ignored(name, tmp_path):
    submodels = pp.Submodels(MeanLearner(), NUMBERS[0], empty=0.25, n_jobs=1, path=tmp_path)
    with pytest.raises(InvalidInputError, match=f"{name}: the Submodels have their own, {name}="):
        pp.Shapley(30, **{name: OWN[name]}).fit(submodels)
    same = pp.Shapley(30, empty=0.25, n_jobs=1, store=str(tmp_path)).fit(submodels)
    plain = pp.Shapley(30).fit(submodels)
    one, other = (method.influence(NUMBERS[1]) for method in (same, plain))
    assert one.settings["empty"] == other.settings["empty"] == 0.25
    assert_array_equal(one.values, other.values)


@pytest.mark.parametrize("name", [*OWN, "utility"])
def test_what_a_game_has_no_use_for_is_refused_and_not_recorded(name):
    game = user_game(smooth_game(6, 1), 6)
    value = "accuracy" if name == "utility" else OWN[name]
    with pytest.raises(InvalidInputError, match=f"{name}: a Game has no use for it"):
        pp.Shapley(**{name: value}).fit(game)
    assert not {"utility", "empty"} & set(pp.Shapley().fit(game).influence().settings)


def test_warnings_of_trainings_and_of_estimates_are_both_kept():
    learner = MLPRegressor(hidden_layer_sizes=(2,), max_iter=1)
    train, test = regression(40, 2, tests=2)
    method = pp.BetaShapley(16, 1, n_models=60, sizes="uniform").fit(learner, train)
    found = method.influence(test).diagnostics["warnings"]
    assert found[0] == {"ConvergenceWarning": method._submodels.report()["trained"]}
    assert "coalitions or fewer in effect" in found[1]


@pytest.mark.parametrize("utility", ["accuracy", "margin"])
def test_a_utility_that_the_models_have_not_is_refused_before_training(utility, tmp_path):
    log = tmp_path / "log"
    with pytest.raises(MethodCapabilityError, match="needs a classifier"):
        pp.Banzhaf(30, utility=utility).fit(MeanLearner(log=log), NUMBERS[0])
    assert not trainings(log)


def test_margins_are_finite_where_a_subset_lacks_a_class():
    train, test = CLASSES
    found = pp.Shapley(100, utility="margin").fit(GaussianNB(), train).influence(test)
    assert np.isfinite(found.values).all()
    assert found.diagnostics["failed"] == 0


@pytest.mark.parametrize("estimator", ["permutations", "regression"])
@pytest.mark.parametrize("end", ["full", "both"])
def test_a_failure_that_all_values_need_is_named(estimator, end):
    learner = MeanLearner(fails=range(N)) if end == "both" else Failing(hates=())
    if end == "full":
        learner = TooMany()
    method = pp.Shapley(80, estimator=estimator, empty=0.0)
    with pytest.raises(ProponentError, match=r"cannot be trained|too many"):
        method.fit(learner, NUMBERS[0]).influence(NUMBERS[1])


class TooMany(Failing):
    def fit(self, X, y, positions):
        if len(positions) == N:
            raise ValueError("too many")
        super().fit(X, y, positions)


def test_models_that_cannot_be_pickled_are_kept():
    class Local:
        def fit(self, X, y, positions):
            Logged.trainings.append(tuple(positions))
            self.parts = {"mean": np.full(1000, y.mean())}

        def risk(self, X, y):
            return (y - self.parts["mean"][0]) ** 2

    method = pp.Banzhaf(20).fit(Local(), NUMBERS[0], test=NUMBERS[1])
    trained = len(Logged.trainings)
    found = method.influence(NUMBERS[1])
    again = method.influence((NUMBERS[1][0][:2], NUMBERS[1][1][:2]))
    assert len(Logged.trainings) == trained > 10
    assert_allclose(again.values, found.values[:2])
    assert found.diagnostics["deferred"] == 0
    fitted = method._submodels._held.nbytes
    assert 8000 * trained < fitted < 12000 * trained


def test_to_stop_when_the_time_is_up():
    learner = MeanLearner(noise=1.0, seconds=0.002)
    method = pp.Downsampling(2000, stop=MaxSeconds(0.05)).fit(learner, NOISY_TRAIN)
    assert method.influence(NOISY_TEST).diagnostics["coalitions"] == 32
    method = pp.Downsampling(130, stop=MaxSeconds(3600)).fit(learner, NOISY_TRAIN)
    assert method.influence(NOISY_TEST).diagnostics["coalitions"] == 130


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("portion", [0.5, 1.0])
def test_to_stop_at_a_standard_error(portion, relative):
    game = user_game(smooth_game(8, 3), 8)
    settings = {"n_models": 30_000, "sampling": "bernoulli", "fraction": 0.5}

    def errors(n_models):
        method = pp.Downsampling(**settings | {"n_models": n_models}).fit(game)
        joint = method.influence(joint=True)
        scale = joint.values.std() if relative else 1.0
        return np.sort(joint.std_error)[round(8 * portion) - 1] / scale

    target = errors(900)
    stop = TargetStdError(target, portion=portion, relative=relative)
    found = pp.Downsampling(**settings, stop=stop).fit(game).influence()
    expected = next(count for count in looks() if errors(count) <= target)
    assert found.diagnostics["coalitions"] == expected > 300


def looks():
    """Yield after how many coalitions a rule is asked."""
    count = 0
    while True:
        count += max(64, count // 4)
        yield count


def test_rules_that_look_need_the_test_set():
    rule = TargetStdError(0.1) & MaxModels(500)
    for stop in (rule, RankStability() | MaxSeconds(5)):
        with pytest.raises(InvalidInputError, match="stop: this rule looks at the estimates"):
            pp.Downsampling(500, stop=stop).fit(Ridge(), NUMBERS[0])
    method = pp.Downsampling(500, stop=rule | MaxModels(100)).fit(
        Ridge(), NUMBERS[0], test=NUMBERS[1]
    )
    assert method.influence().diagnostics["coalitions"] == 100


def test_a_stable_ranking_stops():
    game = user_game(smooth_game(9, 2), 9)
    stop = RankStability(0.97, checks=2)
    found = pp.Banzhaf(20_000, estimator="means", stop=stop).fit(game).influence()
    estimates, expected = [], 0
    for expected in looks():
        method = pp.Banzhaf(expected, estimator="means").fit(game)
        estimates.append(method.influence(joint=True).values)
        pairs = list(pairwise(estimates))[-2:]
        if len(pairs) == 2 and all(spearmanr(*pair).statistic >= 0.97 for pair in pairs):
            break
    assert found.diagnostics["coalitions"] == expected > 200
    noise = np.random.default_rng(0).normal(size=2**6)
    random = user_game(lambda masks: noise[masks @ 2 ** np.arange(6)], 6)
    method = pp.Banzhaf(300, estimator="means", stop=RankStability(0.99999, checks=6))
    assert method.fit(random).influence().diagnostics["coalitions"] == 300


class Silent(Estimator):
    def on(self, table):
        return SilentEstimate()


class SilentEstimate(Estimated):
    def players(self, rows):
        return Estimate(np.zeros((1, len(rows))), None)


def test_a_method_without_errors_has_no_target():
    stop = TargetStdError(0.1)
    with pytest.raises(InvalidInputError, match="stop: this method has no standard errors"):
        stop.done(State(estimates=[np.zeros(3)], std_errors=[None]))
    assert not stop.done(State())
    game = user_game(table_game(random_worth(4, 1)), 4)
    with pytest.raises(InvalidInputError, match="no standard errors"):
        pp.Shapley(estimator="exact", stop=stop).fit(game)


def test_rules_are_combined():
    state = State(
        n_models=50, seconds=2.0, estimates=[np.arange(3.0)], std_errors=[np.array([1, 2, np.nan])]
    )

    def done(rule):
        return rule.done(state)

    assert done(MaxModels(50)) and not done(MaxModels(51))
    assert done(MaxSeconds(2)) and not done(MaxSeconds(2.5))
    assert done(MaxModels(50) & MaxSeconds(1)) and not done(MaxModels(50) & MaxSeconds(3))
    assert done(MaxModels(51) | MaxSeconds(1)) and not done(MaxModels(51) | MaxSeconds(3))
    assert done(TargetStdError(2.0, portion=0.6)) and not done(TargetStdError(2.0))
    assert not done(TargetStdError(1.9, portion=0.6))
    scale = np.std(np.arange(3.0))
    assert done(TargetStdError(2.01 / scale, portion=0.6, relative=True))
    assert not done(TargetStdError(1.99 / scale, portion=0.6, relative=True))
    assert (MaxModels(7) & MaxModels(9)).most == 9 and (MaxModels(7) | MaxSeconds(1)).most == 7
    assert (MaxModels(7) & MaxSeconds(1)).most == np.inf
    assert not (MaxModels(7) | MaxSeconds(1)).looks
    assert (MaxModels(7) & RankStability()).looks


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: MaxModels(0), "n_models"),
        (lambda: MaxSeconds(0), "seconds"),
        (lambda: MaxSeconds(np.inf), "seconds"),
        (lambda: TargetStdError(-1), "target"),
        (lambda: TargetStdError(0.1, portion=0), "portion"),
        (lambda: TargetStdError(0.1, portion=1.1), "portion"),
        (lambda: RankStability(1.0), "threshold"),
        (lambda: RankStability(0.9, checks=0), "checks"),
    ],
)
def test_rules_that_make_no_sense(make, named):
    with pytest.raises(InvalidInputError, match=named):
        make()


# Utilities


def test_a_utility_of_the_users_own():
    train, test = NUMBERS
    model = SVR(C=3.0)

    def off_by(outputs, targets):
        return -np.abs(outputs - targets)

    method = pp.Banzhaf(80, utility=off_by, empty=-9.0).fit(model, train)
    masks = method._coalitions.masks
    table = np.array(
        [
            -np.abs(SVR(C=3.0).fit(train[0][m], train[1][m]).predict(test[0]) - test[1])
            if m.any()
            else np.full(4, -9.0)
            for m in masks
        ]
    )
    by_means = pp.Banzhaf(80, utility=off_by, empty=-9.0, estimator="means").fit(model, train)
    assert_allclose(by_means.influence(test).values, in_less_out(masks, table)[0], atol=1e-9)
    assert (
        np.corrcoef(method.influence(test).values[0], in_less_out(masks, table)[0][0])[0, 1] > 0.5
    )


def test_one_number_for_the_whole_test_set_is_a_joint_influence():
    train, test = NUMBERS
    method = pp.Downsampling(40, utility=lambda outputs, targets: -np.ptp(outputs - targets))
    method.fit(Logged(), train)
    masks = logged_masks(N)
    model = Ridge(alpha=1.0, fit_intercept=False)
    fitted = [model.fit(train[0][mask], train[1][mask]).predict(test[0]) for mask in masks]
    table = -np.ptp(np.array(fitted) - test[1], axis=1)[:, None]
    expected, errors = in_less_out(masks, table)
    joint = method.influence(test, joint=True)
    assert_allclose(joint.values, expected[0], atol=1e-9)
    assert_allclose(joint.std_error, errors[0], atol=1e-9)
    for ask in (method.influence, method.expected):
        with pytest.raises(InvalidInputError, match="one number for all 4"):
            ask(test)
    with pytest.raises(InvalidInputError, match="one number for all 12"):
        method.memorization()
    loo = pp.LeaveOneOut(utility=lambda outputs, targets: outputs.sum()).fit(Ridge(), train)
    with pytest.raises(InvalidInputError, match="one number for all 4"):
        loo.group_influence({"a": [1]}, test)


def test_the_set_of_a_stopped_method_is_its_settings():
    found = pp.Downsampling(
        20, utility=np.subtract, seed=3, n_jobs=1, memory=10**9, progress=False
    ).fit(Ridge(), NUMBERS[0])
    settings = found.influence(NUMBERS[1]).settings
    assert settings["seed"] == 3 and settings["n_models"] == 20
    assert not {"n_jobs", "memory", "progress", "store"} & set(settings)
    assert json.loads(json.dumps(dict(settings))) == dict(settings)


# Refusals


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_is_not_fitted(name):
    with pytest.raises(NotFittedError):
        METHODS[name]().influence(NOISY_TEST)
    with pytest.raises(NotFittedError):
        METHODS[name]().memorization()


@pytest.mark.parametrize("name", ["leave-one-out", "balanced", "TMC"])
def test_a_fit_that_fails_leaves_the_method_as_it_was(name):
    method = METHODS[name]().fit(MeanLearner(noise=1.0), NOISY_TRAIN)
    before = method.influence(NOISY_TEST).values
    with pytest.raises(ProponentError):
        method.fit(Failing(least=N + 1), NUMBERS[0])
    with pytest.raises(InvalidInputError):
        method.fit(MeanLearner(), None)
    assert_array_equal(method.influence(NOISY_TEST).values, before)


def test_models_and_sets_that_make_no_sense():
    train, test = NUMBERS
    method = pp.Downsampling(20)
    for model in (None, 3, KMeans(2), Ridge, np.mean):
        with pytest.raises(InvalidInputError, match=r"Downsampling needs|model"):
            method.fit(model, train)
    with pytest.raises(InvalidInputError, match="train: pass the training set"):
        method.fit(Ridge())
    with pytest.raises(InvalidInputError, match="train: the set is empty"):
        method.fit(Ridge(), (np.zeros((0, 2)), np.zeros(0)))
    with pytest.raises(InvalidInputError, match="ids"):
        method.fit(Ridge(), train, ids=np.zeros(N, int))
    with pytest.raises(InvalidInputError, match="groups"):
        method.fit(Ridge(), train, groups=np.arange(N - 1))
    with pytest.raises(InvalidInputError, match="test: the set is empty"):
        method.fit(Ridge(), train, test=(np.zeros((0, 2)), np.zeros(0)))
    method.fit(Ridge(), train)
    with pytest.raises(InvalidInputError, match="test: pass the test set"):
        method.influence()
    with pytest.raises(InvalidInputError, match="test: the set is empty"):
        method.influence((np.zeros((0, 2)), np.zeros(0)))
    with pytest.raises(InvalidInputError, match="test"):
        method.influence((test[0][:, :1], test[1]))
    with pytest.raises(InvalidInputError, match="top_k"):
        method.influence(test, top_k=3, joint=True)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 0.5}, "seed"),
        ({"seed": None}, "seed"),
        ({"n_jobs": 0}, "n_jobs"),
        ({"memory": -1}, "memory"),
        ({"stop": 100}, "stop"),
        ({"utility": "error"}, "utility"),
        ({"empty": "nothing"}, "empty"),
    ],
)
@pytest.mark.parametrize("kind", [pp.Downsampling, pp.LeaveOneOut, pp.TMCShapley, pp.Shapley])
def test_a_setting_that_makes_no_sense(kind, settings, named):
    with pytest.raises(InvalidInputError, match=named):
        kind(**settings).fit(SVR(), NUMBERS[0], test=NUMBERS[1])


def test_semivalues_of_the_same_store_agree_with_their_own():
    # All that a table of every coalition says, by each method.
    worth = random_worth(5, 2)
    game = user_game(table_game(worth), 5)
    for kind, law in ((pp.Shapley, np.full(5, 0.2)), (pp.Banzhaf, np.array([1, 4, 6, 4, 1]) / 16)):
        assert_allclose(kind().fit(game).influence().values, enumerated(worth, law), atol=1e-13)
