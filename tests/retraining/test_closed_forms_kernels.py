"""Kernel ridge regression and Gaussian processes without some instances, against fitting again."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from retraining.refit_examples import Refits, instances, regression, singles, squared
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, Matern, WhiteKernel
from sklearn.kernel_ridge import KernelRidge

from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.retraining.closed_forms import closed_form, closed_form_of
from proponent.retraining.closed_forms.gaussian_process import GaussianProcess

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
N = 25
GROUPS = [np.array([0, 3, 5]), np.arange(12), np.arange(1, N)]


def centred(*shape: int) -> Any:
    """Return instances around 0, so that kernels tell them apart."""
    train, test = regression(*shape)
    return (train[0] - 3, train[1]), (test[0] - 3, test[1])


def laplace(one: Any, other: Any, width: float = 1.0) -> float:
    """Return a kernel of two instances, as a user might write it."""
    return float(np.exp(-np.abs(one - other).sum() / width))


# Kernel ridge regression

KERNELS: dict[str, Any] = {
    "linear": KernelRidge(alpha=3.0),
    "radial": KernelRidge(kernel="rbf", alpha=0.5),
    "given width": KernelRidge(kernel="rbf", gamma=0.2, alpha=0.5),
    "polynomial": KernelRidge(kernel="poly", degree=2, coef0=0.5, alpha=1.0),
    "laplacian": KernelRidge(kernel="laplacian", alpha=0.5),
    "cosine": KernelRidge(kernel="cosine", alpha=0.1),
    "not positive definite": KernelRidge(kernel="sigmoid", gamma=0.5, alpha=3.0),
    "callable": KernelRidge(kernel=laplace, kernel_params={"width": 2.0}, alpha=0.5),
    "without a penalty": KernelRidge(kernel="laplacian", alpha=0.0),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_ridge_is_fitting_again(kernel: str) -> None:
    model = KERNELS[kernel]
    train, test = centred(N, 3)
    form = closed_form_of(model, instances(train))
    assert form is not None and form.exact
    refits = Refits.of(model, train, [*singles(N), *GROUPS])
    expected = refits.risk_changes(squared(test))
    assert np.abs(expected).max() > 1e-3
    assert_allclose(form.without_each(instances(test)), expected[:, :N], **CLOSE)
    assert_allclose(form.without_groups(GROUPS, instances(test)), expected[:, N:], **CLOSE)
    own = Refits.of(model, train, singles(N)).risk_changes(squared(train))
    assert_allclose(form.memorization(), own.diagonal(), **CLOSE)
    duals = np.array([refits.full.dual_coef_] * N)
    for row, one in enumerate(refits.others[:N]):
        duals[row, np.arange(N) != row] -= one.dual_coef_
    assert_allclose(form.dfbeta(), duals, **CLOSE)


def test_kernel_ridge_with_outputs_penalties_and_weights() -> None:
    train, test = centred(N, 3, 2)
    model = KernelRidge(kernel="rbf", alpha=np.array([0.1, 2.0]))
    weights = np.random.default_rng(1).uniform(0.1, 3, size=N)
    weights[2] = 0
    form = closed_form_of(model, instances(train), sample_weight=weights)
    assert form is not None
    refits = Refits.of(model, train, [*singles(N), *GROUPS], weights)
    expected = refits.risk_changes(squared(test))
    assert_allclose(form.without_each(instances(test)), expected[:, :N], **CLOSE)
    assert_allclose(form.without_groups(GROUPS, instances(test)), expected[:, N:], **CLOSE)
    predictions = np.stack([one.predict(test[0]) for one in refits.others[:N]], axis=1)
    assert_allclose(form.predictions_without(instances(test)), predictions, **CLOSE)


def test_a_precomputed_kernel() -> None:
    train, test = centred(N, 3)
    width = 0.3
    kernel = np.exp(-width * np.square(train[0][:, None] - train[0]).sum(axis=2))
    cross = np.exp(-width * np.square(test[0][:, None] - train[0]).sum(axis=2))
    plain = closed_form_of(KernelRidge(kernel="rbf", gamma=width), instances(train))
    form = closed_form_of(KernelRidge(kernel="precomputed"), instances((kernel, train[1])))
    assert form is not None and plain is not None
    found = form.without_each(instances((cross, test[1])))
    assert_allclose(found, plain.without_each(instances(test)), **CLOSE)
    assert_allclose(form.memorization(), plain.memorization(), **CLOSE)


def test_duplicates_are_fine_with_a_penalty_and_without_one_there_is_no_form() -> None:
    (X, y), test = centred(N, 3)
    X[4] = X[9]
    model = KernelRidge(kernel="rbf", alpha=0.01)
    form = closed_form_of(model, instances((X, y)))
    assert form is not None
    expected = Refits.of(model, (X, y), singles(N)).risk_changes(squared(test))
    assert_allclose(form.without_each(instances(test)), expected, **CLOSE)
    assert closed_form_of(KernelRidge(kernel="sigmoid", alpha=0.0), instances((X, y))) is None


def test_an_ill_conditioned_kernel_is_said_to_be_one() -> None:
    (X, y), _ = centred(N, 3)
    form = closed_form_of(KernelRidge(kernel="rbf", gamma=1e-4, alpha=1e-12), instances((X, y)))
    assert form is not None
    assert "condition number" in form.noticed()["warnings"][0]
    well = closed_form_of(KernelRidge(kernel="rbf", alpha=1.0), instances((X, y)))
    assert well is not None and "warnings" not in well.noticed()


# Gaussian processes

NOISE = np.random.default_rng(2).uniform(0.1, 1, size=N)
PROCESSES: dict[str, tuple[Any, int]] = {
    "white kernel": (GaussianProcessRegressor(RBF() + WhiteKernel(0.1), optimizer=None), 0),
    "normalised": (
        GaussianProcessRegressor(
            ConstantKernel(2.0) * Matern(nu=1.5), alpha=0.1, optimizer=None, normalize_y=True
        ),
        0,
    ),
    "normalised outputs": (
        GaussianProcessRegressor(
            RBF(0.7) + WhiteKernel(0.2), alpha=0.05, optimizer=None, normalize_y=True
        ),
        2,
    ),
    "default kernel": (GaussianProcessRegressor(alpha=0.5, optimizer=None), 2),
    "nothing to optimise": (
        GaussianProcessRegressor(RBF(1.0, length_scale_bounds="fixed"), alpha=0.3),
        0,
    ),
}


def negative_log_likelihood(test: Any) -> Any:
    """Return minus the log density of each test target with its noise."""
    X, y = test
    y = y.reshape(len(y), -1)

    def risk(model: Any) -> Any:
        mean, deviation = (part.reshape(y.shape) for part in model.predict(X, return_std=True))
        variance = deviation**2 + model.alpha * model._y_train_std**2
        return (np.log(2 * np.pi * variance) / 2 + (mean - y) ** 2 / variance / 2).sum(axis=1)

    return risk


@pytest.mark.parametrize("risk", ["squared", "negative_log_likelihood"])
@pytest.mark.parametrize("process", PROCESSES)
def test_a_gaussian_process_is_fitting_again(process: str, risk: str) -> None:
    model, outputs = PROCESSES[process]
    train, test = centred(N, 3, outputs)
    form = closed_form_of(model, instances(train), risk=risk)
    assert form is not None and form.exact
    refits = Refits.of(model, train, [*singles(N), *GROUPS])
    judge = {"squared": squared, "negative_log_likelihood": negative_log_likelihood}[risk]
    expected = refits.risk_changes(judge(test))
    assert np.abs(expected).max() > 1e-3
    assert_allclose(form.without_each(instances(test)), expected[:, :N], **CLOSE)
    assert_allclose(form.without_groups(GROUPS, instances(test)), expected[:, N:], **CLOSE)
    own = Refits.of(model, train, singles(N)).risk_changes(judge(train))
    assert_allclose(form.memorization(), own.diagonal(), **CLOSE)


@pytest.mark.parametrize("process", PROCESSES)
def test_means_and_variances_without_each(process: str) -> None:
    model, outputs = PROCESSES[process]
    train, test = centred(N, 3, outputs)
    form = closed_form_of(model, instances(train))
    assert isinstance(form, GaussianProcess)
    others = Refits.of(model, train, singles(N)).others
    predicted = [one.predict(test[0], return_std=True) for one in others]
    means = np.stack([mean for mean, _ in predicted], axis=1)
    assert_allclose(form.predictions_without(instances(test)), means, **CLOSE)
    variances = [
        deviation**2 + one.alpha * one._y_train_std**2
        for one, (_, deviation) in zip(others, predicted, strict=True)
    ]
    found = form.variances_without(instances(test))
    assert_allclose(found, np.stack(variances, axis=1), **CLOSE)


def test_an_instances_own_prediction_is_that_of_the_inverse_kernel() -> None:
    """Rasmussen and Williams, eq. (5.12): without itself, ``y - u / G`` and ``1 / G``."""
    (X, y), _ = centred(N, 3)
    kernel = RBF() + WhiteKernel(0.1)
    model = GaussianProcessRegressor(kernel, alpha=0.2, optimizer=None)
    form = closed_form_of(model, instances((X, y)))
    assert isinstance(form, GaussianProcess)
    inverse = np.linalg.inv(kernel(X) + 0.2 * np.eye(N))
    expected = y - inverse @ y / inverse.diagonal()
    assert_allclose(form.predictions_without(instances((X, y))).diagonal(), expected, **CLOSE)
    found = form.variances_without(instances((X, y))).diagonal()
    assert_allclose(found, 1 / inverse.diagonal(), **CLOSE)


def test_a_noise_for_each_instance() -> None:
    train, test = centred(N, 3)
    model = GaussianProcessRegressor(RBF(), alpha=NOISE, optimizer=None)
    form = closed_form_of(model, instances(train))
    assert form is not None
    expected = Refits.of(model, train, [*singles(N), *GROUPS], alpha=NOISE)
    changes = expected.risk_changes(squared(test))
    assert_allclose(form.without_each(instances(test)), changes[:, :N], **CLOSE)
    assert_allclose(form.without_groups(GROUPS, instances(test)), changes[:, N:], **CLOSE)
    with pytest.raises(InvalidInputError, match="risk: with a noise"):
        closed_form_of(model, instances(train), risk="negative_log_likelihood")


def test_a_constant_target_is_normalised_as_scikit_learn_does() -> None:
    (X, y), test = centred(6, 2)
    y[:] = 2.0
    y[3] = 5.0  # without it the others are constant
    model = GaussianProcessRegressor(RBF(), alpha=0.1, optimizer=None, normalize_y=True)
    form = closed_form_of(model, instances((X, y)), risk="negative_log_likelihood")
    assert form is not None
    refits = Refits.of(model, (X, y), singles(6))
    expected = refits.risk_changes(negative_log_likelihood(test))
    assert_allclose(form.without_each(instances(test)), expected, **CLOSE)


@pytest.mark.filterwarnings("ignore:The optimal value found")
def test_a_kernel_that_was_chosen_is_held_fixed_only_if_that_is_wanted() -> None:
    train, test = centred(N, 3)
    model = GaussianProcessRegressor(RBF() + WhiteKernel(), random_state=0)
    assert closed_form_of(model, instances(train), approximate=True) is None
    model.fit(*train)
    assert closed_form_of(model, instances(train)) is None
    form = closed_form_of(model, instances(train), approximate=True)
    assert form is not None and not form.exact
    assert "held fixed" in form.noticed()["notes"][0]
    frozen = GaussianProcessRegressor(model.kernel_, optimizer=None)
    expected = Refits.of(frozen, train, singles(N)).risk_changes(squared(test))
    assert_allclose(form.without_each(instances(test)), expected, **CLOSE)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = centred(N, 3, 2)
    model = PROCESSES["normalised outputs"][0]
    form = closed_form_of(model, instances(train), risk="negative_log_likelihood")
    assert form is not None
    asked = (
        lambda: form.without_each(instances(test)),
        lambda: form.without_groups(GROUPS, instances(test)),
        form.memorization,
        form.cooks_distance,
    )
    whole = [ask() for ask in asked]
    monkeypatch.setattr(closed_form, "BLOCK", 3 * N)
    for ask, expected in zip(asked, whole, strict=True):
        assert_allclose(ask(), expected, rtol=1e-9, atol=1e-12)


def test_a_variance_that_is_not_positive_is_refused() -> None:
    train, _ = centred(N, 3)
    model = GaussianProcessRegressor(RBF(), alpha=0.0, optimizer=None)
    form = closed_form_of(model, instances(train), risk="negative_log_likelihood")
    assert form is not None
    with pytest.raises(NonFiniteError, match="variance"):
        form.without_each(instances(train))
