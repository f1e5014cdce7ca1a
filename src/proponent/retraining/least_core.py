"""The least core of training instances as players."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.influence import Influence
from proponent.retraining.asked import Asked
from proponent.retraining.checks import check_choice
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs import Bernoulli, Exhaustive, PairedComplements
from proponent.retraining.designs.ends import WithEnds
from proponent.retraining.estimators.least_core import LeastCoreValues
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.semivalue_method import MOST_EXACT
from proponent.retraining.settings import NEEDS, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Choice = Literal["auto", "sampled", "exact"]


class LeastCore(SubmodelMethod):
    r"""The least core: values by which no coalition is worth much more than it is given.

    .. math::

        \min_{x, e} \; e \quad \text{with} \quad \sum_i x_i = v(D) - v(\emptyset), \quad
            \sum_{i \in S} x_i + e \ge v(S) - v(\emptyset) \; \text{for all } S

    S neither empty nor everything, and of all such x the one with the smallest sum of squares. The
    subsidy e is what a coalition lacks at most; it is negative where all get more than they are
    worth on their own.

    **Source** Yan and Procaccia, AAAI 2021. Not in the survey.

    **Differs from the paper in** the coalitions, which come with their complements, so that a pair
    bounds e from below; v(empty) is not taken to be 0.

    Scores are ``(n_test, n_train)``, in units of the utility, and sum to v(D) - v(empty). The
    values for a sum of test instances are not the sum of their values: :meth:`of_sum` has the
    least core of the summed utility, the paper's, and ``influence(test, joint=True)`` the sum of
    the values. No standard error is known; K of the order of ``n / delta^2`` coalitions make x
    right for all but a share delta of them.

    **Cost** ``n_models`` trainings (``2^n`` where exact), then as many predictions of a test
    instance, and for each a linear program with K constraints and a quadratic one.

    Parameters
    ----------
    n_models : int
        Submodels, K.
    estimator : {"auto", "sampled", "exact"}
        Constraints for some coalitions, or for all. ``"auto"`` takes all where these are no more
        than ``n_models``.
    **settings
        As in :class:`~proponent.retraining.method.SubmodelMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> game = pp.Game(3, lambda mask: float(mask.sum() >= 2))
    >>> result = pp.LeastCore().fit(game).influence()
    >>> result.values.round(3)
    array([[0.333, 0.333, 0.333]])
    >>> round(result.diagnostics["subsidy"][0], 3)
    0.333
    """

    choices: ClassVar[tuple[str, ...]] = ("auto", "sampled", "exact")

    card = MethodCard(
        name="LeastCore",
        title="Least Core",
        family="retraining",
        paper="Yan and Procaccia, AAAI 2021",
        needs=NEEDS,
        full_complexity="O(KT)",
        incremental_complexity="O(K)",
        space_complexity="O(Kn + p)",
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
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        self.n_models = n_models
        self.estimator = estimator

    def of_sum(self, test: Any = None, *, ids: Any = None) -> Influence:
        """Return the least core of the utility summed over the test set, as the paper has it.

        Parameters
        ----------
        test, ids
            As in :meth:`influence`.

        Returns
        -------
        Influence
            Scores ``(n_train,)``, from one linear program.
        """
        rows, instances = self._rows(None), self._tests(test, ids)
        query = self._asked(self._measured(instances, self._coalitions).total())
        summed = {"joint": {"reduction": "least core of the sum", "n_test": len(instances)}}
        values = query.players(rows).values[0].copy()
        return self._answer(values, rows, None, None, self._diagnostics(query) | summed)

    def _is_exact(self, n: int) -> bool:
        check_choice("estimator", self.estimator, self.choices)
        few = n <= MOST_EXACT and 2**n <= as_count(self.n_models, "n_models")
        return self.estimator == "exact" or (self.estimator == "auto" and few)

    @override
    def _design(self, n: int) -> Design:
        if self._is_exact(n):
            return Exhaustive()
        return WithEnds(PairedComplements(Bernoulli(0.5)))

    @override
    def _size(self, n: int) -> int:
        models = as_count(self.n_models, "n_models")
        return Exhaustive().total(n) if self._is_exact(n) else models

    @override
    def _estimator(self, n: int) -> Estimator:
        return LeastCoreValues()

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        found = "exact" if self._is_exact(len(self.train_)) else "sampled"
        return super()._diagnostics(query) | {"estimator": found}
