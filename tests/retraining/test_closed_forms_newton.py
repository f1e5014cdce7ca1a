"""Logistic regression without some instances by Newton steps, against fitting again."""

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from retraining.refit_examples import Refits, classification, instances, singles
from sklearn.linear_model import LogisticRegression

from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.models.prediction_risk import Classes, Classification
from proponent.retraining.closed_forms import closed_form, closed_form_of
from proponent.retraining.closed_forms.closed_form import ClosedForm, NoClosedForm
from proponent.retraining.closed_forms.newton_step import NewtonStep

TIGHT: dict[str, Any] = {"tol": 1e-12, "max_iter": 500, "solver": "newton-cholesky"}
GROUPS = [np.array([0, 3, 5]), np.arange(12)]


def form_of(model: Any, data: Any, **options: Any) -> ClosedForm:
    form = closed_form_of(model, instances(data), approximate=True, **options)
    assert form is not None
    return form


def judged(test: Any, **options: Any) -> Any:
    judge = Classification(Classes.of(test[1]), **options)
    return lambda model: judge.risks(
        model.predict_proba(test[0]), np.searchsorted(judge.classes.names, test[1]), test[1]
    )


def relative_errors(form: ClosedForm, refits: Refits, n: int, center: bool) -> Any:
    expected = refits.dfbeta(center)[:n]
    errors = np.linalg.norm(form.dfbeta() - expected, axis=1)
    return errors / np.linalg.norm(expected, axis=1)


@pytest.mark.parametrize(("classes", "mean", "largest"), [(2, 0.015, 0.1), (3, 0.03, 0.2)])
def test_one_step_is_near_and_more_converge(classes: int, mean: float, largest: float) -> None:
    train, _ = classification(120, 5, classes)
    test = train[0][:30], train[1][:30]
    model = LogisticRegression(C=1.0, **TIGHT)
    refits = Refits.of(model, train, [*singles(120), *GROUPS])
    expected = refits.risk_changes(judged(test))
    errors = []
    for steps in (1, 2, 5):
        form = form_of(model, train, steps=steps)
        assert not form.exact
        errors.append(relative_errors(form, refits, 120, classes > 2))
    assert errors[0].mean() < mean and errors[0].max() < largest
    assert errors[0].mean() > 1e-4  # it is an approximation
    assert errors[1].mean() < 0.02 * errors[0].mean()
    assert_allclose(form.without_each(instances(test)), expected[:, :120], rtol=1e-8, atol=1e-10)
    found = form.without_groups(GROUPS, instances(test))
    assert_allclose(found, expected[:, 120:], rtol=1e-8, atol=1e-10)
    assert_allclose(
        form.memorization(range(30)), expected[:, :30].diagonal(), rtol=1e-8, atol=1e-10
    )
    one = form_of(model, train).without_each(instances(test))
    assert np.linalg.norm(one - expected[:, :120]) < 0.05 * np.linalg.norm(expected[:, :120])


@pytest.mark.parametrize("classes", [2, 3])
def test_one_step_is_the_dense_newton_step(classes: int) -> None:
    """By hand, from the Hessian of the objective by finite differences of its gradient."""
    train, _ = classification(40, 3, classes)
    form = NewtonStep(instances(train), C=0.7)
    problem, theta = form._problem, form._parameters_all

    def gradient(parameters: Any, left_out: int | None = None) -> Any:
        chosen = problem if left_out is None else problem.without(np.array([left_out]))
        return chosen.gradient(parameters.reshape(theta.shape))

    assert np.abs(gradient(theta)).max() < 1e-8
    step = 1e-5 * np.eye(theta.size)
    for row in (0, 7, 21):
        hessian = np.stack(
            [
                (gradient(theta.ravel() + e, row) - gradient(theta.ravel() - e, row)) / 2e-5
                for e in step
            ]
        )
        moved = np.linalg.solve(hessian, gradient(theta, row))  # theta - theta_without
        found = form._each(np.array([row])).parameters()[0]
        assert_allclose(found.ravel(), moved, rtol=1e-5, atol=1e-8)


def test_two_classes_in_the_classical_formula() -> None:
    train, _ = classification(60, 4, 2)
    X = np.column_stack([train[0], np.ones(60)])
    model = LogisticRegression(C=2.0, **TIGHT).fit(*train)
    p = model.predict_proba(train[0])[:, 1]
    weights = p * (1 - p)
    inverse = np.linalg.inv(X.T @ (weights[:, None] * X) + np.diag([0.5] * 4 + [0.0]))
    leverages = weights * np.einsum("ia,ab,ib->i", X, inverse, X)
    expected = -(X @ inverse) * ((p - train[1]) / (1 - leverages))[:, None]
    assert_allclose(form_of(model, train).dfbeta(), expected, rtol=1e-6, atol=1e-9)


def test_groups_of_one_are_instances_and_blocks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, test = classification(40, 4, 3)
    form = form_of(LogisticRegression(), train)
    each = form.without_each(instances(test))
    asked = singles(40)
    assert_allclose(form.without_groups(asked, instances(test)), each, rtol=1e-7, atol=1e-10)
    dfbeta, distances = form.dfbeta(), form.cooks_distance()
    monkeypatch.setattr(closed_form, "BLOCK", 50)
    monkeypatch.setattr("proponent.retraining.closed_forms.newton_step.BLOCK", 50)
    assert_allclose(form.without_each(instances(test)), each, rtol=1e-10, atol=1e-14)
    assert_allclose(form.dfbeta(), dfbeta, rtol=1e-10, atol=1e-14)
    assert_allclose(form.cooks_distance(), distances, rtol=1e-10)


@pytest.mark.parametrize("settings", [{"fit_intercept": False}, {"C": 0.1}, {"C": np.inf}])
def test_settings_of_the_estimator(settings: dict[str, Any]) -> None:
    train, test = classification(80, 3, 2, seed=3)
    model = LogisticRegression(**{**TIGHT, **settings})
    form = form_of(model, train, steps=6)
    expected = Refits.of(model, train, singles(80)).risk_changes(judged(test))
    assert_allclose(form.without_each(instances(test)), expected, rtol=1e-7, atol=1e-9)


def test_weights() -> None:
    train, test = classification(50, 3, 3)
    weights = np.random.default_rng(1).uniform(0.2, 3, size=50)
    model = LogisticRegression(**TIGHT)
    form = form_of(model, train, steps=6, sample_weight=weights)
    expected = Refits.of(model, train, singles(50), weights).risk_changes(judged(test))
    assert_allclose(form.without_each(instances(test)), expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("risk", ["zero_one", "brier"])
def test_other_risks_and_probabilities(risk: Any) -> None:
    train, test = classification(50, 3, 3)
    model = LogisticRegression(**TIGHT)
    form = form_of(model, train, steps=6, risk=risk)
    refits = Refits.of(model, train, singles(50))
    expected = refits.risk_changes(judged(test, risk=risk))
    assert_allclose(form.without_each(instances(test)), expected, rtol=1e-7, atol=1e-9)
    likely = np.stack([one.predict_proba(test[0]) for one in refits.others], axis=1)
    assert_allclose(form.predictions_without(instances(test)), likely, atol=1e-9)


def test_labels_of_any_kind() -> None:
    train, test = classification(50, 3, 3)
    names = np.array(["owl", "ant", "cow"])
    named = (train[0], names[train[1]]), (test[0], names[test[1]])
    order = np.argsort(np.argsort(names))
    numbered = (train[0], order[train[1]]), (test[0], order[test[1]])
    found, expected = (
        form_of(LogisticRegression(), a).without_each(instances(b)) for a, b in (named, numbered)
    )
    assert_allclose(found, expected, rtol=1e-9)


def test_the_last_of_a_class_is_pointed_out() -> None:
    (X, y), _ = classification(50, 3, 2)
    y = y.copy()
    y[4] = 2
    form = form_of(LogisticRegression(), (X, y))
    assert "1 training instances are the only one of their class" in form.noticed()["warnings"][0]
    assert np.isfinite(form.dfbeta()).all()


def test_without_a_minimum_there_is_no_form() -> None:
    X = np.linspace(-1, 1, 20)[:, None]
    separable = X, (X[:, 0] > 0).astype(int)
    model = LogisticRegression(C=np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert closed_form_of(model, instances(separable), approximate=True) is None
    with pytest.raises(NoClosedForm, match="no minimum"):
        NewtonStep(instances(separable), C=np.inf)
    one_class = X, np.zeros(20, int)
    assert closed_form_of(LogisticRegression(), instances(one_class), approximate=True) is None


def test_an_instance_that_alone_has_a_feature_is_refused_without_a_penalty() -> None:
    (X, y), _ = classification(60, 2, 2)
    X = np.column_stack([X, np.zeros(60)])
    pair = [3, int(np.flatnonzero(y != y[3])[0])]
    X[pair, 2] = 1  # of both classes, so that there is a minimum
    form = form_of(LogisticRegression(C=np.inf), (X, y))
    with pytest.raises(NonFiniteError, match="not determined"):
        form.without_groups([pair], instances((X, y)))
    penalised = form_of(LogisticRegression(C=1.0), (X, y))
    assert np.isfinite(penalised.without_groups([pair], instances((X, y)))).all()


@pytest.mark.parametrize(
    ("options", "message"), [({"steps": 0}, "steps"), ({"risk": "squared"}, "risk of a classifier")]
)
def test_settings_that_make_no_sense_are_refused(options: Any, message: str) -> None:
    train, _ = classification(30, 3, 2)
    with pytest.raises(InvalidInputError, match=message):
        form_of(LogisticRegression(), train, **options)
    with pytest.raises(InvalidInputError, match="C: expected a positive number"):
        NewtonStep(instances(train), C=0.0)
