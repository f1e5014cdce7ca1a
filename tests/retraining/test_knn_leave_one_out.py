"""Leave-one-out of k nearest neighbours, against leaving one out."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from retraining.knn_games import average_game, by_distance, squared_error_game
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from proponent.exceptions import InvalidInputError
from proponent.retraining.neighbours.leave_one_out import KNNLeaveOneOut
from proponent.retraining.neighbours.shapley import KNNShapley


def make(n, m=3, seed=0, grid=False):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 2, (n + m, 2)) * 1.0 if grid else rng.normal(size=(n + m, 2))
    labels, targets = rng.integers(0, 3, n + m), rng.normal(size=n + m) + 1
    return points[:n], points[n:], (labels[:n], labels[n:]), (targets[:n], targets[n:])


@pytest.mark.parametrize("grid", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize("divide_by", ["k", "neighbours"])
@pytest.mark.parametrize("utility", ["classification", "regression"])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_equal_to_leaving_each_out(n, utility, divide_by, grid):
    X, X_test, labels, targets = make(n, seed=n, grid=grid)
    y, y_test = targets if utility == "regression" else labels
    for k in (1, 2, n, n + 1, 2 * n):
        settings = {"divide_by": divide_by, "empty": 0.4}
        method = KNNLeaveOneOut(k=k, utility=utility, **settings).fit((X, y))
        found = method.influence((X_test, y_test)).values
        for row, x in enumerate(X_test):
            ranking = by_distance(X, x)
            if utility == "regression":
                game = squared_error_game(y, y_test[row], ranking, k, **settings)
            else:
                game = average_game((y == y_test[row]) * 1.0, ranking, k, **settings)
            everyone = list(range(n))
            expected = [game(everyone) - game([j for j in everyone if j != i]) for i in everyone]
            assert found[row] == pytest.approx(expected, abs=1e-12), k


@pytest.mark.parametrize("utility", ["classification", "regression"])
def test_equal_to_refitting_scikit_learns_neighbours(utility):
    X, X_test, labels, targets = make(40, m=6)
    y, y_test = targets if utility == "regression" else labels

    def worth(rows):
        if utility == "regression":
            model = KNeighborsRegressor(5).fit(X[rows], y[rows])
            return -((model.predict(X_test) - y_test) ** 2)
        model = KNeighborsClassifier(5).fit(X[rows], y[rows])
        return model.predict_proba(X_test)[np.arange(6), y_test]

    rows = np.arange(40)
    expected = np.stack([worth(rows) - worth(np.delete(rows, i)) for i in rows], axis=1)
    influence = KNNLeaveOneOut(utility=utility).fit((X, y)).influence((X_test, y_test))
    assert influence.values == pytest.approx(expected, abs=1e-12)
    assert influence.diagnostics["neighbours"] == 6


def test_known_values():
    X, y = np.arange(5.0)[:, None], np.array([1, 0, 1, 1, 0])
    found = KNNLeaveOneOut(k=2).fit((X, y)).influence(([[0.0]], [1])).values
    assert_array_equal(found, [[0, -0.5, 0, 0, 0]])


def test_a_copy_takes_the_place_of_the_other():
    """Both of a pair have no influence alone, but share the Shapley value."""
    train, test = ([[1.0], [1.0]], [1, 1]), ([[0.0]], [1])
    train = tuple(map(np.array, train))
    test = tuple(map(np.array, test))
    assert_array_equal(KNNLeaveOneOut(k=1).fit(train).influence(test).values, [[0, 0]])
    assert_array_equal(KNNShapley(k=1).fit(train).influence(test).values, [[0.5, 0.5]])


@pytest.mark.parametrize("k", [1, 3, 50])
def test_equal_to_the_semivalue_of_the_whole(k):
    X, X_test, (y, y_test), _ = make(30, m=5)
    found = KNNLeaveOneOut(k=k).fit((X, y)).influence((X_test, y_test)).values
    method = KNNShapley(k=k, semivalue="leave_one_out").fit((X, y))
    assert_array_equal(found, method.influence((X_test, y_test)).values)


def test_memorization_is_high_where_neighbours_disagree():
    X = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    y = np.array([0, 1, 0, 1, 1, 1])
    found = KNNLeaveOneOut(k=1).fit((X, y)).memorization().values
    assert_array_equal(found, [1, 1, 1, 0, 0, 0])


def test_refusals():
    with pytest.raises(InvalidInputError, match="k must be an integer of at least 1"):
        KNNLeaveOneOut(k=-1).fit((np.ones((2, 1)), [0, 1]))
