r"""Linear least squares and ridge regression without some instances, from one decomposition.

With weights :math:`\Omega`, :math:`A = X^\top \Omega X + P` for a penalty P that spares the
intercept, residuals e and :math:`H = \Omega^{1/2} X A^{-1} X^\top \Omega^{1/2}`,

.. math::
    \theta - \theta_{-G} = A^{-1} X_G^\top \Omega_G^{1/2} (I - H_{GG})^{-1} \Omega_G^{1/2} e_G.

Where the model fits any targets, I - H vanishes with the penalty, and so do the residuals; both
are then divided by the penalty first, and the formula also holds for the interpolation of least
norm. Where the loss is a mean, without G the penalty of the sum is ``(n - |G|) alpha`` instead of
``n alpha``: the formula is then that of the model with the smaller penalty.

**Source** Cook and Weisberg, Residuals and Influence in Regression, 1982, sections 2.2 and 3.2;
Allen, Technometrics 1974 (ridge). The cases without a penalty, or with that of a mean, are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.labels import targets_of
from proponent.models.prediction_risk import Regression, RegressionRisk
from proponent.retraining.closed_forms.closed_form import (
    ClosedForm,
    NoClosedForm,
    Positions,
    Tests,
    Values,
)
from proponent.retraining.closed_forms.cooks import residual_variance
from proponent.retraining.closed_forms.design import Design
from proponent.retraining.closed_forms.differences import (
    ByOutput,
    Differences,
    Full,
    Shared,
    Sum,
)
from proponent.retraining.closed_forms.reading import matrix_of, penalties_of, weights_of
from proponent.retraining.closed_forms.ridge_fit import Problem, RidgeFit


class LeastSquares(ClosedForm):
    """Least squares and ridge regression, with any number of outputs.

    An instance that alone determines a direction (its leverage is 1, without a penalty) leaves
    the others with many solutions: the one of least norm is taken, as scikit-learn does.

    Parameters
    ----------
    train : Instances
        (X, y) pairs.
    alpha : float or array-like of shape (outputs,)
        The penalty ``alpha ||coef||^2``, in all or for each output.
    fit_intercept : bool
        Whether there is an intercept, which is not penalised.
    penalty : {"sum", "mean"}
        Whether it is added to the sum of the squared errors, as in scikit-learn, or to their mean.
    risk : {"squared", "absolute"}
        Of a prediction, summed over the outputs.
    sample_weight : array-like of shape (n,), optional
        How much each instance counts in the training.
    tolerance : float
        Singular values of the design up to this share of the largest count as zero, as
        ``LinearRegression(tol=...)`` has it.

    Raises
    ------
    InvalidInputError
        If the training set is not one of numbers, or a setting makes no sense.
    NoClosedForm
        If there are fewer than two instances, or the design is nearly singular.
    """

    def __init__(
        self,
        train: Instances,
        *,
        alpha: Any = 0.0,
        fit_intercept: bool = True,
        penalty: Literal["sum", "mean"] = "sum",
        risk: RegressionRisk = "squared",
        sample_weight: Any = None,
        tolerance: float = 0.0,
    ) -> None:
        targets = targets_of(train, "train")
        self.n = len(train)
        self.judge: Regression = Regression.of(targets, risk)
        self.weights = weights_of(sample_weight, self.n)
        if np.count_nonzero(self.weights) < 2:
            raise NoClosedForm("without the only instance there is no model.")
        self._mean = penalty == "mean"
        if self._mean and sample_weight is not None:
            raise InvalidInputError("sample_weight: only penalty='sum' takes weights.")
        self._train = train
        self._targets = targets.reshape(self.n, -1)
        self._features = matrix_of(train, "train")
        self._design = Design.of(self._features, self.weights, fit_intercept, tolerance)
        self._tolerance = tolerance
        self._refuse_truncation()
        self._penalties = penalties_of(alpha, self._targets.shape[1])
        self._fits: dict[tuple[int, int], RidgeFit] = {}
        self._parameters_all = np.empty((self._coordinates, self._targets.shape[1]))
        for place, (columns, _) in enumerate(self._penalties):
            self._parameters_all[:, columns] = self._fit(place, 0).parameters

    # The frame's hooks

    @override
    def noticed(self) -> dict[str, Any]:
        """Return what is special about the design."""
        design = self._design
        noticed = super().noticed() | {"rank": len(design.scales) + design.intercept}
        special = [self._fit(place, 1).special for place in range(len(self._penalties))]
        count = len(np.unique(np.concatenate(special)))
        if count:
            noticed["warnings"] = [
                f"{count:,} training instances have a leverage of almost 1: without one of them "
                f"the model is fitted anew, or is the solution of least norm."
            ]
        return noticed

    @override
    def _read(self, instances: Instances, role: str) -> Tests:
        given = matrix_of(instances, role, self._features.shape[1])
        features = self._design.features(given)
        targets = self.judge.targets(instances, role)
        return Tests(features, features @ self._parameters_all, targets, instances.ids)

    @override
    def _train_at(self, positions: Positions) -> Instances:
        return self._train.select(positions)

    @override
    def _each(self, rows: Positions) -> Differences:
        parts: list[tuple[Positions, Differences]] = []
        for place, (columns, _) in enumerate(self._penalties):
            fit = self._fit(place, 1)
            differences = fit.each(rows)
            if self._mean:
                shift = self._parameters_all[:, columns] - fit.parameters
                differences = Sum(differences, Shared(shift, np.ones((len(rows), len(columns)))))
            parts.append((columns, differences))
        return ByOutput.of(parts)

    @override
    def _groups(self, groups: Sequence[Positions]) -> Differences:
        found = np.empty((len(groups), *self._parameters_all.shape))
        for at, group in enumerate(groups):
            for place, (columns, _) in enumerate(self._penalties):
                fit = self._fit(place, len(group))
                shift = self._parameters_all[:, columns] - fit.parameters
                found[at][:, columns] = fit.without(group) + shift
        return Full(found)

    @override
    def _parameters(self, differences: Differences) -> Values:
        found = self._design.coefficients(differences.parameters())
        return np.asarray(found)

    @override
    def _squares(self, differences: Differences) -> Values:
        # X^T W X is diagonal in these coordinates.
        roots = np.diag(self._roots)
        return np.asarray(np.square(differences.outputs(roots)).sum(axis=0))

    @override
    def _scale(self) -> tuple[Values, Values]:
        parameters = np.empty(self._targets.shape[1])
        for columns, alpha in self._penalties:
            parameters[columns] = self._design.parameters(self._penalty(alpha, 0))
        residuals = self._targets - self._design.features(self._features) @ self._parameters_all
        return parameters, residual_variance(residuals, self._targets, self.weights, parameters)

    # Fits

    @property
    def _coordinates(self) -> int:
        return len(self._design.scales) + self._design.intercept

    @property
    def _roots(self) -> Values:
        scales = self._design.scales
        return (
            np.insert(scales, 0, np.sqrt(self._design.total)) if self._design.intercept else scales
        )

    def _penalty(self, alpha: float, left_out: int) -> float:
        return alpha * (self.n - left_out) if self._mean else alpha

    def _fit(self, place: int, left_out: int) -> RidgeFit:
        """Return the fit to some of the outputs, with the penalty without so many instances."""
        key = place, left_out if self._mean else 0
        if key in self._fits:
            return self._fits[key]
        columns, alpha = self._penalties[place]
        problem = Problem(self._design, self._targets[:, columns], self._tolerance)
        fit = RidgeFit(problem, self._penalty(alpha, left_out))
        if left_out < 2:
            self._fits[key] = fit
        return fit

    def _refuse_truncation(self) -> None:
        """Refuse a design of which the tolerance cuts off more than rounding."""
        if not self._tolerance:
            return
        exact = Design.of(self._features, self.weights, self._design.intercept)
        if len(exact.scales) > len(self._design.scales):
            raise NoClosedForm(
                "the tolerance cuts off directions that matter without some instances."
            )
