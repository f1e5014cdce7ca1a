"""Influence functions on fitted scikit-learn linear models, against scikit-learn itself."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    Lasso,
    LinearRegression,
    LogisticRegression,
    Ridge,
    RidgeClassifier,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import proponent as pp
from proponent.exceptions import InvalidInputError, SolveError

N, M = 80, 12
TIGHT = {"tol": 1e-12, "max_iter": 100_000}
NEWTON = {**TIGHT, "solver": "newton-cholesky"}


def split(load, seed=0):
    X, y = load(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(y))
    X = StandardScaler().fit_transform(X)[rows]
    return (X[:N], y[rows][:N]), (X[N : N + M], y[rows][N : N + M])


CANCER, IRIS, WINE = split(load_breast_cancer), split(load_iris), split(load_wine)
DIABETES = split(load_diabetes)
SEVERAL = tuple((X[:, :8], np.stack([y / 50, X[:, 8]], 1)) for X, y in DIABETES)


def squared_errors(model, data):
    X, y = data
    errors = (np.asarray(model.predict(X)) - y) ** 2
    return errors if errors.ndim == 1 else errors.mean(1)


def nats(model, data):
    X, y = data
    own = model.predict_proba(X)[np.arange(len(y)), np.searchsorted(model.classes_, y)]
    return -np.log(own)


def close(found, expected, tolerance) -> bool:
    expected = np.asarray(expected)
    return bool(np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected))


# The definition: the derivative of the test risk by an instance's weight in the objective


DERIVATIVES = {
    "least squares": (LinearRegression(), DIABETES, squared_errors),
    "ridge": (Ridge(3.0), DIABETES, squared_errors),
    "ridge, no intercept": (Ridge(3.0, fit_intercept=False), DIABETES, squared_errors),
    "ridge, several outputs": (Ridge(3.0), SEVERAL, squared_errors),
    "logistic": (LogisticRegression(C=0.5, **NEWTON), CANCER, nats),
    "softmax": (LogisticRegression(C=0.5, **NEWTON), IRIS, nats),
    "softmax, no intercept": (LogisticRegression(fit_intercept=False, **NEWTON), WINE, nats),
    "softmax, no penalty": (
        LogisticRegression(C=np.inf, **TIGHT),
        tuple((X[:, 1:3], y) for X, y in WINE),
        nats,
    ),
}


@pytest.mark.parametrize("case", DERIVATIVES)
def test_derivative_of_weighted_refits(case) -> None:
    """Scores are the central difference of refits in ``sample_weight``, at every instance."""
    estimator, (train, test), risk = DERIVATIVES[case]
    scores = pp.InfluenceFunctions().fit(estimator.fit(*train), train).influence(test).values
    step = 1e-3
    for i in range(0, N, 13):
        ends = []
        for sign in (-1, 1):
            weights = np.ones(N)
            weights[i] += sign * step
            ends.append(risk(estimator.fit(*train, sample_weight=weights), test))
        # a larger weight of a proponent lowers the risk
        expected = (ends[0] - ends[1]) / (2 * step)
        noise = 1e-3 if case == "softmax, no penalty" else 1e-5  # lbfgs stops short of the minimum
        assert close(scores[:, i], expected, noise), i


def test_ridge_with_an_unpenalised_intercept_in_closed_form() -> None:
    train, test = DIABETES
    ridge, alpha = Ridge(3.0).fit(*train), 3.0
    bordered, tested = (np.hstack([X, np.ones((len(X), 1))]) for X, _ in (train, test))
    penalty = alpha * np.diag([1.0] * 10 + [0.0])
    inverse = np.linalg.inv(bordered.T @ bordered + penalty)
    residuals, errors = ridge.predict(train[0]) - train[1], ridge.predict(test[0]) - test[1]
    shifts = tested @ inverse @ bordered.T * residuals  # of the predictions, to first order
    method = pp.InfluenceFunctions().fit(ridge, train)
    influence = method.influence(test)
    assert close(influence.values, 2 * errors[:, None] * shifts, 1e-10)
    assert close(method.influence(test, joint=True).values, influence.values.sum(0), 1e-10)
    leverage = ((bordered @ inverse) * bordered).sum(1)
    assert close(method.memorization().values, 2 * residuals**2 * leverage, 1e-10)
    # refits move predictions by exactly that over 1 - leverage
    kept = np.arange(N) != 5
    refit = Ridge(3.0).fit(train[0][kept], train[1][kept])
    moved = refit.predict(test[0]) - ridge.predict(test[0])
    assert close(shifts[:, 5] / (1 - leverage[5]), moved, 1e-10)


def test_softmax_against_the_pseudo_inverse_over_all_classes() -> None:
    """All coefficients of all classes, with the zero eigenvalue of the intercepts inverted away."""
    train, test = IRIS
    C, classes = 0.5, 3
    logistic = LogisticRegression(C=C, **NEWTON).fit(*train)
    features, tested = (np.hstack([X, np.ones((len(X), 1))]) for X, _ in (train, test))
    p, q = logistic.predict_proba(train[0]), logistic.predict_proba(test[0])
    each = [
        np.kron(np.diag(a) - np.outer(a, a), np.outer(x, x))
        for a, x in zip(p, features, strict=True)
    ]
    penalty = np.kron(np.eye(classes), np.diag([1.0, 1.0, 1.0, 1.0, 0.0])) / (N * C)
    hessian = np.mean(each, 0) + penalty
    assert np.sum(np.linalg.eigvalsh(hessian) < 1e-12) == 1
    onehot = np.eye(classes)
    slopes, test_slopes = p - onehot[train[1]], q - onehot[test[1]]
    gradients = np.einsum("ic,ij->icj", slopes, features).reshape(N, -1)
    test_gradients = np.einsum("ic,ij->icj", test_slopes, tested).reshape(M, -1)
    expected = test_gradients @ np.linalg.pinv(hessian, rcond=1e-10) @ gradients.T / N
    influence = pp.InfluenceFunctions().fit(logistic, train).influence(test)
    assert close(influence.values, expected, 1e-9)
    assert influence.diagnostics["effective_damping"] == 0.0


# Leave-one-out


@pytest.mark.parametrize("data", [CANCER, IRIS, WINE], ids=["cancer", "iris", "wine"])
def test_logistic_leave_one_out(data) -> None:
    """First order: the right sign, order and size, and worse the more an instance counts."""
    train, test = data
    estimator = LogisticRegression(C=0.1, **NEWTON).fit(*train)
    found = pp.InfluenceFunctions().fit(estimator, train).influence(test).values
    base = nats(estimator, test)
    exact = np.empty_like(found)
    for i in range(N):
        kept = np.arange(N) != i
        refit = LogisticRegression(C=0.1, **NEWTON).fit(train[0][kept], train[1][kept])
        exact[:, i] = nats(refit, test) - base
    assert np.corrcoef(found.ravel(), exact.ravel())[0, 1] > 0.99
    assert close(found, exact, 0.3)


def test_renormalised_is_a_refit_with_a_smaller_alpha() -> None:
    """The mean over n - 1 with the same lambda: ``alpha (n - 1) / n`` in scikit-learn's sum."""
    train, test = DIABETES
    ridge = Ridge(30.0).fit(*train)
    found = {
        convention: pp.InfluenceFunctions(loo_convention=convention)
        .fit(ridge, train)
        .influence(test)
        .values
        for convention in ("fixed_divisor", "renormalised")
    }
    base = squared_errors(ridge, test)
    exact = {"fixed_divisor": np.empty((M, N)), "renormalised": np.empty((M, N))}
    for i in range(N):
        kept = train[0][np.arange(N) != i], train[1][np.arange(N) != i]
        for convention, alpha in {
            "fixed_divisor": 30.0,
            "renormalised": 30.0 * (N - 1) / N,
        }.items():
            exact[convention][:, i] = squared_errors(Ridge(alpha).fit(*kept), test) - base
    for convention in exact:
        other = next(name for name in exact if name != convention)
        own = np.linalg.norm(found[convention] - exact[convention])
        assert own < np.linalg.norm(found[convention] - exact[other])
    # what all do together: nothing, or what the penalty holds back
    assert abs(found["renormalised"].sum(1)).max() < 1e-10 * abs(found["renormalised"]).max()
    assert abs(found["fixed_divisor"].sum(1)).max() > 1e-3


# Labels, pipelines, frames, and the frame of the library


def test_labels_of_any_kind_give_the_same_numbers() -> None:
    train, test = IRIS
    estimator = LogisticRegression(**NEWTON)
    plain = pp.InfluenceFunctions().fit(estimator.fit(*train), train).influence(test)
    # sorted otherwise than the numbers: classes change places
    names = {0: "c", 1: "b", 2: "a"}
    named = [(X, np.array([names[label] for label in y])) for X, y in (train, test)]
    method = pp.InfluenceFunctions().fit(estimator.fit(*named[0]), named[0])
    assert close(method.influence(named[1]).values, plain.values, 1e-8)


def test_pipeline_is_its_last_step_on_transformed_features() -> None:
    X, y = load_wine(return_X_y=True)
    train, test = (X[::2], y[::2]), (X[1::9], y[1::9])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(**NEWTON)).fit(*train)
    scaler = StandardScaler().fit(train[0])
    alone = LogisticRegression(**NEWTON).fit(scaler.transform(train[0]), train[1])
    found = pp.InfluenceFunctions().fit(pipeline, train).influence(test)
    expected = (
        pp.InfluenceFunctions()
        .fit(alone, (scaler.transform(train[0]), train[1]))
        .influence((scaler.transform(test[0]), test[1]))
    )
    assert close(found.values, expected.values, 1e-9)
    assert any("transformers are held fixed" in note for note in found.diagnostics["notes"])


def test_data_frames_keep_their_index() -> None:
    X, y = CANCER[0]
    frame = pd.DataFrame({"size": np.where(X[:, 0] > 0, "large", "small"), "texture": X[:, 1]})
    frame.index = [f"patient {i}" for i in range(N)]
    labels = pd.Series(np.where(y == 1, "benign", "malignant"), index=frame.index)
    encode = make_column_transformer(
        (OneHotEncoder(drop="first"), ["size"]), remainder="passthrough"
    )
    pipeline = make_pipeline(encode, LogisticRegression(**NEWTON)).fit(frame, labels)
    influence = (
        pp.InfluenceFunctions().fit(pipeline, (frame, labels)).influence((frame[:5], labels[:5]))
    )
    assert influence.train_ids.tolist() == frame.index.tolist()
    assert influence.test_ids.tolist() == frame.index.tolist()[:5]
    weights = np.ones(N)
    weights[3] = 0.999
    refit = make_pipeline(encode, LogisticRegression(**NEWTON))
    refit.fit(frame, labels, logisticregression__sample_weight=weights)
    risks = [nats(model, (frame[:5], labels[:5].to_numpy())) for model in (pipeline, refit)]
    assert close(influence.values[:, 3], (risks[1] - risks[0]) / 1e-3, 1e-3)


def test_queries_of_the_frame_agree() -> None:
    train, test = IRIS
    estimator = LogisticRegression(**NEWTON).fit(*train)
    method = pp.InfluenceFunctions().fit(estimator, train, ids=[f"plant {i}" for i in range(N)])
    full = method.influence(test)
    top = method.influence(test, top_k=3)
    np.testing.assert_array_equal(top.proponents(3).ids, full.proponents(3).ids)
    halves = [method.influence(test, shard=(i, 2)).values for i in range(2)]
    assert close(np.concatenate(halves, 1), full.values, 1e-12)
    itself = method.influence(train)
    assert close(method.memorization().values, np.diag(itself.values), 1e-10)
    assert close(method.influence(method.train_).values, itself.values, 1e-12)
    small = pp.InfluenceFunctions(batch_size=7, memory=4096).fit(estimator, train)
    assert close(small.influence(test).values, full.values, 1e-10)
    cg = pp.InfluenceFunctions("cg").fit(estimator, train)
    assert close(cg.influence(test).values, full.values, 1e-4)


def test_penalty_is_read_from_the_estimator_alone() -> None:
    train, _ = DIABETES
    with pytest.raises(InvalidInputError, match=r"weight_decay=0\.1"):
        pp.InfluenceFunctions(weight_decay=0.1).fit(Ridge(3.0).fit(*train), train)


def test_one_method_fitted_to_an_estimator_and_then_to_a_torch_model() -> None:
    """Nothing of the estimator stays behind: neither its weight decay nor its labels."""
    train, test = DIABETES
    model = pp.TorchModel(torch.nn.Linear(10, 1).double(), loss="mse")
    fresh = pp.InfluenceFunctions().fit(model, train).influence(test)
    method = pp.InfluenceFunctions().fit(Ridge(3.0).fit(*train), train)
    again = method.fit(model, train).influence(test)
    assert close(again.values, fresh.values, 1e-14)
    assert again.diagnostics["damping"] == fresh.diagnostics["damping"] > 0
    assert method.get_params() == pp.InfluenceFunctions().get_params()


# Refusals and warnings


def test_refusals() -> None:
    train, test = IRIS
    method = pp.InfluenceFunctions().fit(LogisticRegression(**NEWTON).fit(*train), train)
    with pytest.raises(InvalidInputError, match="test: the labels 5 are none"):
        method.influence((test[0], np.full(M, 5)))
    with pytest.raises(InvalidInputError, match=r"test: features of shape .* 4 columns"):
        method.influence((test[0][:, :2], test[1]))
    with pytest.raises(InvalidInputError, match="not fitted"):
        pp.InfluenceFunctions().fit(LogisticRegression(), train)
    with pytest.raises(InvalidInputError, match="Lasso is not among"):
        pp.InfluenceFunctions().fit(Lasso().fit(*train), train)
    with pytest.raises(InvalidInputError, match="RandomForestClassifier"):
        pp.InfluenceFunctions().fit(RandomForestClassifier(n_estimators=2).fit(*train), train)


def test_collinear_features_without_a_penalty_are_refused() -> None:
    X, y = DIABETES[0]
    train = np.hstack([X, X[:, :1]]), y
    with pytest.raises(SolveError, match="singular"):
        pp.InfluenceFunctions().fit(LinearRegression().fit(*train), train)
    assert pp.InfluenceFunctions().fit(Ridge().fit(*train), train).damping_ == 0.0


def test_early_stops_and_sample_weights_are_reported() -> None:
    train, test = WINE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        early = LogisticRegression(max_iter=3).fit(*train)
    found = pp.InfluenceFunctions().fit(early, train).influence(test).diagnostics
    assert any("tol=1e-10" in warning for warning in found["warnings"])
    weighted = RidgeClassifier().fit(*train, sample_weight=np.linspace(0.1, 2, N))
    found = pp.InfluenceFunctions().fit(weighted, train).influence(test).diagnostics
    assert any("sample_weight" in warning for warning in found["warnings"])
    exact = pp.InfluenceFunctions().fit(RidgeClassifier().fit(*train), train).influence(test)
    assert exact.diagnostics["warnings"] == []
    assert exact.diagnostics["objective_gradient_norm"] < 1e-12


def test_a_test_frame_with_other_columns_is_refused() -> None:
    """Also once it has been seen as instances, where only numbers are left."""
    (X, y), _ = DIABETES
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(X.shape[1])])
    method = pp.InfluenceFunctions().fit(Ridge(1.0).fit(frame, y), (frame, y))
    assert method.influence((frame[:3], y[:3])).shape == (3, N)
    for wrong in (frame[frame.columns[::-1]], frame.rename(columns={"c0": "other"})):
        with pytest.raises(InvalidInputError, match="columns"):
            method.influence((wrong[:3], y[:3]))
