"""The Shapley value, and every other semivalue, of neighbours within a radius."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.retraining.neighbours.method import NEEDS, NeighbourMethod, Tests, Values, empty_or
from proponent.retraining.neighbours.threshold import ThresholdForm
from proponent.retraining.semivalues import Semivalue, semivalue_of


def _cost(**_: Any) -> float:
    return 0.0


class ThresholdKNNShapley(NeighbourMethod):
    r"""The Shapley value of training instances as players among the neighbours within a radius.

    ``I(z_i, z_te) = E[v(S + i) - v(S)]``, where v(S) is the share of the test instance's label
    among the members of S within the radius, and S a coalition of the others: uniform by size,
    and among those of its size, for the Shapley value. With t instances within the radius, a of
    them with this label, and c_i = 1 for those and else 0,

    .. math:: \phi_i = \frac{c_i - v(\emptyset)}{t} + \Big(\frac{c_i}{t} -
        \frac{a - c_i}{t (t - 1)}\Big) \Big(\sum_{j=1}^t \frac{1}{j} - 1\Big)

    within it, and 0 beyond. The value depends on the counts of both kinds only, not on who is
    nearer.

    **Source** Wang et al., "Threshold KNN-Shapley: A linear-time and privacy-friendly approach to
    data valuation", NeurIPS 2023 (TKNN-Shapley). Not in the survey.

    **Differs from the paper in** nothing for the Shapley value, without its noise for privacy.
    The form for other semivalues is this library's, checked by enumeration.

    Scores are ``(n_test, n_train)``, in units of the probability of the right class; Shapley
    values of a test instance sum up to v(N) - v(empty). Scores of several test instances sum up
    (the paper takes the mean).

    **Cost** No training. For a test instance n distances, and O(n). Memorization takes n test
    instances.

    Parameters
    ----------
    radius : float
        Instances at this Euclidean distance, or nearer, are neighbours; positive.
    semivalue
        As in :class:`~proponent.retraining.neighbours.shapley.KNNShapley`.
    empty : float, optional
        The predicted probability of the right class where no member is within the radius, v of
        the empty set. None: 1 over the number of classes in the training set.
    progress
        As in :class:`~proponent.retraining.neighbours.method.NeighbourMethod`.

    Examples
    --------
    >>> import numpy as np, proponent as pp
    >>> X, y = np.arange(4.0)[:, None], np.array([1, 0, 1, 0])
    >>> method = pp.ThresholdKNNShapley(radius=1.5).fit((X, y))
    >>> method.influence((np.zeros((1, 1)), [1])).values
    array([[ 0.5, -0.5,  0. ,  0. ]])
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="ThresholdKNNShapley",
        title="Threshold k-Nearest-Neighbors Shapley",
        aliases=("TKNN-Shapley", "TNN-Shapley"),
        family="retraining",
        paper="Wang et al., NeurIPS 2023",
        needs=NEEDS,
        full_complexity="O(n)",
        incremental_complexity="O(n)",
        space_complexity="O(n)",
        storage_complexity="0",
        original_sign="the same",
        cost=_cost,
    )

    _form: ThresholdForm

    def __init__(
        self,
        radius: float = 1.0,
        *,
        semivalue: str | Semivalue | ArrayLike = "shapley",
        empty: float | None = None,
        progress: bool | None = None,
    ) -> None:
        self.radius = radius
        self.semivalue = semivalue
        self.empty = empty
        self.progress = progress

    def _prepare(self, n: int) -> None:
        if not 0 < self.radius < np.inf:
            raise InvalidInputError(f"radius must be a positive number; got {self.radius!r}.")
        empty = empty_or(1 / self._n_classes, self.empty)
        self._form = ThresholdForm.of(semivalue_of(self.semivalue), n, empty=empty)

    def _values(self, tests: Tests) -> Iterator[tuple[slice, Values]]:
        for some, near in self._neighbours.within(tests.features, self.radius):
            right = self._trained.labels == tests.labels[some, None]
            yield some, self._form.values(right, near)
