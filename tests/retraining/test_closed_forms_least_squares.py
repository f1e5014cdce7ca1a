"""Least squares and ridge regression without some instances, against fitting again."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from retraining.refit_examples import Refits, instances, regression, singles, squared
from sklearn.linear_model import LinearRegression, Ridge

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.retraining.closed_forms import closed_form, closed_form_of, ridge_fit
from proponent.retraining.closed_forms.closed_form import NoClosedForm
from proponent.retraining.closed_forms.least_squares import LeastSquares

CLOSE = {"rtol": 1e-9, "atol": 1e-9}
OLS = {"tol": 1e-12}  # by default singular values under a millionth are cut off

CASES: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "least squares": (LinearRegression(**OLS), (30, 5, 0)),
    "without intercept": (LinearRegression(fit_intercept=False, **OLS), (30, 5, 0)),
    "ridge": (Ridge(2.0), (30, 5, 0)),
    "ridge without intercept": (Ridge(2.0, fit_intercept=False), (30, 5, 0)),
    "other solver": (Ridge(2.0, solver="svd"), (30, 5, 0)),
    "several outputs": (LinearRegression(**OLS), (30, 5, 3)),
    "a penalty for each output": (Ridge(np.array([0.1, 5.0, 0.1])), (30, 5, 3)),
    "one output in a column": (Ridge(1.0), (30, 5, 1)),
    "more features than instances": (Ridge(0.3), (20, 50, 2)),
    "almost no penalty": (Ridge(1e-8), (20, 50, 0)),
    "interpolation": (LinearRegression(**OLS), (20, 50, 2)),
    "interpolation without intercept": (LinearRegression(fit_intercept=False, **OLS), (20, 50, 0)),
    "as many parameters as instances": (LinearRegression(**OLS), (12, 11, 0)),
    "one feature": (Ridge(1.0), (10, 1, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_without_each_and_without_groups_is_fitting_again(case: str) -> None:
    model, shape = CASES[case]
    train, test = regression(*shape)
    n = shape[0]
    groups = [np.array([0, 3, 5]), np.arange(n // 2), np.arange(1, n), np.array([4])]
    form = closed_form_of(model, instances(train))
    assert form is not None and form.exact
    refits = Refits.of(model, train, [*singles(n), *groups])
    expected = refits.risk_changes(squared(test))
    assert np.abs(expected).max() > 1e-3
    assert_allclose(form.without_each(instances(test)), expected[:, :n], **CLOSE)
    assert_allclose(form.without_groups(groups, instances(test)), expected[:, n:], **CLOSE)
    predictions = np.stack([one.predict(test[0]) for one in refits.others[:n]], axis=1)
    found = form.predictions_without(instances(test))
    assert_allclose(found.reshape(predictions.shape), predictions, **CLOSE)
    own = Refits.of(model, train, singles(n)).risk_changes(squared(train))
    assert_allclose(form.memorization(), own.diagonal(), **CLOSE)


@pytest.mark.parametrize("case", ["least squares", "a penalty for each output", "interpolation"])
def test_dfbeta_is_the_difference_of_the_coefficients(case: str) -> None:
    model, shape = CASES[case]
    train, _ = regression(*shape)
    form = closed_form_of(model, instances(train))
    assert form is not None
    refits = Refits.of(model, train, singles(shape[0]))
    assert_allclose(form.dfbeta(), refits.dfbeta(), **CLOSE)
    assert_allclose(form.dfbeta(range(3, 8)), refits.dfbeta()[3:8], **CLOSE)


@pytest.mark.parametrize("model", [Ridge(0.5), LinearRegression(**OLS)])
@pytest.mark.parametrize("d", [5, 50])
def test_weights_and_instances_without_any(model: Any, d: int) -> None:
    train, test = regression(20, d)
    weights = np.random.default_rng(1).uniform(0.1, 3, size=20)
    weights[[3, 7]] = 0
    form = closed_form_of(model, instances(train), sample_weight=weights)
    assert form is not None
    groups = [*singles(20), np.array([0, 3, 5]), np.arange(2, 20)]
    expected = Refits.of(model, train, groups, weights).risk_changes(squared(test))
    assert_allclose(form.without_each(instances(test)), expected[:, :20], **CLOSE)
    assert_allclose(form.without_groups(groups[20:], instances(test)), expected[:, 20:], **CLOSE)
    assert_allclose(expected[:, [3, 7]], 0, atol=1e-9)


@pytest.mark.parametrize("outputs", [0, 2])
def test_with_a_mean_loss_the_penalty_counts_for_less(outputs: int) -> None:
    train, test = regression(15, 4, outputs)
    n, alpha = 15, 0.2
    groups = [*singles(n), np.array([1, 2]), np.arange(9)]
    full = Refits.of(Ridge(alpha * n), train, []).full
    others = [
        Refits.of(Ridge(alpha * (n - len(group))), train, [group]).others[0] for group in groups
    ]
    refits = Refits(full, others)
    form = LeastSquares(instances(train), alpha=alpha, penalty="mean")
    expected = refits.risk_changes(squared(test))
    assert_allclose(form.without_each(instances(test)), expected[:, :n], **CLOSE)
    assert_allclose(form.without_groups(groups[n:], instances(test)), expected[:, n:], **CLOSE)
    assert_allclose(form.dfbeta(), refits.dfbeta()[:n], **CLOSE)
    # Holding the penalty of the sum, as for a sum, would be visibly wrong.
    held = LeastSquares(instances(train), alpha=alpha * n).without_each(instances(test))
    assert np.abs(held - expected[:, :n]).max() > 1e-3 * np.abs(expected[:, :n]).max()


def test_absolute_errors() -> None:
    train, test = regression(20, 3, 2)
    form = closed_form_of(Ridge(1.0), instances(train), risk="absolute")
    assert form is not None

    def risk(model: Any) -> Any:
        return np.abs(model.predict(test[0]) - test[1]).sum(axis=1)

    expected = Refits.of(Ridge(1.0), train, singles(20)).risk_changes(risk)
    assert_allclose(form.without_each(instances(test)), expected, **CLOSE)


def test_some_instances_and_small_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = regression(20, 3, 2)
    form = closed_form_of(Ridge(1.0), instances(train))
    assert form is not None
    whole = form.without_each(instances(test))
    assert_allclose(form.without_each(instances(test), range(5, 9)), whole[:, 5:9], rtol=1e-12)
    predictions = form.predictions_without(instances(test))
    monkeypatch.setattr(closed_form, "BLOCK", 11)
    assert_allclose(form.without_each(instances(test)), whole, rtol=1e-12)
    assert_allclose(form.predictions_without(instances(test)), predictions, rtol=1e-12)
    groups = [np.array([1, 2]), np.array([3])]
    assert_allclose(form.without_groups(groups, instances(test))[:, 1], whole[:, 3], rtol=1e-9)
    expected = form.without_each(instances(train)).diagonal()
    assert_allclose(form.memorization(), expected, rtol=1e-12)
    assert_allclose(form.memorization(range(4, 6)), expected[4:6], rtol=1e-12)


# Leverages of 1


def alone(n: int = 25) -> Any:
    """Return a set in which two instances alone have a feature, and two share one."""
    (X, y), test = regression(n, 7)
    X[:, 4:] = 0
    X[3, 4] = X[8, 5] = X[10, 6] = X[11, 6] = 1
    return (X, y), test


def test_an_instance_that_alone_has_a_feature_leaves_the_solution_of_least_norm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train, test = alone()
    form = closed_form_of(LinearRegression(), instances(train))
    assert form is not None
    groups = [*singles(25), np.array([3, 8]), np.array([10, 11]), np.array([0, 3])]
    refits = Refits.of(LinearRegression(), train, groups)
    expected = refits.risk_changes(squared(test))
    assert_allclose(form.without_each(instances(test)), expected[:, :25], **CLOSE)
    assert_allclose(form.without_groups(groups[25:], instances(test)), expected[:, 25:], **CLOSE)
    assert_allclose(form.dfbeta(), refits.dfbeta()[:25], **CLOSE)
    assert "2 training instances have a leverage of almost 1" in form.noticed()["warnings"][0]
    # In closed form too: nothing is fitted again for a single one.
    refuse = property(lambda self: pytest.fail("fitted again"))
    monkeypatch.setattr(ridge_fit.RidgeFit, "_fitted_without", refuse)
    again = closed_form_of(LinearRegression(), instances(train))
    assert again is not None
    assert_allclose(again.without_each(instances(test)), expected[:, :25], **CLOSE)


@pytest.mark.parametrize("model", [Ridge(1e-9, solver="svd"), LinearRegression(tol=1e-14)])
def test_an_instance_far_from_the_others_is_left_out_by_fitting_again(model: Any) -> None:
    (X, y), test = regression(25, 4)
    X[6] *= 1e5
    form = closed_form_of(model, instances((X, y)))
    assert form is not None
    expected = Refits.of(model, (X, y), singles(25)).risk_changes(squared(test))
    found = form.without_each(instances(test))
    assert_allclose(found[:, 6], expected[:, 6], rtol=1e-8)
    assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert "warnings" in form.noticed()


def test_duplicates_and_collinear_features() -> None:
    (X, y), test = regression(20, 4)
    X = np.column_stack([X, X[:, 0] + X[:, 1], np.ones(20)])
    X[5], y[5] = X[4], y[4]
    tests = np.column_stack([test[0], test[0][:, 0] + test[0][:, 1], np.ones(7)]), test[1]
    form = closed_form_of(LinearRegression(), instances((X, y)))
    assert form is not None and form.noticed()["rank"] == 5
    groups = [*singles(20), np.array([4, 5])]
    expected = Refits.of(LinearRegression(), (X, y), groups).risk_changes(squared(tests))
    assert_allclose(form.without_each(instances(tests)), expected[:, :20], **CLOSE)
    assert_allclose(form.without_groups(groups[20:], instances(tests)), expected[:, 20:], **CLOSE)
    found = form.without_each(instances(tests))
    assert_allclose(found[:, 4], found[:, 5], rtol=1e-9)


def test_two_instances() -> None:
    train, test = regression(2, 3)
    form = closed_form_of(LinearRegression(), instances(train))
    assert form is not None
    expected = Refits.of(LinearRegression(), train, singles(2)).risk_changes(squared(test))
    assert_allclose(form.without_each(instances(test)), expected, **CLOSE)


# What is refused


def test_there_is_no_form_where_the_tolerance_of_the_fit_cuts_directions_off() -> None:
    (X, y), _ = regression(20, 3)
    X[:, 2] = X[:, 0] + 1e-8 * X[:, 2]
    assert closed_form_of(LinearRegression(), instances((X, y))) is None
    assert closed_form_of(LinearRegression(tol=1e-12), instances((X, y))) is not None
    with pytest.raises(NoClosedForm, match="tolerance"):
        LeastSquares(instances((X, y)), tolerance=1e-6)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([[]], "group 0 must be a vector of one position or more"),
        ([[1], [True, False]], "group 1 must be a vector"),
        ([[0, 30]], r"position 30; those .* are 0 \.\. 19"),
        ([[-1]], "position -1"),
        ([np.arange(20)], "group 0 is the whole training set"),
    ],
)
def test_groups_that_are_none_are_refused(groups: Any, message: str) -> None:
    train, test = regression(20, 3)
    form = closed_form_of(Ridge(), instances(train))
    assert form is not None
    with pytest.raises(InvalidInputError, match=message):
        form.without_groups(groups, instances(test))


def test_a_position_that_stands_twice_in_a_group_is_left_out_once() -> None:
    train, test = regression(20, 3)
    form = closed_form_of(Ridge(), instances(train))
    assert form is not None
    found = form.without_groups([[4, 4, 2], [2, 4]], instances(test))
    assert_allclose(found[:, 0], found[:, 1], rtol=1e-12)


def test_data_that_do_not_fit_are_refused() -> None:
    train, test = regression(20, 3)
    form = closed_form_of(Ridge(), instances(train))
    assert form is not None
    with pytest.raises(InvalidInputError, match="test: instances have 2 features"):
        form.without_each(instances((test[0][:, :2], test[1])))
    with pytest.raises(InvalidInputError, match="test: the set has no labels"):
        form.without_each(Instances.of((test[0],)))
    with pytest.raises(InvalidInputError, match="test: targets of shape"):
        form.without_each(instances((test[0], np.ones((7, 2)))))
    X = train[0].copy()
    X[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="train: features of 1 instances are NaN"):
        closed_form_of(Ridge(), instances((X, train[1])))
    with pytest.raises(InvalidInputError, match="alpha: expected"):
        closed_form_of(Ridge(alpha=np.ones(2)), instances(train))
    with pytest.raises(InvalidInputError, match="sample_weight: expected 20"):
        closed_form_of(Ridge(), instances(train), sample_weight=np.ones(3))
    with pytest.raises(InvalidInputError, match="sample_weight: only"):
        LeastSquares(instances(train), penalty="mean", sample_weight=np.ones(20))
    with pytest.raises(InvalidInputError, match="risk of a regressor"):
        closed_form_of(Ridge(), instances(train), risk="brier")
