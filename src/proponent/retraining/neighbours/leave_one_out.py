"""Leave-one-out of k nearest neighbours, in closed form (survey section 4.1.3)."""

from __future__ import annotations

from typing import Any, ClassVar

from proponent.card import MethodCard
from proponent.retraining.neighbours.method import NEEDS
from proponent.retraining.neighbours.nearest import Divisor, NearestMethod, Utility
from proponent.retraining.semivalues import LeaveOneOutWeights, Semivalue


def _cost(**_: Any) -> float:
    return 0.0


class KNNLeaveOneOut(NearestMethod):
    r"""What leaving out a training instance takes from the k nearest neighbours' utility.

    ``I(z_i, z_te) = v(N) - v(N - i)``. Only the k nearest are not 0, and it is the next one that
    takes the place of i: in a classification ``I = (c_i - c_{k+1}) / k``, where c is 1 for a
    neighbour with the label of the test instance and else 0.

    **Source** Jia et al., "Scalability vs. utility: Do we have to sacrifice one for the other in
    data importance quantification?", CVPR 2021, Lemma 1; survey section 4.1.3. Used as a
    surrogate of a network: neighbours in the space of its last layer's features.

    **Differs from the paper in** nothing where there are more than k training instances, and it
    also covers fewer, regression, and averages over the neighbours that are there.

    Scores are ``(n_test, n_train)``, leave-one-out differences in the probability of the right
    class (in squared units of the target for a regression), exactly.

    **Cost** No training. For a test instance n distances, and O(n) to find the nearest; the
    features, labels and O(n) numbers are kept. Memorization takes n test instances.

    Parameters
    ----------
    k, utility, divide_by, empty, progress
        As in :class:`~proponent.retraining.neighbours.nearest.NearestMethod`.

    Examples
    --------
    >>> import numpy as np, proponent as pp
    >>> X, y = np.arange(5.0)[:, None], np.array([1, 0, 1, 1, 0])
    >>> pp.KNNLeaveOneOut(k=2).fit((X, y)).influence((np.zeros((1, 1)), [1])).values
    array([[ 0. , -0.5,  0. ,  0. ,  0. ]])
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="KNNLeaveOneOut",
        survey_name="kNN LOO",
        title="k-Nearest-Neighbors Leave-One-Out",
        family="retraining",
        section="4.1.3",
        paper="Jia et al., CVPR 2021",
        needs=NEEDS,
        full_complexity="O(n)",
        incremental_complexity="O(n)",
        space_complexity="O(n)",
        storage_complexity="0",
        estimates_loo=True,
        original_sign="the same",
        cost=_cost,
    )

    def __init__(
        self,
        k: int = 5,
        *,
        utility: Utility = "classification",
        divide_by: Divisor = "k",
        empty: float | None = None,
        progress: bool | None = None,
    ) -> None:
        self.k = k
        self.utility = utility
        self.divide_by = divide_by
        self.empty = empty
        self.progress = progress

    def _semivalue(self) -> Semivalue:
        return LeaveOneOutWeights()

    def _neighbours_needed(self, n: int, k: int) -> int:
        return k + 1
