"""Fitted scikit-learn linear models, seen as torch models that minimise the same function."""

import ast
import inspect
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    LogisticRegression,
    LogisticRegressionCV,
    Ridge,
    RidgeClassifier,
    RidgeClassifierCV,
    RidgeCV,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from torch.utils.data import Dataset

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models import sklearn_encoder, sklearn_linear, sklearn_objective
from proponent.models.sklearn_linear import SoftmaxLinear, is_linear_estimator, linear_study

TIGHT = {"tol": 1e-12, "max_iter": 100_000}
SGD = {
    "tol": 1e-9, "max_iter": 5000, "random_state": 0, "learning_rate": "adaptive", "eta0": 0.01,
}  # fmt: skip


def scaled(load, rows=150):
    X, y = load(return_X_y=True)
    chosen = np.random.default_rng(0).permutation(len(y))[:rows]
    return StandardScaler().fit_transform(X)[chosen], y[chosen]


CANCER, IRIS, WINE = scaled(load_breast_cancer), scaled(load_iris), scaled(load_wine)
DIABETES = scaled(load_diabetes)
SEVERAL = DIABETES[0][:, :8], np.stack([DIABETES[1] / 50, 3 * DIABETES[0][:, 8]], 1)


def cross_validated(Cs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # scikit-learn's defaults are changing
        return LogisticRegressionCV(Cs=Cs, cv=2, **TIGHT).fit(*CANCER)


EXACT = {
    "least squares": (LinearRegression(), DIABETES),
    "least squares, several outputs": (LinearRegression(), SEVERAL),
    "least squares, no intercept": (LinearRegression(fit_intercept=False), DIABETES),
    "ridge": (Ridge(alpha=3.0), DIABETES),
    "ridge, several outputs": (Ridge(alpha=3.0), SEVERAL),
    "ridge, equal alpha each": (Ridge(alpha=np.array([3.0, 3.0])), SEVERAL),
    "ridge, a column of targets": (Ridge(), (DIABETES[0], DIABETES[1][:, None])),
    "ridge, cross-validated": (RidgeCV(alphas=(0.5, 5.0)), DIABETES),
    "ridge classifier": (RidgeClassifier(alpha=2.0), CANCER),
    "ridge classifier, 3 classes": (RidgeClassifier(alpha=2.0), IRIS),
    "ridge classifier, weights": (RidgeClassifier(class_weight={0: 0.2}), CANCER),
    "ridge classifier, 3 weights": (RidgeClassifier(class_weight="balanced"), WINE),
    "ridge classifier, cross-validated": (RidgeClassifierCV(), IRIS),
    "logistic": (LogisticRegression(C=0.7, **TIGHT), CANCER),
    "logistic, no intercept": (LogisticRegression(fit_intercept=False, **TIGHT), CANCER),
    "logistic, weights": (LogisticRegression(class_weight="balanced", **TIGHT), CANCER),
    "logistic, no penalty": (
        LogisticRegression(C=np.inf, **TIGHT), (CANCER[0][:, :2], CANCER[1]),
    ),
    "liblinear": (
        LogisticRegression(solver="liblinear", intercept_scaling=3.0, C=0.2, **TIGHT), CANCER,
    ),
    "softmax": (LogisticRegression(C=0.7, **TIGHT), IRIS),
    "softmax, no intercept": (LogisticRegression(fit_intercept=False, **TIGHT), WINE),
    "softmax, weights": (LogisticRegression(class_weight={0: 3.0}, **TIGHT), IRIS),
    "softmax, newton-cholesky": (LogisticRegression(solver="newton-cholesky", **TIGHT), IRIS),
    "softmax, no penalty": (
        LogisticRegression(C=np.inf, **TIGHT), (IRIS[0][:, :2], IRIS[1]),
    ),
    "sgd": (SGDRegressor(alpha=0.1, **SGD), (DIABETES[0], DIABETES[1] / 50)),
    "sgd, logistic": (SGDClassifier(loss="log_loss", alpha=0.1, **SGD), CANCER),
}  # fmt: skip


@pytest.fixture(params=EXACT)
def fitted(request):
    estimator, data = EXACT[request.param]
    return estimator.fit(*data), data


def outputs(study):
    features = study.train.batch(slice(None))[0]
    return study.model.module(features).detach().numpy()


def objective_gradients(study):
    """Gradients of ``mean risk + (lambda / 2) ||theta||^2`` by one backward pass."""
    model, module = study.model, study.model.module
    batch = study.train.batch(slice(None))
    objective = model.batch_risk(batch, len(study.train)).mean()
    for name, parameter in module.named_parameters():
        objective = objective + study.weight_decay[name] / 2 * parameter.square().sum()
    return torch.autograd.grad(objective, list(module.parameters()))


def test_the_coefficients_are_the_minimum_of_the_stated_objective(fitted) -> None:
    """Loss, penalty, targets and class weights are scikit-learn's: its minimum is theirs."""
    estimator, data = fitted
    study = linear_study(estimator, data)
    left = max(float(part.abs().max()) for part in objective_gradients(study))
    spread = float(study.model.risks(study.train).mean())
    sgd = isinstance(estimator, (SGDClassifier, SGDRegressor))
    assert left < (5e-3 if sgd else 1e-6) * spread
    assert study.warnings == ()
    assert all(parameter.dtype == torch.float64 for parameter in study.model.module.parameters())


def test_the_layer_predicts_as_the_estimator(fitted) -> None:
    estimator, data = fitted
    study = linear_study(estimator, data)
    found = outputs(study)
    if isinstance(study.model.module, SoftmaxLinear):
        probabilities = torch.softmax(torch.as_tensor(found), 1).numpy()
        np.testing.assert_allclose(probabilities, estimator.predict_proba(data[0]), atol=1e-13)
        return
    decide = getattr(estimator, "decision_function", estimator.predict)
    np.testing.assert_allclose(np.squeeze(found), np.squeeze(decide(data[0])), atol=1e-11)


@pytest.mark.parametrize("C", [0.01, 30.0])
def test_cross_validation_gives_its_own_choice(C) -> None:
    estimator = cross_validated([C])
    study = linear_study(estimator, CANCER)
    assert study.weight_decay == {"weight": pytest.approx(1 / (len(CANCER[1]) * C)), "bias": 0.0}
    assert max(float(part.abs().max()) for part in objective_gradients(study)) < 1e-7
    assert any("C was chosen by cross-validation" in note for note in study.notes)
    assert any("C without an instance" in n and "'fixed_divisor'" in n for n in study.notes)


def test_risks_are_known_ones() -> None:
    """The squared error without a half, its mean over outputs, and the cross-entropy in nats."""
    ridge = Ridge().fit(*SEVERAL)
    squared = (ridge.predict(SEVERAL[0]) - SEVERAL[1]) ** 2
    study = linear_study(ridge, SEVERAL)
    np.testing.assert_allclose(study.model.risks(study.train), squared.mean(1), rtol=1e-10)

    logistic = LogisticRegression(**TIGHT).fit(*IRIS)
    own = logistic.predict_proba(IRIS[0])[np.arange(len(IRIS[1])), IRIS[1]]
    study = linear_study(logistic, IRIS)
    np.testing.assert_allclose(study.model.risks(study.train), -np.log(own), rtol=1e-10)

    weighted = RidgeClassifier(class_weight={0: 0.2}).fit(*CANCER)
    error = (weighted.decision_function(CANCER[0]) - np.where(CANCER[1] == 1, 1.0, -1.0)) ** 2
    study = linear_study(weighted, CANCER)
    expected = np.where(CANCER[1] == 1, 1.0, 0.2) * error
    np.testing.assert_allclose(study.model.risks(study.train), expected, rtol=1e-10)
    assert any("class weights" in note for note in study.notes)


# The direction that a softmax ignores


def test_softmax_layer_has_no_idle_direction() -> None:
    estimator = LogisticRegression(**TIGHT).fit(*IRIS)
    study = linear_study(estimator, IRIS)
    layer, parameters = study.model.module, dict(study.model.module.named_parameters())
    probabilities = estimator.predict_proba(IRIS[0])
    features = np.hstack([IRIS[0], np.ones((len(IRIS[1]), 1))])
    basis = layer.contrasts.numpy()
    hessian = sum(
        np.kron(basis.T @ (np.diag(p) - np.outer(p, p)) @ basis, np.outer(x, x))
        for p, x in zip(probabilities, features, strict=True)
    )
    assert np.linalg.eigvalsh(hessian / len(features))[0] > 1e-6
    # distances, and so the penalty, are those of the coefficients
    np.testing.assert_allclose(
        float(parameters["weight"].detach().norm()), np.linalg.norm(estimator.coef_), rtol=1e-10
    )
    np.testing.assert_allclose(layer.contrasts.sum(0), 0, atol=1e-15)
    np.testing.assert_allclose(layer.contrasts.T @ layer.contrasts, np.eye(2), atol=1e-15)


def test_intercepts_that_differ_by_a_constant_are_the_same_study() -> None:
    estimator = LogisticRegression(**TIGHT).fit(*IRIS)
    plain = linear_study(estimator, IRIS).model.module.bias.detach().clone()
    estimator.intercept_ = estimator.intercept_ + 5.0
    moved = linear_study(estimator, IRIS)
    np.testing.assert_allclose(moved.model.module.bias.detach(), plain, atol=1e-13)


# Instances


def test_labels_of_any_kind_keep_their_order_and_ids() -> None:
    X, y = IRIS
    kinds = {
        "str": np.array(["setosa", "versicolor", "virginica"])[y],
        "object": np.array(["setosa", "versicolor", "virginica"], object)[y],
        "int": np.array([30, 10, 20])[y],
        "float": np.array([3.0, 2.0, 1.0])[y],
    }
    ids = [f"plant {i}" for i in range(len(y))]
    for labels in kinds.values():
        estimator = LogisticRegression(**TIGHT).fit(X, labels)
        study = linear_study(estimator, (X, labels), ids=ids)
        positions = [estimator.classes_.tolist().index(label) for label in labels.tolist()]
        assert study.train.labels().tolist() == positions
        assert study.train.ids.tolist() == ids
        np.testing.assert_array_equal(study.train.batch(slice(None))[0].numpy(), X)
        turned = study.encode((X[::-1], labels[::-1]), ids=ids[::-1])
        assert turned.labels().tolist() == positions[::-1]
        assert turned.ids.tolist() == ids[::-1]


def test_bool_labels_and_a_column_of_labels() -> None:
    X, y = CANCER
    for labels in (y.astype(bool), y.astype(bool)[:, None]):
        estimator = LogisticRegression(**TIGHT).fit(X, y.astype(bool))
        assert linear_study(estimator, (X, labels)).train.labels().tolist() == y.tolist()


def test_ridge_classifier_targets() -> None:
    study = linear_study(RidgeClassifier().fit(*CANCER), CANCER)
    np.testing.assert_array_equal(study.train.labels(), np.where(CANCER[1] == 1, 1.0, -1.0))
    study = linear_study(RidgeClassifier().fit(*IRIS), IRIS)
    np.testing.assert_array_equal(study.train.labels(), 2 * np.eye(3)[IRIS[1]] - 1)


def test_instances_tensors_sparse_matrices_and_data_sets() -> None:
    X, y = CANCER

    class Pairs(Dataset):
        def __len__(self):
            return len(y)

        def __getitem__(self, i):
            return torch.as_tensor(X[i]), int(y[i])

    estimator = LogisticRegression(**TIGHT).fit(X, y)
    forms = [
        Instances.of((X, y)), (torch.as_tensor(X), torch.as_tensor(y)), [X, y],
        (sparse.csr_matrix(X), y), Pairs(), (pd.DataFrame(X), pd.Series(y)),
    ]  # fmt: skip
    for form in forms:
        features, targets = linear_study(estimator, form).train.batch(slice(None))
        np.testing.assert_array_equal(features.numpy(), X)
        assert targets.tolist() == y.tolist()
    assert linear_study(LogisticRegression(**TIGHT).fit(sparse.csr_matrix(X), y), forms[3])


def test_pipeline_of_transformers_and_a_linear_model() -> None:
    X, y = load_wine(return_X_y=True)
    pipeline = make_pipeline(
        make_pipeline(StandardScaler(), "passthrough"), make_pipeline(LogisticRegression(**TIGHT))
    ).fit(X, y)
    study = linear_study(pipeline, (X, y))
    logits = torch.as_tensor(outputs(study))
    np.testing.assert_allclose(torch.softmax(logits, 1), pipeline.predict_proba(X), atol=1e-12)
    assert study.warnings == ()
    assert any("transformers are held fixed" in note for note in study.notes)
    alone = linear_study(make_pipeline(Ridge()).fit(X, y), (X, y))
    assert not any("transformers" in note for note in alone.notes)


def mixed_frame():
    X, y = CANCER
    sizes = np.array(["small", "medium", "large"])[np.digitize(X[:, 0], [-0.5, 0.5])]
    frame = pd.DataFrame({"size": sizes, "texture": X[:, 1], "count": np.arange(len(y)) % 5})
    frame.index = [f"patient {i}" for i in range(len(y))]
    return frame, pd.Series(np.array(["malignant", "benign"])[y], index=frame.index)


def test_pipeline_fitted_to_a_data_frame_of_mixed_columns() -> None:
    frame, labels = mixed_frame()
    encode = make_column_transformer(
        (OneHotEncoder(), ["size"]), (StandardScaler(), ["texture", "count"])
    )
    pipeline = make_pipeline(encode, LogisticRegression(**TIGHT)).fit(frame, labels)
    train = Instances.of((frame, labels))
    study = linear_study(pipeline, train)
    probabilities = pipeline.predict_proba(frame)[:, 1]
    np.testing.assert_allclose(1 / (1 + np.exp(-outputs(study)[:, 0])), probabilities, atol=1e-12)
    assert study.train.ids.tolist() == frame.index.tolist()
    assert study.warnings == ()
    with pytest.raises(InvalidInputError, match=r"test: the columns count, .* not, in this order"):
        study.encode((frame[["count", "texture", "size"]], labels))
    with pytest.raises(InvalidInputError, match=r"test: features of shape .* 3 columns"):
        study.encode((frame[["size"]].to_numpy(), labels))
    unseen = frame.assign(size="enormous")
    with pytest.raises(InvalidInputError, match=r"test: the pipeline's ColumnTransformer .*enorm"):
        study.encode((unseen, labels))


# What is noticed


def test_solvers_that_stopped_early_are_told_from_those_that_did_not() -> None:
    early = linear_study(LogisticRegression(tol=0.5).fit(*WINE), WINE)
    assert len(early.warnings) == 1 and "tol=1e-10" in early.warnings[0]
    default = linear_study(LogisticRegression().fit(*WINE), WINE)
    assert default.warnings == () and any("differences between refits" in n for n in default.notes)
    tight = linear_study(LogisticRegression(**TIGHT).fit(*WINE), WINE)
    assert not any("tol" in note for note in tight.notes + tight.warnings)
    # the scale of a feature does not matter
    stretched = WINE[0] * np.logspace(-4, 4, 13), WINE[1]
    solved = LogisticRegression(solver="newton-cholesky", **TIGHT).fit(*stretched)
    assert linear_study(solved, stretched).warnings == ()


def test_sample_weights_and_other_data_are_noticed() -> None:
    weights = np.where(np.arange(len(DIABETES[1])) % 2, 0.1, 1.0)
    weighted = linear_study(Ridge().fit(*DIABETES, sample_weight=weights), DIABETES)
    assert "sample_weight" in weighted.warnings[0]
    fewer = DIABETES[0][:100], DIABETES[1][:100]
    assert "other data" in linear_study(Ridge().fit(*DIABETES), fewer).warnings[0]
    assert linear_study(Ridge().fit(*DIABETES), DIABETES).warnings == ()


def test_a_perfect_fit_is_no_failure_to_converge() -> None:
    X = DIABETES[0]
    y = X @ np.arange(10.0) + 3
    assert linear_study(LinearRegression().fit(X, y), (X, y)).warnings == ()


# Refusals


@pytest.mark.parametrize(
    "estimator, data, message",
    [
        (Lasso(), DIABETES, "Lasso is not among the linear models"),
        (ElasticNet(), DIABETES, "ElasticNet is not among"),
        (Ridge(positive=True), DIABETES, "positive=True"),
        (Ridge(alpha=[1.0, 2.0]), SEVERAL, "different alpha"),
        (LogisticRegression(l1_ratio=1.0, solver="saga", tol=0.1), CANCER, "L1 penalty"),
        (LogisticRegression(l1_ratio=0.5, solver="saga", tol=0.1), CANCER, "L1 penalty"),
        (SGDClassifier(), CANCER, "loss='hinge'"),
        (SGDClassifier(loss="log_loss"), IRIS, "one against the rest"),
        (SGDClassifier(loss="log_loss", penalty="l1"), CANCER, "L1 penalty"),
        (SGDRegressor(loss="huber"), DIABETES, "loss='huber'"),
        (SGDRegressor(penalty="elasticnet"), DIABETES, "L1 penalty"),
        (RidgeClassifier(), (IRIS[0], np.eye(3, dtype=int)[IRIS[1]]), "several labels"),
    ],
)
def test_estimators_without_a_known_smooth_objective(estimator, data, message) -> None:
    estimator.fit(*data)
    assert is_linear_estimator(estimator)
    with pytest.raises(InvalidInputError, match=message):
        linear_study(estimator, data)


def test_penalties_as_older_versions_name_them() -> None:
    X, y = CANCER
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        free = LogisticRegression(penalty=None, **TIGHT).fit(X[:, :2], y)
        l2 = LogisticRegression(penalty="l2", **TIGHT).fit(X, y)
        l1 = LogisticRegression(penalty="l1", l1_ratio=1, solver="liblinear").fit(X, y)
        averaged = LogisticRegressionCV(Cs=[1.0], cv=2, refit=False).fit(X, y)
    assert linear_study(free, (X[:, :2], y)).weight_decay == {"weight": 0.0, "bias": 0.0}
    assert linear_study(l2, CANCER).weight_decay["weight"] == pytest.approx(1 / len(y))
    with pytest.raises(InvalidInputError, match="L1 penalty"):
        linear_study(l1, CANCER)
    with pytest.raises(InvalidInputError, match="refit=False"):
        linear_study(averaged, CANCER)
    l2.multi_class = "multinomial"  # an attribute until 1.8, with coefficients of half the size
    with pytest.raises(InvalidInputError, match="multi_class"):
        linear_study(l2, CANCER)


def test_not_fitted() -> None:
    for estimator in (Ridge(), make_pipeline(StandardScaler(), LogisticRegression())):
        assert is_linear_estimator(estimator)
        with pytest.raises(InvalidInputError, match="not fitted"):
            linear_study(estimator, CANCER)


def test_sets_that_do_not_fit() -> None:
    study = linear_study(LogisticRegression(**TIGHT).fit(*IRIS), IRIS)
    X, y = IRIS
    with pytest.raises(InvalidInputError, match=r"test: the labels 7, a are none .*\(0, 1, 2\)"):
        study.encode((X[:3], np.array([0, 7, "a"], object)))
    with pytest.raises(InvalidInputError, match=r"test: features of shape \(150, 3\).*4 columns"):
        study.encode((X[:, :3], y))
    with pytest.raises(InvalidInputError, match="without sample weights"):
        study.encode((X, y, np.ones(len(y))))
    with pytest.raises(InvalidInputError, match=r"needs an \(X, y\) pair"):
        study.encode(X)
    with pytest.raises(InvalidInputError, match="one label an instance"):
        study.encode((X, np.eye(3)[y]))
    with pytest.raises(InvalidInputError, match="not all numbers"):
        study.encode((np.array([["a", "b", "c", "d"]]), y[:1]))
    with pytest.raises(InvalidInputError, match="empty"):
        linear_study(LogisticRegression(**TIGHT).fit(*IRIS), (X[:0], y[:0]))
    with pytest.raises(InvalidInputError, match=r"targets of shape .* 2 output"):
        linear_study(Ridge().fit(*SEVERAL), (SEVERAL[0], DIABETES[1]))


def test_the_estimator_and_random_numbers_stay_as_they_were() -> None:
    estimator, state = LogisticRegression(**TIGHT).fit(*CANCER), torch.get_rng_state()
    before = {name: np.array(value) for name, value in vars(estimator).items()}
    linear_study(estimator, CANCER).model.module.weight.data.add_(1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert vars(estimator).keys() == before.keys()
    assert all(np.array_equal(value, before[name]) for name, value in vars(estimator).items())


def test_which_objects_are_linear_estimators() -> None:
    class Mine(LogisticRegression):
        pass

    assert is_linear_estimator(Mine())
    assert is_linear_estimator(make_pipeline(StandardScaler(), make_pipeline(Lasso())))
    others = [
        RandomForestClassifier(), make_pipeline(StandardScaler(), RandomForestClassifier()),
        make_pipeline(StandardScaler()), torch.nn.Linear(2, 2), None, "Ridge",
    ]  # fmt: skip
    assert not any(is_linear_estimator(other) for other in others)


def test_no_module_imports_scikit_learn_with_itself() -> None:
    for module in (sklearn_linear, sklearn_encoder, sklearn_objective):
        statements = ast.parse(inspect.getsource(module)).body
        imports = [ast.unparse(node) for node in statements if "Import" in type(node).__name__]
        assert imports
        assert not any(name.startswith(("import sklearn", "from sklearn")) for name in imports)
