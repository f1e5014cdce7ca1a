r"""Average marginal effects: coalitions whose players are in with one of several probabilities.

With q the probability of a coalition, the feature of a player is 1/q where it is in and
-1/(1 - q) where it is not, over the root of ``nu = E[1 / (q (1 - q))]``. Features then have
mean 0, variance 1 and no correlation, and the average marginal effect of a player is the root of
nu times its slope in the regression of the utility on all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.retraining.coalitions import Coalitions, Estimate, Estimated, Estimator, Table
from proponent.retraining.estimators.in_out import InOutMeans
from proponent.retraining.estimators.linear_fit import LinearFit, least_squares
from proponent.retraining.estimators.mask_regression import MaskRegression
from proponent.retraining.estimators.sparse_regression import REFITTED, Selection, lasso

Values = NDArray[np.float64]
Debias = Literal["support", "one_step"]

ROWS_AN_EFFECT = 4  # coalitions of each probability that a regression needs for every effect


def chances_of(coalitions: Coalitions) -> Values:
    """Return the probability of each coalition, ``(K,)``.

    Raises
    ------
    InvalidInputError
        If they were not drawn with one.
    """
    chances = coalitions.chances
    if chances is None or not ((chances > 0) & (chances < 1)).all():
        raise InvalidInputError(
            "Average marginal effects need coalitions that were drawn with a probability of being "
            "in, between 0 and 1."
        )
    return chances


def effect_features(masks: NDArray[Any], chances: Values) -> Values:
    """Return the features of coalitions, ``(K, n)``."""
    q = chances[:, None]
    features = np.where(masks != 0, 1 / q, -1 / (1 - q))
    return np.asarray(features / np.sqrt(scale_of(chances)))


def scale_of(chances: Values) -> float:
    """Return nu, the mean of ``1 / (q (1 - q))``."""
    return float((1 / (chances * (1 - chances))).mean())


def within_chances(values: Values, chances: Values) -> Values:
    """Return rows less the mean of the rows with the same probability, ``(K, columns)``.

    Features have mean 0 for each probability, so that no slope changes in expectation; but larger
    coalitions are worth more, and this is no longer noise.
    """
    _, where, counts = np.unique(chances, return_inverse=True, return_counts=True)
    where = where.reshape(-1)
    sums = np.zeros((len(counts), values.shape[1]))
    np.add.at(sums, where, values)
    return np.asarray(values - (sums / counts[:, None])[where])


def never_or_always(masks: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which players are in no coalition or in all: nothing is known of them, ``(n,)``."""
    inside = masks != 0
    return np.asarray(inside.all(axis=0) | ~inside.any(axis=0))


def regression(table: Table) -> tuple[Values, Values, float]:
    """Return features ``(K, n)``, utilities ``(K, T)``, and the factor from slopes to effects."""
    chances = chances_of(table.coalitions)
    features = effect_features(table.coalitions.masks, chances)
    factor = float(np.sqrt(scale_of(chances)))
    return within_chances(features, chances), within_chances(table.utilities, chances), factor


class Fit(Estimated):
    """A linear fit whose slopes are the values.

    Parameters
    ----------
    fit : LinearFit
        One function a test.
    unknown : ndarray of shape (n,)
        Players whose value is not known: NaN.
    """

    def __init__(self, fit: LinearFit, unknown: NDArray[np.bool_]) -> None:
        self.fit = fit
        self.unknown = unknown

    @override
    def players(self, rows: range) -> Estimate:
        some = slice(rows.start, rows.stop)
        unknown = self.unknown[some]
        values, errors = (
            np.where(unknown, np.nan, array[:, some])
            for array in (self.fit.weights, self.fit.std_errors)
        )
        return Estimate(values, errors)

    @override
    def noticed(self) -> dict[str, Any]:
        """Return what was noticed in the fit."""
        count = int(self.unknown.sum())
        return self.fit.noticed | ({"never_or_always_in": count} if count else {})


class LassoEffects(Estimator):
    """Effects by the LASSO, whose penalty is chosen by cross-validation.

    **Source** Lin et al., ICML 2022, section 3.

    Parameters
    ----------
    folds, penalties : int
        Of the cross-validation, and how many penalties it tries.
    debias : {"support", "one_step"}, optional
        Fit the effects that are not 0 anew by least squares, probability by probability; or take
        one step from the LASSO's, as in
        :func:`~proponent.retraining.estimators.sparse_regression.lasso`.
    """

    linear: ClassVar[bool] = False

    def __init__(self, folds: int = 5, penalties: int = 30, debias: Debias | None = None) -> None:
        self.folds = folds
        self.penalties = penalties
        self.debias: Debias | None = debias

    @override
    def on(self, table: Table) -> Estimated:
        features, utilities, factor = regression(table)
        selection = Selection.by_folds(len(features), self.folds, self.penalties, 1e-3)
        means = len(np.unique(chances_of(table.coalitions)))
        one_step = self.debias == "one_step"
        fit = lasso(features, utilities, selection, one_step=one_step, means=means)
        fit = fit.scaled(factor)
        if self.debias == "support":
            failed = _refit(table, fit, features, utilities, factor)
            fit.noticed["std_errors"] = REFITTED
            if failed:
                fit.noticed["not_debiased"] = failed
        return Fit(fit, never_or_always(table.coalitions.masks))


def _refit(table: Table, fit: LinearFit, features: Values, utilities: Values, factor: float) -> int:
    """Replace the effects that are not 0 by refitted ones; return for how many tests it failed.

    With enough coalitions of each probability they are regressed on who is in, probability by
    probability; with fewer all together on the features.
    """
    chances = chances_of(table.coalitions)
    groups = [np.flatnonzero(chances == chance) for chance in np.unique(chances)]
    failed = 0
    for test, row in enumerate(fit.weights):
        support = np.flatnonzero(row)
        if not len(support):
            continue
        masks = (table.coalitions.masks[:, support] != 0).astype(np.float64)
        enough = all(
            len(rows) >= ROWS_AN_EFFECT * (len(support) + 1)
            and not never_or_always(masks[rows]).any()
            for rows in groups
        )
        if enough:
            parts = [
                least_squares(masks[rows], table.utilities[rows][:, [test]]) for rows in groups
            ]
            fit.weights[test, support] = np.mean([part.weights[0] for part in parts], axis=0)
            squares = np.sum([part.std_errors[0] ** 2 for part in parts], axis=0)
            fit.std_errors[test, support] = np.sqrt(squares) / len(parts)
        elif len(chances) >= len(support) + len(groups) + 1:
            pooled = least_squares(features[:, support], utilities[:, [test]], means=len(groups))
            pooled = pooled.scaled(factor)
            fit.weights[test, support] = pooled.weights[0]
            fit.std_errors[test, support] = pooled.std_errors[0]
        else:
            failed += 1
    return failed


class LeastSquaresEffects(Estimator):
    """Effects by the least squares of utilities on the features of all players."""

    @override
    def on(self, table: Table) -> Estimated:
        features, utilities, factor = regression(table)
        means = len(np.unique(chances_of(table.coalitions)))
        fit = least_squares(features, utilities, means=means).scaled(factor)
        return Fit(fit, never_or_always(table.coalitions.masks))


class ChanceMeans(Estimator):
    """The difference that a player makes at each of some probabilities, and their weighted mean.

    Parameters
    ----------
    chances : sequence of float
        The probabilities of the design.
    weights : sequence of float, optional
        Of each; None: all alike, with the sum 1.
    adjust : bool
        Whether what a regression on the other players explains is taken out first; otherwise the
        difference is that of the mean utilities with the player and without.
    """

    def __init__(
        self, chances: Sequence[float], weights: Sequence[float] | None = None, adjust: bool = False
    ) -> None:
        self.chances = chances
        self.adjust = adjust
        self.weights = [1 / len(chances)] * len(chances) if weights is None else weights

    @override
    def on(self, table: Table) -> Estimated:
        found = chances_of(table.coalitions)
        parts = []
        for chance in self.chances:
            rows = np.flatnonzero(np.isclose(found, chance, rtol=1e-9, atol=0))
            if not len(rows):
                raise InvalidInputError(
                    f"n_models: there is no coalition with the probability {chance:.4g}; draw at "
                    f"least a few times as many as the {len(self.chances)} probabilities."
                )
            part = replace(
                table, coalitions=table.coalitions.take(rows), utilities=table.utilities[rows]
            )
            parts.append((MaskRegression(chance) if self.adjust else InOutMeans()).on(part))
        return _WeightedMeans(parts, self.weights)


class _WeightedMeans(Estimated):
    def __init__(self, parts: list[Estimated], weights: Sequence[float]) -> None:
        self.parts = parts
        self.weights = weights

    @override
    def noticed(self) -> dict[str, Any]:
        """Return how much of the variance the regressions predict, on average."""
        found = [part.noticed() for part in self.parts]
        shares = [noticed["variance_explained"] for noticed in found if noticed]
        return {"variance_explained": float(np.mean(shares))} if shares else {}

    @override
    def players(self, rows: range) -> Estimate:
        values: Any = 0.0
        variances: Any = 0.0
        for part, weight in zip(self.parts, self.weights, strict=True):
            found = part.players(rows)
            values = values + weight * found.values
            if found.std_errors is not None:
                variances = variances + (weight * found.std_errors) ** 2
        return Estimate(values, np.sqrt(variances))
