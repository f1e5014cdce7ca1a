"""Class-wise Shapley: equal to enumeration, and what the sums and the scaling owe."""

from itertools import combinations, permutations, product
from math import comb

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.linear_model import Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.tree import DecisionTreeClassifier

import proponent as pp
from proponent.exceptions import (
    InvalidInputError,
    MethodCapabilityError,
    NotFittedError,
    ProponentError,
)
from proponent.models.nearest_learner import NearestNeighboursLearner
from proponent.retraining.class_walks import ClassWalks, utility_of_class, walk_class
from proponent.retraining.class_wise_marginals import ClassWiseMarginals
from proponent.retraining.class_wise_shapley import ClassWiseShapley
from proponent.retraining.coalitions import Coalitions, Table
from proponent.retraining.game import Game
from proponent.retraining.stopping import MaxModels
from proponent.retraining.submodels import Submodels

rng = np.random.default_rng(0)
X, Y = rng.normal(size=(8, 2)), np.array([0, 1, 2, 0, 1, 0, 1, 1])
X_TEST, Y_TEST = rng.normal(size=(11, 2)), np.array([0, 1, 0, 2, 1, 1, 0, 2, 1, 0, 1])
PRIOR = (np.bincount(Y) + 1) / (len(Y) + 3)
LEARNER = NearestNeighboursLearner(3)


def predicted(chosen, x):
    """Return the vote of the three nearest, by hand; without any, the prior's."""
    shares = np.zeros(3)
    near = sorted(chosen, key=lambda i: (((X[i] - x) ** 2).sum(), i))[:3]
    for i in near:
        shares[Y[i]] += 1
    return int((shares if near else PRIOR).argmax())


def utility(chosen, label, X_test=X_TEST, y_test=Y_TEST):
    right = [predicted(chosen, x) == y for x, y in zip(X_test, y_test, strict=True)]
    inside = sum(hit for hit, y in zip(right, y_test, strict=True) if y == label)
    return inside / len(y_test) * np.exp((sum(right) - inside) / len(y_test))


def subsets(of):
    return [chosen for size in range(len(of) + 1) for chosen in combinations(of, size)]


def exact_values(X_test=X_TEST, y_test=Y_TEST):
    """Return the value of each instance, by going through all C and all S."""
    values = np.zeros(len(Y))
    for label in range(3):
        members = np.flatnonzero(label == Y).tolist()
        contexts = subsets(np.flatnonzero(label != Y).tolist())
        for context in contexts:
            worth = {S: utility(S + context, label, X_test, y_test) for S in subsets(members)}
            for i in members:
                for S in subsets([j for j in members if j != i]):
                    gain = worth[tuple(sorted((*S, i)))] - worth[S]
                    weight = len(members) * comb(len(members) - 1, len(S)) * len(contexts)
                    values[i] += gain / weight
    return values


EXACT = exact_values()


def all_walks():
    """Return every order of every class in every context, and their coalitions."""
    walks, masks = [], [np.ones(8, dtype=bool)]
    for label in range(3):
        members = np.flatnonzero(label == Y)
        orders, rows = [], []
        others = np.flatnonzero(label != Y).tolist()
        for order, context in product(permutations(members), subsets(others)):
            orders.append(order)
            rows.append(np.arange(len(masks), len(masks) + len(members) + 1))
            for step in range(len(members) + 1):
                masks.append(np.isin(np.arange(8), [*context, *order[:step]]))
        walks.append(ClassWalks(label, members, np.array(orders), np.array(rows)))
    return walks, Coalitions(np.array(masks), np.zeros(len(masks), dtype=np.int64))


def fitted(n_permutations=40, learner=LEARNER, test=(X_TEST, Y_TEST), **settings):
    return ClassWiseShapley(n_permutations, **settings).fit(learner, (X, Y), test=test)


def correct(coalitions, test=(X_TEST, Y_TEST)):
    rows = [
        [predicted(np.flatnonzero(mask), x) == y for x, y in zip(*test, strict=True)]
        for mask in coalitions.masks
    ]
    return np.array(rows, dtype=float)


def test_all_walks_together_are_the_enumeration():
    walks, coalitions = all_walks()
    seen, where = np.unique(coalitions.masks, axis=0, return_inverse=True)
    table = Table(
        coalitions, correct(Coalitions(seen, coalitions.seeds[: len(seen)]))[where.ravel()]
    )
    marginals = ClassWiseMarginals(walks, Y_TEST, np.arange(3), normalise=False)
    assert marginals.on(table).players(range(8)).values[0] == pytest.approx(EXACT, abs=1e-12)
    scaled = ClassWiseMarginals(walks, Y_TEST, np.arange(3), normalise=True)
    found = scaled.on(table).players(range(8)).values[0]
    for label in range(3):
        own = label == Y
        accuracy = sum(predicted(range(8), x) == label for x in X_TEST[label == Y_TEST]) / 11
        if accuracy and EXACT[own].sum() > 0:
            assert found[own] == pytest.approx(EXACT[own] * accuracy / EXACT[own].sum(), abs=1e-12)


def test_sampled_values_are_within_their_errors():
    found = fitted(2000, tolerance=0, normalise=False).influence()
    assert found.values.shape == (8,) and found.test_ids is None
    assert (np.abs(found.values - EXACT) <= 4 * found.std_error).all()
    assert found.std_error.max() < 0.01
    assert np.abs(EXACT).max() > 0.05


def test_values_of_a_class_sum_to_what_the_class_adds_to_its_contexts():
    method = fitted(30, tolerance=0, normalise=False)
    found, masks = method.influence(), method._coalitions.masks
    for label, walk in enumerate(method._walks):
        start, end = walk.rows[:, 0], walk.rows[:, -1]
        gains = [
            utility(np.flatnonzero(masks[b]), label) - utility(np.flatnonzero(masks[a]), label)
            for a, b in zip(start, end, strict=True)
        ]
        assert found.values[label == Y].sum() == pytest.approx(np.mean(gains), abs=1e-12)
    assert found.diagnostics["efficiency_gap"] == pytest.approx(0, abs=1e-12)


def test_scaled_values_sum_to_the_accuracy():
    plain = fitted(30, tolerance=0, normalise=False).influence()
    found = fitted(30, tolerance=0).influence()
    whole = [predicted(range(8), x) == y for x, y in zip(X_TEST, Y_TEST, strict=True)]
    for label in range(3):
        own = label == Y
        accuracy = sum(hit for hit, y in zip(whole, Y_TEST, strict=True) if y == label) / 11
        total = plain.values[own].sum()
        if accuracy and total > 0:
            assert found.values[own].sum() == pytest.approx(accuracy, abs=1e-12)
            scale = found.diagnostics["scales"][str(label)]
            assert scale == pytest.approx(accuracy / total)
            assert found.std_error[own] == pytest.approx(plain.std_error[own] * scale)
        else:
            assert_array_equal(found.values[own], plain.values[own])


@pytest.mark.parametrize("tolerance", [0.05, 0.4])
def test_orders_are_cut_near_their_end(tolerance):
    """Walked by hand in the same orders."""
    method = fitted(25, tolerance=tolerance, normalise=False)
    found, masks = method.influence(), method._coalitions.masks
    values, steps, cuts = np.zeros(8), 0, 0
    for label, walk in enumerate(method._walks):
        for order, rows in zip(walk.orders, walk.rows, strict=True):
            context = np.flatnonzero(masks[rows[0]]).tolist()
            end, before = utility([*context, *order], label), utility(context, label)
            for step, i in enumerate(order):
                if step + 1 < len(order) or step == 0:
                    near = abs(end - before) <= tolerance * abs(end) and len(order) > 1
                else:
                    near = False
                if near:
                    cuts += 1
                    break
                after = utility([*context, *order[: step + 1]], label)
                values[i] += (after - before) / 25
                before = after
                steps += 1
    assert cuts > 0
    assert found.values == pytest.approx(values, abs=1e-12)
    whole = fitted(25, tolerance=0, normalise=False)
    assert len(method._coalitions) < len(whole._coalitions)
    assert found.diagnostics["efficiency_gap"] > 0


def test_one_class_alone_has_the_shapley_value_of_its_accuracy():
    points, labels = X[:4], np.zeros(4, dtype=int)
    test = (X_TEST, np.zeros(11, dtype=int))
    method = ClassWiseShapley(5, tolerance=0, empty=0.0)
    found = method.fit(NearestNeighboursLearner(2), (points, labels), test=test).influence()
    # Any instance makes the model right, and the first to come gets it all: 1 shared by 4 orders.
    assert found.values.sum() == pytest.approx(1)
    walks = method._walks[0]
    first = [(walks.orders[:, 0] == i).mean() for i in range(4)]
    assert found.values == pytest.approx(first)


def test_a_class_without_a_test_instance_is_not_scored():
    some = Y_TEST != 2
    test = X_TEST[some], Y_TEST[some]
    found = fitted(200, test=test, normalise=False, tolerance=0).influence()
    assert_array_equal(np.isnan(found.values), Y == 2)
    assert "not scored: 2" in found.diagnostics["warnings"][0]
    exact = exact_values(X_TEST[some], Y_TEST[some])
    own = Y != 2
    assert (np.abs(found.values - exact)[own] <= 5 * found.std_error[own] + 1e-12).all()


def test_a_class_that_is_never_right_is_not_scaled():
    """All tests of class 2 lie among those of class 1."""
    test = (np.concatenate([X, X[[1, 4]]]), np.concatenate([Y, [2, 2]]))
    learner = NearestNeighboursLearner(1)
    keep = Y != 2
    test = (test[0][np.r_[keep, True, True]], test[1][np.r_[keep, True, True]])
    found = fitted(20, learner, test, tolerance=0).influence()
    plain = fitted(20, learner, test, tolerance=0, normalise=False).influence()
    assert set(found.diagnostics["scales"]) == {"0", "1"}
    assert any(
        "not scaled" in text and text.endswith(": 2") for text in found.diagnostics["warnings"]
    )
    assert_array_equal(found.values[Y == 2], plain.values[Y == 2])
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize("tolerance", [0.0, 0.1])
def test_more_permutations_begin_with_fewer(tolerance):
    few, many = fitted(5, tolerance=tolerance), fitted(9, tolerance=tolerance)
    for one, other in zip(few._walks, many._walks, strict=True):
        assert_array_equal(other.orders[:5], one.orders)
        for a, b in zip(one.rows, other.rows, strict=False):
            assert_array_equal(a >= 0, b >= 0)
            before, after = few._coalitions.take(a[a >= 0]), many._coalitions.take(b[b >= 0])
            assert_array_equal(after.masks, before.masks)
            assert_array_equal(after.seeds, before.seeds)


def test_another_test_set_is_measured_on_the_same_subsets():
    other = (X_TEST[::-1] + 0.1, Y_TEST[::-1])
    method = fitted(20, tolerance=0)
    expected = fitted(20, test=other, tolerance=0).influence().values
    assert_array_equal(method.influence(other).values, expected)
    without = fitted(20, test=None, tolerance=0)
    assert_array_equal(without.influence(other).values, expected)
    with pytest.raises(InvalidInputError, match="pass the test set"):
        without.influence()
    lacking = fitted(20, test=(X_TEST[Y_TEST != 2], Y_TEST[Y_TEST != 2]), tolerance=0)
    found = lacking.influence((X_TEST, Y_TEST))
    assert_array_equal(np.isnan(found.values), Y == 2)
    assert "test set of fit lacked" in found.diagnostics["warnings"][0]


@pytest.mark.parametrize("names", [[1, 2, 3], ["ant", "bee", "cat"]])
def test_the_names_of_the_classes_change_nothing(names):
    names = np.array(names)
    expected = fitted(10).influence().values
    test = (X_TEST, names[Y_TEST])
    found = ClassWiseShapley(10).fit(LEARNER, (X, names[Y]), test=test).influence()
    assert_array_equal(found.values, expected)


def test_more_training_than_test_instances():
    """The test set has a split of its own."""
    found = fitted(400, test=(X_TEST[:3], Y_TEST[:3]), tolerance=0, normalise=False).influence()
    exact = exact_values(X_TEST[:3], Y_TEST[:3])
    own = Y != 2
    assert (np.abs(found.values - exact)[own] <= 5 * found.std_error[own] + 1e-12).all()


def test_a_permutation_with_a_failed_training_is_left_out():
    codes = np.array([0, 0, 1])
    walk, coalitions = walk_class(
        0, codes, 3, np.random.default_rng(0), first_row=0, tolerance=0, worth=None
    )
    worths = np.arange(9.0) ** 2
    table = Table(coalitions, np.stack([worths, np.zeros(9)], axis=1))
    marginals, whole = walk.marginals(worths)
    assert whole.all()
    bad = worths.copy()
    bad[walk.rows[1, 1]] = np.nan
    found, kept = walk.marginals(bad)
    assert_array_equal(kept, [True, False, True])
    assert_array_equal(found[kept], marginals[kept])
    estimator = ClassWiseMarginals([walk], np.array([0, 1]), np.arange(2), normalise=False)
    broken = Table(coalitions, np.stack([bad, np.zeros(9)], axis=1))
    estimated = estimator.on(broken)
    expected = (found[[0, 2]] / 2).mean(axis=0)
    assert estimated.players(range(2)).values[0] == pytest.approx(expected)
    assert estimated.noticed()["permutations_left_out"] == 1
    nothing = Table(coalitions, np.full((9, 2), np.nan))
    assert np.isnan(estimator.on(nothing).players(range(3)).values).all()
    assert "failed training" in " ".join(estimator.on(nothing).noticed()["warnings"])
    with pytest.raises(ProponentError, match="normalise=False"):
        broken.utilities[0] = np.nan
        ClassWiseMarginals([walk], np.array([0, 1]), np.arange(2), normalise=True).on(broken)
    assert table.n == 3


def test_a_walk_whose_end_failed_counts_for_nothing():
    def worth(part):
        return np.where(part.masks[:, :2].all(axis=1), np.nan, 0.3)

    walk, coalitions = walk_class(
        0, np.array([0, 0, 1]), 4, np.random.default_rng(0), first_row=0, tolerance=0.1, worth=worth
    )
    assert len(coalitions) == 8
    assert not walk.marginals(worth(coalitions))[1].any()


def test_the_utility():
    right = np.array([[1.0, 0, 1, 1], [0, 0, 1, 0], [1, 1, 0, 0]])
    found = utility_of_class(right, np.array([True, True, False, False]))
    assert found == pytest.approx([0.25 * np.exp(0.5), 0, 0.5])


def test_trainings_of_a_permutation_share_their_seed():
    method = fitted(6, tolerance=0)
    coalitions = method._coalitions
    for walk in method._walks:
        for rows in walk.rows:
            assert len(np.unique(coalitions.seeds[rows])) == 1
            steps = np.diff(coalitions.masks[rows].astype(int), axis=0)
            assert_array_equal(steps.sum(axis=1), 1)
            assert steps.min() == 0
    contexts = np.concatenate([coalitions.masks[walk.rows[:, 0]] for walk in method._walks])
    assert not contexts[:6][:, Y == 0].any()


def test_shards_ids_seeds_and_jobs():
    ids = list("abcdefgh")
    settings = {"test": (X_TEST, Y_TEST)}
    whole = ClassWiseShapley(10).fit(LEARNER, (X, Y), ids=ids, **settings)
    values = whole.influence().values
    parts = [whole.influence(shard=(i, 3)) for i in range(3)]
    assert_array_equal(np.concatenate([part.values for part in parts]), values)
    assert_array_equal(np.concatenate([part.train_ids for part in parts]), ids)
    assert_array_equal(fitted(10, seed=0).influence().values, values)
    assert np.abs(fitted(10, seed=1).influence().values - values).max() > 1e-3
    assert whole.influence().ranking()[0] == np.array(ids)[values.argmax()]
    again = ClassWiseShapley(10).fit(Submodels(LEARNER, (X, Y)), **settings)
    assert_array_equal(again.influence().values, values)


def test_nothing_is_trained_twice():
    for tolerance in (0, 0.05):
        method = fitted(10, tolerance=tolerance)
        masks = np.unique(method._coalitions.masks, axis=0)
        assert method.influence().diagnostics["trained"] == masks.any(axis=1).sum()
        method.influence((X, Y))
        assert method.influence().diagnostics["trained"] == masks.any(axis=1).sum()
        assert method.influence().diagnostics["permutations"] == 30


def test_the_expectation_over_seeds():
    tree = DecisionTreeClassifier(max_features=1)
    method = fitted(5, tree, tolerance=0, normalise=False)
    found = method.expected(repeats=3)
    assert found.values.shape == found.std_error.shape == (8,)
    assert found.diagnostics["repeats"] == 3
    assert found.std_error.max() > 0
    assert (np.abs(found.values - method.influence().values) <= 6 * found.std_error + 0.05).all()


def test_refusals():
    train, test = (X, Y), (X_TEST, Y_TEST)
    with pytest.raises(NotFittedError, match="ClassWiseShapley is not fitted"):
        ClassWiseShapley().influence(test)
    for settings, message in (
        ({"utility": "risk"}, "utility: ClassWiseShapley is made of accuracies"),
        ({"stop": MaxModels(5)}, "stop: ClassWiseShapley takes none"),
        ({"tolerance": -1}, "tolerance must be"),
        ({"n_permutations": 0}, "n_permutations"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            ClassWiseShapley(**settings).fit(LEARNER, train, test=test)
    with pytest.raises(InvalidInputError, match="test: ClassWiseShapley cuts"):
        ClassWiseShapley().fit(LEARNER, train)
    with pytest.raises(InvalidInputError, match="groups: the players"):
        ClassWiseShapley().fit(LEARNER, train, groups=Y, test=test)
    with pytest.raises(InvalidInputError, match="model: ClassWiseShapley needs"):
        ClassWiseShapley().fit(Game(3, lambda mask: 1.0))
    with pytest.raises(InvalidInputError, match="labels 7 are none"):
        ClassWiseShapley().fit(LEARNER, train, test=(X_TEST, np.full(11, 7)))
    with pytest.raises(InvalidInputError, match="are no classes"):
        ClassWiseShapley().fit(Ridge(), (X, X[:, 0]), test=(X_TEST, X_TEST[:, 0]))
    method = fitted(3)
    for asked in ({"top_k": 2}, {"joint": False}):
        with pytest.raises(MethodCapabilityError, match="for the test set as a whole"):
            method.influence(**asked)
    with pytest.raises(MethodCapabilityError, match="ClassWiseShapley has no memorization"):
        method.memorization()
    with pytest.raises(MethodCapabilityError, match="has no group influence"):
        method.group_influence({"a": [0, 1]})
    with pytest.raises(InvalidInputError, match="no randomness"):
        method.expected()


def test_it_is_listed_and_cloned():
    assert repr(ClassWiseShapley()) == "ClassWiseShapley()"
    method = ClassWiseShapley(5)
    assert method.fit(GaussianNB(), (X, Y), test=(X_TEST, Y_TEST)) is method
    assert isinstance(method.influence(), pp.Influence)
    assert method.influence().diagnostics["joint"] == {"reduction": "class-wise", "n_test": 11}
