"""Downsampling for models of a density: memorization of what was never labelled (section 4.2.3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.retraining.checks import check_choice
from proponent.retraining.coalitions import Design, Estimate, Estimated, Estimator, Table
from proponent.retraining.designs import KFold
from proponent.retraining.estimators.in_out import InOutMeans
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.settings import Settings

if TYPE_CHECKING:
    from typing_extensions import Unpack

Values = NDArray[np.float64]

VANISHING = 1e-290  # sums that are smaller have lost digits to underflow


class GenerativeDownsampling(SubmodelMethod):
    r"""Downsampling for density models: how much an instance raises the density of another.

    K models of the density are trained on all folds but one, for repeated splits into folds:

    .. math::

        I(z_i, z_te) = \log \frac{1}{K_i} \sum_{k: z_i \in D^k} p(z_te; \theta^k)
            - \log \frac{1}{K - K_i} \sum_{k: z_i \notin D^k} p(z_te; \theta^k)

    ``memorization()`` is the score of the paper: the log density of an instance where it was in
    the training set, against that where it was held out.

    **Source** van den Burg and Williams, NeurIPS 2021, eq. (3); survey eq. (8) and (13).

    **Differs from the paper in** nothing; the survey's eq. (8) with the loss ``-log p`` is another
    quantity, the mean of the logarithms, and is ``aggregate="mean"``.

    **Cost** ``folds * repeats`` trainings, then as many densities of a test instance.

    Parameters
    ----------
    folds : int
        Parts of the training set, of which each model leaves one out; 2 or more.
    repeats : int
        Splits. Each instance is held out by ``repeats`` models; a standard error needs two.
    aggregate : {"logmeanexp", "mean"}
        The logarithm of the mean density, or the mean of its logarithm.
    **settings
        As in :class:`SubmodelMethod`; the utility is the log density, minus the risk.

    Examples
    --------
    >>> import numpy as np
    >>> import proponent as pp
    >>> class Density:
    ...     def fit(self, X):
    ...         self.mean, self.scale = X.mean(), X.std()
    ...     def risk(self, X):
    ...         z = (X[:, 0] - self.mean) / self.scale
    ...         return z**2 / 2 + np.log(self.scale) + np.log(2 * np.pi) / 2
    >>> X = np.random.default_rng(0).normal(size=(40, 1))
    >>> X[7] = 5.0
    >>> memorized = pp.GenerativeDownsampling(repeats=4).fit(Density(), X).memorization()
    >>> int(memorized.proponents(1).ids[0])
    7
    """

    card = MethodCard(
        name="GenerativeDownsampling",
        survey_name="Generative Downsampling",
        title="Downsampling for Generative Density Models",
        family="retraining",
        section="4.2.3",
        equations="8, 13",
        paper="van den Burg and Williams, NeurIPS 2021",
        needs="a recipe that trains a density model on a subset; its risk is -log p(x)",
        full_complexity="O(KT)",
        incremental_complexity="O(K)",
        space_complexity="O(n + p)",
        storage_complexity="O(Kp)",
        estimates_loo=True,
        generative=True,
        original_sign="the same, in log density",
    )

    def __init__(
        self,
        folds: int = 10,
        repeats: int = 10,
        *,
        aggregate: Literal["logmeanexp", "mean"] = "logmeanexp",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        self.folds = folds
        self.repeats = repeats
        self.aggregate = aggregate

    @override
    def _design(self, n: int) -> Design:
        check_choice("aggregate", self.aggregate, ("logmeanexp", "mean"))
        if self.utility != "risk":
            raise InvalidInputError(
                "utility: the density is exp(-risk), so it must stay 'risk'; give the model the "
                f"risk -log p(x). Got {self.utility!r}."
            )
        if not 2 <= as_count(self.folds, "folds") <= n:
            raise InvalidInputError(f"folds: {self.folds} folds of {n} instances; use 2 to {n}.")
        return KFold(folds=self.folds)

    @override
    def _size(self, n: int) -> int:
        return self.folds * as_count(self.repeats, "repeats")

    @override
    def _estimator(self, n: int) -> Estimator:
        return LogMeanExp() if self.aggregate == "logmeanexp" else InOutMeans()


class LogMeanExp(Estimator):
    """Log mean density with a player, less that without; standard errors over blocks.

    The standard error is the jackknife's, which leaves out one block (a split into folds) at a
    time. It is NaN for a player who is then in all of the others, or in none.
    """

    linear: ClassVar[bool] = False

    @override
    def on(self, table: Table) -> Estimated:
        """Take the table as it is."""
        return _Densities(table)


class _Densities(Estimated):
    def __init__(self, table: Table) -> None:
        self._table = table
        blocks = table.coalitions.blocks
        self._blocks = [] if blocks is None else [blocks == block for block in np.unique(blocks)]
        # exp(u - the largest) is at most 1, and a player whose densities all vanish beside
        # another's is summed on a scale of its own.
        self._top = table.utilities.max(axis=0)
        self._densities = np.exp(table.utilities - self._top)

    @override
    def players(self, rows: range) -> Estimate:
        """Return the differences of some players, ``(T, players)``."""
        masks = self._table.coalitions.masks[:, rows.start : rows.stop]
        values = self._difference(masks, np.ones(len(masks), dtype=np.bool_))
        kept = [self._difference(masks, ~block) for block in self._blocks]
        # Without an error where one block alone has a player in, or out.
        if len(kept) < 2 or np.isnan(kept).any(axis=0).all():
            return Estimate(values, None)
        spread = np.var(kept, axis=0) * (len(kept) - 1)
        return Estimate(values, np.sqrt(spread))

    def _difference(self, masks: NDArray[Any], used: NDArray[np.bool_]) -> Values:
        inside = masks[used] != 0
        return np.asarray(self._log_mean(inside, used) - self._log_mean(~inside, used))

    def _log_mean(self, chosen: NDArray[np.bool_], used: NDArray[np.bool_]) -> Values:
        counts = chosen.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            sums = self._densities[used].T @ chosen.astype(np.float64)
            found = np.log(sums) - np.log(counts) + self._top[:, None]
        found[:, counts == 0] = np.nan
        utilities = self._table.utilities[used]
        for test, player in np.argwhere((sums < VANISHING) & (counts > 0)):
            own = utilities[chosen[:, player], test]
            found[test, player] = np.logaddexp.reduce(own) - np.log(len(own))
        return np.asarray(found)

    @override
    def noticed(self) -> dict[str, Any]:
        """Return the smallest effective number of models of a mean, ``(sum p)^2 / sum p^2``."""
        squares = (self._densities**2).sum(axis=0)
        sizes = self._densities.sum(axis=0) ** 2 / squares
        return {"smallest_effective_models": float(sizes.min())}
