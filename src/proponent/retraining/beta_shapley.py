"""Beta Shapley: semivalues that weigh small or large coalitions (survey section 4.3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from typing_extensions import override

from proponent.card import MethodCard
from proponent.retraining.checks import check_choice
from proponent.retraining.coalitions import Design
from proponent.retraining.designs import SizeStratified, WeighedSizes
from proponent.retraining.semivalue_method import Sampled, SemivalueMethod
from proponent.retraining.semivalues import BetaWeights, Semivalue
from proponent.retraining.settings import NEEDS, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack


class BetaShapley(SemivalueMethod):
    r"""Beta(alpha, beta) Shapley: a Shapley value with sizes of coalitions weighed.

    .. math::

        I(z_i, z_te) = \sum_{S \subseteq D \setminus z_i}
            \frac{B(|S| + \beta, n - 1 - |S| + \alpha)}{B(\alpha, \beta)}
            \bigl( v(S \cup z_i) - v(S) \bigr)

    Beta(16, 1) and Beta(4, 1) favour small coalitions, in which an instance makes a difference
    that noise does not drown; Beta(1, 4) and Beta(1, 16) large ones; Beta(1, 1) is the Shapley
    value. Weights are computed by logarithms, so that they do not vanish for large n.

    **Source** Kwon and Zou, AISTATS 2022, eq. (3) and (5).

    **Differs from the paper in** the estimator, as :class:`Shapley` does; and its released code
    swaps the two parameters and never evaluates the empty set.

    **Cost** as :class:`Shapley`. Sizes of subsets are drawn as often as the parameters weigh them:
    of 1,000 instances and 2,000 subsets of all sizes alike a fraction would serve Beta(16, 1), and
    its standard errors are a third with sizes of its own. With ``sizes="uniform"`` the same subsets
    serve all parameters, and :class:`Shapley`: with a ``store`` a second setting trains nothing.

    Parameters
    ----------
    alpha, beta : float
        Positive.
    n_models : int
        Submodels, K.
    sizes : {"weighed", "uniform"}
        How often each size of a subset is drawn, by the regression and the means: by what it
        weighs, or all alike.
    estimator : {"auto", "regression", "means", "permutations", "antithetic", "exact"}
        As in :class:`SemivalueMethod`.
    **settings
        As in :class:`SubmodelMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> game = pp.Game(3, lambda mask: float(mask.sum() ** 2))
    >>> pp.BetaShapley(4, 1).fit(game).influence().values.round(3)
    array([[1.8, 1.8, 1.8]])
    """

    card = MethodCard(
        name="BetaShapley",
        survey_name="Beta Shapley",
        title="Beta Distribution-Weighted Shapley Value",
        family="retraining",
        section="4.3.3",
        paper="Kwon and Zou, AISTATS 2022",
        needs=NEEDS,
        full_complexity="O(2^n T)",
        incremental_complexity="O(2^n)",
        space_complexity="O(n + p)",
        storage_complexity="O(2^n p)",
        group=True,
        generative=True,
        any_model=True,
        original_sign="the same, in the utility of the model (accuracy)",
    )

    def __init__(
        self,
        alpha: float = 4.0,
        beta: float = 1.0,
        *,
        n_models: int = 2000,
        sizes: Literal["weighed", "uniform"] = "weighed",
        estimator: Sampled = "auto",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(n_models, estimator=estimator, **settings)
        self.alpha = alpha
        self.beta = beta
        self.sizes = sizes

    @override
    def _semivalue(self) -> Semivalue:
        return BetaWeights(self.alpha, self.beta)

    @override
    def _design(self, n: int) -> Design:
        check_choice("sizes", self.sizes, ("weighed", "uniform"))
        design = super()._design(n)
        weighed = self.sizes == "weighed" and isinstance(design, SizeStratified)
        return WeighedSizes(self._semivalue()) if weighed else design
