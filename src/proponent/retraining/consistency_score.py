"""How well an instance is predicted by models that never saw it (survey section 4.2.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.influence import Influence
from proponent.retraining.checks import check_fraction
from proponent.retraining.coalitions import Design, Estimator, Table
from proponent.retraining.designs import Ratios
from proponent.retraining.estimators.in_out import InOutMeans
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.settings import NEEDS, Settings
from proponent.retraining.utility import Utility

if TYPE_CHECKING:
    from typing_extensions import Unpack

Values = NDArray[np.float64]


@dataclass(frozen=True)
class ConsistencyProfile:
    """How well instances are predicted by models trained on more and more of the training set.

    Attributes
    ----------
    ids : ndarray of shape (m,)
        The instances.
    ratios : ndarray of shape (G,)
        The fractions of the training set.
    values : ndarray of shape (m, G)
        The mean utility over the models that did not see the instance; NaN: there was none.
    std_errors : ndarray of shape (m, G)
        Standard errors; NaN where there are less than two models.
    counts : ndarray of shape (m, G)
        Models behind each value.
    """

    ids: NDArray[Any]
    ratios: Values
    values: Values
    std_errors: Values
    counts: NDArray[np.int64]


class ConsistencyScore(SubmodelMethod):
    r"""The consistency profile and C-score: how well an instance is predicted from the others.

    .. math::

        C_r(z) = E_{D^k: |D^k| = r n, z \notin D^k} [v(z; \theta^k)], \qquad
        C(z) = \frac{1}{G} \sum_r C_r(z)

    It scores instances, not pairs: ``profile(test)`` and ``scores(test)`` for test instances, or
    for the training instances, each held out, where no test set is given. With
    ``utility="accuracy"``, the paper's and the default, it is the chance of a right prediction.

    **Source** Jiang et al., ICML 2021; survey eq. (14) and (15).

    **Differs from the paper in** nothing. The survey's equations lack the condition that the
    instance is held out, without which mislabelled training instances look consistent; and its
    text has the direction reversed: a high score marks a regular instance, a low one a rare or
    mislabelled one.

    **Cost** ``n_models`` trainings, then as many predictions of an instance.

    Parameters
    ----------
    n_models : int
        Submodels in all, spread evenly over the ratios.
    ratios : tuple of float
        Fractions of the training set that subsets hold, between 0 and 1.
    utility : {"risk", "accuracy", "margin"}, callable or Utility
        As in :class:`SubmodelMethod`.
    **settings
        As in :class:`SubmodelMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, y = load_iris(return_X_y=True)
    >>> scores = pp.ConsistencyScore(n_models=90).fit(GaussianNB(), (X, y)).scores()
    >>> scores.values.shape
    (150,)
    """

    card = MethodCard(
        name="ConsistencyScore",
        survey_name="C-score",
        title="Consistency Score",
        aliases=("consistency profile",),
        family="retraining",
        section="4.2.3",
        equations="14, 15",
        paper="Jiang et al., ICML 2021",
        needs=NEEDS,
        full_complexity="O(KT)",
        incremental_complexity="O(K)",
        space_complexity="O(n + p)",
        storage_complexity="O(Kp)",
        generative=True,
        any_model=True,
        original_sign="one score a test instance, high where it is predicted with ease",
    )

    def __init__(  # type: ignore[misc]  # a default of its own for one of the settings
        self,
        n_models: int = 1800,
        *,
        ratios: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        utility: str | Utility | Callable[[Any, Any], Any] = "accuracy",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(utility=utility, **settings)
        self.n_models = n_models
        self.ratios = ratios

    def profile(self, test: Any = None, *, ids: Any = None) -> ConsistencyProfile:
        """Return the consistency profile of test instances, or of the training instances.

        Parameters
        ----------
        test : (X, y), dict, Dataset or Instances, optional
            None: the training instances, each by the models that did not see it.
        ids : array-like of shape (m,), optional
            Unique labels of the test instances.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        MethodCapabilityError
            If the players are groups or those of a game.
        """
        self._rows(None)
        submodels = self._submodels
        if submodels is None or submodels.grouped:
            raise MethodCapabilityError(
                "ConsistencyScore holds out training instances: fit(model, train) without groups."
            )
        if test is None:
            return self._profile(submodels.train, held_out=True)
        return self._profile(self._tests(test, ids), held_out=False)

    def scores(self, test: Any = None, *, ids: Any = None) -> Influence:
        """Return the C-score of test instances, or of the training instances: ``(m,)``.

        It is the mean of the profile over the ratios; NaN where one of them has no model.

        Parameters
        ----------
        test, ids
            As in :meth:`profile`.
        """
        profile = self.profile(test, ids=ids)
        # Ratios that make the same size, of a small training set, share their models.
        _, where = np.unique(self._sizes(len(self.train_)), return_inverse=True)
        sums = np.zeros((len(profile.ids), int(where.max()) + 1))
        np.add.at(sums.T, where, profile.std_errors.T)
        errors = np.sqrt((sums**2).sum(axis=1)) / len(profile.ratios)
        return Influence(
            profile.values.mean(axis=1),
            train_ids=profile.ids,
            method=self.card.name,
            settings=self._settings(),
            std_error=errors,
            diagnostics=self._diagnostics(None)
            | {"fewest_models": int(profile.counts.min(initial=len(self._coalitions)))},
            additive=False,
        )

    @override
    def influence(self, *args: Any, **kwargs: Any) -> Any:
        """Raise: it scores instances, not pairs of them."""
        raise MethodCapabilityError(
            "ConsistencyScore scores instances, not pairs: call scores(test), or scores() for the "
            "training instances. Downsampling gives the influence from the same submodels."
        )

    @override
    def _self_scores(self, rows: range) -> Values:
        raise MethodCapabilityError(
            "ConsistencyScore is no influence; call scores() for the training instances, each "
            "held out. Downsampling().memorization() compares held out with held in."
        )

    def _profile(self, instances: Instances, *, held_out: bool) -> ConsistencyProfile:
        table = self._of_each(instances, self._coalitions)
        ratios = np.array(self.ratios, dtype=np.float64)
        found = [_of_size(table, size, held_out) for size in self._sizes(len(self.train_))]
        values, errors, counts = (np.stack(part, axis=1) for part in zip(*found, strict=True))
        return ConsistencyProfile(instances.ids, ratios, values, errors, counts)

    def _sizes(self, n: int) -> tuple[int, ...]:
        if not isinstance(self.ratios, Sequence | np.ndarray) or not len(self.ratios):
            raise InvalidInputError(
                f"ratios: expected one or more fractions of the training set; got {self.ratios!r}."
            )
        ratios = (check_fraction(f"ratios[{at}]", ratio) for at, ratio in enumerate(self.ratios))
        return tuple(min(max(round(ratio * n), 1), n - 1) for ratio in ratios)

    @override
    def _design(self, n: int) -> Design:
        return Ratios(self._sizes(n))

    @override
    def _size(self, n: int) -> int:
        return as_count(self.n_models, "n_models")

    @override
    def _estimator(self, n: int) -> Estimator:
        return InOutMeans()


def _of_size(table: Table, size: int, held_out: bool) -> tuple[Values, Values, NDArray[np.int64]]:
    """Return mean, standard error and number of the models of a size that did not see a test."""
    rows = table.coalitions.sizes == size
    utilities = table.utilities[rows]
    if held_out:
        weights = (table.coalitions.masks[rows] == 0).astype(np.float64)
    else:
        weights = np.ones_like(utilities)
    counts = weights.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (weights * utilities).sum(axis=0) / counts
        squares = (weights * (utilities - np.where(counts, mean, 0)) ** 2).sum(axis=0)
        errors = np.sqrt(squares / ((counts - 1) * counts))
    errors[counts < 2] = np.nan
    return mean, errors, counts.astype(np.int64)
