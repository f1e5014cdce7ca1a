"""Data-OOB: how well a training instance is predicted by the models that did not draw it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.influence import Influence
from proponent.method import InfluenceMethod
from proponent.retraining.coalitions import (
    Coalitions,
    Design,
    Estimate,
    Estimated,
    Estimator,
    Table,
)
from proponent.retraining.designs import Bootstrap
from proponent.retraining.game import CooperativeGame
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.settings import Settings
from proponent.retraining.submodels import Submodels
from proponent.retraining.utility import Utility

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Values = NDArray[np.float64]

NAMED = 5  # instances that a message names


class DataOOB(SubmodelMethod):
    r"""Data-OOB: the mean utility of the bagged models on the instances that they did not draw.

    K models are trained on bootstrap samples, n instances drawn with replacement, of which
    :math:`w_{bi}` are copies of :math:`z_i`:

    .. math::

        \psi_i = \frac{\sum_b 1[w_{bi} = 0]\, v(z_i; \theta^b)}{\sum_b 1[w_{bi} = 0]}

    With ``utility="accuracy"``, the default, it is the portion of these models that predict the
    instance right, and the mean over the instances is the mean accuracy out of bag. Mislabelled
    and hard instances come last. A bag of trees is a random forest.

    ``memorization()`` returns it, ``(n_train,)``, in units of the utility: one number an instance,
    of itself as its own test instance (though not what training on it changes: see
    :class:`Downsampling` for that). There is no ``influence(test)``. Standard errors are
    :math:`s / \sqrt{N_i}` over the :math:`N_i` models an instance is out of the bag of, binomial
    for the accuracy; they say how far another draw of bags may be, and are NaN for one model. An
    instance that is in every bag, which has a chance of :math:`(1 - (1 - 1/n)^n)^K`, about
    :math:`0.63^K`, is not scored (NaN).

    **Source** Kwon and Zou, "Data-OOB: out-of-bag estimate as a simple and efficient data value",
    ICML 2023, eq. (1).

    **Differs from the paper in** nothing. For a regression the paper takes minus the squared
    error, ``utility="risk"``.

    **Cost** ``n_models`` trainings and as many predictions of the training set.

    Parameters
    ----------
    n_models : int
        Bootstrap samples, K.
    utility, **settings
        As in :class:`SubmodelMethod`; the default utility is the accuracy.

    Raises
    ------
    InvalidInputError
        By ``fit``, if it is given groups or a test set: it scores training instances by
        themselves.

    Examples
    --------
    >>> import proponent as pp
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, y = load_iris(return_X_y=True)
    >>> y[3] = 2
    >>> values = pp.DataOOB(n_models=200).fit(GaussianNB(), (X, y)).memorization()
    >>> float(values.values[3])
    0.0
    """

    card = MethodCard(
        name="DataOOB",
        title="Data Out-of-Bag Value",
        aliases=("Data-OOB",),
        family="retraining",
        paper="Kwon and Zou, ICML 2023",
        needs=(
            "a scikit-learn estimator, pp.TorchLearner, an object with fit and risk, or "
            "pp.Submodels that another method trained; it scores the training instances by "
            "themselves, memorization(), and has no influence(test)"
        ),
        full_complexity="O(KT)",
        incremental_complexity="0",
        space_complexity="O(Kn + p)",
        storage_complexity="O(Kp)",
        generative=True,
        any_model=True,
        original_sign="the same, high where an instance is predicted with ease",
    )

    explains_unscored = True

    def __init__(  # type: ignore[misc]  # a default of its own for one of the settings
        self,
        n_models: int = 1000,
        *,
        utility: str | Utility | Callable[[Any, Any], Any] = "accuracy",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(utility=utility, **settings)
        self.n_models = n_models

    @override
    def fit(
        self,
        model: Any,
        train: Any = None,
        *,
        ids: Any = None,
        groups: Any = None,
        test: Any = None,
    ) -> Self:
        """Train on bootstrap samples; as :meth:`SubmodelMethod.fit`, without groups and test."""
        if isinstance(model, CooperativeGame):
            raise self._wrong_kind(model)
        if groups is not None or (isinstance(model, Submodels) and model.grouped):
            raise InvalidInputError(
                "groups: DataOOB scores each training instance; leave the groups out, and take "
                "the mean over a group afterwards."
            )
        if test is not None:
            raise InvalidInputError(
                "test: DataOOB scores training instances by the models that did not draw them; "
                "leave the test set out."
            )
        if self.stop is None or not self.stop.looks:
            return super().fit(model, train, ids=ids)
        if isinstance(model, Submodels):
            return super().fit(model, train, ids=ids, test=model.train)
        instances = None if train is None else Instances.of(train, ids=ids)
        return super().fit(model, instances, test=instances)

    @override
    def memorization(self, *, shard: tuple[int, int] | None = None) -> Influence:
        """Return the out-of-bag value of each training instance, ``(n_train,)``.

        Parameters
        ----------
        shard : (int, int), optional
            As in :meth:`InfluenceMethod.influence`.

        Returns
        -------
        Influence
            With standard errors; NaN for an instance that is in every bag.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        """
        rows = self._rows(shard)
        table = self._on_themselves(rows)
        values, errors, counts = self._values(table, rows)
        self._check_finite(values, rows, None)
        noticed = self._diagnostics(None) | table.noticed | self._noticed(values, counts, rows)
        return self._answer(values, rows, None, errors, noticed)

    @override
    def _self_scores(self, rows: range) -> Values:
        return self._values(self._on_themselves(rows), rows)[0]

    def _on_themselves(self, rows: range) -> Table:
        """Return the utilities of all models on training instances, ``(K, len(rows))``."""
        if self._submodels is None:
            raise self._wrong_kind(self._game)
        chosen = self._submodels.train.select(slice(rows.start, rows.stop))
        return self._measured(chosen, self._coalitions)

    @override
    def _measured(self, instances: Instances | None, coalitions: Coalitions) -> Table:
        table = super()._measured(instances, coalitions)
        of = self._given_test if instances is None else instances
        if of is not None and table.n_tests != len(of):
            raise InvalidInputError(
                f"utility: DataOOB scores each training instance by what models make of it, and "
                f"{self._utility.name} returns one number for all {len(of)}; let it return one for "
                f"each."
            )
        return OnThemselves(table.coalitions, table.utilities, table.noticed, table.failures)

    @staticmethod
    def _values(table: Table, rows: range) -> tuple[Values, Values, NDArray[np.int64]]:
        return out_of_bag(table.coalitions.masks[:, rows.start : rows.stop], table.utilities)

    def _noticed(self, values: Values, counts: NDArray[np.int64], rows: range) -> dict[str, Any]:
        never = np.flatnonzero(counts == 0)
        noticed: dict[str, Any] = {
            "models_out_of_bag": {"fewest": int(counts.min()), "mean": float(counts.mean())},
            "never_out_of_bag": len(never),
            "out_of_bag_score": float(np.nanmean(values)) if len(never) < len(values) else None,
        }
        if len(never):
            named = ", ".join(map(str, self._ids(rows)[never[:NAMED]]))
            more = ", ..." if len(never) > NAMED else ""
            noticed["warnings"] = [
                f"{len(never):,} training instances are in every bag and have no score (NaN): "
                f"{named}{more}; raise n_models"
            ]
        return noticed

    @override
    def _tests(self, test: Any, ids: Any) -> Instances:
        raise MethodCapabilityError(
            "DataOOB scores training instances by the models that did not draw them, whatever the "
            "test set: call memorization(). Influence on test instances, from submodels as these "
            "are, is what Downsampling, Banzhaf and Shapley give."
        )

    group_influence: Any = InfluenceMethod.group_influence  # it has none

    @override
    def _design(self, n: int) -> Design:
        return Bootstrap()

    @override
    def _size(self, n: int) -> int:
        return as_count(self.n_models, "n_models")

    @override
    def _estimator(self, n: int) -> Estimator:
        return OutOfBagMeans()


def out_of_bag(counts: NDArray[Any], utilities: Values) -> tuple[Values, Values, NDArray[np.int64]]:
    """Return mean, standard error and number of the models that did not draw an instance.

    Parameters
    ----------
    counts : ndarray of shape (K, m)
        How often each model drew each of m instances.
    utilities : ndarray of shape (K, m)
        What each model is worth on each of them.

    Returns
    -------
    values, errors : ndarray of shape (m,)
        NaN without a model; errors are NaN with a single one.
    models : ndarray of shape (m,)
    """
    out = counts == 0
    models = out.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where(out, utilities, 0).sum(axis=0) / models
        squares = np.where(out, np.square(utilities - values), 0).sum(axis=0)
        errors = np.sqrt(squares / (models * (models - 1)))
    errors[models < 2] = np.nan
    return values, errors, models


class OnThemselves(Table):
    """Utilities of models on the training instances."""

    @override
    def total(self) -> Table:
        """Return the table itself: a rule that looks at the sum over the tests gets each value."""
        return self


class OutOfBagMeans(Estimator):
    """Out-of-bag means of a table whose tests are the players, in their order."""

    @override
    def on(self, table: Table) -> Estimated:
        """Take the table as it is."""
        return _OutOfBag(table)


class _OutOfBag(Estimated):
    def __init__(self, table: Table) -> None:
        self._table = table

    @override
    def players(self, rows: range) -> Estimate:
        """Return the means of some players, as a single row."""
        some = slice(rows.start, rows.stop)
        masks, utilities = self._table.coalitions.masks, self._table.utilities
        values, errors, _ = out_of_bag(masks[:, some], utilities[:, some])
        return Estimate(values[None], errors[None])
