"""The Shapley value of training instances by Owen sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.retraining.asked import Asked
from proponent.retraining.checks import check_choice
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs import Exhaustive
from proponent.retraining.designs.flips import ByChance, Flips
from proponent.retraining.designs.owen import OwenNodes
from proponent.retraining.estimators.exhaustive import ExactSemivalue
from proponent.retraining.estimators.flip_marginals import FlipMarginals
from proponent.retraining.estimators.owen import OwenMeans, Rule, gauss_legendre, trapezoid
from proponent.retraining.semivalue_method import SemivalueMethod
from proponent.retraining.semivalues import Semivalue, ShapleyWeights
from proponent.retraining.settings import NEEDS, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Choice = Literal["auto", "regression", "means", "marginals", "exact"]
Quadrature = Literal["gauss_legendre", "trapezoid"]

MOST_NODES = 10
MEMBERS = 10  # coalitions with an instance, at each node, that the number of nodes leaves room for


class OwenShapley(SemivalueMethod):
    r"""The Shapley value as an integral over the probability of being in.

    .. math::

        I(z_i, z_te) = \int_0^1 g_i(q) \, dq, \qquad g_i(q) = E[v(S \cup z_i) - v(S)]

    with every other instance in S with probability q, independently: the integrand is a weighted
    Banzhaf value. It is estimated at the nodes of a rule of quadrature.

    **Source** Owen 1972; Okhrati and Lipani, ICPR 2020. Not in the survey.

    **Differs from the paper in** the rule (theirs gives 0 and 1 the weight of any other node) and
    in that subsets serve all instances: at each node a subset is one of those with an instance or
    one of those without. ``estimator="marginals"`` adds each instance to, or takes it from, a
    random subset, as theirs does.

    Scores are ``(n_test, n_train)``, in units of the utility; they sum to v(D) - v(empty) but for
    the sampling. Standard errors know nothing of the error of the quadrature. n / 2 nodes of
    Gauss and Legendre have none, fewer have little where v changes slowly with the share that is
    in, and more where a handful of instances decide; raise ``nodes`` to see.

    **Cost** ``n_models`` trainings (``2^n`` where exact), then as many predictions of a test
    instance and ``O(K n)``.

    Parameters
    ----------
    n_models : int
        Submodels, K.
    nodes : int, optional
        Between 0 and 1. None: 10, or as many fewer as leave 10 subsets with an instance at the
        lowest one (for the marginals, 2 rounds of all instances at each).
    rule : {"gauss_legendre", "trapezoid"}
        The latter has 0 and 1 as nodes too, which takes ``2 n + 2`` of the submodels.
    antithetic : bool
        Whether each subset comes with its complement, for ``"regression"`` and ``"means"``. The
        larger part of a difference between complements is their sizes: seldom of use.
    estimator : {"auto", "regression", "means", "marginals", "exact"}
        The difference of the means with an instance and without, and first less what the others
        explain by regression; single marginal contributions; or all subsets. ``"auto"`` is exact
        where that takes no more than ``n_models``, and the regression otherwise.
    **settings
        As in :class:`~proponent.retraining.method.SubmodelMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> game = pp.Game(3, lambda mask: float(mask.sum() >= 2))
    >>> pp.OwenShapley().fit(game).influence().values.round(3)
    array([[0.333, 0.333, 0.333]])
    """

    choices: ClassVar[tuple[str, ...]] = ("auto", "regression", "means", "marginals", "exact")

    card = MethodCard(
        name="OwenShapley",
        title="Owen Sampling of the Shapley Value",
        aliases=("Owen sampling", "multilinear sampling"),
        family="retraining",
        paper="Owen 1972; Okhrati and Lipani, ICPR 2020",
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
        nodes: int | None = None,
        rule: Quadrature = "gauss_legendre",
        antithetic: bool = False,
        estimator: Choice = "auto",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(n_models, estimator=estimator, **settings)  # type: ignore[arg-type]
        self.nodes = nodes
        self.rule = rule
        self.antithetic = antithetic

    @override
    def _semivalue(self) -> Semivalue:
        return ShapleyWeights()

    @override
    def _design(self, n: int) -> Design:
        chosen = self._chosen(n)
        if chosen == "exact":
            return Exhaustive()
        rule = self._rule(n)
        if chosen == "marginals":
            return Flips(ByChance(tuple(_strata(rule))))
        return OwenNodes(rule, self.antithetic)

    @override
    def _estimator(self, n: int) -> Estimator:
        chosen = self._chosen(n)
        if chosen == "exact":
            return ExactSemivalue(self._semivalue())
        rule = self._rule(n)
        if chosen == "marginals":
            return FlipMarginals(_strata(rule), by_size=False)
        return OwenMeans(rule, self.antithetic, adjust=chosen == "regression")

    def _rule(self, n: int) -> Rule:
        """Return the rule of quadrature; check that there are submodels enough for it."""
        check_choice("rule", self.rule, ("gauss_legendre", "trapezoid"))
        if not isinstance(self.antithetic, bool):
            raise InvalidInputError(f"antithetic must be True or False; got {self.antithetic!r}.")
        make = gauss_legendre if self.rule == "gauss_legendre" else trapezoid
        if self.nodes is not None:
            rule = make(as_count(self.nodes, "nodes"))
            needed = self._needed(rule, n)
            if as_count(self.n_models, "n_models") < needed:
                raise InvalidInputError(
                    f"n_models: {self.nodes} nodes need at least {needed:,} submodels for {n:,} "
                    f"players; got {self.n_models:,}."
                )
            return rule
        members = MEMBERS if self._chosen(n) != "marginals" else 0
        for nodes in range(MOST_NODES, 0, -1):
            rule = make(nodes)
            if as_count(self.n_models, "n_models") >= self._needed(rule, n, members):
                return rule
        raise InvalidInputError(
            f"n_models: one node needs at least {self._needed(make(1), n, members):,} submodels "
            f"for {n:,} players; got {self.n_models:,}."
        )

    def _needed(self, rule: Rule, n: int, members: float = 1) -> int:
        """Return how many submodels a rule takes, for so many with each instance at each node."""
        if self._chosen(n) == "marginals":
            return 2 * len(_strata(rule)) * (n + 1)
        ends = 2 * n + 2 if rule.end else 0
        return ends + round(len(rule.chances) * max(4.0, members / rule.chances[0]))

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        if noticed["estimator"] == "marginals":
            noticed["nodes"] = len(_strata(self._rule(len(self.train_))))
        return noticed


def _strata(rule: Rule) -> dict[float, float]:
    """Return the weight of each node, the ends among them."""
    found = dict(zip(rule.chances, rule.weights, strict=True))
    return {0.0: rule.end, **found, 1.0: rule.end} if rule.end else found
