"""The Banzhaf value of training instances, weighted too (survey section 4.3.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from typing_extensions import override

from proponent.card import MethodCard
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs import Bernoulli, Exhaustive
from proponent.retraining.estimators.exhaustive import ExactSemivalue
from proponent.retraining.estimators.in_out import InOutMeans
from proponent.retraining.estimators.mask_regression import MaskRegression
from proponent.retraining.semivalue_method import SemivalueMethod
from proponent.retraining.semivalues import BanzhafWeights, Semivalue
from proponent.retraining.settings import NEEDS, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Banzhaf(SemivalueMethod):
    r"""The Banzhaf value: what an instance adds when the others are in by the toss of a coin.

    .. math::

        I(z_i, z_te) = \sum_{S \subseteq D \setminus z_i} q^{|S|} (1 - q)^{n - 1 - |S|}
            \bigl( v(S \cup z_i) - v(S) \bigr)

    with :math:`q = 1/2`; other q are the weighted Banzhaf values. Of all semivalues it is the one
    whose ranking stands the most noise in the utility. The values do not sum to
    :math:`v(D) - v(\emptyset)`.

    **Source** Banzhaf 1965; Wang and Jia, AISTATS 2023; Li and Yu, NeurIPS 2023, for any q; survey
    eq. (26), which lacks the brackets.

    **Differs from the paper in** the default estimator. Theirs, maximum sample reuse
    (``estimator="means"``), is the mean utility of the subsets with an instance less that of those
    without; the regression of the utility on who is in has the same expectation and about half
    the error once there are three times as many subsets as instances. An instance that is in all
    subsets or in none gets NaN by the former, not 0.

    **Cost** ``n_models`` trainings (``2^n`` where exact), then as many predictions of a test
    instance and ``O(K n)``.

    Parameters
    ----------
    n_models : int
        Submodels, K.
    q : float
        With what probability each of the others is in, between 0 and 1.
    estimator : {"auto", "regression", "means", "exact"}
        As described above; ``"auto"`` is exact where that takes no more than ``n_models``, and the
        regression otherwise.
    **settings
        As in :class:`SubmodelMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> majority = pp.Game(3, lambda mask: float(mask.sum() >= 2))
    >>> pp.Banzhaf().fit(majority).influence().values
    array([[0.5, 0.5, 0.5]])
    """

    choices: ClassVar[tuple[str, ...]] = ("auto", "regression", "means", "exact")

    card = MethodCard(
        name="Banzhaf",
        survey_name="Banzhaf Value",
        title="Banzhaf Value",
        aliases=("Data Banzhaf", "weighted Banzhaf"),
        family="retraining",
        section="4.3.3",
        equations="26",
        paper="Banzhaf 1965; Wang and Jia, AISTATS 2023",
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
        n_models: int = 2000,
        *,
        q: float = 0.5,
        estimator: Literal["auto", "regression", "means", "exact"] = "auto",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(n_models, estimator=estimator, **settings)
        self.q = q

    @override
    def _semivalue(self) -> Semivalue:
        return BanzhafWeights(self.q)

    @override
    def _design(self, n: int) -> Design:
        return Exhaustive() if self._chosen(n) == "exact" else Bernoulli(self.q)

    @override
    def _estimator(self, n: int) -> Estimator:
        chosen = self._chosen(n)
        if chosen == "exact":
            return ExactSemivalue(self._semivalue())
        return MaskRegression(self.q) if chosen == "regression" else InOutMeans()
