"""The Banzhaf interaction index of training instances."""

from __future__ import annotations

from typing_extensions import override

from proponent.card import MethodCard
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs import Bernoulli
from proponent.retraining.estimators.interactions import BanzhafIndex, CellMeans, Index
from proponent.retraining.interaction_method import InteractionMethod
from proponent.retraining.settings import NEEDS


class BanzhafInteraction(InteractionMethod):
    r"""The Banzhaf interaction index: interactions of all tuples from the same subsets.

    With the discrete derivative of :class:`ShapleyInteraction`,

    .. math::

        I(A, z_{te}) = 2^{-(n - |A|)} \sum_{S \subseteq D \setminus A} \delta_A v(S)
            = 2^{|A|} \, E \bigl[ (-1)^{|A| - |A \cap S|} v(S) \bigr]

    with every instance in S by the toss of a coin. Each subset says something about every tuple:
    subsets are sorted by who of A is in, and the mean utilities of the ``2^|A|`` cells are added
    and subtracted. For a single instance it is the Banzhaf value. The same subsets serve
    :class:`Banzhaf`.

    **Source** Grabisch and Roubens, International Journal of Game Theory 1999. Not in the survey.

    **Differs from the paper in** the estimate, which extends the maximum sample reuse of Wang and
    Jia, AISTATS 2023. A tuple with an empty cell gets NaN.

    Scores are ``(n_test, tuples)``, in units of the utility. The variance grows with the number of
    cells, as ``4^|A| / K``.

    **Cost** ``n_models`` trainings, then as many predictions of a test instance and ``O(2^|A| K)``
    for each tuple.

    Parameters
    ----------
    n_models, order, tuples, estimator, **settings
        As in :class:`~proponent.retraining.interaction_method.InteractionMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> both = pp.Game(3, lambda mask: float(mask[0] and mask[1]))
    >>> pp.BanzhafInteraction().fit(both).influence().values
    array([[1., 0., 0.]])
    """

    card = MethodCard(
        name="BanzhafInteraction",
        title="Banzhaf Interaction Index",
        family="retraining",
        paper="Grabisch and Roubens, International Journal of Game Theory 1999",
        needs=NEEDS,
        full_complexity="O(KT)",
        incremental_complexity="O(K)",
        space_complexity="O(n + p)",
        storage_complexity="O(Kp)",
        group=True,
        generative=True,
        any_model=True,
        original_sign="the same, by definition",
    )

    @override
    def _index(self) -> Index:
        return BanzhafIndex()

    @override
    def _sampled_design(self) -> Design:
        return Bernoulli(0.5)

    @override
    def _sampled_estimator(self) -> Estimator:
        return CellMeans(self.tuples_)
