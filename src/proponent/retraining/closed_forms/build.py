"""Which models have a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from proponent.data import Instances
from proponent.models.prediction_risk import SMOOTHING
from proponent.models.sklearn_parts import scikit_learn_class
from proponent.retraining.closed_forms.closed_form import ClosedForm, NoClosedForm
from proponent.retraining.closed_forms.gaussian_process import GaussianProcess
from proponent.retraining.closed_forms.kernel_ridge import KernelRegression
from proponent.retraining.closed_forms.least_squares import LeastSquares
from proponent.retraining.closed_forms.newton_step import NewtonStep

CUT_OFF = 1e-6  # the singular values that a LinearLearner without a penalty takes for zero


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a closed form; see :func:`closed_form_of`."""

    train: Instances
    approximate: bool
    steps: int
    sample_weight: Any
    risk: str | None
    smoothing: float

    def risk_or(self, default: str) -> Any:
        """Return the risk that was asked for, or else the default."""
        return default if self.risk is None else self.risk


def closed_form_of(
    model: Any,
    train: Instances,
    *,
    approximate: bool = False,
    steps: int = 1,
    sample_weight: Any = None,
    risk: str | None = None,
) -> ClosedForm | None:
    """Return the closed form of a model on a training set, or None where there is none.

    Parameters
    ----------
    model : estimator or Learner
        ``LinearRegression``, ``Ridge``, ``KernelRidge`` and ``GaussianProcessRegressor`` of
        scikit-learn, the latter with a fixed kernel (``optimizer=None``), ``LinearLearner``, and a
        ``SklearnLearner`` of one of them. A fitted estimator stands for its settings: the
        model is that of the training set given here.
    train : Instances
        The training set, (X, y) pairs.
    approximate : bool
        Whether a form that is not exact is wanted too: Newton steps for ``LogisticRegression``
        and ``LogisticLearner``, and a fitted ``GaussianProcessRegressor`` whose kernel is held
        fixed at ``kernel_``.
    steps : int
        Newton steps.
    sample_weight : array-like of shape (n,), optional
        How much each instance counts in the training.
    risk : str, optional
        ``"squared"`` or ``"absolute"`` for a regression (the first is the default), for a Gaussian
        process also ``"negative_log_likelihood"``; ``"cross_entropy"`` (the default),
        ``"zero_one"`` or ``"brier"`` for a classification.

    Raises
    ------
    InvalidInputError
        If the training set does not fit the model, or a setting makes no sense.
    NonFiniteError
        If a feature or target is NaN or infinite.
    """
    if len(train) < 2:
        return None
    smoothing = SMOOTHING
    name, package = _kind(model)
    if package == "proponent":
        given = getattr(model, "risk", "auto")
        risk = given if risk is None and given != "auto" else risk
        smoothing = getattr(model, "smoothing", SMOOTHING)
    if (name, package) == ("SklearnLearner", "proponent"):
        model = model.estimator
        name, package = _kind(model)
    builder = _BUILDERS.get((name, package))
    if builder is None:
        return None
    wanted = Wanted(train, approximate, steps, sample_weight, risk, smoothing)
    try:
        return builder(model, wanted)
    except NoClosedForm:
        return None


def _kind(model: Any) -> tuple[str, str]:
    """Return the name of a model's class and its package; a subclass is not its base."""
    kind = scikit_learn_class(model)
    return (kind.__name__ if kind is type(model) else "", kind.__module__.partition(".")[0])


def _linear_regression(model: Any, wanted: Wanted) -> ClosedForm | None:
    if model.positive:
        return None
    return LeastSquares(
        wanted.train,
        fit_intercept=model.fit_intercept,
        risk=wanted.risk_or("squared"),
        sample_weight=wanted.sample_weight,
        tolerance=getattr(model, "tol", 0.0),
    )


def _ridge(model: Any, wanted: Wanted) -> ClosedForm | None:
    if model.positive:
        return None
    return LeastSquares(
        wanted.train,
        alpha=model.alpha,
        fit_intercept=model.fit_intercept,
        risk=wanted.risk_or("squared"),
        sample_weight=wanted.sample_weight,
    )


def _linear_learner(model: Any, wanted: Wanted) -> ClosedForm | None:
    return LeastSquares(
        wanted.train,
        alpha=model.alpha,
        fit_intercept=model.fit_intercept,
        penalty=model.penalty,
        risk=wanted.risk_or("squared"),
        sample_weight=wanted.sample_weight,
        tolerance=0.0 if model.alpha else CUT_OFF,
    )


def _kernel_ridge(model: Any, wanted: Wanted) -> ClosedForm | None:
    from sklearn.metrics.pairwise import pairwise_kernels

    settings = {"gamma": model.gamma, "degree": model.degree, "coef0": model.coef0}
    if callable(model.kernel):
        settings = model.kernel_params or {}
    return KernelRegression(
        wanted.train,
        partial(pairwise_kernels, metric=model.kernel, filter_params=True, **settings),
        alpha=model.alpha,
        risk=wanted.risk_or("squared"),
        sample_weight=wanted.sample_weight,
    )


def _gaussian_process(model: Any, wanted: Wanted) -> ClosedForm | None:
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel

    kernel = ConstantKernel() * RBF() if model.kernel is None else model.kernel
    chosen = model.optimizer is not None and kernel.n_dims > 0
    if chosen:
        if not wanted.approximate or not hasattr(model, "kernel_"):
            return None
        kernel = model.kernel_
    if wanted.sample_weight is not None or not kernel.requires_vector_input:
        return None
    return GaussianProcess(
        wanted.train,
        kernel.clone_with_theta(kernel.theta),
        noise=model.alpha,
        normalize=model.normalize_y,
        risk=wanted.risk_or("squared"),
        fixed_at_fit=chosen,
    )


def _logistic_regression(model: Any, wanted: Wanted) -> ClosedForm | None:
    scheme = getattr(model, "multi_class", "auto")  # until scikit-learn 1.8
    penalty = model.penalty
    if penalty == "deprecated":  # since scikit-learn 1.8 l1_ratio alone says which penalty
        penalty = "elasticnet" if model.l1_ratio else "l2"
    known = penalty in ("l2", None) and model.class_weight is None
    if not wanted.approximate or not known or model.solver == "liblinear":
        return None
    if scheme not in ("auto", "deprecated", "warn"):
        return None
    return _newton(model.fit_intercept, math.inf if penalty is None else model.C, wanted)


def _logistic_learner(model: Any, wanted: Wanted) -> ClosedForm | None:
    return _newton(model.fit_intercept, model.C, wanted) if wanted.approximate else None


def _newton(fit_intercept: bool, C: float, wanted: Wanted) -> ClosedForm:
    return NewtonStep(
        wanted.train,
        C=C,
        fit_intercept=fit_intercept,
        risk=wanted.risk_or("cross_entropy"),
        smoothing=wanted.smoothing,
        sample_weight=wanted.sample_weight,
        steps=wanted.steps,
    )


_BUILDERS: Mapping[tuple[str, str], Callable[[Any, Wanted], ClosedForm | None]] = {
    ("LinearRegression", "sklearn"): _linear_regression,
    ("Ridge", "sklearn"): _ridge,
    ("KernelRidge", "sklearn"): _kernel_ridge,
    ("GaussianProcessRegressor", "sklearn"): _gaussian_process,
    ("LogisticRegression", "sklearn"): _logistic_regression,
    ("LinearLearner", "proponent"): _linear_learner,
    ("LogisticLearner", "proponent"): _logistic_learner,
}
