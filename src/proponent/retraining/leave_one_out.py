"""Leave-one-out: the training set without an instance, for every instance (survey section 4.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent._results.select import group_positions
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import MethodCapabilityError
from proponent.influence import Influence
from proponent.models.learner import Learner
from proponent.retraining.asked import Asked
from proponent.retraining.checks import check_choice
from proponent.retraining.closed_forms import ClosedForm, closed_form_of
from proponent.retraining.coalitions import Design, Estimate, Estimated, Estimator
from proponent.retraining.deletions import Deletions, deletions_of
from proponent.retraining.designs import LeaveOneOutDesign
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.settings import NEEDS, Settings

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Values = NDArray[np.float64]


class LeaveOneOut(SubmodelMethod):
    r"""Leave-one-out: what happens to the risk of a test instance without a training instance.

    .. math::

        I(z_i, z_te) = R(z_te; \theta^{D \setminus z_i}) - R(z_te; \theta^{D})

    averaged over ``repeats`` seeds; each seed trains with all instances and without each, from the
    same initial parameters and with the same random numbers, so that only the instance differs
    (a :class:`TorchLearner` is given ``batches="common"``).
    Where the model has a closed form (``shortcut``) nothing is trained again.

    **Source** Cook and Weisberg 1982; Koh and Liang, ICML 2017; survey eq. (7). Leave-m-out,
    section 4.1.3, is ``group_influence``.

    **Differs from the paper in** common random numbers: with seeds of their own, the two models
    differ by far more than one instance makes. The closed forms of least squares are exact also
    where the loss is a mean, of which leaving out an instance changes the weight of the penalty.

    **Cost** ``n + 1`` trainings a repeat, then as many predictions of a test instance; with a
    closed form one training and ``O(n)`` a test instance.

    Parameters
    ----------
    repeats : int
        Seeds, of which the influence is the mean; a standard error needs two.
    shortcut : {"exact", "newton", None}
        ``"exact"`` uses the closed form of linear, ridge and kernel ridge regression and of
        Gaussian processes with fixed kernels; it equals training anew. ``"newton"`` also takes
        logistic regression, approximately: one Newton step away from each instance. None trains.
    **settings
        As in :class:`SubmodelMethod`.

    Examples
    --------
    >>> import numpy as np
    >>> import proponent as pp
    >>> from sklearn.linear_model import Ridge
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    >>> loo = pp.LeaveOneOut().fit(Ridge(alpha=1.0), (X, y)).influence((X[:2], y[:2]))
    >>> loo.values.shape
    (2, 20)
    """

    card = MethodCard(
        name="LeaveOneOut",
        survey_name="LOO",
        title="Leave-One-Out Influence",
        aliases=("case deletion", "leave-m-out"),
        family="retraining",
        section="4.1",
        equations="7",
        paper="Cook and Weisberg 1982; Koh and Liang, ICML 2017",
        needs=NEEDS,
        full_complexity="O(nT)",
        incremental_complexity="O(n)",
        space_complexity="O(n + p)",
        storage_complexity="O(np)",
        estimates_loo=True,
        # Table 1 leaves group influence and generative models blank, but section 4.1.3
        # (leave-m-out) and Remark 2 (unsupervised training) extend the method to both.
        group=True,
        generative=True,
        any_model=True,
        original_sign="the same, by definition",
    )
    _closed: ClosedForm | None

    def __init__(
        self,
        repeats: int = 1,
        *,
        shortcut: Literal["exact", "newton"] | None = "exact",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        self.repeats = repeats
        self.shortcut = shortcut

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
        """Train with all instances and without each; as :meth:`SubmodelMethod.fit`."""
        check_choice("shortcut", self.shortcut, ("exact", "newton", None))
        self._closed = None
        if self.shortcut and self.utility == "risk" and groups is None and train is not None:
            instances = Instances.of(train, ids=ids)
            approximate = self.shortcut == "newton"
            self._closed = closed_form_of(model, instances, approximate=approximate)
        return super().fit(model, train, ids=ids, groups=groups, test=test)

    @override
    def group_influence(
        self, groups: Mapping[Any, Any] | Any, test: Any = None, *, ids: Any = None
    ) -> Influence:
        """Return the influence of groups: the risk without all of a group, less the risk with it.

        Parameters
        ----------
        groups : mapping of names to train ids, or array-like of shape (n_train,)
            As :meth:`Influence.group` takes them.
        test, ids
            As in :meth:`influence`.

        Returns
        -------
        Influence
            Scores ``(n_test, n_groups)``; the names of the groups are its train ids.

        Raises
        ------
        InvalidInputError
            If a group is empty or has unknown ids.
        """
        rows = self._rows(None)
        names, members = group_positions(groups, self._ids(rows))
        instances = self._tests(test, ids)
        noticed: dict[str, Any] = {"groups": len(names)}
        errors = None
        if self._closed is not None:
            values = self._closed.without_groups(members, instances)
            noticed |= self._closed.noticed()
        else:
            seeds = np.unique(self._coalitions.seeds)
            table = self._of_each(instances, deletions_of(members, len(rows), seeds))
            estimate = Deletions(members).on(table).players(range(len(names)))
            values, errors = estimate.values, estimate.std_errors
            noticed |= self._diagnostics(None) | table.noticed
        return Influence(
            values,
            train_ids=names,
            test_ids=instances.ids,
            method=self.card.name,
            settings=self._settings(),
            std_error=errors,
            diagnostics=noticed,
            additive=False,
        )

    @override
    def cooks_distance(self) -> Influence:
        """Return Cook's distance of each training instance, ``(n_train,)``.

        Raises
        ------
        MethodCapabilityError
            If the model is neither linear nor logistic, or ``shortcut`` is None.
        """
        rows = self._rows(None)
        if self._closed is None:
            raise MethodCapabilityError(
                "Cook's distance needs a linear, ridge or logistic model and shortcut='exact' "
                "(for logistic 'newton'): parameters of other models have no common scale."
            )
        values = self._closed.cooks_distance()
        return self._answer(values, rows, None, None, self._diagnostics(None))

    # The frame's hooks

    @override
    def _learner(self, model: Any) -> Learner:
        return super()._learner(model).with_common_randomness()

    @override
    def _design(self, n: int) -> Design:
        return LeaveOneOutDesign(repeats=as_count(self.repeats, "repeats"))

    @override
    def _size(self, n: int) -> int:
        return (n + 1) * self.repeats

    @override
    def _estimator(self, n: int) -> Estimator:
        return Deletions()

    @override
    def _train(self) -> None:
        if self._closed is None:
            super()._train()

    @override
    def _query(self, instances: Instances) -> Asked:
        if self._closed is None:
            return super()._query(instances)
        return Asked(_Shortcut(self._closed, instances), None)

    @override
    def _joint_query(self, instances: Instances) -> Asked:
        return super()._joint_query(instances) if self._closed is None else self._query(instances)

    @override
    def _self_scores(self, rows: range) -> Values:
        if self._closed is None:
            return super()._self_scores(rows)
        return self._closed.memorization(rows)

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        return super()._diagnostics(query) if self._closed is None else self._closed.noticed()


class _Shortcut(Estimated):
    """The differences of a closed form."""

    def __init__(self, closed: ClosedForm, test: Instances) -> None:
        self._closed = closed
        self._test = test

    @override
    def players(self, rows: range) -> Estimate:
        """Return the differences of some instances, ``(T, players)``."""
        return Estimate(self._closed.without_each(self._test, rows), None)
