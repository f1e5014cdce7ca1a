"""Ridge regression at one penalty, with all instances and without some."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from proponent.retraining.closed_forms.design import Design
from proponent.retraining.closed_forms.differences import Differences, RankOne, Replaced

Values = NDArray[np.float64]
Positions = NDArray[np.intp]

# Where 1 - leverage is less, the formula has lost half of its digits: the model is fitted anew.
SAFE = 1e-6
# Leverages between an instance and the others that are rounding: no other is in its direction.
ALONE = 1e-12


@dataclass(frozen=True)
class Problem:
    """A design, and some targets.

    Attributes
    ----------
    design : Design
    targets : ndarray of shape (n, m)
    tolerance : float
        As :meth:`Design.of` takes it.
    """

    design: Design
    targets: Values
    tolerance: float = 0.0

    @cached_property
    def centred(self) -> Values:
        """The targets less their mean, times the roots of the weights, ``(n, m)``."""
        return self.design.centred(self.targets)[0]

    @cached_property
    def projected(self) -> Values:
        """The centred targets in the directions of the design, ``(r, m)``."""
        return np.asarray(self.design.left.T @ self.centred)

    @cached_property
    def narrowest(self) -> float:
        """The squared ratio of the least singular value that counts to the least there is."""
        scales = self.design.scales
        return float((self.tolerance * scales[0] / scales[-1]) ** 2) if len(scales) else 0.0


class RidgeFit:
    """Ridge regression at one penalty.

    Parameters
    ----------
    problem : Problem
    penalty : float
        On the squared norm of the coefficients, beside a sum of squared errors.
    """

    def __init__(self, problem: Problem, penalty: float) -> None:
        self._problem = problem
        self._design = problem.design
        self._penalty = penalty
        self._squares = np.square(self._design.scales) + penalty
        # Divided by the penalty where all targets are fitted, as the module's formula says.
        spans = self._design.spans
        self._shares = (1.0 if spans else np.square(self._design.scales)) / self._squares
        self._unsafe = 0.0 if spans else max(SAFE, 0.0 if penalty else problem.narrowest)
        self._anew: dict[int, Values] = {}

    @cached_property
    def parameters(self) -> Values:
        """The parameters with all instances, ``(q, m)``."""
        return self._design.solve(self._problem.targets, self._penalty)

    @cached_property
    def gaps(self) -> Values:
        """One minus the leverage of each instance, ``(n,)``, or that divided by the penalty."""
        design = self._design
        inside = np.square(design.left) @ self._shares
        counted = design.roots > 0
        if design.spans:
            return np.where(counted, inside, 1.0)
        return 1.0 - inside - np.square(design.roots) * self._of_intercept

    @cached_property
    def special(self) -> Positions:
        """The instances for which the formula is not used."""
        return np.flatnonzero(self.gaps < self._unsafe)

    def each(self, rows: Positions) -> Differences:
        """Return the differences without each of some instances."""
        sizes = self._residuals(rows)
        with np.errstate(divide="ignore", invalid="ignore"):
            sizes /= self.gaps[rows, None]
        differences = RankOne(self._directions(rows), sizes)
        special = np.flatnonzero(np.isin(rows, self.special))
        if not len(special):
            return differences
        return Replaced(differences, {int(at): self._without_one(int(rows[at])) for at in special})

    def without(self, group: Positions) -> Values:
        """Return the difference without a group, ``(q, m)``."""
        from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigvalsh

        directions = self._directions(group)
        if not self._design.spans and len(group) > directions.shape[1]:
            return self.parameters - self._fitted_without(group)
        gap = self._gap(group)
        if self._unsafe and eigvalsh(gap, subset_by_index=[0, 0])[0] < self._unsafe:
            return self.parameters - self._fitted_without(group)
        try:
            sizes = cho_solve(cho_factor(gap), self._residuals(group))
        except LinAlgError:
            return self.parameters - self._fitted_without(group)
        return np.asarray(directions.T @ sizes)

    @property
    def _of_intercept(self) -> float:
        return 1 / self._design.total if self._design.intercept else 0.0

    def _directions(self, rows: Positions) -> Values:
        """Return ``A^{-1} x_i`` times the root of the weight, ``(rows, q)``."""
        inside = self._design.left[rows] * (self._design.scales / self._squares)
        if not self._design.intercept:
            return inside
        return np.column_stack([self._design.roots[rows] * self._of_intercept, inside])

    def _residuals(self, rows: Positions) -> Values:
        """Return residuals times the root of the weight, or that divided by the penalty."""
        fitted = self._design.left[rows] @ (self._shares[:, None] * self._problem.projected)
        return fitted if self._design.spans else self._problem.centred[rows] - fitted

    def _gap(self, group: Positions) -> Values:
        """Return ``I - H`` of a group, or that divided by the penalty."""
        design = self._design
        left, roots = design.left[group], design.roots[group]
        inside = (left * self._shares) @ left.T
        if design.spans:
            return inside + np.diag((roots == 0).astype(np.float64))
        return np.asarray(np.eye(len(group)) - inside - np.outer(roots, roots) * self._of_intercept)

    def _without_one(self, row: int) -> Values:
        """Return the difference without an instance with a leverage of almost 1, ``(q, m)``."""
        if row not in self._anew:
            design = self._design
            column = design.left @ (design.left[row] * self._shares)
            column += design.roots * (design.roots[row] * self._of_intercept)
            column[row] = 0.0
            if self._penalty == 0 and np.linalg.norm(column) < ALONE:
                # Its error is 0, and the others are fitted as well anywhere along this direction.
                along = self._directions(np.array([row]))[0]
                penalised = along[1:] if design.intercept else along
                coefficients = self.parameters[-len(penalised) :]
                sizes = penalised @ coefficients / (penalised @ penalised)
                self._anew[row] = np.outer(along, sizes)
            else:
                self._anew[row] = self.parameters - self._fitted_without(np.array([row]))
        return self._anew[row]

    def _fitted_without(self, group: Positions) -> Values:
        """Return the parameters of the model fitted to the others, ``(q, m)``."""
        design, kept = self._design, self._design.roots > 0
        kept[group] = False
        features = design.left[kept] * design.scales / design.roots[kept, None]
        weights = np.square(design.roots[kept])
        others = Design.of(features, weights, design.intercept, self._problem.tolerance)
        solved = others.solve(self._problem.targets[kept], self._penalty)
        found = others.coefficients(solved).T
        return np.roll(found, 1, axis=0) if design.intercept else found
