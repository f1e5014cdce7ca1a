"""The Shapley-Taylor interaction index of training instances (survey section 4.3)."""

from __future__ import annotations

from typing_extensions import override

from proponent.card import MethodCard
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs.derivatives import Derivatives, whole_samples
from proponent.retraining.estimators.interactions import (
    Group,
    Index,
    SampledInteractions,
    TaylorIndex,
)
from proponent.retraining.interaction_method import InteractionMethod
from proponent.retraining.settings import NEEDS


class ShapleyTaylor(InteractionMethod):
    r"""The Shapley-Taylor index: interactions up to an order that share out the whole utility.

    For a tuple A, with k the order and the discrete derivative of :class:`ShapleyInteraction`,

    .. math::

        I(A, z_{te}) = \begin{cases}
            \delta_A v(\emptyset) & |A| < k \\
            \frac{k}{n} \sum_{S \subseteq D \setminus A} \binom{n - 1}{|S|}^{-1} \delta_A v(S)
            & |A| = k
        \end{cases}

    The values of all tuples of 1 to k members sum to v(D) - v(empty), sampled ones too. For k = 1
    they are the Shapley values.

    **Source** Sundararajan, Dhamdhere and Agarwal, ICML 2020. The survey's eq. (20) has the top
    order only; used for every order it shares out another sum.

    **Differs from the paper in** nothing. The top order is estimated from random orders of all
    instances, with S those before the first member of A, as in the paper.

    Scores are ``(n_test, tuples)``, in units of the utility. Below the top order they are about
    models that were trained on fewer than k instances, and depend on what a model without any is.

    **Cost** As that of :class:`ShapleyInteraction`.

    Parameters
    ----------
    n_models, estimator, **settings
        As in :class:`~proponent.retraining.interaction_method.InteractionMethod`.
    order : int
        How many members a tuple has at most, k.
    tuples : "all" or sequence of tuples
        Which ones, of 1 to k ids; all of them are needed for values that share out the utility.

    Examples
    --------
    >>> import proponent as pp
    >>> both = pp.Game(3, lambda mask: mask[0] + 1.0 * mask[1] * mask[2])
    >>> found = pp.ShapleyTaylor().fit(both).influence()
    >>> dict(zip(found.train_ids.tolist(), found.values[0].round(6).tolist()))
    {'0': 1.0, '1': 0.0, '2': 0.0, '0&1': 0.0, '0&2': 0.0, '1&2': 1.0}
    """

    card = MethodCard(
        name="ShapleyTaylor",
        survey_name="Shapley-Taylor",
        title="Shapley-Taylor Interaction Index",
        family="retraining",
        section="4.3",
        equations="20",
        paper="Sundararajan, Dhamdhere and Agarwal, ICML 2020",
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
    def _orders(self) -> range:
        return range(1, self.order + 1)

    @override
    def _index(self) -> Index:
        return TaylorIndex(self.order)

    def _parts(self) -> tuple[list[Group], list[Group]]:
        """Return the tuples of the top order, and those below."""
        top = [members for members in self.tuples_ if len(members) == self.order]
        return top, [members for members in self.tuples_ if len(members) < self.order]

    def _derivatives(self) -> Derivatives:
        top, below = self._parts()
        return Derivatives(top, "first", alone=below)

    @override
    def _sampled_design(self) -> Design:
        return self._derivatives()

    @override
    def _sampled_size(self) -> int:
        return whole_samples(self._derivatives(), super()._sampled_size())

    @override
    def _sampled_estimator(self) -> Estimator:
        return SampledInteractions(self.tuples_, *self._parts())
