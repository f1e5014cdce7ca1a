"""Submodels: each trained once, measured as often as asked, the same however they are run."""

import json
import pickle
from dataclasses import replace

import job_examples  # noqa: F401 (registers a backend)
import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from retraining.toy_learners import MeanLearner, MeanTrainer, StackedLearner, trainings
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, ProponentError
from proponent.models.learner import Fitted
from proponent.models.sklearn_learner import SklearnLearner
from proponent.retraining.batches import Work
from proponent.retraining.submodels import Submodels, TrainingReport

N = 7
LABELS = np.array([1.0, 5.0, -2.0, 0.5, 3.0, 8.0, -1.0])
TRAIN = (np.arange(float(N)), LABELS)
TEST = (np.zeros(3), np.array([0.0, 1.0, 2.5]))
LEARNERS = [MeanLearner, StackedLearner]
BACKENDS = [None, "threading", "loky", "counting"]

rng = np.random.default_rng(0)
MASKS = rng.random((23, N)) < 0.6
MASKS[MASKS.sum(axis=1) == 0, 0] = True
SEEDS = rng.integers(0, 1000, 23)


def risks(masks, test=TEST[1]):
    """Return minus the squared error of the mean, in a plain loop."""
    return np.array([[-((LABELS[mask].mean() - y) ** 2) for y in test] for mask in masks])


def counted(tmp_path, kind=MeanLearner, **settings):
    """Return submodels that log their trainings, and the log."""
    log = tmp_path / "trainings"
    held = {name: settings.pop(name) for name in ("noise", "fails", "kills") if name in settings}
    return Submodels(kind(log=log, **held), TRAIN, **settings), log


@pytest.mark.parametrize("kind", LEARNERS)
def test_what_submodels_are_worth(kind):
    found = Submodels(kind(), TRAIN).utilities(MASKS, SEEDS, TEST, "risk")
    assert_allclose(found, risks(MASKS), rtol=1e-13)


@pytest.mark.parametrize("kind", LEARNERS)
def test_trained_before_or_in_one_pass(kind):
    ahead, at_once = Submodels(kind(noise=1.0), TRAIN), Submodels(kind(noise=1.0), TRAIN)
    ahead.fit(MASKS, SEEDS)
    expected = at_once.utilities(MASKS, SEEDS, TEST)
    assert_array_equal(ahead.utilities(MASKS, SEEDS, TEST), expected)
    assert len(np.unique(expected[:, 0])) == len(MASKS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("ahead", [True, False])
def test_the_same_bits_whatever_runs_them(kind, backend, ahead):
    def measured(**settings):
        submodels = Submodels(kind(noise=1.0), TRAIN, **settings)
        if ahead:
            submodels.fit(MASKS, SEEDS)
        return submodels.utilities(MASKS, SEEDS, TEST, lambda outputs, labels: outputs.mean())

    expected = measured()
    with joblib.parallel_config(backend=backend or "loky"):
        assert_array_equal(measured(n_jobs=2 if backend else None), expected)


def test_the_same_bits_of_an_estimator_with_randomness_of_its_own():
    X = rng.normal(size=(40, 3))
    train, masks = (X, X[:, 0] > 0), rng.random((12, 40)) < 0.5
    test = (X[:9] + 0.1, X[:9, 0] > 0)
    forest = RandomForestClassifier(n_estimators=5)
    expected = Submodels(forest, train).utilities(masks, np.arange(12), test)
    found = Submodels(forest, train, n_jobs=2)
    assert_array_equal(found.utilities(masks, np.arange(12), test), expected)


def test_each_distinct_subset_and_seed_is_trained_once(tmp_path):
    submodels, log = counted(tmp_path, noise=1.0)
    twice = np.tile(MASKS, (2, 1)), np.tile(SEEDS, 2)
    assert submodels.fit(*twice) == TrainingReport(23, 0, 0, 0)
    assert submodels.fit(*twice) == TrainingReport(0, 23, 0, 0)
    found = submodels.utilities(*twice, TEST)
    assert_array_equal(found[:23], found[23:])
    assert len(trainings(log)) == 23 == len(set(trainings(log)))
    submodels.fit(MASKS, SEEDS + 1)
    assert len(trainings(log)) == 46


def test_without_a_use_for_seeds_all_seeds_share_a_submodel(tmp_path):
    submodels, log = counted(tmp_path)
    masks = np.repeat(MASKS[:3], 5, axis=0)
    assert submodels.fit(masks, np.arange(15)) == TrainingReport(3, 0, 0, 0)
    assert len(trainings(log)) == 3
    assert not submodels.seeded and counted(tmp_path, noise=0.1)[0].seeded


def test_the_order_of_the_rows_does_not_matter(tmp_path):
    submodels, log = counted(tmp_path, noise=1.0)
    order = rng.permutation(23)
    expected = submodels.utilities(MASKS, SEEDS, TEST)
    assert_array_equal(submodels.utilities(MASKS[order], SEEDS[order], TEST), expected[order])
    assert len(trainings(log)) == 23


def test_what_a_method_left_is_used_by_the_next(tmp_path):
    submodels, log = counted(tmp_path, noise=1.0)
    submodels.fit(MASKS[:10], SEEDS[:10])
    assert submodels.fit(MASKS[5:15], SEEDS[5:15]) == TrainingReport(5, 5, 0, 0)
    submodels.utilities(MASKS[5:15], SEEDS[5:15], TEST)
    submodels.utilities(MASKS[12:20], SEEDS[12:20], TEST)
    assert submodels.report() == {"trained": 20, "reused": 5, "failed": 0, "deferred": 0}
    submodels.utilities(MASKS[:20], SEEDS[:20], TEST)
    assert submodels.report()["reused"] == 10  # the first five had not been asked for since
    assert len(trainings(log)) == 20


def test_a_new_test_set_or_utility_only_predicts(tmp_path):
    submodels, log = counted(tmp_path, noise=1.0)
    submodels.fit(MASKS, SEEDS)
    other = (np.zeros(1), np.array([4.0]))
    by_risk = submodels.utilities(MASKS, SEEDS, other)
    by_output = submodels.utilities(MASKS, SEEDS, other, lambda outputs, labels: outputs)
    assert_array_equal(by_risk, -((by_output - 4.0) ** 2))
    assert submodels.utilities(MASKS, SEEDS, TEST).shape == (23, 3)
    assert len(trainings(log)) == 23


def test_what_was_measured_is_looked_up_by_content():
    calls = []

    def utility(outputs, labels):
        calls.append(len(labels))
        return outputs

    submodels = Submodels(MeanLearner(), TRAIN)
    first = submodels.utilities(MASKS, SEEDS, TEST, utility)
    assert len(calls) == len({mask.tobytes() for mask in MASKS})
    again = submodels.utilities(MASKS, SEEDS, (TEST[0].copy(), TEST[1].copy()), utility)
    assert_array_equal(again, first)
    submodels.utilities(MASKS, SEEDS, (TEST[0], TEST[1] + 1), utility)
    assert len(calls) == 2 * len({mask.tobytes() for mask in MASKS})


def test_results_of_test_sets_beyond_the_memory_are_measured_again():
    submodels = Submodels(MeanLearner(), TRAIN, memory=1000)
    tests = [(np.zeros(30), np.arange(30.0) + shift) for shift in (0, 1, 2)]
    for test in tests * 2:
        assert_allclose(submodels.utilities(MASKS, SEEDS, test), risks(MASKS, test[1]))
    assert submodels.report()["trained"] == 6 * len({mask.tobytes() for mask in MASKS})


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_beyond_the_memory_training_and_measuring_are_one_pass(tmp_path, n_jobs):
    one = len(pickle.dumps([0.5], protocol=5))
    submodels, log = counted(tmp_path, noise=1.0, memory=10 * one, n_jobs=n_jobs)
    report = submodels.fit(MASKS, SEEDS)
    assert report.trained > 0 and report.deferred > 0 and report.trained + report.deferred == 23
    known = len(trainings(log))
    assert known <= report.trained + 5  # what was under way when the memory was full
    expected = Submodels(MeanLearner(noise=1.0), TRAIN).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(submodels.utilities(MASKS, SEEDS, TEST), expected)
    assert len(trainings(log)) == known + report.deferred
    noticed = submodels.report()
    assert noticed["deferred"] == report.deferred
    assert "every test set" in noticed["trained_in_one_pass"]


def test_no_memory_at_all(tmp_path):
    submodels, log = counted(tmp_path, noise=1.0, memory=0)
    assert submodels.fit(MASKS, SEEDS).deferred == 23
    assert len(trainings(log)) == 1  # what one takes has to be known


def test_how_often_an_instance_is_in():
    counts = rng.integers(0, 4, (9, N)).astype(np.uint8)
    counts[:, 0] += 1
    expected = [np.repeat(LABELS, row).mean() for row in counts]
    for kind in (np.uint8, np.int64):
        submodels = Submodels(MeanLearner(), TRAIN)
        found = submodels.utilities(
            counts.astype(kind), np.zeros(9, int), TEST, lambda outputs, labels: outputs[0]
        )
        assert_allclose(found[:, 0], expected)
    # Zeros and ones are a mask; twos are not.
    ones = counts[:1].clip(max=1)
    assert submodels.fit(ones.astype(bool), [0]).trained == 1
    assert submodels.fit(ones, [0]) == TrainingReport(0, 1, 0, 0)
    assert submodels.fit(2 * ones, [0]) == TrainingReport(1, 0, 0, 0)


def test_groups_are_players():
    groups = np.array(["b", "a", "c", "a", "b", "c", "c"])
    submodels = Submodels(MeanLearner(), TRAIN, groups=groups)
    assert submodels.n == 3 and submodels.grouped
    assert submodels.players_ids.tolist() == ["a", "b", "c"]
    masks = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1]], bool)
    within = [np.isin(groups, list(names)) for names in ("a", "bc", "abc")]
    found = submodels.utilities(masks, np.zeros(3, int), TEST)
    assert_allclose(found, risks(within))
    with pytest.raises(InvalidInputError, match="3"):
        submodels.fit(MASKS, SEEDS)


@pytest.mark.parametrize(
    "groups", [np.zeros(6, int), np.zeros((7, 1), int), np.zeros(7), [None] * 7]
)
def test_there_is_a_group_for_each_instance(groups):
    with pytest.raises(InvalidInputError, match=r"groups: .* 7 training instances"):
        Submodels(MeanLearner(), TRAIN, groups=groups)


def test_players_are_the_training_instances():
    submodels = Submodels(MeanLearner(), TRAIN, ids=list("abcdefg"))
    assert submodels.n == N and not submodels.grouped
    assert submodels.players_ids.tolist() == list("abcdefg")
    assert submodels.train is submodels.players


@pytest.mark.parametrize(
    ("masks", "seeds", "named"),
    [
        (MASKS[:, 1:], SEEDS, "masks"),
        (MASKS.astype(float), SEEDS, "masks"),
        (MASKS[0], SEEDS[:1], "masks"),
        (MASKS * 300, SEEDS, "masks"),
        (-MASKS.astype(int), SEEDS, "masks"),
        (MASKS, SEEDS[1:], "seeds"),
        (MASKS, SEEDS + 0.5, "seeds"),
    ],
)
def test_masks_and_seeds_are_checked(masks, seeds, named):
    with pytest.raises(InvalidInputError, match=f"{named}: "):
        Submodels(MeanLearner(), TRAIN).fit(masks, seeds)


EMPTY = np.zeros((2, N), bool)


@pytest.mark.parametrize(
    ("policy", "constant"), [("prior", LABELS.mean()), ("uniform", 0.0), (-3.0, None)]
)
def test_the_empty_set(tmp_path, policy, constant):
    log = tmp_path / "trainings"
    submodels = Submodels(MeanLearner(log=log), TRAIN, empty=policy)
    expected = np.full(3, policy) if constant is None else -((constant - TEST[1]) ** 2)
    masks = np.concatenate([MASKS[:1], EMPTY])
    assert submodels.fit(masks, [0, 1, 2]) == TrainingReport(1, 0, 0, 0)
    assert_allclose(submodels.utilities(masks, [0, 1, 2], TEST)[1:], [expected] * 2)
    alone = submodels.utilities(EMPTY, [0, 0], TEST)
    assert_allclose(alone, [expected] * 2)
    as_one = submodels.utilities(EMPTY, [0, 0], TEST, lambda outputs, labels: outputs.sum())
    assert_allclose(as_one, [[policy if constant is None else 3 * constant]] * 2)
    assert len(trainings(log)) == 1


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("kind", LEARNERS)
@pytest.mark.parametrize("ahead", [True, False])
def test_failures_are_rows_of_nan_with_a_reason(tmp_path, kind, n_jobs, ahead):
    submodels, log = counted(tmp_path, kind, fails=(2,), n_jobs=n_jobs)
    failed = MASKS[:, 2]
    masks, kept = {row.tobytes() for row in MASKS}, {row.tobytes() for row in MASKS[~failed]}
    if ahead:
        report = submodels.fit(MASKS, SEEDS)
        assert (report.trained, report.failed) == (len(masks), len(masks) - len(kept))
    found = submodels.utilities(MASKS, SEEDS, TEST)
    assert np.isnan(found[failed]).all()
    assert_allclose(found[~failed], risks(MASKS[~failed]))
    noticed = submodels.report()
    assert noticed["failed"] == len(masks) - len(kept)
    assert all("ValueError: cannot be trained on" in reason for reason in noticed["failures"])
    assert json.loads(json.dumps(noticed)) == noticed
    submodels.utilities(MASKS, SEEDS, (np.zeros(1), np.ones(1)))
    again = len(trainings(log)) - len(masks)
    assert again == (0 if ahead else len(kept))  # what failed is not tried again


@pytest.mark.parametrize("kind", LEARNERS)
def test_if_all_fail_the_first_reason_is_raised(kind):
    submodels = Submodels(kind(noise=1.0, fails=range(N)), TRAIN)
    reason = rf"all 23 submodels failed, .* cannot be trained on \[{np.flatnonzero(MASKS[0])[0]}"
    with pytest.raises(ProponentError, match=reason):
        submodels.fit(MASKS, SEEDS)
    with pytest.raises(ProponentError, match=reason):
        submodels.utilities(MASKS, SEEDS, TEST)


def test_a_failing_utility_is_recorded():
    def picky(outputs, labels):
        if outputs[0] > 2:
            raise KeyError("too large")
        return outputs

    submodels = Submodels(MeanLearner(), TRAIN)
    found = submodels.utilities(MASKS, SEEDS, TEST, picky)
    means = np.array([LABELS[mask].mean() for mask in MASKS])
    assert 0 < (means > 2).sum() < 23
    assert_array_equal(np.isnan(found).all(axis=1), means > 2)
    assert_allclose(found[means <= 2, 0], means[means <= 2])
    (reason,) = submodels.report()["failures"]
    assert "utility was not measured: KeyError: 'too large'" in reason


def test_a_utility_that_always_fails_is_an_error():
    submodels = Submodels(MeanLearner(), TRAIN)
    with pytest.raises(ProponentError, match="TypeError"):
        submodels.utilities(MASKS, SEEDS, TEST, lambda outputs: outputs)


def test_a_utility_that_is_not_finite_is_a_failure():
    submodels = Submodels(MeanLearner(), TRAIN)
    found = submodels.utilities(
        MASKS, SEEDS, TEST, lambda outputs, labels: np.where(outputs > 2, np.inf, outputs)
    )
    means = np.array([LABELS[mask].mean() for mask in MASKS])
    assert_array_equal(np.isnan(found).all(axis=1), means > 2)
    (reason,) = submodels.report()["failures"]
    assert reason.endswith("is not finite")


def test_a_misuse_is_raised_at_once():
    X = rng.normal(size=(20, 2))
    submodels = Submodels(LogisticRegression(), (X, X[:, 0] > 0))
    with pytest.raises(InvalidInputError, match="test"):
        submodels.utilities(np.ones((1, 20), bool), [0], (X[:, :1], X[:, 0] > 0))


def test_a_training_of_many_at_once_that_kills_its_worker_fails_alone():
    learner = StackedLearner(kills=(2,))
    submodels = Submodels(learner, TRAIN, n_jobs=2)
    masks = ~np.eye(N, dtype=bool)[[0, 2, 1, 3]]
    masks[3, 2] = False  # one batch: two that kill, and two that do not
    found = submodels.utilities(masks, np.zeros(4, int), TEST)
    assert np.isnan(found).all(axis=1).tolist() == [True, False, True, False]
    assert_allclose(found[[1, 3]], risks(masks[[1, 3]]))


def test_a_training_that_kills_its_worker_fails_alone(tmp_path):
    submodels, _ = counted(tmp_path, kills=(2,), n_jobs=2)
    masks = ~np.eye(N, dtype=bool)
    masks[[1, 3, 4, 5], 2] = False  # two are left that kill
    seeds = np.zeros(N, int)
    assert submodels.fit(masks, seeds).failed == 2
    found = submodels.utilities(masks, seeds, TEST)
    deadly = masks[:, 2]
    assert deadly.sum() == 2
    assert np.isnan(found[deadly]).all()
    assert_allclose(found[~deadly], risks(masks[~deadly]))
    (reason,) = submodels.report()["failures"]
    assert "worker process died" in reason


def test_an_estimator_is_a_learner():
    X = rng.normal(size=(30, 2))
    y = np.where(X[:, 0] > 0, "yes", "no")
    masks = rng.random((4, 30)) < 0.7
    submodels = Submodels(LogisticRegression(), (X, y))
    found = submodels.utilities(masks, np.zeros(4, int), (X, y), "accuracy")
    expected = [LogisticRegression().fit(X[mask], y[mask]).predict(X) == y for mask in masks]
    assert_array_equal(found, expected)


def test_a_setting_that_makes_no_sense_is_refused():
    for memory in (-1, "1 GB", None):
        with pytest.raises(InvalidInputError, match="memory"):
            Submodels(MeanLearner(), TRAIN, memory=memory)
    with pytest.raises(InvalidInputError, match="empty"):
        Submodels(MeanLearner(), TRAIN, empty="zero")


def test_test_sets_of_any_kind_are_instances():
    submodels = Submodels(MeanLearner(), TRAIN)
    expected = submodels.utilities(MASKS, SEEDS, TEST)
    given = Instances.of(TEST, ids=["x", "y", "z"])
    assert_array_equal(submodels.utilities(MASKS, SEEDS, given), expected)


def test_progress_counts_submodels(capsys):
    submodels = Submodels(MeanLearner(noise=1.0), TRAIN, progress=True)
    submodels.fit(MASKS, SEEDS)
    submodels.utilities(MASKS, SEEDS, TEST)
    shown = capsys.readouterr().err
    assert "training submodels: 100%" in shown and "22/22" in shown  # one was trained before
    assert "measuring submodels: 100%" in shown


@pytest.mark.parametrize("policy", ["prior", "uniform", -7.25])
def test_a_subset_without_a_class_is_worth_what_the_empty_set_is(policy):
    X = rng.normal(size=(12, 2))
    y = np.repeat(["a", "b", "c"], 4)
    learner = SklearnLearner(DecisionTreeClassifier(), missing_classes="hold_empty")
    masks = np.array([y != "b", y == "a", np.ones(12, bool), np.zeros(12, bool), X[:, 0] < 9])
    submodels = Submodels(learner, (X, y), empty=policy)
    assert submodels.fit(masks, np.zeros(5, int)).trained == 1  # the last is the whole set too
    shares = np.full(3, 1 / 3)  # of a class, whether it is the prior or not
    expected = policy if isinstance(policy, float) else np.log(0.999 * shares[0] + 0.001 / 3)
    found = submodels.utilities(masks, np.zeros(5, int), (X[:2], y[:2]))
    assert_allclose(found[[0, 1, 3]], np.full((3, 2), expected), rtol=1e-12)
    assert (found[[2, 4]] > -0.01).all()
    twice = submodels.utilities(2 * masks.astype(np.uint8), np.zeros(5, int), (X[:2], y[:2]))
    assert_array_equal(twice[[0, 1, 3]], found[[0, 1, 3]])


def test_groups_that_lack_a_class_are_worth_what_the_empty_set_is():
    X, y = rng.normal(size=(12, 2)), np.repeat([0, 1, 2], 4)
    learner = SklearnLearner(DecisionTreeClassifier(), missing_classes="hold_empty")
    submodels = Submodels(learner, (X, y), groups=y, empty=-7.25)
    masks = np.array([[1, 1, 0], [1, 1, 1]], bool)
    found = submodels.utilities(masks, [0, 0], (X, y), "accuracy")
    assert_array_equal(found, [np.full(12, -7.25), np.ones(12)])


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("ahead", [True, False])
def test_what_trainings_warn_of_is_counted(n_jobs, ahead):
    X = rng.normal(size=(30, 4))
    train = (X, X[:, 0] > 0)
    masks = rng.random((40, 30)) < 0.7
    short = SklearnLearner(LogisticRegression(solver="saga", max_iter=1))
    submodels = Submodels(short, train, n_jobs=n_jobs)
    if ahead:
        submodels.fit(masks, np.arange(40))
    submodels.utilities(masks, np.arange(40), train)
    submodels.utilities(masks, np.arange(40), (X + 1, train[1]))
    noticed = submodels.report()
    assert noticed["warnings"] == {"ConvergenceWarning": noticed["trained"]}
    assert noticed["trained"] == (40 if ahead else 80)
    enough = Submodels(SklearnLearner(LogisticRegression()), train)
    enough.fit(masks[:3], np.arange(3))
    assert "warnings" not in enough.report()


@pytest.mark.parametrize("kind", [bool, np.uint8])
@pytest.mark.parametrize("changed", ["masks", "seeds"])
def test_masks_and_seeds_that_were_written_to_are_another_request(kind, changed):
    masks, seeds = MASKS[:6].astype(kind), SEEDS[:6].copy()
    submodels = Submodels(MeanLearner(noise=1.0), TRAIN)
    submodels.fit(masks, seeds)
    if changed == "masks":
        masks[:3] = MASKS[10:13]
    else:
        seeds[4] += 1
    again = Submodels(MeanLearner(noise=1.0), TRAIN).utilities(masks, seeds, TEST)
    assert_array_equal(submodels.utilities(masks, seeds, TEST), again)
    assert_array_equal(submodels.utilities(masks.copy(), seeds.copy(), TEST), again)


def test_masks_that_are_written_to_later_leave_what_is_trained_alone():
    masks, seeds = MASKS.copy(), SEEDS.copy()
    submodels = Submodels(MeanLearner(noise=1.0), TRAIN, memory=0)
    submodels.fit(masks, seeds)  # deferred
    same = masks.copy()
    masks[:] = ~masks
    expected = Submodels(MeanLearner(noise=1.0), TRAIN).utilities(MASKS, SEEDS, TEST)
    assert_array_equal(submodels.utilities(same, seeds, TEST), expected)


@pytest.fixture
def sizes(monkeypatch):
    """Return the sizes of the batches; by the clock training takes no time and measuring much."""
    found, real = [], Work.__call__

    def timed(work, batch):
        found.append(len(batch))
        each = 1e-5 if work.test is None else 0.03
        return replace(real(work, batch), seconds=each * len(batch))

    monkeypatch.setattr(Work, "__call__", timed)
    return found


def test_the_memory_is_filled(sizes):
    masks = rng.random((300, N)) < 0.5
    masks[:, 0] = True
    one = len(pickle.dumps([0.5], protocol=5))
    submodels = Submodels(MeanLearner(noise=1.0), TRAIN, memory=100 * one)
    assert submodels.fit(masks, np.arange(300)) == TrainingReport(100, 0, 0, 200)
    assert sizes == [1, 99]


def test_submodels_that_predict_slowly_are_measured_a_few_at_a_time(sizes):
    masks = rng.random((80, N)) < 0.5
    masks[:, 0] = True
    submodels = Submodels(MeanLearner(noise=1.0), TRAIN)
    submodels.fit(masks, np.arange(80))
    assert sizes == [1, 79]
    sizes.clear()
    found = submodels.utilities(masks, np.arange(80), TEST)
    assert sizes == [1, 16, 16, 16, 16, 15]  # half a second
    expected = Submodels(MeanLearner(noise=1.0), TRAIN).utilities(masks, np.arange(80), TEST)
    assert_array_equal(found, expected)


def test_predictions_of_models_have_one_shape():
    class Ragged(MeanTrainer):
        def risks_one(self, model, test):
            return np.full(3 if model > 2 else 1, model)

    trainer = Ragged(MeanLearner(), Instances.of(TRAIN))
    fitted = trainer.fit(MASKS, SEEDS)
    with pytest.raises(ValueError, match="predicts"):
        trainer.risks(fitted, trainer.prepare(Instances.of(TEST)))


def test_a_model_may_use_its_array_again():
    class Reusing(MeanTrainer):
        shared = np.zeros(3)

        def risks_one(self, model, test):
            self.shared[:] = (model - test.targets) ** 2
            return self.shared

    trainer = Reusing(MeanLearner(), Instances.of(TRAIN))
    found = trainer.risks(trainer.fit(MASKS, SEEDS), trainer.prepare(Instances.of(TEST)))
    assert_allclose(found, -risks(MASKS), rtol=1e-13)


def test_the_size_of_many_submodels_is_about_that_of_all():
    trainer = MeanTrainer(MeanLearner(), Instances.of(TRAIN))
    few, many = (Fitted([0.5] * 10, 10), Fitted([np.zeros(1000)] * 1, 1))
    assert trainer.nbytes(few) == len(pickle.dumps([0.5] * 10, protocol=5))
    several = Fitted([np.zeros(1000) + row for row in range(300)], 300)
    assert 0.95 < trainer.nbytes(several) / (300 * trainer.nbytes(many)) < 1.02
