"""The Shapley interaction index of training instances (survey section 4.3)."""

from __future__ import annotations

from typing_extensions import override

from proponent.card import MethodCard
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs.derivatives import Derivatives, whole_samples
from proponent.retraining.estimators.interactions import Index, SampledInteractions, ShapleyIndex
from proponent.retraining.interaction_method import InteractionMethod
from proponent.retraining.settings import NEEDS


class ShapleyInteraction(InteractionMethod):
    r"""The Shapley interaction index: what a tuple of instances does beyond its parts.

    .. math::

        I(A, z_{te}) = \sum_{S \subseteq D \setminus A}
            \frac{(n - |A| - |S|)! \, |S|!}{(n - |A| + 1)!} \, \delta_A v(S), \qquad
        \delta_A v(S) = \sum_{B \subseteq A} (-1)^{|A| - |B|} v(S \cup B)

    For a pair it is the mean of ``v(S + i + j) - v(S + i) - v(S + j) + v(S)``: positive where the
    two help more together (they complement each other), negative where one makes the other
    superfluous, 0 where v is additive. For a single instance it is the Shapley value. Interactions
    do not sum to v(D) - v(empty); those of :class:`ShapleyTaylor` do. For the influence of a
    group as a whole, let it be one player: ``Shapley().fit(model, train, groups=names)``.

    **Source** Grabisch and Roubens, International Journal of Game Theory 1999; survey eqs. (18)
    and (19).

    **Differs from the paper in** the estimate, where there are too many coalitions: derivatives at
    random places, uniform by size, whose mean it is.

    Scores are ``(n_test, tuples)``, in units of the utility.

    **Cost** ``n_models`` coalitions; a sample takes up to ``2^|A|`` of them for each tuple, about
    one of which is new where all pairs are asked for.

    Parameters
    ----------
    n_models, order, tuples, estimator, **settings
        As in :class:`~proponent.retraining.interaction_method.InteractionMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> both = pp.Game(["a", "b", "c"], lambda mask: float(mask[0] and mask[1]))
    >>> found = pp.ShapleyInteraction().fit(both).influence()
    >>> found.train_ids
    array(['a&b', 'a&c', 'b&c'], dtype='<U3')
    >>> found.values
    array([[1., 0., 0.]])
    """

    card = MethodCard(
        name="ShapleyInteraction",
        survey_name="Interaction Index",
        title="Shapley Interaction Index",
        family="retraining",
        section="4.3",
        equations="18, 19",
        paper="Grabisch and Roubens, International Journal of Game Theory 1999",
        needs=NEEDS,
        full_complexity="O(2^n T)",
        incremental_complexity="O(2^n)",
        space_complexity="O(n + p)",
        storage_complexity="O(2^n p)",
        group=True,
        generative=True,
        any_model=True,
        original_sign="the same, by definition",
    )

    @override
    def _index(self) -> Index:
        return ShapleyIndex()

    @override
    def _sampled_design(self) -> Design:
        return Derivatives(self.tuples_, "slot")

    @override
    def _sampled_size(self) -> int:
        return whole_samples(Derivatives(self.tuples_, "slot"), super()._sampled_size())

    @override
    def _sampled_estimator(self) -> Estimator:
        return SampledInteractions(self.tuples_, self.tuples_)
