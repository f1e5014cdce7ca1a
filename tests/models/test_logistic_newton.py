"""Newton's method on logistic losses: every step descends, and its parts are the derivatives."""

import numpy as np
import pytest
from models.subset_examples import bootstraps

from proponent.models import logistic_directions, logistic_newton
from proponent.models.logistic_losses import BinaryLoss, SoftmaxLoss
from proponent.models.logistic_newton import _Descent, _objective, newton
from proponent.models.subset_rows import OwnRows, SharedRows

N, WIDTH, K = 30, 4, 6


def problem(number, scale=1.0, seed=0):
    """Return rows, losses and penalty of a few bootstrap samples."""
    rng = np.random.default_rng(seed)
    matrix = np.hstack([np.ones((N, 1)), scale * rng.normal(size=(N, WIDTH - 1))])
    classes = rng.integers(0, number, (N, 1))
    counts = bootstraps(N, K).T.astype(float)
    loss = BinaryLoss(counts, classes) if number == 2 else SoftmaxLoss(counts, classes, number)
    ridge = np.r_[0.0, np.full(WIDTH - 1, 0.1)]
    return SharedRows(matrix), loss, ridge


def derivative(function, at, step=1e-6):
    """Return the derivative of each model's value by each of its own entries, ``(..., K)``."""
    found = np.empty_like(at)
    for entry in np.ndindex(at.shape[:-1]):
        moved = np.zeros_like(at)
        moved[entry] = step
        found[entry] = (function(at + moved) - function(at - moved)) / (2 * step)
    return found


@pytest.mark.parametrize("number", [2, 3, 4])
def test_derivatives(number):
    """Central differences of the total, and of the gradient."""
    _, loss, _ = problem(number)
    logits = np.random.default_rng(1).normal(size=(number - 1, N, K))
    gradient, chances = loss.gradient(logits)
    np.testing.assert_allclose(gradient, derivative(loss.total, logits), atol=1e-8)
    change = np.random.default_rng(2).normal(size=logits.shape)
    ahead, behind = (loss.gradient(logits + sign * 1e-6 * change)[0] for sign in (1, -1))
    bent = loss.bend(chances, change)
    np.testing.assert_allclose(bent, (ahead - behind) / 2e-6, atol=1e-8)
    explicit = np.zeros_like(change)
    for a, b, weights in loss.curvature(chances):
        assert (weights >= 0).all()
        explicit[a] += (1 if a == b else -1) * weights * change[b]
        if a != b:
            explicit[b] -= weights * change[a]
    np.testing.assert_allclose(explicit, bent, atol=1e-13)
    # Over directions drawn by the inverse of the penalty the mean curvature is what it says.
    mean = np.zeros((N, K))
    root = np.linalg.cholesky(np.linalg.inv(loss.penalty))
    for direction in root.T:
        along = np.broadcast_to(direction[:, None, None], logits.shape)
        mean += (along * loss.bend(chances, along)).sum(axis=0) / (number - 1)
    np.testing.assert_allclose(loss.mean_curvature(chances), mean, atol=1e-13)


@pytest.mark.parametrize("number", [2, 3])
def test_large_logits(number):
    """Probabilities of the wrong class keep their digits, and nothing overflows."""
    _, loss, _ = problem(number)
    classes = np.argmax(loss._mine, axis=0) if number > 2 else (loss._signs > 0).astype(int)
    for size in (40.0, 800.0):
        logits = np.zeros((number - 1, N, K))
        for position in range(1, number):
            logits[position - 1] = np.where(classes == position, size, -size)
        gradient, _ = loss.gradient(logits)
        expected = np.exp(-size) if size < 100 else 0.0
        first = np.broadcast_to(classes == 0, (N, K))
        inside = loss._counts > 0
        per_count = (gradient[0] / np.where(inside, loss._counts, 1.0))[first & inside]
        np.testing.assert_allclose(per_count, expected, rtol=1e-10, atol=1e-300)
        assert np.isfinite(loss.total(logits)).all()


@pytest.mark.parametrize("order", [64, 0], ids=["factorised", "conjugate gradients"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("number", [2, 3])
def test_every_step_descends(number, scale, order, monkeypatch):
    """From far away too, where the full step does not."""
    monkeypatch.setattr(logistic_newton, "LARGEST_FACTORISED", order)
    rows, loss, ridge = problem(number, scale)
    start = 3 * np.random.default_rng(3).normal(size=(number - 1, WIDTH, K))
    descent = _Descent(rows, loss, ridge, start, np.full(K, np.inf))
    before, shortened = np.full(K, np.inf), False
    for _ in range(40):
        logits = rows.forward(descent.coefficients)
        now = _objective(loss, ridge, descent.coefficients, logits)
        assert (now <= before + 1e-12 * np.abs(now)).all()
        before = now
        shortened |= bool(np.isinf(descent.step()).any())
    assert np.abs(descent._gradient).max() < 1e-8
    assert shortened or scale == 1.0


@pytest.mark.parametrize("order", [64, 0], ids=["factorised", "conjugate gradients"])
@pytest.mark.parametrize("number", [2, 4])
def test_where_it_begins_does_not_matter(number, order, monkeypatch):
    monkeypatch.setattr(logistic_newton, "LARGEST_FACTORISED", order)
    rows, loss, ridge = problem(number)
    zero = np.zeros((number - 1, WIDTH, K))
    far = zero + 2.0
    found = [newton(rows, loss, ridge, start, max_iter=50, tol=1e-10) for start in (zero, far)]
    assert all(solution.converged.all() for solution in found)
    np.testing.assert_allclose(found[0].coefficients, found[1].coefficients, atol=1e-9)
    residuals, _ = loss.gradient(rows.forward(found[0].coefficients))
    gradient = rows.backward(residuals)
    gradient += logistic_directions.penalised(loss, ridge, found[0].coefficients)
    assert np.abs(gradient).max() < 1e-9


def test_a_hessian_that_is_singular_in_float64():
    """Two features that are the same but for 1e-12, and next to no penalty."""
    rng = np.random.default_rng(0)
    column = rng.normal(size=(N, 1))
    matrix = np.hstack([np.ones((N, 1)), column, column * (1 + 1e-13)])
    classes = (column + rng.normal(size=(N, 1)) > 0).astype(int)
    loss = BinaryLoss(np.ones((N, 2)), classes)
    ridge = np.array([0.0, 1e-20, 1e-20])
    found = newton(SharedRows(matrix), loss, ridge, np.zeros((1, 3, 2)), max_iter=100, tol=1e-10)
    single = newton(
        SharedRows(matrix[:, :2]), loss, ridge[:2], np.zeros((1, 2, 2)), max_iter=100, tol=1e-10
    )
    assert found.converged.all()
    np.testing.assert_allclose(
        found.coefficients[0, 1:].sum(axis=0), single.coefficients[0, 1], rtol=1e-5
    )


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize(("scale", "near"), [(1.0, 0.0), (1e-22, 0.0), (1e20, 0.0), (1.0, 1e-6)])
def test_single_precision_is_checked(number, scale, near):
    """Hessians that overflow, underflow or are singular in float32, and ordinary ones."""
    rows, loss, ridge = problem(number)
    matrix = rows.matrix.copy()
    if near:
        matrix[:, 2] = matrix[:, 1] + near * matrix[:, 2]
    matrix[:, 3] *= scale
    rows, ridge = SharedRows(matrix), ridge * np.r_[1.0, 1.0, 1.0, scale**2] * (near or 1.0)
    logits = np.random.default_rng(5).normal(size=(number - 1, N, K))
    residuals, chances = loss.gradient(logits)
    gradient = rows.backward(residuals)
    room = np.empty((number - 1, WIDTH, number - 1, WIDTH, K), np.float32)
    direction, change, left = logistic_directions.rough_direction(
        rows, loss, ridge, chances, gradient, room
    )
    np.testing.assert_allclose(change, rows.forward(direction), rtol=1e-9, atol=1e-12)
    assert (left == 0.0).all() if near or scale != 1.0 else (left > 0).all() and left.max() < 1e-5
    left_over = gradient + rows.backward(loss.bend(chances, change))
    left_over += logistic_directions.penalised(loss, ridge, direction)
    size = np.abs(gradient).max(axis=(0, 2))
    assert (
        np.abs(left_over).max(axis=(0, 2)) <= (1e-4 if scale == 1.0 and not near else 1e-9) * size
    ).all()


@pytest.mark.parametrize("basis", [None, "rotated"])
def test_rows(basis):
    """The products of rows of their own are those of explicit sums; coefficients come back."""
    rng = np.random.default_rng(0)
    matrices = rng.normal(size=(K, N, WIDTH))
    axes = np.linalg.qr(rng.normal(size=(K, WIDTH + 2, WIDTH)))[0] if basis else None
    rows = OwnRows(matrices, axes)
    weights, coefficients = rng.random((N, K)), rng.normal(size=(2, WIDTH, K))
    gram = np.empty((WIDTH, WIDTH, K))
    rows.gram(weights, gram)
    expected = np.einsum("kip,kiq,ik->pqk", matrices, matrices, weights)
    np.testing.assert_allclose(gram, expected)
    forward = np.einsum("kip,apk->aik", matrices, coefficients)
    np.testing.assert_allclose(rows.forward(coefficients), forward)
    np.testing.assert_allclose(rows.backward(forward), np.einsum("kip,aik->apk", matrices, forward))
    np.testing.assert_allclose(rows.squares(weights), np.einsum("kip,ik->pk", matrices**2, weights))
    np.testing.assert_allclose(rows.project(rows.lift(coefficients)), coefficients)
    chosen = np.array([3, 1])
    np.testing.assert_allclose(
        rows.select(chosen).forward(coefficients[:, :, chosen]), forward[:, :, chosen]
    )
    shared = SharedRows(matrices[0])
    shared.gram(weights, gram)
    expected = np.einsum("ip,iq,ik->pqk", matrices[0], matrices[0], weights)
    np.testing.assert_allclose(gram, expected)
    np.testing.assert_allclose(
        shared.squares(weights), np.einsum("ip,ik->pk", matrices[0] ** 2, weights)
    )
