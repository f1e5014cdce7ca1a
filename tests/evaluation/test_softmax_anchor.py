"""The anchor: on a convex model, exact influence functions predict retraining nearly perfectly."""

from functools import cache

import numpy as np
import pytest
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.datasets import load_digits

from proponent.evaluation import (
    linear_datamodeling_score,
    loo_correlation,
    random_subsets,
    retrain_on_subsets,
)

PENALTY = 0.01
N_TRAIN, N_TEST, N_CLASSES = 800, 60, 10


@cache
def digits():
    """800 training and 60 test images, with a column of ones, and labels as one-hot rows."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[: N_TRAIN + N_TEST]
    features = np.c_[x[order] / 16.0, np.ones(len(order))]
    one_hot = np.eye(N_CLASSES)[y[order]]
    return features[:N_TRAIN], one_hot[:N_TRAIN], features[N_TRAIN:], one_hot[N_TRAIN:]


def gradient(theta, x, y):
    """Gradient of the penalised mean risk, of shape (65, 10)."""
    return x.T @ (softmax(x @ theta, axis=1) - y) / len(x) + PENALTY * theta


def train(indices, seed):
    """The optimum for a subset, started at zero every time."""
    x, y, _, _ = digits()
    x, y = x[indices], y[indices]

    def objective(flat):
        theta = flat.reshape(x.shape[1], N_CLASSES)
        risk = -(y * log_softmax(x @ theta, axis=1)).sum() / len(x)
        penalised = risk + PENALTY / 2 * (theta**2).sum()
        return penalised, gradient(theta, x, y).ravel()

    start = np.zeros(x.shape[1] * N_CLASSES)
    options = {"maxiter": 2000, "ftol": 1e-13, "gtol": 1e-7}
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return found.x.reshape(x.shape[1], N_CLASSES)


def risks_of(theta):
    _, _, x, y = digits()
    return -(y * log_softmax(x @ theta, axis=1)).sum(axis=1)


def margins_of(theta):
    log_p = -risks_of(theta)
    return log_p - np.log(-np.expm1(log_p))


@cache
def exact():
    """Gradients per instance, the dense Hessian's factor, and the optimum on all the data."""
    x, y, x_test, y_test = digits()
    theta = train(np.arange(N_TRAIN), 0)
    p = softmax(x @ theta, axis=1)
    size = theta.size
    hessian = np.empty((x.shape[1], N_CLASSES, x.shape[1], N_CLASSES))
    for a in range(N_CLASSES):
        for b in range(N_CLASSES):
            weight = p[:, a] * ((a == b) - p[:, b])
            hessian[:, a, :, b] = (x * weight[:, None]).T @ x / N_TRAIN
    factor = cho_factor(hessian.reshape(size, size) + PENALTY * np.eye(size))
    # Newton steps take the optimum to rounding error.
    for _ in range(5):
        theta = theta - cho_solve(factor, gradient(theta, x, y).ravel()).reshape(theta.shape)
    train_grads = np.einsum("nd,nc->ndc", x, softmax(x @ theta, axis=1) - y).reshape(N_TRAIN, -1)
    residual = softmax(x_test @ theta, axis=1) - y_test
    test_grads = np.einsum("nd,nc->ndc", x_test, residual).reshape(N_TEST, -1)
    return theta, factor, train_grads, test_grads


@cache
def influences():
    """Influence functions, and the gradient dot product: both estimate a fall in risk."""
    _, factor, train_grads, test_grads = exact()
    dot = test_grads @ train_grads.T / N_TRAIN
    return cho_solve(factor, test_grads.T).T @ train_grads.T / N_TRAIN, dot


@cache
def retrained():
    subsets = random_subsets(N_TRAIN, 100, fraction=0.5, seed=0)
    outputs = retrain_on_subsets(train, lambda t: np.r_[risks_of(t), margins_of(t)], subsets)
    return subsets, outputs[:, :N_TEST], outputs[:, N_TEST:]


@cache
def loo_differences(n_left_out=150):
    """Risk without an instance minus risk with it, each at its own optimum."""
    x, y, _, _ = digits()
    theta, factor, _, _ = exact()
    left_out = np.random.default_rng(3).choice(N_TRAIN, n_left_out, replace=False)
    differences = np.empty((N_TEST, n_left_out))
    for column, index in enumerate(left_out):
        rest, labels, moved = np.delete(x, index, 0), np.delete(y, index, 0), theta.copy()
        for _ in range(30):
            slope = gradient(moved, rest, labels)
            if np.abs(slope).max() < 1e-12:
                break
            moved -= cho_solve(factor, slope.ravel()).reshape(moved.shape)
        else:
            raise AssertionError(f"leaving {index} out did not converge")
        differences[:, column] = risks_of(moved) - risks_of(theta)
    return left_out, differences


def test_influence_functions_predict_subset_risks():
    subsets, risks, margins = retrained()
    influence_functions, dot = influences()
    by_margin = linear_datamodeling_score(influence_functions, subsets, margins=margins)
    by_risk = linear_datamodeling_score(influence_functions, subsets, risks=risks)
    assert by_margin.score.low > 0.95
    assert by_risk.score.value == pytest.approx(by_margin.score.value, abs=1e-9)
    weaker = linear_datamodeling_score(dot, subsets, margins=margins)
    assert weaker.score.high < 0.8


def test_random_scores_predict_nothing():
    subsets, risks, _ = retrained()
    noise = np.random.default_rng(5).normal(size=(N_TEST, N_TRAIN))
    result = linear_datamodeling_score(noise, subsets, risks=risks)
    assert abs(result.score.value) < 0.1
    assert result.score.low < 0 < result.score.high


def test_influence_functions_equal_leave_one_out():
    left_out, differences = loo_differences()
    influence_functions, dot = influences()
    result = loo_correlation(influence_functions[:, left_out], differences)
    assert result.pooled_pearson.low > 0.99
    assert result.mean_spearman.value > 0.99
    slope = np.polyfit(influence_functions[:, left_out].ravel(), differences.ravel(), 1)[0]
    # The same scale, with the 1/n; to first order it falls short by the leverage of the instance.
    assert 1.0 < slope < 1.15
    weaker = loo_correlation(dot[:, left_out], differences)
    assert weaker.pooled_pearson.high < 0.95
