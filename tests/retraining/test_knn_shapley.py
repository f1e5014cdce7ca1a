"""Semivalues of k nearest neighbours: equal to enumeration, whatever the game and the data."""

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_array_equal
from retraining.knn_games import (
    SEMIVALUES,
    average_game,
    by_distance,
    semivalues,
    squared_error_game,
)

from proponent.exceptions import InvalidInputError, MethodCapabilityError, NonFiniteError
from proponent.influence import Influence
from proponent.models import nearest_points
from proponent.retraining.neighbours.shapley import KNNShapley
from proponent.retraining.semivalues import BetaWeights

EXACT = 1e-12


def labelled(n, m=2, seed=0, classes=3):
    """Return n training and m test instances, with labels and with targets."""
    rng = np.random.default_rng(seed)
    X, X_test = rng.normal(size=(n, 2)), rng.normal(size=(m, 2))
    labels = rng.integers(0, classes, n), rng.integers(0, classes, m)
    targets = rng.normal(size=n) + 1, rng.normal(size=m) + 1
    return X, X_test, labels, targets


def tied(n, m=2, seed=0):
    """Return instances most of whose distances are equal to others', and some of them the same."""
    rng = np.random.default_rng(seed)
    _, _, labels, targets = labelled(n, m, seed)
    grid = rng.integers(0, 2, (n, 2)).astype(float), rng.integers(0, 2, (m, 2)).astype(float)
    return *grid, labels, targets


def expected_values(data, k, law, *, utility, divide_by, empty):
    X, X_test, (y, y_test), (t, t_test) = data
    rows = []
    for position, x in enumerate(X_test):
        ranking = by_distance(X, x)
        settings = {"divide_by": divide_by, "empty": empty}
        if utility == "regression":
            game = squared_error_game(t, t_test[position], ranking, k, **settings)
        else:
            game = average_game((y == y_test[position]).astype(float), ranking, k, **settings)
        rows.append(semivalues(game, len(X), law))
    return np.array(rows)


def found_values(data, utility, **settings):
    X, X_test, labels, targets = data
    y, y_test = targets if utility == "regression" else labels
    return KNNShapley(utility=utility, **settings).fit((X, y)).influence((X_test, y_test)).values


def default_empty(data, utility, divide_by):
    soft = utility == "classification" and divide_by == "neighbours"
    return 1 / len(np.unique(data[2][0])) if soft else 0.0


@pytest.mark.parametrize("divide_by", ["k", "neighbours"])
@pytest.mark.parametrize("utility", ["classification", "regression"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
def test_equal_to_enumeration_for_any_k(n, utility, divide_by):
    data = labelled(n, seed=n)
    empty = default_empty(data, utility, divide_by)
    for k in (1, 2, 3, n - 1, n, n + 1, 3 * n):
        if k < 1:
            continue
        game = {"utility": utility, "divide_by": divide_by}
        expected = expected_values(data, k, np.full(n, 1 / n), **game, empty=empty)
        found = found_values(data, k=k, **game)
        assert found == pytest.approx(expected, abs=EXACT), k


@pytest.mark.parametrize("divide_by", ["k", "neighbours"])
@pytest.mark.parametrize("utility", ["classification", "regression"])
@pytest.mark.parametrize("name", SEMIVALUES)
@pytest.mark.parametrize("make", [labelled, tied])
def test_equal_to_enumeration_for_any_semivalue(make, name, utility, divide_by):
    semivalue, law = SEMIVALUES[name]
    for n in (2, 6):
        data = make(n, seed=10 + n)
        for k in (1, 3, 8):
            game = {"utility": utility, "divide_by": divide_by, "empty": 0.3}
            expected = expected_values(data, k, law(n), **game)
            found = found_values(data, k=k, semivalue=semivalue(n), **game)
            assert found == pytest.approx(expected, abs=EXACT), (n, k)


def test_ten_players():
    data = labelled(10, m=1, seed=3)
    for utility in ("classification", "regression"):
        game = {"utility": utility, "divide_by": "k", "empty": 0.0}
        expected = expected_values(data, 3, np.full(10, 0.1), **game)
        assert found_values(data, k=3, **game) == pytest.approx(expected, abs=EXACT)


def on_a_line(labels):
    """Return instances that stand in order of distance from the test instance, of label 1."""
    return (np.arange(len(labels), dtype=float)[:, None], np.array(labels)), ([[0.0]], [1])


FROZEN = [
    ([1, 0, 1, 1, 0], 2, "k", ["1/4", "-1/4", "1/4", "1/4", "0"]),
    ([1, 0, 1, 1, 0], 2, "neighbours", ["1/5", "-17/40", "1/5", "1/5", "-7/40"]),
    # Two other libraries return 1/3, 2/15, 1/3.
    ([1, 0, 1], 5, "k", ["1/5", "0", "1/5"]),
]


@pytest.mark.parametrize(("labels", "k", "divide_by", "expected"), FROZEN)
def test_known_values(labels, k, divide_by, expected):
    train, test = on_a_line(labels)
    found = KNNShapley(k=k, divide_by=divide_by).fit(train).influence(test)
    assert found.values[0] == pytest.approx([float(Fraction(e)) for e in expected], abs=1e-15)


def test_equation_25():
    """The survey's sum over ranks, which holds for k <= n."""
    rng = np.random.default_rng(0)
    for k in (1, 4, 20):
        c = rng.integers(0, 2, 20)
        found = KNNShapley(k=k).fit(on_a_line(c)[0]).influence(on_a_line(c)[1]).values[0]
        for i in range(1, 21):
            steps = [(c[j - 1] - c[j]) / k * min(k, j) / j for j in range(i, 20)]
            assert found[i - 1] == pytest.approx(c[-1] / 20 + sum(steps), abs=EXACT)


@pytest.mark.parametrize("divide_by", ["k", "neighbours"])
@pytest.mark.parametrize("utility", ["classification", "regression"])
def test_shapley_values_sum_up_to_the_utility(utility, divide_by):
    data = labelled(300, m=4)
    X, X_test, labels, targets = data
    for k in (1, 7, 299, 1000):
        found = found_values(data, utility, k=k, divide_by=divide_by, empty=0.2).sum(axis=1)
        for row, x in enumerate(X_test):
            nearest = by_distance(X, x)[:k]
            count = k if divide_by == "k" else len(nearest)
            if utility == "regression":
                t = targets[1][row]
                whole = -((targets[0][nearest].sum() / count - t) ** 2)
                empty = -((0.2 - t) ** 2)
            else:
                whole, empty = (labels[0][nearest] == labels[1][row]).sum() / count, 0.2
            assert found[row] == pytest.approx(whole - empty, abs=EXACT)


def test_one_class():
    (X, _), _ = on_a_line(np.ones(5))
    same, other = ([[0.0]], [1]), ([[0.0]], [2])
    method = KNNShapley(k=2).fit((X, np.ones(5)))
    assert method.influence(same).values == pytest.approx(np.full((1, 5), 0.2), abs=EXACT)
    assert_array_equal(method.influence(other).values, 0)
    # Where the prediction without neighbours is sure, neighbours have nothing to add to it.
    soft = KNNShapley(k=2, divide_by="neighbours").fit((X, np.ones(5)))
    assert soft.influence(same).values == pytest.approx(np.zeros((1, 5)), abs=EXACT)
    assert soft.influence(other).values == pytest.approx(np.full((1, 5), -0.2), abs=EXACT)


def test_a_class_that_the_training_set_lacks_is_said():
    train, _ = on_a_line([0, 1, 0])
    influence = KNNShapley(k=1).fit(train).influence(([[0.0], [1.0]], [2, 1]))
    assert_array_equal(influence.values[0], 0)
    (warning,) = influence.diagnostics["warnings"]
    assert warning == "test instances with labels that no training instance has: 1"
    assert "warnings" not in KNNShapley(k=1).fit(train).influence(train).diagnostics


def test_equal_distances_go_by_position():
    X, test = np.array([[1.0], [-1.0], [1.0], [-1.0]]), (np.array([[0.0]]), [1])
    for y in ([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]):
        found = KNNShapley(k=1).fit((X, y)).influence(test).values
        in_order = KNNShapley(k=1).fit((np.arange(4.0)[:, None], y)).influence(test).values
        assert_array_equal(found, in_order)


def test_the_same_instances_are_tied_wherever_they_stand():
    """Products of matrices round each block in its own way; the order does not depend on it."""
    rng = np.random.default_rng(0)
    for d in (3, 37):
        base = rng.normal(size=(25, d)) * rng.lognormal(size=d) + 5
        X, y = np.tile(base, (8, 1)), rng.integers(0, 2, 200)
        test = rng.normal(size=(30, d)) + 5, rng.integers(0, 2, 30)
        found = KNNShapley(k=3).fit((X, y)).influence(test).values
        alone = [
            KNNShapley(k=3).fit((X, y)).influence((test[0][[i]], test[1][[i]])).values[0]
            for i in range(30)
        ]
        assert_array_equal(found, alone)
        for row in range(30):
            ranking = by_distance(X, test[0][row])
            right = (y[ranking] == test[1][row]).astype(int)
            by_rank = KNNShapley(k=3).fit((np.arange(200.0)[:, None], right))
            expected = by_rank.influence(([[0.0]], [1])).values[0]
            assert_array_equal(found[row][ranking], expected)


@pytest.mark.parametrize("settings", [{}, {"max_error": 0.02}, {"utility": "regression"}])
def test_blocks_equal_the_whole(settings, monkeypatch):
    data = labelled(500, m=23)
    X, X_test, labels, targets = data
    y, y_test = targets if "utility" in settings else labels

    def answers():
        method = KNNShapley(**settings).fit((X, y))
        test = X_test, y_test
        return [
            method.influence(test).values,
            method.influence(test, joint=True).values,
            method.memorization().values,
            method.influence(test, top_k=7).proponents().values,
        ]

    monkeypatch.setattr(nearest_points, "PAIRS_AT_ONCE", 10**9)
    monkeypatch.setattr(nearest_points, "PAIRS_IN_CACHE", 10**9)
    whole = answers()
    for at_once, in_cache in ((1, 1), (3500, 1500), (10**9, 500)):
        monkeypatch.setattr(nearest_points, "PAIRS_AT_ONCE", at_once)
        monkeypatch.setattr(nearest_points, "PAIRS_IN_CACHE", in_cache)
        for found, expected in zip(answers(), whole, strict=True):
            assert found == pytest.approx(expected, abs=1e-13)


def test_sums_strongest_shards_and_oneself():
    X, X_test, (y, y_test), _ = labelled(60, m=9)
    method, test = KNNShapley(k=4).fit((X, y)), (X_test, y_test)
    full = method.influence(test)
    assert not full.additive
    joint = method.influence(test, joint=True)
    assert joint.values == pytest.approx(full.values.sum(axis=0), abs=EXACT)
    for of in (2, 7):
        shards = [method.influence(test, shard=(i, of)) for i in range(of)]
        assert_array_equal(Influence.join(shards).values, full.values)
    top = method.influence(test, top_k=5)
    assert_array_equal(top.proponents().ids, full.proponents(5).ids)
    assert_array_equal(top.opponents().ids, full.opponents(5).ids)
    assert_array_equal(top.opponents().values, full.opponents(5).values)
    # An instance is its own nearest neighbour.
    expected = method.influence((X, y)).values.diagonal()
    assert_array_equal(method.memorization().values, expected)
    assert_array_equal(method.memorization(shard=(1, 3)).values, expected[20:40])
    assert (expected > 0).all()


def test_a_group_is_no_sum():
    train, test = on_a_line([1, 0, 1])
    method = KNNShapley().fit(train)
    with pytest.raises(MethodCapabilityError, match="group influence"):
        method.group_influence({"a": [0, 1]}, test)
    with pytest.raises(InvalidInputError, match="not additive"):
        method.influence(test).group({"a": [0, 1]})


@pytest.mark.parametrize("divide_by", ["k", "neighbours"])
@pytest.mark.parametrize("semivalue", ["shapley", BetaWeights(4, 1), BetaWeights(1, 4)], ids=repr)
def test_an_approximation_is_as_good_as_it_says(semivalue, divide_by):
    X, X_test, (y, y_test), _ = labelled(400, m=20, classes=2)
    settings = {"k": 3, "semivalue": semivalue, "divide_by": divide_by, "empty": 0.0}
    exact = KNNShapley(**settings).fit((X, y)).influence((X_test, y_test)).values
    for max_error in (0.2, 0.05, 0.02):
        method = KNNShapley(**settings, max_error=max_error).fit((X, y))
        influence = method.influence((X_test, y_test))
        worst = np.abs(influence.values - exact).max()
        assert worst <= influence.diagnostics["error_bound"] <= max_error
        assert worst > 0
        assert influence.diagnostics["neighbours"] < 400
        looked_at = np.count_nonzero(influence.values, axis=1)
        assert (looked_at <= influence.diagnostics["neighbours"] - 1).all()


def test_theorem_2_of_the_approximation():
    train, test = on_a_line(np.arange(50) % 2)
    for max_error, needed in ((0.05, 20), (0.03, 34), (0.5, 10)):
        method = KNNShapley(k=10, max_error=max_error).fit(train)
        assert method.influence(test).diagnostics["neighbours"] == needed
    exact = KNNShapley(k=10, max_error=1e-6).fit(train).influence(test)
    assert exact.diagnostics["error_bound"] == 0
    assert_array_equal(exact.values, KNNShapley(k=10).fit(train).influence(test).values)


def test_any_kind_of_label():
    X, X_test, (y, y_test), _ = labelled(20, m=5)
    expected = KNNShapley().fit((X, y)).influence((X_test, y_test)).values
    assert np.abs(expected).sum() > 0
    names = np.array(["b", "a", "cc"])
    for kind in (
        lambda codes: codes - 7,
        lambda codes: codes.astype(float),
        lambda codes: codes[:, None],
        lambda codes: names[codes],
        lambda codes: names[codes].astype("S2"),
        lambda codes: names[codes].astype(object),
        lambda codes: (codes * 10**9).astype(object),
        lambda codes: pd.Series(names[codes]),
        lambda codes: pd.Series(names[codes], dtype="category"),
    ):
        method = KNNShapley().fit((X, kind(y)))
        assert_array_equal(method.influence((X_test, kind(y_test))).values, expected)
    truth = KNNShapley().fit((X, y == 1)).influence((X_test, y_test == 1)).values
    assert_array_equal(
        truth, KNNShapley().fit((X, (y == 1) * 1)).influence((X_test, (y_test == 1) * 1)).values
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0.5, 1.0, 2.0]), "no classes.*utility='regression'"),
        (np.array([1.0, np.nan, 2.0]), "no classes"),
        (np.eye(3), r"one-hot"),
        (np.array(["a", 1, "b"], dtype=object), "no classes"),
        (np.array([1, None, 2], dtype=object), "no classes"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, message):
    X = np.arange(3.0)[:, None]
    with pytest.raises(InvalidInputError, match=f"train: .*{message}"):
        KNNShapley().fit((X, labels))
    method = KNNShapley().fit((X, [0, 1, 1]))
    with pytest.raises(InvalidInputError, match=f"test: .*{message}"):
        method.influence((X, labels))


def test_text_and_numbers_are_not_compared():
    X = np.arange(3.0)[:, None]
    method = KNNShapley().fit((X, ["0", "1", "1"]))
    with pytest.raises(InvalidInputError, match="test: labels of dtype int64 cannot be compared"):
        method.influence((X, [0, 1, 1]))


def test_targets_that_are_no_numbers_are_refused():
    X, method = np.arange(3.0)[:, None], KNNShapley(utility="regression")
    with pytest.raises(InvalidInputError, match=r"train: targets of dtype <U1 are no numbers"):
        method.fit((X, ["a", "b", "c"]))
    with pytest.raises(NonFiniteError, match=r"train: 1 targets are NaN or infinite.*position 1"):
        method.fit((X, [1.0, np.nan, 2.0]))
    with pytest.raises(InvalidInputError, match=r"one label an instance.*\(3, 2\)"):
        method.fit((X, np.ones((3, 2))))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be an integer of at least 1"),
        ({"k": 2.5}, "k must be an integer"),
        ({"utility": "accuracy"}, "utility must be 'classification' or 'regression'"),
        ({"divide_by": "n"}, "divide_by must be 'k' or 'neighbours'"),
        ({"semivalue": "owen"}, "semivalue must be one of"),
        ({"semivalue": [0.5, 0.5]}, "2 probabilities .* for 3 training instances"),
        ({"max_error": 0}, "max_error must be a positive number"),
        ({"max_error": 0.1, "utility": "regression"}, "max_error: .* classification only"),
        ({"empty": np.nan}, "empty must be a finite number"),
        ({"empty": "mean"}, "empty must be a finite number"),
    ],
    ids=repr,
)
def test_settings_out_of_range_are_refused(settings, message):
    method = KNNShapley()
    train, test = on_a_line([0, 1, 1])
    before = method.fit(train).influence(test).values
    with pytest.raises(InvalidInputError, match=message):
        method.set_params(**settings).fit(train)
    assert_array_equal(method.influence(test).values, before)


def test_twenty_thousand_instances_take_little_memory():
    import tracemalloc

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20_000, 8)), rng.integers(0, 5, 20_000)
    test = rng.normal(size=(20, 8)), rng.integers(0, 5, 20)
    method = KNNShapley(k=5).fit((X, y))
    tracemalloc.start()
    joint = method.influence(test, joint=True)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 30e6
    nearest = np.argsort(((X[None] - test[0][:, None]) ** 2).sum(axis=2), axis=1)[:, :5]
    assert joint.values.sum() == pytest.approx((y[nearest] == test[1][:, None]).mean(axis=1).sum())
