"""Penalties, losses and solvers of high-dimensional representers, against slow truths."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.optimize import check_grad, minimize

from proponent.static.high_dimensional.active_set import newton_on_support
from proponent.static.high_dimensional.losses import (
    ClassWeighted,
    Logistic,
    Softmax,
    SquaredError,
    SquaredHinge,
)
from proponent.static.high_dimensional.penalties import ElasticNet, NuclearNorm
from proponent.static.high_dimensional.proximal import accelerated_descent
from proponent.static.high_dimensional.risks import EntryRisk, LinearRisk, MatrixRisk

RNG = np.random.default_rng(0)
NET = ElasticNet.of(0.7, 0.6, np.array([1.0, 1.0, 1.0, 0.0]))
LOSSES = {
    "squared": (SquaredError(), RNG.normal(size=(9, 3))),
    "logistic": (Logistic(), RNG.integers(0, 2, size=(9, 1)).astype(float)),
    "one against the rest": (Logistic(), np.eye(3)[RNG.integers(0, 3, 9)]),
    "softmax": (Softmax(), np.eye(3)[RNG.integers(0, 3, 9)]),
    "squared hinge": (SquaredHinge(), np.eye(3)[RNG.integers(0, 3, 9)]),
    "weighted": (
        ClassWeighted(Softmax(), np.array([1.0, 2.0, 0.5])),
        np.eye(3)[RNG.integers(0, 3, 9)],
    ),
    "weighted logistic": (
        ClassWeighted(Logistic(), np.array([3.0, 0.5])),
        RNG.integers(0, 2, size=(9, 1)).astype(float),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_derivatives_of_losses_and_risks(name):
    """Gradients against central differences of values, Hessian products of gradients."""
    loss, targets = LOSSES[name]
    X = np.random.default_rng(1).normal(size=(9, 4))
    risk = LinearRisk(X, targets, loss, intercept=0.3)
    shape = (targets.shape[1], 4)
    theta, direction = np.random.default_rng(2).normal(size=(2, *shape))
    h = 1e-6
    rise = (risk.value(theta + h * direction) - risk.value(theta - h * direction)) / (2 * h)
    assert_allclose((risk.gradient(theta) * direction).sum(), rise, rtol=1e-7)
    bend = (risk.gradient(theta + h * direction) - risk.gradient(theta - h * direction)) / (2 * h)
    assert_allclose(risk.product(theta, direction), bend, atol=1e-7)


@pytest.mark.parametrize("loss", [Logistic(), Softmax(), SquaredHinge()])
def test_losses_at_outputs_far_out(loss):
    outputs = np.array([[800.0, -800.0], [-800.0, 800.0]])
    targets = np.array([[1.0, 0.0], [1.0, 0.0]])
    with np.errstate(over="raise", invalid="raise"):
        value, slope = loss.value(outputs, targets), loss.gradient(outputs, targets)
    assert value[0] == 0 and value[1] >= 800
    assert_allclose(slope[0], 0, atol=1e-300)
    assert slope[1, 0] < 0 < slope[1, 1]


@pytest.mark.parametrize("nonnegative", [False, True])
def test_the_proximal_map_of_the_elastic_net_minimises(nonnegative):
    penalty = ElasticNet.of(0.7, 0.6, np.array([1.0, 1.0, 1.0, 0.0]), nonnegative=nonnegative)
    theta, step = np.array([[1.4, -0.3, -2.0, -1.0]]), 0.8
    found = penalty.proximal(theta, step)
    grid = np.linspace(-3, 3, 600_001)
    for j in range(4):
        points = grid[grid >= 0] if nonnegative and j < 3 else grid
        l1, l2 = penalty.l1[j], penalty.l2[j]
        values = l1 * np.abs(points) + l2 / 2 * points**2
        values += (points - theta[0, j]) ** 2 / (2 * step)
        assert abs(found[0, j] - points[values.argmin()]) < 2e-5


def test_the_proximal_map_of_the_nuclear_norm_minimises():
    theta, penalty = np.random.default_rng(3).normal(size=(3, 2)), NuclearNorm(0.5)
    found = penalty.proximal(theta, 0.8)

    def objective(point):
        point = point.reshape(3, 2)
        return penalty.value(point) + ((point - theta) ** 2).sum() / 1.6

    best = minimize(objective, theta.ravel(), method="Nelder-Mead", tol=1e-10).x
    assert_allclose(found.ravel(), best, atol=1e-3)
    assert objective(found.ravel()) <= objective(best) + 1e-12


def test_distances_to_the_subdifferential():
    """Of the elastic net entry by entry; of the nuclear norm U V^T + W with ||W|| <= 1."""
    theta = np.array([[2.0, -1.0, 0.0, 3.0]])
    optimal = -(NET.l1 * np.sign(theta) + NET.l2 * theta)
    optimal[0, 2] = 0.9 * NET.l1[2]
    assert NET.distance(theta, optimal) < 1e-15
    for j, off in enumerate((0.1, 0.1, 0.2, 0.1)):
        moved = optimal.copy()
        moved[0, j] += off
        expected = off if j != 2 else moved[0, 2] - NET.l1[2]
        assert_allclose(NET.distance(theta, moved), expected / 0.7)
    left, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(4, 4)))
    right, _ = np.linalg.qr(np.random.default_rng(5).normal(size=(3, 3)))
    theta = left[:, :2] * [3.0, 1.0] @ right[:2]
    dual = left[:, :2] @ right[:2]
    for size, expected in ((0.0, 0.0), (0.9, 0.0), (-1.0, 0.0), (1.25, 0.25)):
        slope = -0.5 * (dual + size * np.outer(left[:, 2], right[2]))
        assert_allclose(NuclearNorm(0.5).distance(theta, slope), expected, atol=1e-14)
    slope = -0.5 * (dual + 0.1 * np.outer(left[:, 0], right[1]))
    assert_allclose(NuclearNorm(0.5).distance(theta, slope), 0.1)


def test_risks_of_matrices_are_linear_risks():
    rng = np.random.default_rng(6)
    pairs, targets = rng.integers(0, 3, size=(20, 2)), rng.normal(size=(20, 1))
    ones = np.zeros((20, 3, 3))
    ones[np.arange(20), pairs[:, 0], pairs[:, 1]] = 1
    theta = rng.normal(size=(3, 3))
    entries = EntryRisk(pairs, targets, SquaredError(), 0.4)
    matrices = MatrixRisk(ones, targets, SquaredError(), 0.4)
    flat = LinearRisk(ones.reshape(20, 9), targets, SquaredError(), 0.4)
    expected = flat.gradient(theta.reshape(1, 9)).reshape(3, 3)
    for risk in (entries, matrices):
        assert_allclose(risk.value(theta), flat.value(theta.reshape(1, 9)))
        assert_allclose(risk.gradient(theta), expected, atol=1e-15)
    error = check_grad(
        lambda point: entries.value(point.reshape(3, 3)),
        lambda point: entries.gradient(point.reshape(3, 3)).ravel(),
        theta.ravel(),
    )
    assert error < 1e-6


PROBLEMS = {
    "correlated": lambda rng: (
        rng.normal(size=(60, 3)) @ rng.normal(size=(3, 12)) + 0.05 * rng.normal(size=(60, 12))
    ),
    "more features than instances": lambda rng: rng.normal(size=(25, 80)),
    "a constant and a doubled feature": lambda rng: np.column_stack(
        [rng.normal(size=(40, 5)) @ np.eye(5)[:, [0, 1, 2, 3, 4, 4]], np.ones(40)]
    ),
}


@pytest.mark.parametrize("loss", ["squared", "logistic", "softmax", "squared hinge"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_newton_on_the_support_finds_what_proximal_steps_find(problem, loss):
    rng = np.random.default_rng(7)
    X = PROBLEMS[problem](rng)
    n = len(X)
    made, k = LOSSES[loss][0], {"squared": 2, "logistic": 1}.get(loss, 3)
    scores = X @ rng.normal(size=(X.shape[1], k)) + rng.normal(size=(n, k))
    if loss == "squared":
        targets = scores
    else:
        targets = (scores > 0) * 1.0 if k == 1 else np.eye(k)[scores.argmax(axis=1)]
    risk = LinearRisk(X, targets, made)
    penalty = ElasticNet.of(0.05, 0.9, np.ones(X.shape[1]))
    start = rng.normal(size=(k, X.shape[1]))
    slow, _ = accelerated_descent(risk, penalty, start, tolerance=1e-9, max_iterations=50_000)
    rough, step = accelerated_descent(risk, penalty, start, tolerance=0.0, max_iterations=50)
    settings = {"curvature": 1 / step, "tolerance": 1e-11, "max_iterations": 300}
    found = newton_on_support(risk, penalty, rough, **settings)
    assert penalty.distance(found, risk.gradient(found)) <= 1e-11
    assert_allclose(found, slow, atol=1e-5)
    assert found.any()
    values = [risk.value(point) + penalty.value(point) for point in (found, slow, rough)]
    assert values[0] <= values[1] + 1e-13 <= values[2] + 2e-13
