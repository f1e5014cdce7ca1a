"""The order of points by distance: exact, whatever the products of matrices round."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from proponent.exceptions import NonFiniteError
from proponent.models import nearest_points
from proponent.models.nearest_points import Neighbours


def joined(neighbours, tests, r):
    parts = list(neighbours.orders(tests, r))
    assert_array_equal(
        np.concatenate([np.arange(len(tests))[rows] for rows, _ in parts]), np.arange(len(tests))
    )
    return np.concatenate([order for _, order in parts])


def one_by_one(points, tests):
    return np.array(
        [np.argsort(((points - test) ** 2).sum(axis=1), kind="stable") for test in tests]
    )


rng = np.random.default_rng(0)
CLOUD = rng.normal(size=(230, 9))
POINTS = {
    "one point": CLOUD[:1],
    "two points": CLOUD[:2],
    "a cloud": CLOUD,
    "one feature": CLOUD[:, :1],
    "copies": CLOUD[rng.integers(0, 12, 230)],
    "all the same": np.broadcast_to(CLOUD[0], CLOUD.shape).copy(),
    "whole numbers": np.rint(CLOUD),
    "a grid that is not exact in binary": np.rint(2 * CLOUD) * 0.1,
    "far from the origin": CLOUD + 1e5,
    "far, in steps": np.rint(2 * CLOUD) * 0.1 + 1e5,
    "hardly apart": 1 + 1e-13 * CLOUD,
    "tiny": 1e-150 * CLOUD,
    "too tiny for all digits of their squares": 1e-159 * CLOUD,
    "with an outlier": np.concatenate([CLOUD, 1e9 * CLOUD[:2]]),
}


@pytest.mark.parametrize("name", POINTS)
def test_the_order_is_that_of_sums_over_features(name):
    points = POINTS[name]
    tests = np.concatenate(
        [points[::7], points[:3] + 0.01 * CLOUD[:3, : points.shape[1]][: len(points[:3])]]
    )
    neighbours, n = Neighbours(points), len(points)
    expected = one_by_one(points, tests)
    assert_array_equal(joined(neighbours, tests, n), expected)
    for r in {1, 5, n // 2, n - 1} & set(range(1, n)):
        assert_array_equal(joined(neighbours, tests, r), expected[:, :r])


@pytest.mark.parametrize("name", ["a cloud", "copies", "far, in steps"])
@pytest.mark.parametrize("blocks", [(1, 1), (1000, 300), (5000, 5000)])
def test_blocks_change_nothing(name, blocks, monkeypatch):
    monkeypatch.setattr(nearest_points, "PAIRS_AT_ONCE", blocks[0])
    monkeypatch.setattr(nearest_points, "PAIRS_IN_CACHE", blocks[1])
    points = POINTS[name]
    assert_array_equal(joined(Neighbours(points), points, 230), one_by_one(points, points))
    assert_array_equal(joined(Neighbours(points), points, 4), one_by_one(points, points)[:, :4])


def test_few_distances_are_summed_up_anew(monkeypatch):
    """Only those that are close to another; else the exact order would be slow."""
    points = np.random.default_rng(1).normal(size=(5000, 20))
    looked_at = []
    exact = Neighbours.squared_distances

    def counting(self, positions, test):
        looked_at.append(len(positions))
        return exact(self, positions, test)

    monkeypatch.setattr(Neighbours, "squared_distances", counting)
    joined(Neighbours(points), points[:50], 5000)
    assert sum(looked_at) < 200
    looked_at.clear()
    joined(Neighbours(points), points[:50], 10)
    assert sum(looked_at) == 500


def test_the_points_are_left_as_they_are():
    points, tests = CLOUD.copy(), CLOUD[:9].copy()
    neighbours = Neighbours(points)
    joined(neighbours, tests, 230), joined(neighbours, tests, 3), list(neighbours.within(tests, 1))
    assert_array_equal(points, CLOUD)
    assert_array_equal(tests, CLOUD[:9])


def test_features_that_are_too_large_are_refused():
    points = np.array([[1.0], [1e200]])
    with np.errstate(over="ignore"):
        with pytest.raises(NonFiniteError, match=r"train: .* position 1, and of 1 in all"):
            Neighbours(points)
        with pytest.raises(NonFiniteError, match=r"test: .* position 1"):
            list(Neighbours(points[:1]).orders(points, 1))
