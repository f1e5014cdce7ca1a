"""Semivalues of the neighbours within a radius, against enumeration."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from retraining.knn_games import SEMIVALUES, semivalues

from proponent.exceptions import InvalidInputError
from proponent.retraining.neighbours.threshold_shapley import ThresholdKNNShapley

TEST = (np.array([[0.0], [0.1]]), np.array([1, 0]))


def make(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 1)), rng.integers(0, 3, n)


def share_game(X, y, x, label, radius, empty):
    near = np.flatnonzero(np.abs(X[:, 0] - x) <= radius)

    def game(members):
        counted = [y[i] == label for i in members if i in near]
        return np.mean(counted) if counted else empty

    return game


@pytest.mark.parametrize("name", SEMIVALUES)
def test_equal_to_enumeration(name):
    semivalue, law = SEMIVALUES[name]
    for n in (1, 2, 7):
        X, y = make(n, seed=n)
        for radius in (0.01, 0.4, 0.9, 10.0):
            for empty in (None, 0.25):
                v = 1 / len(set(y)) if empty is None else empty
                method = ThresholdKNNShapley(radius, semivalue=semivalue(n), empty=empty)
                found = method.fit((X, y)).influence(TEST).values
                for row, (x, label) in enumerate(zip(*TEST, strict=True)):
                    game = share_game(X, y, x[0], label, radius, v)
                    expected = semivalues(game, n, law(n))
                    assert found[row] == pytest.approx(expected, abs=1e-12), (n, radius)


def test_values_sum_up_to_the_utility():
    X, y = make(2000)
    found = ThresholdKNNShapley(0.3).fit((X, y)).influence(TEST).values
    for row, (x, label) in enumerate(zip(*TEST, strict=True)):
        near = np.abs(X[:, 0] - x) <= 0.3
        assert found[row].sum() == pytest.approx((y[near] == label).mean() - 1 / 3, abs=1e-12)
        assert_array_equal(found[row, ~near], 0)


def test_a_radius_includes_its_end():
    """Where an expanded square rounds to the wrong side, too."""
    rng = np.random.default_rng(0)
    X = rng.integers(-50, 50, (400, 3)) * 0.1 + 1000
    test = X[:20]
    squares = ((X[None] - test[:, None]) ** 2).sum(axis=2)
    for square in np.unique(squares)[1::400]:
        radius = np.sqrt(square)
        method = ThresholdKNNShapley(radius, empty=0.3).fit((X, np.ones(400)))
        found = method.influence((test, np.ones(20))).values
        assert_array_equal(found != 0, squares <= radius**2)


def test_what_nobody_is_near_has_no_influence():
    method = ThresholdKNNShapley(0.5).fit((np.zeros((3, 1)), [0, 1, 1]))
    assert_array_equal(method.influence(([[9.0]], [1])).values, np.zeros((1, 3)))


def test_memorization_and_the_rest_of_the_frame():
    X, y = make(50)
    method = ThresholdKNNShapley(0.3).fit((X, y))
    full = method.influence((X, y))
    assert_array_equal(method.memorization().values, full.values.diagonal())
    joint = method.influence((X, y), joint=True).values
    assert joint == pytest.approx(full.values.sum(axis=0), abs=1e-13)
    assert_array_equal(method.influence((X, y), top_k=4).opponents().ids, full.opponents(4).ids)
    assert full.diagnostics == {"features": 1, "classes": 3}


@pytest.mark.parametrize("radius", [0, -1.0, np.nan, np.inf])
def test_a_radius_is_positive(radius):
    with pytest.raises(InvalidInputError, match="radius must be a positive number"):
        ThresholdKNNShapley(radius).fit(make(3))
