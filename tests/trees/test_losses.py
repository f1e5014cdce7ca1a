"""Derivatives of the losses against finite differences of the risk."""

import numpy as np
import pytest

from proponent.trees.losses import Logistic, Softmax, Squared

CASES = {
    "squared": (Squared(), np.array([0.3, -1.0, 2.0, 0.5])),
    "two outputs": (Squared(2), np.array([[0.3, -1.0, 2.0, 0.5], [1.0, 0.0, -2.0, 0.1]])),
    "logistic": (Logistic(), np.array([0.0, 1.0, 1.0, 0.0])),
    "softmax": (Softmax(3, 1.0), np.array([0, 2, 1, 1])),
    "softmax, factor 2": (Softmax(3, 2.0), np.array([0, 2, 1, 1])),
}


@pytest.fixture(params=CASES)
def case(request):
    loss, targets = CASES[request.param]
    scores = np.random.default_rng(0).normal(size=(loss.outputs, 4))
    return loss, targets, scores


def differences(function, scores, output, step=1e-5):
    """Central differences by the score of one output."""
    moved = np.zeros_like(scores)
    moved[output] = step
    return (function(scores + moved) - function(scores - moved)) / (2 * step)


def test_the_gradient_is_the_slope_of_the_risk(case):
    loss, targets, scores = case
    for k in range(loss.outputs):
        expected = differences(lambda s: loss.risk(s, targets), scores, k)
        np.testing.assert_allclose(loss.gradient(scores, targets)[k], expected, atol=1e-9)


def test_the_hessian_is_the_factor_times_the_slope_of_the_gradient(case):
    loss, targets, scores = case
    for k in range(loss.outputs):
        slope = differences(lambda s: loss.gradient(s, targets)[k], scores, k)  # noqa: B023
        np.testing.assert_allclose(
            loss.derivatives(scores, targets).hessian[k], loss.factor * slope, atol=1e-9
        )


def test_the_full_hessian_and_the_slope_move_gradients_and_hessians(case):
    loss, targets, scores = case
    moves = np.random.default_rng(1).normal(size=(loss.outputs, 4, 3))
    found = loss.derivatives(scores, targets)
    curved = found.curve(moves)
    for j in range(3):
        up, down = (scores + step * moves[:, :, j] for step in (1e-5, -1e-5))
        dg = (loss.gradient(up, targets) - loss.gradient(down, targets)) / 2e-5
        np.testing.assert_allclose(curved[:, :, j], dg, atol=1e-9)
        np.testing.assert_allclose(found.curve(moves[:, :, j]), dg, atol=1e-9)
        dh = loss.derivatives(up, targets).hessian - loss.derivatives(down, targets).hessian
        np.testing.assert_allclose(found.slope * dg, dh / 2e-5, atol=1e-8)


def test_third_derivatives_of_coupled_classes(case):
    loss, targets, scores = case
    rng = np.random.default_rng(2)
    along, moves = rng.normal(size=(2, loss.outputs, 4))
    expected = sum(
        step * loss.derivatives(scores + step * 1e-5 * moves, targets).curve(along) / 2e-5
        for step in (1, -1)
    )
    found = loss.derivatives(scores, targets)
    np.testing.assert_allclose(found.bend(along, moves), expected, atol=1e-8)
    np.testing.assert_allclose(found.bend(moves, along), expected, atol=1e-8)
    several = np.stack([moves, 2 * moves], axis=2)
    np.testing.assert_allclose(found.bend(along, several)[:, :, 1], 2 * expected, atol=1e-7)


def test_scores_that_are_large_do_not_overflow():
    scores = np.array([[1e4, -1e4]])
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(Logistic().gradient(scores, np.array([0.0, 0.0])), [[1, 0]])
        assert Logistic().risk(scores, np.array([0.0, 1.0])).tolist() == [1e4, 1e4]
        p = Softmax(2).gradient(np.array([[1e4, 0.0], [-1e4, 1e4]]), np.array([1, 0]))
    np.testing.assert_array_equal(p, [[1, -1], [-1, 1]])
