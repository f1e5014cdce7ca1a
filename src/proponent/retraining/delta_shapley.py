"""Delta-Shapley: the Shapley value of training instances on coalitions of some sizes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.retraining.asked import Asked
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs import Exhaustive
from proponent.retraining.designs.chosen_sizes import ChosenSizes, often
from proponent.retraining.designs.flips import BySize, Flips
from proponent.retraining.estimators.exhaustive import ExactSemivalue
from proponent.retraining.estimators.flip_marginals import FlipMarginals
from proponent.retraining.estimators.size_regression import SizeRegression
from proponent.retraining.estimators.stratified_means import StratifiedMeans
from proponent.retraining.semivalue_method import SemivalueMethod
from proponent.retraining.semivalues import Semivalue, SizeWeights
from proponent.retraining.settings import NEEDS, Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Choice = Literal["auto", "regression", "means", "marginals", "exact"]


class DeltaShapley(SemivalueMethod):
    r"""Delta-Shapley: what an instance adds to small coalitions, where it matters most.

    .. math::

        I(z_i, z_te) = \frac{1}{u - l + 1} \sum_{k=l}^{u}
            E\bigl[ v(S \cup z_i) - v(S) \,\big|\, |S| = k, z_i \notin S \bigr]

    With l = 0 and u = n - 1 it is the Shapley value. As small submodels train fast and differ by
    more, it takes a fraction of the work; it is another semivalue, and an estimate of the Shapley
    value only in so far as instances rank alike at other sizes.

    **Source** Watson et al., "Accelerated Shapley value approximation for data evaluation", 2023.
    Their Definition 9 lacks the mean over coalitions, which their code has. Not in the survey.

    **Differs from the paper in** the default estimate, in which a subset serves all instances;
    ``estimator="marginals"`` takes single marginal contributions, as theirs. How often a size is
    drawn, by theirs about ``1 / k^2`` with constants of the learning algorithm, is ``decay``.

    Scores are ``(n_test, n_train)``, in units of the utility.

    **Cost** ``n_models`` trainings on at most u + 1 instances, then as many predictions of a test
    instance and ``O(K n)``.

    Parameters
    ----------
    n_models : int
        Submodels, K.
    lower, upper : int
        Sizes of the coalitions that an instance joins, l and u; None: u is a tenth of the training
        set, and l + 1 at least.
    decay : float
        A coalition of size k is drawn about ``k ** -decay`` as often as one of size 1. As subsets
        serve all instances that are in, and small ones have few, 0 is best unless single
        contributions are taken; the paper's is 2.
    estimator : {"auto", "regression", "means", "marginals", "exact"}
        As in :class:`~proponent.retraining.semivalue_method.SemivalueMethod`; ``"marginals"`` adds
        each instance to, or takes it from, random coalitions.
    **settings
        As in :class:`~proponent.retraining.method.SubmodelMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> game = pp.Game(4, lambda mask: float(mask.sum() >= 2))
    >>> pp.DeltaShapley(lower=1, upper=2).fit(game).influence().values
    array([[0.5, 0.5, 0.5, 0.5]])
    """

    choices: ClassVar[tuple[str, ...]] = ("auto", "regression", "means", "marginals", "exact")

    card = MethodCard(
        name="DeltaShapley",
        title="Delta-Shapley",
        family="retraining",
        paper="Watson et al., arXiv 2311.05346, 2023",
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
        lower: int = 1,
        upper: int | None = None,
        decay: float = 0.0,
        estimator: Choice = "auto",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(n_models, estimator=estimator, **settings)  # type: ignore[arg-type]
        self.lower = lower
        self.upper = upper
        self.decay = decay

    def _bounds(self, n: int) -> tuple[int, int]:
        """Return l and u."""
        lower = self.lower
        upper = min(n - 1, max(n // 10, lower + 1)) if self.upper is None else self.upper
        whole = all(isinstance(size, (int, np.integer)) for size in (lower, upper))
        if not whole or not 0 <= lower <= upper <= n - 1:
            raise InvalidInputError(
                f"lower and upper must be sizes with 0 <= lower <= upper <= {n - 1} for {n} "
                f"players; got {lower!r} and {upper!r}."
            )
        return int(lower), int(upper)

    def _law(self, n: int) -> Semivalue:
        lower, upper = self._bounds(n)
        law = np.zeros(n)
        law[lower : upper + 1] = 1 / (upper - lower + 1)
        return SizeWeights(law)

    @override
    def _semivalue(self) -> Semivalue:
        return self._law(len(self.train_))

    @override
    def _design(self, n: int) -> Design:
        if not isinstance(self.decay, (int, float)) or not 0 <= self.decay < np.inf:
            raise InvalidInputError(f"decay must be a number not below 0; got {self.decay!r}.")
        lower, upper = self._bounds(n)
        if self._chosen(n) == "exact":
            return Exhaustive()
        sizes = tuple(often(range(lower, upper + 2), self.decay))
        if self._chosen(n) != "marginals":
            return ChosenSizes(sizes)
        needed = 2 * len(sizes) * (n + 1)
        if as_count(self.n_models, "n_models") < needed:
            raise InvalidInputError(
                f"n_models: two rounds of marginal contributions at every size take {needed:,} "
                f"submodels; got {self.n_models:,}. Draw fewer sizes, or use another estimator."
            )
        return Flips(BySize(sizes))

    @override
    def _estimator(self, n: int) -> Estimator:
        chosen, law = self._chosen(n), self._law(n)
        if chosen == "exact":
            return ExactSemivalue(law)
        if chosen == "marginals":
            lower, upper = self._bounds(n)
            share = 1 / (upper - lower + 1)
            weights = {float(size): share for size in range(lower, upper + 1)}
            return FlipMarginals(weights, by_size=True)
        return (SizeRegression if chosen == "regression" else StratifiedMeans)(law)

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        lower, upper = self._bounds(len(self.train_))
        return super()._diagnostics(query) | {"lower": lower, "upper": upper}
