"""The base of the Shapley value and its relatives: a semivalue, and how it is estimated."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import override

from proponent._results.checks import as_count
from proponent.retraining.asked import Asked
from proponent.retraining.checks import check_choice
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs import Exhaustive, Permutations, SizeStratified
from proponent.retraining.estimators.exhaustive import ExactSemivalue
from proponent.retraining.estimators.permutations import PermutationMarginals
from proponent.retraining.estimators.size_regression import SizeRegression
from proponent.retraining.estimators.stratified_means import StratifiedMeans
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.semivalues import Semivalue
from proponent.retraining.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Sampled = Literal["auto", "regression", "means", "permutations", "antithetic", "exact"]

MOST_EXACT = 20  # players: a million coalitions


class SemivalueMethod(SubmodelMethod):
    """Base of the methods that estimate a semivalue of each training instance.

    A subclass implements ``_semivalue``; where other designs suit it better, ``_design`` and
    ``_estimator``.

    Parameters
    ----------
    n_models : int
        Coalitions that are evaluated, at most.
    estimator : {"auto", "regression", "means", "permutations", "antithetic", "exact"}
        ``"regression"`` draws subsets of all sizes alike and regresses the utility on who is in,
        size by size; ``"means"`` compares, on the same subsets, those with an instance and those
        without; ``"permutations"`` adds instances one by one in random orders, ``"antithetic"``
        in each order and its reverse; ``"exact"`` evaluates each of the ``2^n`` subsets once, for
        20 instances or groups at most. ``"auto"`` is exact where that takes no more than
        ``n_models``, and the regression otherwise.
    **settings
        As in :class:`SubmodelMethod`.
    """

    choices: ClassVar[tuple[str, ...]] = (
        "auto",
        "regression",
        "means",
        "permutations",
        "antithetic",
        "exact",
    )

    def __init__(
        self,
        n_models: int = 2000,
        *,
        estimator: Sampled = "auto",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        self.n_models = n_models
        self.estimator = estimator

    @abstractmethod
    def _semivalue(self) -> Semivalue:
        """Return the semivalue; check its hyperparameters."""

    def _chosen(self, n: int) -> str:
        check_choice("estimator", self.estimator, self.choices)
        if self.estimator != "auto":
            return self.estimator
        few = n <= MOST_EXACT and 2**n <= as_count(self.n_models, "n_models")
        return "exact" if few or n == 1 else self.choices[1]

    @override
    def _design(self, n: int) -> Design:
        chosen = self._chosen(n)
        if chosen == "exact":
            return Exhaustive()
        if chosen in ("permutations", "antithetic"):
            return Permutations(antithetic=chosen == "antithetic")
        return SizeStratified()

    @override
    def _size(self, n: int) -> int:
        models, chosen = as_count(self.n_models, "n_models"), self._chosen(n)
        if chosen in ("permutations", "antithetic") and models > n > 1:
            return 2 + (models - 2) // (n - 1) * (n - 1)  # an order that is cut counts for nothing
        return 2**n if chosen == "exact" else models

    @override
    def _estimator(self, n: int) -> Estimator:
        chosen, semivalue = self._chosen(n), self._semivalue()
        if chosen == "exact":
            return ExactSemivalue(semivalue)
        if chosen in ("permutations", "antithetic"):
            return PermutationMarginals(semivalue)
        return (SizeRegression if chosen == "regression" else StratifiedMeans)(semivalue)

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        return super()._diagnostics(query) | {"estimator": self._chosen(len(self.train_))}
