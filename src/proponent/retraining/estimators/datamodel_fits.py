"""Datamodels: the utility of each test as a linear function of who is in."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.retraining.coalitions import Estimator, Table
from proponent.retraining.estimators.linear_fit import LinearFit, least_squares, ridge
from proponent.retraining.estimators.marginal_effects import Fit, never_or_always
from proponent.retraining.estimators.sparse_regression import Selection, lasso

Values = NDArray[np.float64]


class DatamodelFit(Estimator):
    """Base of the estimators whose values are slopes on the mask; a subclass fits them."""

    @override
    def on(self, table: Table) -> Fit:
        masks = table.coalitions.masks != 0
        fit = self.fit(masks.astype(np.float64), table.utilities)
        return Fit(fit, never_or_always(masks))

    @abstractmethod
    def fit(self, features: Values, utilities: Values) -> LinearFit:
        """Fit a linear function to the utilities of each test."""


class LassoFit(DatamodelFit):
    """By the LASSO, whose penalty is chosen on some of the rows, held out.

    Parameters
    ----------
    penalties : int
        How many are tried.
    ratio : float
        Of the smallest to the largest.
    share : float
        Of the rows that are held out.
    """

    linear: ClassVar[bool] = False

    def __init__(self, penalties: int = 100, ratio: float = 1e-5, share: float = 0.1) -> None:
        self.penalties = penalties
        self.ratio = ratio
        self.share = share

    @override
    def fit(self, features: Values, utilities: Values) -> LinearFit:
        selection = Selection.held_out(len(features), self.share, self.penalties, self.ratio)
        return lasso(features, utilities, selection)


class RidgeFit(DatamodelFit):
    """By ridge regression, whose penalty is chosen by leave-one-out."""

    linear: ClassVar[bool] = False

    @override
    def fit(self, features: Values, utilities: Values) -> LinearFit:
        return ridge(features, utilities)


class LeastSquaresFit(DatamodelFit):
    """By least squares; where coalitions are of one size, with slopes that sum to 0."""

    @override
    def fit(self, features: Values, utilities: Values) -> LinearFit:
        return least_squares(features, utilities)
