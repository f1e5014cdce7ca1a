"""Downsampling: models trained with an instance against models trained without (section 4.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.retraining.asked import Asked
from proponent.retraining.checks import check_choice, check_fraction
from proponent.retraining.coalitions import Design, Estimator
from proponent.retraining.designs import Balanced, Bernoulli, TwoSizes, UniformSize
from proponent.retraining.estimators.in_out import InOutMeans
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.settings import NEEDS, Settings
from proponent.retraining.utility import Accuracy

if TYPE_CHECKING:
    from typing_extensions import Unpack

Sampling = Literal["balanced", "uniform", "two_sizes", "bernoulli"]


class Downsampling(SubmodelMethod):
    r"""Downsampled leave-one-out: submodels that saw an instance against those that did not.

    K submodels are trained on subsets :math:`D^k` of ``fraction`` of the training set:

    .. math::

        I(z_i, z_te) = \frac{1}{K - K_i} \sum_{k: z_i \notin D^k} R(z_te; \theta^k)
                     - \frac{1}{K_i} \sum_{k: z_i \in D^k} R(z_te; \theta^k)

    with :math:`K_i` the number of subsets that contain the instance. Its diagonal,
    ``memorization()``, is the memorization of Feldman and Zhang; with ``utility="accuracy"`` the
    numbers are theirs.

    **Source** Feldman and Zhang, NeurIPS 2020; survey eq. (8).

    **Differs from the paper in** the default sampling, in which every instance is in equally many
    subsets. With subsets of one size the values estimate the influence at that size less its mean
    over the training set, as larger subsets are better ones (the survey's eq. (12) holds only as
    n grows). ``sampling="two_sizes"`` is free of that: it trains with an instance on m and without
    it on ``m - 1`` instances, as in the paper's Lemma 2.1, and ``"bernoulli"`` estimates the
    Banzhaf value of weight ``fraction``. An instance that is in all subsets, or in none, gets NaN.

    **Cost** ``n_models`` trainings, then as many predictions of a test instance and ``O(K n)``.

    Parameters
    ----------
    n_models : int
        Submodels, K.
    fraction : float
        Of the training set in each subset.
    sampling : {"balanced", "uniform", "two_sizes", "bernoulli"}
        Subsets of one size with every instance equally often, or drawn independently; of two
        sizes; or every instance in with probability ``fraction``.
    **settings
        As in :class:`SubmodelMethod`.

    Examples
    --------
    >>> import numpy as np
    >>> import proponent as pp
    >>> from sklearn.linear_model import Ridge
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    >>> down = pp.Downsampling(n_models=200).fit(Ridge(), (X, y))
    >>> down.influence((X[:2], y[:2])).std_error.shape
    (2, 20)
    """

    card = MethodCard(
        name="Downsampling",
        survey_name="Downsampling",
        title="Downsampled Leave-One-Out",
        aliases=("subsampling", "counterfactual influence"),
        family="retraining",
        section="4.2",
        equations="8",
        paper="Feldman and Zhang, NeurIPS 2020",
        needs=NEEDS,
        full_complexity="O(KT)",
        incremental_complexity="O(K)",
        space_complexity="O(n + p)",
        storage_complexity="O(Kp)",
        estimates_loo=True,
        group=True,
        generative=True,
        any_model=True,
        original_sign="the same, in the probability of a correct prediction",
    )

    def __init__(
        self,
        n_models: int = 2000,
        *,
        fraction: float = 0.7,
        sampling: Sampling = "balanced",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        self.n_models = n_models
        self.fraction = fraction
        self.sampling = sampling

    def _subset_size(self, n: int) -> int:
        size = round(check_fraction("fraction", self.fraction) * n)
        if not 0 < size < n or (self.sampling == "two_sizes" and size < 2):
            raise InvalidInputError(
                f"fraction: {self.fraction} of {n} training instances makes subsets of {size}; "
                f"choose one that leaves some in and some out."
            )
        return size

    @override
    def _design(self, n: int) -> Design:
        check_choice("sampling", self.sampling, ("balanced", "uniform", "two_sizes", "bernoulli"))
        size = self._subset_size(n)
        if self.sampling == "bernoulli":
            return Bernoulli(self.fraction)
        if self.sampling == "two_sizes":
            return TwoSizes(size)
        return Balanced(size) if self.sampling == "balanced" else UniformSize(size)

    @override
    def _size(self, n: int) -> int:
        return as_count(self.n_models, "n_models")

    @override
    def _estimator(self, n: int) -> Estimator:
        size = self._subset_size(n)
        return InOutMeans(sizes=(size, size - 1) if self.sampling == "two_sizes" else None)

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        n, models = len(self.train_), len(self._coalitions)
        noticed = super()._diagnostics(query)
        models -= noticed.get("failed", 0)  # as many as there are utilities of
        if self.sampling == "two_sizes" and self._utility == Accuracy():
            noticed["mean_squared_error_bound"] = error_bound(models, self._subset_size(n) / n)
        return noticed


def error_bound(n_models: int, fraction: float) -> float:
    """Return a bound of the mean squared error, for utilities in [0, 1] and two sizes.

    ``1 / (p t) + 1 / ((1 - p) t) + exp(-p t / 16) / 2`` with t submodels and p the smaller of
    ``fraction`` and ``1 - fraction``. It bounds the distance to the influence on subsets of that
    size, not to leave-one-out on the whole training set.

    **Source** Feldman and Zhang, NeurIPS 2020, Lemma 2.1.
    """
    p = min(fraction, 1 - fraction)
    return float(1 / (p * n_models) + 1 / ((1 - p) * n_models) + np.exp(-p * n_models / 16) / 2)
