"""Which models have a closed form, and that learners give the same numbers."""

from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from retraining.refit_examples import classification, instances, regression
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge, RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeRegressor

from proponent.models.as_learner import as_learner
from proponent.models.linear_learner import LinearLearner
from proponent.models.logistic_learner import LogisticLearner
from proponent.models.sklearn_learner import SklearnLearner
from proponent.retraining.closed_forms import closed_form_of


class Tweaked(Ridge):  # what a subclass predicts is not known
    pass


WITHOUT: list[Any] = [
    Lasso(),
    RidgeCV(),
    DecisionTreeRegressor(),
    make_pipeline(StandardScaler(), Ridge()),
    LinearRegression(positive=True),
    Ridge(positive=True, solver="lbfgs"),
    GaussianProcessRegressor(RBF()),
    Tweaked(),
    SklearnLearner(Lasso()),
    Ridge,
    None,
    3,
]
WITHOUT_EVEN_NEARLY: list[Any] = [
    LogisticRegression(solver="liblinear"),
    LogisticRegression(l1_ratio=0.5, solver="saga"),
    LogisticRegression(class_weight="balanced"),
]


@pytest.mark.parametrize("model", WITHOUT, ids=repr)
def test_others_have_none(model: Any) -> None:
    train, _ = regression(20, 3)
    assert closed_form_of(model, instances(train), approximate=True) is None


@pytest.mark.parametrize("model", WITHOUT_EVEN_NEARLY, ids=repr)
def test_other_logistic_regressions_have_none(model: Any) -> None:
    train, _ = classification(20, 3, 2)
    assert closed_form_of(model, instances(train), approximate=True) is None


def test_logistic_regression_only_where_an_approximation_will_do() -> None:
    train, _ = classification(20, 3, 2)
    for model in (LogisticRegression(), LogisticLearner(), SklearnLearner(LogisticRegression())):
        assert closed_form_of(model, instances(train)) is None
        assert closed_form_of(model, instances(train), approximate=True) is not None


def test_one_instance_has_none() -> None:
    train, _ = regression(1, 3)
    assert closed_form_of(Ridge(), instances(train)) is None
    weights = np.array([1.0, 0.0])
    assert closed_form_of(Ridge(), instances(regression(2, 3)[0]), sample_weight=weights) is None
    kernel = KernelRidge()
    assert closed_form_of(kernel, instances(regression(2, 3)[0]), sample_weight=weights) is None


LEARNERS: dict[str, tuple[Any, int]] = {
    "ridge": (Ridge(0.5), 0),
    "least squares": (LinearRegression(), 2),
    "ridge with a penalty for each": (Ridge(np.array([0.5, 2.0])), 2),
    "kernel ridge": (KernelRidge(kernel="rbf", gamma=0.1), 2),
    "gaussian process": (GaussianProcessRegressor(alpha=0.5, optimizer=None), 0),
    "sum": (LinearLearner(0.3), 0),
    "mean": (LinearLearner(0.3, penalty="mean"), 2),
    "no penalty": (LinearLearner(fit_intercept=False), 0),
    "absolute": (LinearLearner(0.3, risk="absolute"), 2),
    "a learner of an estimator": (SklearnLearner(KernelRidge(), risk="absolute"), 0),
}


def deletions(n: int, groups: list[Any]) -> Any:
    masks = np.ones((len(groups) + 1, n), dtype=bool)
    for mask, group in zip(masks[1:], groups, strict=True):
        mask[group] = False
    return masks


@pytest.mark.parametrize("name", LEARNERS)
def test_shortcuts_are_what_the_learner_gives(name: str) -> None:
    model, outputs = LEARNERS[name]
    train, test = regression(15, 3, outputs)
    form = closed_form_of(model, instances(train))
    assert form is not None and form.exact
    trainer = as_learner(model).bind(instances(train))
    groups = [*range(15), [0, 3, 5], [2, 9]]
    fitted = trainer.fit(deletions(15, groups), np.zeros(18, np.int64))
    risks = trainer.risks(fitted, trainer.prepare(instances(test)))
    expected = (risks[1:] - risks[0]).T
    assert_allclose(form.without_each(instances(test)), expected[:, :15], rtol=1e-9, atol=1e-9)
    found = form.without_groups([np.array(group) for group in groups[15:]], instances(test))
    assert_allclose(found, expected[:, 15:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("risk", ["auto", "brier"])
def test_newton_steps_end_where_the_learner_does(classes: int, risk: Any) -> None:
    train, test = classification(40, 3, classes)
    model = LogisticLearner(2.0, risk=risk, smoothing=0.01)
    form = closed_form_of(model, instances(train), approximate=True, steps=8)
    assert form is not None
    trainer = model.bind(instances(train))
    fitted = trainer.fit(deletions(40, list(range(40))), np.zeros(41, np.int64))
    risks = trainer.risks(fitted, trainer.prepare(instances(test)))
    found = form.without_each(instances(test))
    assert_allclose(found, (risks[1:] - risks[0]).T, rtol=1e-8, atol=1e-10)


def test_what_is_said_is_json() -> None:
    import json

    train, _ = regression(20, 3)
    for model in (Ridge(), KernelRidge(), LEARNERS["gaussian process"][0]):
        form = closed_form_of(model, instances(train))
        assert form is not None
        assert json.loads(json.dumps(form.noticed()))["exact"] is True
