"""Cook's distance, scalar and vector, for instances and groups, against fitting again."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from retraining.refit_examples import Refits, classification, instances, regression, singles
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge

from proponent.exceptions import InvalidInputError
from proponent.retraining.closed_forms import closed_form_of
from proponent.retraining.closed_forms.closed_form import ClosedForm

N = 25
GROUPS = [np.array([0, 3, 5]), np.arange(8)]


def form_of(model: Any, data: Any, **options: Any) -> ClosedForm:
    form = closed_form_of(model, instances(data), **options)
    assert form is not None
    return form


def hat(X: Any, penalty: float = 0.0) -> Any:
    X = np.column_stack([X, np.ones(len(X))])
    ridge = np.diag([penalty] * (X.shape[1] - 1) + [0.0])
    return X @ np.linalg.solve(X.T @ X + ridge, X.T)


def test_least_squares_by_residuals_and_leverages() -> None:
    """Cook 1977: ``e^2 h / (p s^2 (1 - h)^2)``."""
    train, _ = regression(N, 4)
    h = hat(train[0]).diagonal()
    e = train[1] - hat(train[0]) @ train[1]
    expected = e**2 * h / (5 * (e @ e / (N - 5)) * (1 - h) ** 2)
    assert_allclose(form_of(LinearRegression(), train).cooks_distance(), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        (LinearRegression(), 0),
        (LinearRegression(), 3),
        (Ridge(2.0), 0),
        (Ridge(np.array([0.1, 5.0, 1.0])), 3),
        (KernelRidge(kernel="rbf", alpha=0.3), 2),
    ],
)
def test_the_distance_is_that_of_the_fits_to_the_training_set(model: Any, outputs: int) -> None:
    train, _ = regression(N, 3, outputs)
    X, y = train[0], train[1].reshape(N, -1)
    refits = Refits.of(model, train, [*singles(N), *GROUPS])
    with_all = refits.full.predict(X).reshape(N, -1)
    moved = np.stack([with_all - one.predict(X).reshape(N, -1) for one in refits.others])
    alpha = np.broadcast_to(getattr(model, "alpha", 0.0), y.shape[1])
    taken = []
    for penalty in alpha:
        kernel = model._get_kernel(X) if isinstance(model, KernelRidge) else None
        smoother = (
            hat(X, penalty)
            if kernel is None
            else kernel @ np.linalg.inv(kernel + penalty * np.eye(N))
        )
        taken.append(np.trace(smoother))
    variance = np.square(y - with_all).sum(axis=0) / (N - np.array(taken))
    expected = (np.square(moved).sum(axis=1) / (np.array(taken) * variance)).sum(axis=1)
    form = form_of(model, train)
    assert_allclose(form.cooks_distance(), expected[:N], rtol=1e-8)
    assert_allclose(form.group_cooks_distance(GROUPS), expected[N:], rtol=1e-8)
    one = [np.array([4])]
    assert_allclose(form.group_cooks_distance(one), expected[4:5], rtol=1e-8)


def test_weights_count_in_the_distance_and_in_the_variance() -> None:
    train, _ = regression(N, 3)
    X, y = train
    weights = np.random.default_rng(1).uniform(0.2, 3, size=N)
    weights[2] = 0
    refits = Refits.of(LinearRegression(), train, singles(N), weights)
    with_all = refits.full.predict(X)
    moved = np.stack([with_all - one.predict(X) for one in refits.others])
    variance = weights @ np.square(y - with_all) / (N - 1 - 4)
    expected = np.square(moved) @ weights / (4 * variance)
    form = form_of(LinearRegression(), train, sample_weight=weights)
    assert_allclose(form.cooks_distance(), expected, rtol=1e-8, atol=1e-15)
    assert form.cooks_distance()[2] == pytest.approx(0, abs=1e-15)


def test_logistic_regression_by_pearson_residuals_and_leverages() -> None:
    """Pregibon 1981: ``r^2 h / (p (1 - h)^2)``."""
    train, _ = classification(80, 3, 2, seed=3)
    model = LogisticRegression(C=np.inf, tol=1e-12, solver="newton-cholesky").fit(*train)
    X = np.column_stack([train[0], np.ones(80)])
    p = model.predict_proba(train[0])[:, 1]
    weights = p * (1 - p)
    inverse = np.linalg.inv(X.T @ (weights[:, None] * X))
    h = weights * np.einsum("ia,ab,ib->i", X, inverse, X)
    pearson = (train[1] - p) / np.sqrt(weights)
    expected = pearson**2 * h / (4 * (1 - h) ** 2)
    form = form_of(LogisticRegression(C=np.inf), train, approximate=True)
    assert_allclose(form.cooks_distance(), expected, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_logistic_models_distance_is_that_of_its_parameters(classes: int) -> None:
    train, _ = classification(60, 3, classes)
    form = form_of(LogisticRegression(), train, approximate=True, steps=8)
    model = LogisticRegression(tol=1e-12, solver="newton-cholesky")
    refits = Refits.of(model, train, [*singles(60), *GROUPS])
    X = np.column_stack([train[0], np.ones(60)])
    likely = refits.full.predict_proba(train[0])
    information: Any = 0
    if classes == 2:
        information = X.T @ ((likely[:, 0] * likely[:, 1])[:, None] * X)
    else:
        for x, p in zip(X, likely, strict=True):
            information = information + np.kron(np.diag(p) - np.outer(p, p), np.outer(x, x))
    penalty = np.diag(np.tile([1.0, 1.0, 1.0, 0.0], 1 if classes == 2 else 3))
    taken = np.trace(np.linalg.pinv(information + penalty) @ information)
    moved = refits.dfbeta(center=classes > 2)
    expected = np.einsum("ra,ab,rb->r", moved, information, moved) / taken
    assert_allclose(form.cooks_distance(), expected[:60], rtol=1e-6)
    assert_allclose(form.group_cooks_distance(GROUPS), expected[60:], rtol=1e-6)


def test_dfbeta_has_the_opposite_sign_of_the_step_that_is_taken() -> None:
    """An instance far above the line raises the intercept, and what it predicts."""
    X = np.linspace(-1, 1, 11)[:, None]
    y = np.zeros(11)
    y[5] = 3.0
    dfbeta = form_of(Ridge(1e-6), (X, y)).dfbeta()
    assert dfbeta.shape == (11, 2)
    assert dfbeta[5, 1] > 0.2


def test_a_perfect_fit_has_no_distances() -> None:
    train, _ = regression(10, 20)
    with pytest.raises(InvalidInputError, match="no residuals"):
        form_of(LinearRegression(), train).cooks_distance()
    X = np.arange(10.0)[:, None]
    with pytest.raises(InvalidInputError, match="no residuals"):
        form_of(LinearRegression(), (X, 2 * X[:, 0] + 1)).cooks_distance()


def test_an_instance_that_alone_has_a_feature_is_compared_with_the_shortest_solution() -> None:
    (X, y), _ = regression(N, 3)
    X[:, 2] = 0
    X[7, 2] = 1
    refits = Refits.of(LinearRegression(), (X, y), [np.array([7])])
    with_all = refits.full.predict(X)
    variance = np.square(y - with_all).sum() / (N - 4)
    moved = with_all - refits.others[0].predict(X)
    found = form_of(LinearRegression(), (X, y)).cooks_distance()
    assert_allclose(found[7], moved @ moved / (4 * variance), rtol=1e-9)
    assert np.isfinite(found).all()
