"""The Shapley value, and every other semivalue, of k nearest neighbours (survey section 4.3.3)."""

from __future__ import annotations

from typing import Any, ClassVar

from numpy.typing import ArrayLike

from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.retraining.neighbours.method import NEEDS, Tests
from proponent.retraining.neighbours.nearest import Divisor, NearestMethod, Utility
from proponent.retraining.semivalues import Semivalue, semivalue_of


def _cost(**_: Any) -> float:
    return 0.0


class KNNShapley(NearestMethod):
    r"""The Shapley value of training instances as players in k nearest neighbours.

    ``I(z_i, z_te) = E[v(S + i) - v(S)]``, where v is the utility of k nearest neighbours that are
    trained on a subset, and S a coalition of the others: uniform by size, and among those of its
    size, for the Shapley value. In a classification, with c_i = 1 for a neighbour of rank i that
    has the label of the test instance and else 0,

    .. math:: \phi_n = \frac{c_n}{\max(k, n)}, \quad
        \phi_i = \phi_{i+1} + \frac{c_i - c_{i+1}}{k} \frac{\min(k, i)}{i}.

    Any other semivalue replaces min(k, i) / i by the probability that fewer than k of the i - 1
    nearer ones are in the coalition. Averages over the neighbours that are there (soft labels),
    and squared errors, have recursions of the same kind.

    **Source** Jia et al., "Efficient task-specific data valuation for nearest neighbor
    algorithms", PVLDB 2019, Theorems 1 and 6, and for ``max_error`` Theorem 2; Wang and Jia, "A
    note on 'Efficient task-specific data valuation for nearest neighbor algorithms'", 2023, for
    soft labels; survey eqs. (24) and (25). The other semivalues: Kwon and Zou, AISTATS 2022
    (Beta Shapley); Wang and Jia, AISTATS 2023 (Banzhaf).

    **Differs from the paper in** k > n, where the recursion starts from c_n / k and not c_n / n;
    and in eq. (24), whose sign is to be the other one. The recursions for semivalues other than
    Shapley's, and for regression with any k, are this library's, checked by enumeration.

    Scores are ``(n_test, n_train)``, in units of the probability of the right class (squared
    units of the target for a regression). Shapley values of a test instance sum up to v(N) -
    v(empty), its utility; semivalues in general do not. Scores of several test instances sum up
    (the paper takes the mean). The value of a group as one player is not the sum of its members'.

    **Cost** No training. For a test instance n distances, sorting them, and O(n); with
    ``max_error`` O(n) and the sorting of a few. Memorization takes n test instances.

    Parameters
    ----------
    k, utility, divide_by, empty, progress
        As in :class:`~proponent.retraining.neighbours.nearest.NearestMethod`.
    semivalue : str, Semivalue or array-like of shape (n,)
        ``"shapley"``, ``"banzhaf"`` or ``"leave_one_out"``; an object of
        ``proponent.retraining.semivalues`` such as ``BetaWeights(4, 1)``,
        ``BanzhafWeights(0.7)`` and ``AMEWeights()``; or the probabilities of 0 .. n - 1 members
        of the coalition.
    max_error : float, optional
        How far values may be off. All but the nearest ``max(k, 1 / max_error)`` then count as 0
        (for other semivalues and soft labels: but as many as the bound takes, all if need be).

    Examples
    --------
    >>> import numpy as np, proponent as pp
    >>> X, y = np.arange(5.0)[:, None], np.array([1, 0, 1, 1, 0])
    >>> test = np.zeros((1, 1)), [1]
    >>> pp.KNNShapley(k=2).fit((X, y)).influence(test).values
    array([[ 0.25, -0.25,  0.25,  0.25,  0.  ]])
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="KNNShapley",
        survey_name="kNN Shapley",
        title="k-Nearest-Neighbors Shapley",
        family="retraining",
        section="4.3.3",
        equations="24, 25",
        paper="Jia et al., PVLDB 2019",
        needs=NEEDS,
        full_complexity="O(n log n)",
        incremental_complexity="O(n log n)",
        space_complexity="O(n)",
        storage_complexity="0",
        original_sign="the same",
        cost=_cost,
    )

    def __init__(
        self,
        k: int = 5,
        *,
        utility: Utility = "classification",
        divide_by: Divisor = "k",
        semivalue: str | Semivalue | ArrayLike = "shapley",
        max_error: float | None = None,
        empty: float | None = None,
        progress: bool | None = None,
    ) -> None:
        self.k = k
        self.utility = utility
        self.divide_by = divide_by
        self.semivalue = semivalue
        self.max_error = max_error
        self.empty = empty
        self.progress = progress

    def _semivalue(self) -> Semivalue:
        return semivalue_of(self.semivalue)

    def _neighbours_needed(self, n: int, k: int) -> int:
        if self.max_error is None:
            return n
        if not self.max_error > 0:
            raise InvalidInputError(
                f"max_error must be a positive number or None; got {self.max_error!r}."
            )
        if not self._classifies():
            raise InvalidInputError(
                "max_error: the error has a bound for a classification only; leave it out."
            )
        return self._average.reach(k, self.max_error)

    def _diagnostics(self, query: Tests | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        if self.max_error is not None:
            noticed["error_bound"] = self._average.error(self._reach)
        return noticed
