"""The average marginal effect of training instances (survey section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.retraining.asked import Asked
from proponent.retraining.checks import check_choice
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs import AMEGrid, Exhaustive
from proponent.retraining.estimators import knockoffs
from proponent.retraining.estimators.exhaustive import ExactSemivalue
from proponent.retraining.estimators.marginal_effects import (
    ChanceMeans,
    Debias,
    LassoEffects,
    LeastSquaresEffects,
)
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.semivalues import AMEWeights
from proponent.retraining.settings import NEEDS, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Choice = Literal["lasso", "least_squares", "regression", "means", "exact"]


@dataclass(frozen=True)
class Selected:
    """Training instances that have an effect, found with knockoffs.

    Attributes
    ----------
    ids : list of ndarray
        Those that were selected for each test instance, strongest first.
    statistics : ndarray of shape (n_test, n_train)
        W; the larger, the more sure is an effect.
    thresholds : ndarray of shape (n_test,)
        From which W on instances were selected; infinite where none was.
    """

    ids: list[NDArray[Any]]
    statistics: NDArray[np.float64]
    thresholds: NDArray[np.float64]


class AME(SubmodelMethod):
    r"""The average marginal effect: Banzhaf values averaged over probabilities of being in.

    .. math::

        I(z_i, z_te) = E_{q} \, E_{S \sim q} \bigl[ v(S \cup z_i) - v(S) \bigr]

    with q one of ``probabilities`` and every other instance in S with probability q. Where few
    instances have an effect, a sparse regression finds it with far fewer submodels than
    instances: in terms of features with mean 0 and variance 1,

    .. math::

        x_i = \frac{1}{\sqrt\nu} \begin{cases} 1 / q & z_i \in S \\ -1 / (1 - q) & z_i \notin S
        \end{cases}, \qquad \nu = E_q \frac{1}{q (1 - q)},

    the effect is :math:`\sqrt\nu` times the slope. :meth:`select` tells which effects are real.

    **Source** Lin et al., ICML 2022; survey section 4.3.

    **Differs from the paper in** that utilities are taken relative to the mean of those with the
    same q, which changes no effect and takes out noise; and in the least squares that follow the
    LASSO (``debias="support"``), as its penalty pulls effects towards 0: for each q on who of the
    instances with an effect is in, averaged over q. Subsets that come out empty count, with
    v(empty).

    Scores are ``(n_test, n_train)``, in units of the utility. An instance that the LASSO leaves
    out gets 0; its standard error is that of the one-step estimate. Those of ``debias="support"``
    do not know of the selection, as the diagnostics say (``std_errors``); those of ``"one_step"``
    are of estimates without one. The values for a sum of test instances are the sum of their
    values, except by the LASSO.

    **Cost** ``n_models`` trainings (``2^n`` where exact), then as many predictions of a test
    instance and, for the LASSO, six paths of ``penalties`` fits.

    Parameters
    ----------
    n_models : int
        Submodels, K. The LASSO needs of the order of k log n for k instances with an effect.
    probabilities : tuple of float
        All equally likely.
    estimator : {"lasso", "least_squares", "regression", "means", "exact"}
        The LASSO, or the least squares, of utilities on the features; for each probability the
        Banzhaf value by regression, or by means, which are averaged; or all ``2^n`` subsets.
    debias : {"support", "one_step"}, optional
        For the LASSO: fit the effects that are not 0 anew, or add to each its covariance with the
        residuals, which makes all different from 0 and nearly unbiased. None: leave them. Where
        there are more effects than subsets with some q, they are left; the diagnostics count for
        how many test instances (``not_debiased``).
    folds, penalties : int
        The cross-validation by which the LASSO's penalty is chosen, and how many it tries.
    **settings
        As in :class:`~proponent.retraining.method.SubmodelMethod`.

    Examples
    --------
    >>> import numpy as np
    >>> import proponent as pp
    >>> game = pp.Game(30, lambda mask: 3.0 * mask[4] - 2.0 * mask[7])
    >>> ame = pp.AME(n_models=200).fit(game)
    >>> ame.influence().proponents(1).ids
    array([[4]])
    >>> ame.influence().opponents(1).ids
    array([[7]])
    """

    choices: ClassVar[tuple[str, ...]] = ("lasso", "least_squares", "regression", "means", "exact")

    card = MethodCard(
        name="AME",
        survey_name="AME",
        title="Average Marginal Effect",
        family="retraining",
        section="4.3",
        paper="Lin et al., ICML 2022",
        needs=NEEDS,
        full_complexity="O(KT)",
        incremental_complexity="O(K)",
        space_complexity="O(n + p)",
        storage_complexity="O(Kp)",
        group=True,
        generative=True,
        any_model=True,
        original_sign="the same, in the utility of the model (accuracy)",
    )

    def __init__(
        self,
        n_models: int = 2000,
        *,
        probabilities: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8),
        estimator: Choice = "lasso",
        debias: Debias | None = "support",
        folds: int = 5,
        penalties: int = 30,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        self.n_models = n_models
        self.probabilities = probabilities
        self.estimator = estimator
        self.debias = debias
        self.folds = folds
        self.penalties = penalties

    def select(
        self,
        test: Any = None,
        *,
        fdr: float = 0.1,
        plus: bool = True,
        joint: bool = False,
        ids: Any = None,
    ) -> Selected:
        """Return which training instances have an effect, with few false ones among them.

        The submodels are those of :meth:`fit`: knockoffs of their subsets are drawn, on which
        nothing is trained.

        Parameters
        ----------
        test, ids
            As in :meth:`influence`.
        fdr : float
            The share of the selected, in expectation, that may have none.
        plus : bool
            Whether that is guaranteed (the knockoff+ threshold, which selects none if it would be
            fewer than ``1 / fdr``), or nearly so.
        joint : bool
            Select for the sum over the test instances, and not for each.

        Returns
        -------
        Selected
            For each test instance, or for their sum.

        Raises
        ------
        InvalidInputError
            If the rate is not between 0 and 1, or all subsets were evaluated.
        """
        self._rows(None)
        if self.estimator == "exact":
            raise InvalidInputError("estimator='exact': there is nothing to select, or to test.")
        table = self._measured(self._tests(test, ids), self._coalitions)
        found = knockoffs.statistics(
            table.total() if joint else table,
            folds=as_count(self.folds, "folds"),
            penalties=as_count(self.penalties, "penalties"),
            seed=self.seed,
        )
        thresholds = np.array([knockoffs.threshold(row, fdr, plus=plus) for row in found])
        chosen = []
        for row, least in zip(found, thresholds, strict=True):
            order = np.argsort(-row, kind="stable")
            chosen.append(self.train_.ids[order[row[order] >= least]])
        return Selected(chosen, found, thresholds)

    @override
    def _design(self, n: int) -> Design:
        check_choice("estimator", self.estimator, self.choices)
        probabilities = AMEWeights(self.probabilities).probabilities
        return Exhaustive() if self.estimator == "exact" else AMEGrid(probabilities)

    @override
    def _size(self, n: int) -> int:
        models = as_count(self.n_models, "n_models")
        return 2**n if self.estimator == "exact" else models

    @override
    def _estimator(self, n: int) -> Estimator:
        check_choice("debias", self.debias, ("support", "one_step", None))
        if self.estimator == "exact":
            return ExactSemivalue(AMEWeights(self.probabilities))
        if self.estimator == "lasso":
            folds = as_count(self.folds, "folds")
            if folds < 2:
                raise InvalidInputError(f"folds must be 2 or more; got {folds}.")
            return LassoEffects(folds, as_count(self.penalties, "penalties"), self.debias)
        if self.estimator == "least_squares":
            return LeastSquaresEffects()
        return ChanceMeans(self.probabilities, adjust=self.estimator == "regression")

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        empty = int((self._coalitions.sizes == 0).sum())
        return noticed | ({"empty_subsets": empty} if empty else {})
