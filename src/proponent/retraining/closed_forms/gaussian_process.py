r"""Gaussian process regression without some instances, its variances included.

For the inverse G of the kernel matrix with the noise, the means are those of kernel ridge
regression, and

.. math::
    \sigma^2_{-g}(x) = \sigma^2(x) + k_x^\top G_{:g} G_{gg}^{-1} G_{g:} k_x .

Where the targets are normalised, leaving out instances changes their mean and deviation too: the
mean prediction is linear in the targets and in their mean, so that it has a closed form as well.

**Source** Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 5.4.2
(Sundararajan and Keerthi, Neural Computation 2001), there for an instance's own prediction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.models.prediction_risk import RegressionRisk
from proponent.retraining.closed_forms.closed_form import Positions, Tests, Values
from proponent.retraining.closed_forms.differences import (
    Differences,
    Full,
    RankOne,
    Shared,
    Sum,
)
from proponent.retraining.closed_forms.kernel_ridge import Kernel, KernelRegression
from proponent.retraining.closed_forms.reading import matrix_of

GaussianRisk = Literal["squared", "absolute", "negative_log_likelihood"]


@dataclass(frozen=True)
class Posterior(Differences):
    """Differences of the means, with what else changes.

    Attributes
    ----------
    mean : Differences
    spreads : sequence of ndarray of shape (k, n)
        One for each removal: the variance rises by the sum of the squared products with k_x.
    each : bool
        Whether ``spreads`` is a single array with a row for each removal, ``(R, n)``.
    deviations : ndarray of shape (R, m)
        The deviations of the targets without them; 1 where targets are not normalised.
    """

    mean: Differences
    spreads: Sequence[Values]
    each: bool
    deviations: Values

    @override
    def outputs(self, features: Values) -> Values:
        """Multiply, as :meth:`Differences.outputs` says."""
        return self.mean.outputs(features)

    @override
    def parameters(self) -> Values:
        """Return the differences of the dual coefficients, ``(R, n, m)``."""
        return self.mean.parameters()

    def rises(self, kernels: Values) -> Values:
        """Return by how much variances rise, ``(T, R)``, for kernels ``(T, n)``."""
        if self.each:
            return np.square(kernels @ self.spreads[0].T)
        return np.stack(
            [np.square(kernels @ spread.T).sum(axis=1) for spread in self.spreads], axis=1
        )


class GaussianProcess(KernelRegression):
    """A Gaussian process with a fixed kernel.

    Parameters
    ----------
    train : Instances
        (X, y) pairs.
    kernel : sklearn.gaussian_process.kernels.Kernel
        With its hyperparameters, which stay as they are whatever is left out.
    noise : float or array-like of shape (n,)
        What is added to the diagonal, ``alpha`` in scikit-learn; in units of the normalised
        targets.
    normalize : bool
        Whether targets are normalised to mean 0 and deviation 1.
    risk : {"squared", "absolute", "negative_log_likelihood"}
        The last is that of a target with noise, under the normal distribution that is predicted.
    fixed_at_fit : bool
        Whether the kernel's hyperparameters were chosen with all instances, and training again
        would choose others.

    Raises
    ------
    InvalidInputError
        If the training set is not one of numbers, or the noise of a test instance is not known.
    NoClosedForm
        If there are fewer than two instances, or the kernel matrix is singular.
    """

    def __init__(
        self,
        train: Instances,
        kernel: Kernel,
        *,
        noise: Any = 1e-10,
        normalize: bool = False,
        risk: GaussianRisk = "squared",
        fixed_at_fit: bool = False,
    ) -> None:
        given = np.asarray(noise, dtype=np.float64)
        if given.shape not in ((), (1,), (len(train),)) or not (given >= 0).all():
            raise InvalidInputError(
                f"alpha: expected a number that is not negative, or one for each of {len(train)} "
                f"training instances; got {noise!r:.100}."
            )
        self._likelihood = risk == "negative_log_likelihood"
        if self._likelihood and given.size > 1:
            raise InvalidInputError(
                "risk: with a noise (alpha) for each training instance that of a test instance is "
                "not known, nor its likelihood; use risk='squared', or one alpha."
            )
        judged: RegressionRisk = "squared" if risk == "negative_log_likelihood" else risk
        super().__init__(train, kernel, risk=judged, noise=np.broadcast_to(given, (len(train),)))
        self.exact = not fixed_at_fit
        self._noise = float(given.ravel()[0])
        self._normalize = normalize
        self._fit = self._fits[0][1]
        self._ones = self._fit.solve(np.ones((self.n, 1)))  # G 1
        outputs = self._solved.shape[1]
        self._mean = self._targets.mean(axis=0) if normalize else np.zeros(outputs)
        self._deviation = self._deviations([np.array([], np.intp)])[0]

    # What is asked

    def variances_without(self, test: Instances, rows: range | None = None) -> Values:
        """Return the variance of a target with its noise, without each, ``(T, n[, outputs])``.

        Raises
        ------
        NonFiniteError
            If one is not positive: the kernel matrix is too badly conditioned.
        """
        each = self._rows(rows)
        tests = self._with_variances(self._read(test, "test"), test)
        found = np.empty((len(tests.ids), len(each), self._solved.shape[1]))
        made = self._blocks(tests, len(each), lambda some: self._each(each[some]))
        for some, columns, differences in made:
            found[some, columns] = self._variances(tests.at(some), differences)
        return found[:, :, 0] if found.shape[2] == 1 else found

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how well the kernel matrix is conditioned, and what is held fixed."""
        noticed = super().noticed()
        if not self.exact:
            noticed["notes"] = [
                "the kernel's hyperparameters are held fixed as they were fitted to all instances."
            ]
        return noticed

    # The frame's hooks

    @override
    def _read(self, instances: Instances, role: str) -> Tests:
        given = matrix_of(instances, role, self._features.shape[1])
        features = self._wide(self._cross(given), 1.0)
        targets = self.judge.targets(instances, role)
        tests = Tests(features, features @ self._all, targets, instances.ids)
        return self._with_variances(tests, instances) if self._likelihood else tests

    @override
    def _each(self, rows: Positions) -> Differences:
        means = self._means([np.array([row]) for row in rows])
        gaps = self._fit.inverse.diagonal()[rows, None]
        directions = self._fit.inverse[rows]
        sizes = (self._solved[rows] - means * self._ones[rows]) / gaps
        mean: Differences = RankOne(self._wide(directions), sizes)
        if self._normalize:
            mean = Sum(mean, Shared(self._offset, means - self._mean))
        deviations = self._deviations([np.array([row]) for row in rows])
        return Posterior(mean, (directions / np.sqrt(gaps),), True, deviations)

    @override
    def _groups(self, groups: Sequence[Positions]) -> Differences:
        means, fit = self._means(groups), self._fit
        found = np.empty((len(groups), *self._all.shape))
        spreads = []
        for place, group in enumerate(groups):
            block = fit.inverse[np.ix_(group, group)]
            factor = np.linalg.cholesky(block)
            spread = np.linalg.solve(factor, fit.inverse[group])
            spreads.append(spread)
            aims = self._solved[group] - means[place] * self._ones[group]
            found[place] = self._wide(spread).T @ np.linalg.solve(factor, aims)
            if self._normalize:
                found[place] += self._offset * (means[place] - self._mean)
        return Posterior(Full(found), spreads, False, self._deviations(groups))

    @override
    def _parameters(self, differences: Differences) -> Values:
        # Of the dual coefficients alone, in units of the targets.
        return super()._parameters(differences)[:, :, : self.n]

    @override
    def _changes(self, tests: Tests, differences: Differences) -> Values:
        if not self._likelihood:
            return super()._changes(tests, differences)
        targets = tests.targets.reshape(tests.outputs.shape)
        errors = tests.outputs - targets
        with_all = self._checked(tests)[:, None] * np.square(self._deviation)
        before = np.log(with_all) + np.square(errors) / with_all
        variances = self._variances(tests, differences)
        moved = errors[:, None, :] - differences.outputs(tests.features)
        after = np.log(variances) + np.square(moved) / variances
        return np.asarray((after - before[:, None, :]).sum(axis=2) / 2)

    @override
    def _own_features(self) -> Iterator[tuple[slice, Values]]:
        for some, features in super()._own_features():
            yield some, self._wide(features, 1.0)

    # Means and variances

    @property
    @override
    def _all(self) -> Values:
        """The parameters with all instances: dual coefficients, and the mean target last."""
        if not self._normalize:
            return self._solved
        return np.vstack([self._solved - self._ones * self._mean, self._mean])

    @property
    def _offset(self) -> Values:
        """What one unit of the mean target does to the parameters, negative, ``(n + 1, m)``."""
        offset = np.append(self._ones, -1.0)[:, None]
        return np.repeat(offset, self._solved.shape[1], axis=1)

    def _wide(self, rows: Values, last: float = 0.0) -> Values:
        """Return rows with a column for the mean target, where there is one."""
        if not self._normalize:
            return rows
        return np.column_stack([rows, np.full(len(rows), last)])

    def _means(self, groups: Sequence[Positions]) -> Values:
        """Return the mean targets without groups, ``(R, m)``; 0 where there is none."""
        if not self._normalize:
            return np.zeros((len(groups), self._solved.shape[1]))
        centred = self._targets - self._mean
        shifts = [centred[group].sum(axis=0) / (self.n - len(group)) for group in groups]
        return np.asarray(self._mean - np.stack(shifts))

    def _deviations(self, groups: Sequence[Positions]) -> Values:
        """Return the deviations of the targets without groups, ``(R, m)``; 1 where constant."""
        if not self._normalize:
            return np.ones((len(groups), self._solved.shape[1]))
        others = np.ones(self.n, np.bool_)
        found = np.empty((len(groups), self._solved.shape[1]))
        for place, group in enumerate(groups):
            others[group] = False
            found[place] = self._targets[others].std(axis=0)
            others[group] = True
        # As scikit-learn has it.
        return np.asarray(np.where(found < 10 * np.finfo(np.float64).eps, 1.0, found))

    def _with_variances(self, tests: Tests, instances: Instances) -> Tests:
        """Return test instances with the variances of their targets, before normalisation."""
        kernel: Any = self._kernel
        prior = kernel.diag(matrix_of(instances, "test"))
        kernels = tests.features[:, : self.n]
        explained = np.einsum("tn,tn->t", kernels @ self._fit.inverse, kernels)
        return replace(tests, variances=prior - explained + self._noise)

    def _variances(self, tests: Tests, differences: Differences) -> Values:
        """Return the variances of targets without each, ``(T, R, m)``."""
        if not isinstance(differences, Posterior):
            raise TypeError("the differences of a Gaussian process know its variances.")
        risen = self._checked(tests)[:, None] + differences.rises(tests.features[:, : self.n])
        return np.asarray(risen[:, :, None] * np.square(differences.deviations))

    def _checked(self, tests: Tests) -> Values:
        variances = tests.variances
        if variances is None or not (variances > 0).all():
            raise NonFiniteError(
                "the predicted variance of a test instance is not positive in float64: it stands "
                "on a training instance without noise. A larger alpha, or a WhiteKernel, helps."
            )
        return variances
