"""k nearest neighbours on subsets: scikit-learn's, and the closed forms' where there are ties."""

import pickle
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest
from models.subset_examples import bootstraps, members, seeds, subsets
from numpy.testing import assert_array_equal
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.models import nearest_learner, neighbour_votes
from proponent.models.nearest_learner import NearestNeighboursLearner
from proponent.retraining.neighbours.shapley import KNNShapley

rng = np.random.default_rng(0)
X, X_TEST = rng.normal(size=(60, 4)), rng.normal(size=(9, 4))
NAMES = np.array(["ant", "bee", "cat"])
Y, Y_TEST = NAMES[rng.integers(0, 3, 60)], NAMES[rng.integers(0, 3, 9)]
T, T_TEST = rng.normal(size=(60, 2)), rng.normal(size=(9, 2))
COUNTS = {"subsets": subsets(60, 40, smallest=7), "bootstrap": bootstraps(60, 40)}


def outputs(learner, train, test, counts):
    trainer = learner.bind(Instances.of(train))
    fitted = trainer.fit(counts, seeds(counts))
    return trainer.outputs(fitted, trainer.prepare(Instances.of(test)))


def risks(learner, train, test, counts):
    trainer = learner.bind(Instances.of(train))
    fitted = trainer.fit(counts, seeds(counts))
    return trainer.risks(fitted, trainer.prepare(Instances.of(test)))


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("k", [1, 3, 7])
def test_a_classifier_is_scikit_learns(k, kind):
    counts = COUNTS[kind]
    found = outputs(NearestNeighboursLearner(k), (X, Y), (X_TEST, Y_TEST), counts)
    assert found.shape == (40, 9, 3)
    for row, counted in zip(found, counts, strict=True):
        chosen = members(counted)
        model = KNeighborsClassifier(k).fit(X[chosen], Y[chosen])
        expected = np.zeros((9, 3))
        expected[:, np.searchsorted(NAMES, model.classes_)] = model.predict_proba(X_TEST)
        assert row == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("k", [1, 3, 7])
@pytest.mark.parametrize("several", [False, True])
def test_a_regressor_is_scikit_learns(several, k, kind):
    target, target_test = (T, T_TEST) if several else (T[:, 0], T_TEST[:, 0])
    learner = NearestNeighboursLearner(k, task="regression")
    given = learner, (X, target), (X_TEST, target_test), COUNTS[kind]
    found, costs = outputs(*given), risks(*given)
    for row, cost, counted in zip(found, costs, COUNTS[kind], strict=True):
        chosen = members(counted)
        expected = KNeighborsRegressor(k).fit(X[chosen], target[chosen]).predict(X_TEST)
        assert row == pytest.approx(expected, abs=1e-13)
        errors = ((expected - target_test) ** 2).reshape(9, -1).sum(axis=1)
        assert cost == pytest.approx(errors, abs=1e-12)


def test_a_subset_smaller_than_k_predicts_from_all_it_has():
    masks = np.zeros((2, 60), dtype=bool)
    masks[0, [4, 9, 33]] = masks[1, 50] = True
    found = outputs(NearestNeighboursLearner(5), (X, Y), (X_TEST, Y_TEST), masks)
    shares = [(Y[[4, 9, 33]] == name).mean() for name in NAMES]
    assert found[0] == pytest.approx(np.tile(shares, (9, 1)), abs=1e-12)
    assert_array_equal(found[1], np.tile(Y[50] == NAMES, (9, 1)))
    values = NearestNeighboursLearner(5, task="regression")
    assert outputs(values, (X, T[:, 0]), (X_TEST, T_TEST[:, 0]), masks)[0] == pytest.approx(
        np.full(9, T[[4, 9, 33], 0].mean())
    )


def test_an_instance_may_be_in_any_number_of_times():
    counts = np.zeros((1, 60), dtype=np.int64)
    counts[0, [4, 9]] = 256, 1
    found = outputs(NearestNeighboursLearner(300), (X, Y), (X_TEST, Y_TEST), counts)
    expected = (256 * (Y[4] == NAMES) + (Y[9] == NAMES)) / 257
    assert found[0] == pytest.approx(np.tile(expected, (9, 1)), abs=1e-7)
    counts[0, 4] = 2**9
    found = outputs(NearestNeighboursLearner(3), (X, Y), (X_TEST, Y_TEST), counts)
    first = ((X[4] - X_TEST) ** 2).sum(axis=1) < ((X[9] - X_TEST) ** 2).sum(axis=1)
    assert_array_equal(found[0, first], np.tile(Y[4] == NAMES, (first.sum(), 1)))
    assert first.sum() > 0


def test_of_equal_distances_the_first_in_the_training_set_is_nearer():
    points = np.array([[1.0], [-1.0], [1.0], [-1.0], [0.0]])
    labels = [0, 1, 2, 3, 4]
    masks = np.array([[1, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 1, 1, 1]], dtype=bool)
    found = outputs(NearestNeighboursLearner(2), (points, labels), ([[0.0]], [0]), masks)
    expected = [[0.5, 0.5, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0, 0.5, 0, 0.5]]
    assert_array_equal(found[:, 0], expected)


@pytest.mark.parametrize("k", [1, 3, 9])
def test_its_shapley_values_are_those_of_the_closed_form(k):
    """Ties included: the features are on a grid."""
    n = 8
    points = rng.integers(0, 2, (n, 2)).astype(float)
    tests = (rng.integers(0, 2, (3, 2)).astype(float), np.array([0, 1, 0]))
    labels = np.array([0, 1, 0, 0, 1, 1, 0, 1])
    masks = np.array([[bit >> i & 1 for i in range(n)] for bit in range(1, 2**n)], dtype=bool)
    found = outputs(NearestNeighboursLearner(k), (points, labels), tests, masks)
    right = found[:, np.arange(3), tests[1]]
    worth = {0: np.full(3, 0.5)} | {bit: right[bit - 1] for bit in range(1, 2**n)}
    values = np.zeros((3, n))
    for i in range(n):
        others = [j for j in range(n) if j != i]
        for size in range(n):
            for chosen in combinations(others, size):
                bit = sum(1 << j for j in chosen)
                values[:, i] += (worth[bit | 1 << i] - worth[bit]) / (n * comb(n - 1, size))
    closed = KNNShapley(k, divide_by="neighbours").fit((points, labels)).influence(tests)
    assert values == pytest.approx(closed.values, abs=1e-7)


@pytest.mark.parametrize("blocks", [(1, 1), (50, 2), (10**4, 7)])
def test_the_blocks_change_nothing(blocks, monkeypatch):
    """The farthest alone too, for which the first look finds too few."""
    learner = NearestNeighboursLearner(3)
    far = np.argsort(((X - X_TEST[0]) ** 2).sum(axis=1))
    masks = np.concatenate([subsets(60, 30), np.isin(np.arange(60), far[-4:])[None]])
    masks = np.concatenate([masks, (~np.isin(np.arange(60), far[:30]))[None]])
    expected = outputs(learner, (X, Y), (X_TEST, Y_TEST), masks)
    model = KNeighborsClassifier(3).fit(X[masks[-1]], Y[masks[-1]])
    assert expected[-1] == pytest.approx(model.predict_proba(X_TEST), abs=1e-7)
    cost = risks(learner, (X, Y), (X_TEST, Y_TEST), masks)
    monkeypatch.setattr(neighbour_votes, "AT_ONCE", blocks[0])
    monkeypatch.setattr(neighbour_votes, "TESTS_AT_ONCE", blocks[1])
    monkeypatch.setattr(nearest_learner, "KEPT_BYTES", 0)
    assert_array_equal(outputs(learner, (X, Y), (X_TEST, Y_TEST), masks), expected)
    assert_array_equal(risks(learner, (X, Y), (X_TEST, Y_TEST), masks), cost)


def test_risks():
    counts = COUNTS["bootstrap"]
    given = (X, Y), (X_TEST, Y_TEST), counts
    shares = outputs(NearestNeighboursLearner(3), *given)
    right = shares[:, np.arange(9), np.searchsorted(NAMES, Y_TEST)]
    expected = -np.log(0.999 * right + 0.001 / 3)
    assert risks(NearestNeighboursLearner(3), *given) == pytest.approx(expected)
    zero_one = risks(NearestNeighboursLearner(3, risk="zero_one"), *given)
    assert_array_equal(zero_one, NAMES[shares.argmax(axis=2)] != Y_TEST)
    with pytest.raises(NonFiniteError, match="gives their class probability 0"):
        risks(NearestNeighboursLearner(1, smoothing=0), *given)


def test_without_training_instances():
    test = Instances.of((X_TEST, Y_TEST))
    trainer = NearestNeighboursLearner(smoothing=0).bind(Instances.of((X, Y)))
    frequencies = (np.array([(name == Y).sum() for name in NAMES]) + 1) / 63
    for kind, expected in (("prior", frequencies), ("uniform", np.full(3, 1 / 3))):
        fitted = trainer.constant(kind)
        assert trainer.outputs(fitted, trainer.prepare(test)) == pytest.approx(
            np.tile(expected, (1, 9, 1))
        )
        cost = -np.log(expected)[np.searchsorted(NAMES, Y_TEST)]
        assert trainer.risks(fitted, trainer.prepare(test)) == pytest.approx(cost[None])
    with pytest.raises(MethodCapabilityError, match="empty='init'"):
        trainer.constant("init")
    values = NearestNeighboursLearner(task="regression").bind(Instances.of((X, T)))
    prepared = values.prepare(Instances.of((X_TEST, T_TEST)))
    found = values.outputs(values.constant("prior"), prepared)
    assert found == pytest.approx(np.tile(T.mean(axis=0), (1, 9, 1)))


def test_submodels_are_stored_as_arrays_and_sent_to_workers():
    trainer = NearestNeighboursLearner(3).bind(Instances.of((X, Y)))
    test = trainer.prepare(Instances.of((X_TEST, Y_TEST)))
    for fitted in (
        trainer.fit(COUNTS["subsets"], seeds(COUNTS["subsets"])),
        trainer.constant("prior"),
    ):
        arrays = trainer.to_arrays(fitted)
        assert trainer.nbytes(fitted) == sum(array.nbytes for array in arrays.values())
        again = pickle.loads(pickle.dumps(trainer))
        loaded = again.from_arrays(arrays, fitted.size, {})
        assert_array_equal(again.risks(loaded, test), trainer.risks(fitted, test))


def test_what_was_fitted_does_not_follow_the_masks():
    masks = COUNTS["subsets"].copy()
    trainer = NearestNeighboursLearner(3).bind(Instances.of((X, Y)))
    test = trainer.prepare(Instances.of((X_TEST, Y_TEST)))
    fitted = trainer.fit(masks, seeds(masks))
    before = trainer.risks(fitted, test)
    masks[:] = False
    assert_array_equal(trainer.risks(fitted, test), before)


def test_recipes():
    recipes = [
        NearestNeighboursLearner(),
        NearestNeighboursLearner(k=6),
        NearestNeighboursLearner(task="regression"),
        NearestNeighboursLearner(risk="brier"),
        NearestNeighboursLearner(smoothing=0.1),
    ]
    assert len({learner.recipe() for learner in recipes}) == len(recipes)
    assert NearestNeighboursLearner(k=5).recipe() == recipes[0].recipe()


def test_the_form_of_the_data_changes_nothing():
    counts = COUNTS["bootstrap"]
    expected = risks(NearestNeighboursLearner(3), (X, Y), (X_TEST, Y_TEST), counts)
    frames = (pd.DataFrame(X), pd.Series(Y)), (pd.DataFrame(X_TEST), pd.Series(Y_TEST))
    assert_array_equal(risks(NearestNeighboursLearner(3), *frames, counts), expected)
    images = (X.reshape(60, 2, 2), Y), (X_TEST.reshape(9, 2, 2), Y_TEST)
    assert_array_equal(risks(NearestNeighboursLearner(3), *images, counts), expected)


def test_refusals():
    train = Instances.of((X, Y))
    for wrong in (0, 2.5, "five"):
        with pytest.raises(InvalidInputError, match="k"):
            NearestNeighboursLearner(wrong).bind(train)
    with pytest.raises(InvalidInputError, match=r"task: .*'classification', 'regression'"):
        NearestNeighboursLearner(task="ranking").bind(train)
    with pytest.raises(InvalidInputError, match="risk"):
        NearestNeighboursLearner(risk="squared").bind(train)
    with pytest.raises(InvalidInputError, match="text need a classifier"):
        NearestNeighboursLearner(task="regression").bind(train)
    trainer = NearestNeighboursLearner().bind(train)
    with pytest.raises(InvalidInputError, match="3 features, those of the training set 4"):
        trainer.prepare(Instances.of((X_TEST[:, :3], Y_TEST)))
    with pytest.raises(InvalidInputError, match="labels 'dog' are none"):
        trainer.prepare(Instances.of((X_TEST, np.full(9, "dog"))))
    missing = X.copy()
    missing[7, 2] = np.nan
    with pytest.raises(NonFiniteError, match=r"train: features of 1 instances.* ids 7"):
        NearestNeighboursLearner().bind(Instances.of((missing, Y)))
    with pytest.raises(InvalidInputError, match="train: the features are not all numbers"):
        NearestNeighboursLearner().bind(Instances.of((np.full((60, 1), "a"), Y)))
    with pytest.raises(InvalidInputError, match="train: expected features of shape"):
        NearestNeighboursLearner().bind(Instances.of((X[:, 0], Y)))
    framed = NearestNeighboursLearner().bind(
        Instances.of((pd.DataFrame(X, columns=list("abcd")), Y))
    )
    with pytest.raises(InvalidInputError, match=r"d, c, b, a are not, .* \(a, b, c, d\)"):
        framed.prepare(Instances.of((pd.DataFrame(X_TEST, columns=list("dcba")), Y_TEST)))
