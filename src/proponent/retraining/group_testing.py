"""The Shapley value of training instances by group testing, and by Kernel SHAP's regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.retraining import designs
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.estimators.exhaustive import ExactSemivalue
from proponent.retraining.estimators.group_testing import GroupTestingMeans
from proponent.retraining.estimators.kernel_shap import KernelShap
from proponent.retraining.semivalue_method import SemivalueMethod
from proponent.retraining.semivalues import Semivalue, ShapleyWeights
from proponent.retraining.settings import NEEDS, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Choice = Literal["auto", "adjusted", "plain", "kernel_shap", "exact"]


class GroupTesting(SemivalueMethod):
    r"""The Shapley value from subsets of random size, most of them very small or very large.

    Sizes k are drawn with probabilities proportional to ``1 / (k (n - k))``; with Z the sum of
    ``1 / k + 1 / (n - k)`` over them,

    .. math::

        I(z_i, z_te) = \frac{v(D) - v(\emptyset)}{n}
            + Z \, E\bigl[ (v(S) - g(|S|)) (1[z_i \in S] - |S| / n) \bigr]

    for any function g of the size. The values of a test instance sum to v(D) - v(empty).

    **Source** Jia et al., AISTATS 2019; Wang and Jia, "A note on 'Towards efficient data valuation
    based on the Shapley value'", 2023. Lundberg and Lee, NeurIPS 2017, for ``"kernel_shap"``. Not
    in the survey.

    **Differs from the paper in** the closed form, where the paper seeks values whose differences
    fit those that were measured; v(empty) is not taken to be 0; and g, a curve through the
    utilities by size, which makes the error several times smaller (``"plain"`` is without).

    Scores are ``(n_test, n_train)``, in units of the utility. Diagnostics have the note's bound on
    the Euclidean error of all values of a test instance, for the plain estimate.

    **Cost** ``n_models`` trainings (``2^n`` where exact), then as many predictions of a test
    instance and ``O(K n)``.

    Parameters
    ----------
    n_models : int
        Submodels, K, with those on nothing and on everything.
    estimator : {"auto", "adjusted", "plain", "kernel_shap", "exact"}
        With the curve g, or without; the weighted least squares of Kernel SHAP, on the same
        subsets; or all subsets. ``"auto"`` is exact where that takes no more than ``n_models``,
        and adjusted otherwise.
    paired : bool
        Whether each subset is followed by its complement, which serves the least squares.
    **settings
        As in :class:`~proponent.retraining.method.SubmodelMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> game = pp.Game(3, lambda mask: float(mask.sum() >= 2))
    >>> pp.GroupTesting().fit(game).influence().values.round(3)
    array([[0.333, 0.333, 0.333]])
    """

    choices: ClassVar[tuple[str, ...]] = ("auto", "adjusted", "plain", "kernel_shap", "exact")

    card = MethodCard(
        name="GroupTesting",
        title="Group Testing Shapley",
        family="retraining",
        paper="Jia et al., AISTATS 2019",
        needs=NEEDS,
        full_complexity="O(KT)",
        incremental_complexity="O(K)",
        space_complexity="O(n + p)",
        storage_complexity="O(Kp)",
        group=True,
        generative=True,
        any_model=True,
        original_sign="the same, in the utility of the model",
    )

    def __init__(
        self,
        n_models: int = 2000,
        *,
        estimator: Choice = "auto",
        paired: bool = False,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(n_models, estimator=estimator, **settings)  # type: ignore[arg-type]
        self.paired = paired

    @override
    def _semivalue(self) -> Semivalue:
        return ShapleyWeights()

    @override
    def _design(self, n: int) -> Design:
        if not isinstance(self.paired, bool):
            raise InvalidInputError(f"paired must be True or False; got {self.paired!r}.")
        if self._chosen(n) == "exact":
            return designs.Exhaustive()
        drawn = designs.GroupTesting()
        return designs.PairedComplements(drawn) if self.paired else drawn

    @override
    def _estimator(self, n: int) -> Estimator:
        chosen = self._chosen(n)
        if chosen == "exact":
            return ExactSemivalue(self._semivalue())
        if chosen == "kernel_shap":
            return KernelShap()
        return GroupTestingMeans(adjust=chosen == "adjusted")
