r"""Logistic regression without some instances, one Newton step away from the model with all.

At the minimum with all instances, with the curvature H of the objective there, an instance's
features :math:`J_i = x_i \otimes I`, its slopes :math:`g_i = w_i (p_i - y_i)` and curvature
:math:`S_i = w_i (\mathrm{diag}(p_i) - p_i p_i^\top)`, the Newton step of the objective without it
leads to

.. math::
    \theta - \theta_{-i} \approx -H^{-1} J_i (I - S_i J_i^\top H^{-1} J_i)^{-1} g_i,

by Woodbury's identity; for two classes :math:`-H^{-1} x_i (p_i - y_i) / (1 - h_i)`. More steps
converge to training again.

**Source** Pregibon, Annals of Statistics 1981 (two classes); Cook and Weisberg 1982.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.models.labels import Classes, labels_of
from proponent.models.prediction_risk import Classification, ClassificationRisk
from proponent.retraining.closed_forms.closed_form import (
    BLOCK,
    ClosedForm,
    NoClosedForm,
    Positions,
    Tests,
    Values,
)
from proponent.retraining.closed_forms.differences import Differences, Full
from proponent.retraining.closed_forms.reading import matrix_of, weights_of
from proponent.retraining.closed_forms.softmax_fit import SoftmaxProblem, contrasts_of

SAFE = 1e-9  # 1 - leverage, below which the step leads nowhere near a minimum


class NewtonStep(ClosedForm):
    """Logistic regression, binary or multinomial, with the L2 penalty; an approximation.

    Parameters
    ----------
    train : Instances
        (X, y) pairs.
    C : float
        The inverse of the penalty, as in scikit-learn: ``C sum_i l_i + ||coef||^2 / 2``.
    fit_intercept : bool
        Whether there is an intercept, which is not penalised.
    risk : {"cross_entropy", "zero_one", "brier"}
        Of predicted probabilities.
    smoothing : float
        Of the cross-entropy, as learners have it.
    sample_weight : array-like of shape (n,), optional
        How much each instance counts in the training.
    steps : int
        Newton steps without each instance. With more than one each costs what a step of the
        training costs.

    Raises
    ------
    InvalidInputError
        If the training set is not one of numbers and classes, or a setting makes no sense.
    NoClosedForm
        If there are fewer than two instances or classes, or the training has no minimum.
    """

    exact = False
    judge: Classification

    def __init__(
        self,
        train: Instances,
        *,
        C: float = 1.0,
        fit_intercept: bool = True,
        risk: ClassificationRisk = "cross_entropy",
        smoothing: float = 1e-3,
        sample_weight: Any = None,
        steps: int = 1,
    ) -> None:
        labels = labels_of(train, "train")
        self.n = len(train)
        self.judge = Classification(Classes.of(labels), risk, smoothing)
        self.weights = weights_of(sample_weight, self.n)
        self._steps = as_count(steps, "steps")
        if not C > 0:
            raise InvalidInputError(f"C: expected a positive number; got {C!r}.")
        classes = self.judge.classes.positions(labels, "train")
        counted = np.bincount(classes[self.weights > 0], minlength=len(self.judge.classes))
        if len(counted) < 2 or not counted.all():
            raise NoClosedForm("there are not two classes or more, with instances that count.")
        self._last = int(np.count_nonzero(counted == 1))
        self._train = train
        features = matrix_of(train, "train")
        self._width = features.shape[1]
        self._intercept = fit_intercept
        self._problem = SoftmaxProblem(
            self._with_ones(features),
            classes,
            self.weights,
            contrasts_of(len(self.judge.classes)),
            1 / C,
            fit_intercept,
        )
        self._parameters_all = self._problem.solve()
        outputs = self._problem.features @ self._parameters_all
        self._slopes = self.weights[:, None] * self._problem.slopes(outputs)
        self._curvatures = self.weights[:, None, None] * self._problem.curvatures(outputs)
        self._information = self._problem.information(self._parameters_all)
        self._inverse = np.linalg.inv(self._information + np.diag(self._problem.penalties))

    # The frame's hooks

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how near the numbers are to training again."""
        noticed = super().noticed() | {"newton steps": self._steps}
        if self._last:
            noticed["warnings"] = [
                f"{self._last:,} training instances are the only one of their class: a model that "
                f"is trained without them does not know it, this approximation does."
            ]
        return noticed

    @override
    def _read(self, instances: Instances, role: str) -> Tests:
        features = self._with_ones(matrix_of(instances, role, self._width))
        targets = self.judge.targets(instances, role)
        return Tests(features, features @ self._parameters_all, targets, instances.ids)

    @override
    def _train_at(self, positions: Positions) -> Instances:
        return self._train.select(positions)

    @override
    def _each(self, rows: Positions) -> Differences:
        found = self._first_steps(rows)
        if self._steps > 1:
            for place, row in enumerate(rows):
                found[place] = self._further(found[place], np.array([row]))
        return Full(found)

    @override
    def _groups(self, groups: Sequence[Positions]) -> Differences:
        nothing = np.zeros_like(self._parameters_all)
        return Full(np.stack([self._further(nothing, group, 0) for group in groups]))

    @override
    def _parameters(self, differences: Differences) -> Values:
        contrasts = self._problem.contrasts
        # Two classes have a single vector of coefficients, as in scikit-learn.
        shown = contrasts if len(contrasts) > 2 else contrasts[1:]
        return np.asarray(np.einsum("rqm,cm->rcq", differences.parameters(), shown))

    @override
    def _squares(self, differences: Differences) -> Values:
        flat = differences.parameters().reshape(-1, len(self._information))
        return np.asarray(((flat @ self._information) * flat).sum(axis=1, keepdims=True))

    @override
    def _scale(self) -> tuple[Values, Values]:
        parameters = np.einsum("ab,ab->", self._inverse, self._information)
        return np.array([parameters]), np.ones(1)

    @override
    def _rows_at_once(self) -> int:
        width, outputs = self._parameters_all.shape
        return int(max(1, BLOCK // (width * outputs * outputs)))

    @override
    def _predicted(self, outputs: Values) -> Values:
        return self._problem.probabilities(outputs)

    # Newton steps

    def _first_steps(self, rows: Positions) -> Values:
        """Return the differences after one step without each, ``(R, q, m)``."""
        width, outputs = self._parameters_all.shape
        features = self._problem.features[rows]
        inverse = self._inverse.reshape(width, outputs, width, outputs).transpose(2, 0, 1, 3)
        # H^{-1} J_i, then J_i^T of that.
        solved = (features @ inverse.reshape(width, -1)).reshape(-1, width, outputs, outputs)
        own = np.einsum("rq,rqab->rab", features, solved)
        system = np.eye(outputs) - self._curvatures[rows] @ own
        # Its eigenvalues are real, as those of a product of semidefinite matrices.
        self._refuse_alone(np.linalg.eigvals(system).real.min(axis=1), rows)
        slopes = np.linalg.solve(system, self._slopes[rows][:, :, None])[:, :, 0]
        return np.asarray(-np.einsum("rqab,rb->rqa", solved, slopes))

    def _further(self, difference: Values, group: Positions, done: int = 1) -> Values:
        """Return the difference without a group after all steps, from one after some."""
        from scipy.linalg import LinAlgError

        others = self._problem.without(group)
        parameters = self._parameters_all - difference
        for _ in range(done, self._steps):
            try:
                parameters = parameters + others.newton_step(parameters)
            except LinAlgError:
                self._refuse_alone(np.zeros(1), group)
        return self._parameters_all - parameters

    def _refuse_alone(self, gaps: Values, rows: Positions) -> None:
        if not (gaps > SAFE).all():
            at = rows[int(np.argmin(gaps))]
            raise NonFiniteError(
                f"train: without the instance {self._train.ids[at]!r} (and perhaps others) the "
                f"parameters are not determined: it alone has some feature. Use a penalty (a "
                f"smaller C), or train again: LeaveOneOut(shortcut=None)."
            )

    def _with_ones(self, features: Values) -> Values:
        if not self._intercept:
            return features
        return np.column_stack([features, np.ones(len(features))])
