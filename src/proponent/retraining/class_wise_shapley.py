"""Class-wise Shapley: what an instance adds to the accuracy on its own class and on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
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
from proponent.models.labels import Classes, labels_of
from proponent.retraining.asked import Asked
from proponent.retraining.class_walks import ClassWalks, utility_of_class, walk_class
from proponent.retraining.class_wise_marginals import ClassWiseMarginals
from proponent.retraining.coalitions import Coalitions, Design, Estimator, Table, join
from proponent.retraining.designs import Permutations
from proponent.retraining.game import CooperativeGame
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.repeats import expectation, reseeded
from proponent.retraining.settings import Settings
from proponent.retraining.submodels import Submodels
from proponent.retraining.utility import Accuracy, Utility, utility_of

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Values = NDArray[np.float64]


class ClassWiseShapley(SubmodelMethod):
    r"""Class-wise Shapley value: the Shapley value within a class, in random company of the others.

    For an instance of class y with the instances :math:`D_y`, and those of all other classes
    :math:`D_{-y}`,

    .. math::

        \psi_i = E_{C \subseteq D_{-y}} \bigl[ \phi_i(u_y(\cdot \cup C)) \bigr], \qquad
        u_y(S) = a_y(S) \, e^{a_{-y}(S)}

    where :math:`\phi_i` is the Shapley value among the players :math:`D_y`, C holds each other
    instance with probability 1/2, and :math:`a_y(S)` and :math:`a_{-y}(S)` are the portions of the
    whole test set that are of class y, or of another, and predicted right by the model trained on
    S. An instance is valued for what it does to its own class first, and pays for harm to the
    others. With ``normalise`` the values of a class are scaled to sum to :math:`a_y(D)`, so that
    all sum to the accuracy on the test set; without it they sum to
    :math:`E_C[u_y(D_y \cup C) - u_y(C)]`.

    It is one value a training instance, ``(n_train,)``, on the test set as a whole and in units of
    accuracy: ``influence()``. Standard errors are those over the permutations, each of which has a
    C of its own, and take the scale as known.

    **Source** Schoch, Xu and Ji, "CS-Shapley: class-wise Shapley values for data valuation in
    classification", NeurIPS 2022, eqs. (2) to (4) and algorithm 1.

    **Differs from the paper in** that all trainings of a permutation share their random numbers.
    A class is not scaled, and a warning says so, where the factor would be 0 or negative: where
    the model of all instances has no test instance of the class right, or the values sum to 0 or
    less. Instances of a class without a test instance are not scored (NaN), as nothing is known
    of them; the formula has 0 for them.

    **Cost** Up to ``n_permutations (n + classes) + 1`` trainings, and as many predictions of the
    test set. With ``tolerance`` the test set decides where to cut, so ``fit`` needs it;
    ``influence(test)`` for another one measures the same subsets.

    Parameters
    ----------
    n_permutations : int
        Of each class; the paper's experiments have about 500.
    tolerance : float
        An order is cut where its utility is this near, relatively, to that of the whole class
        with the same C; those that are left get 0. 0 never cuts.
    normalise : bool
        Whether the values of a class sum to the accuracy on it.
    utility, **settings
        As in :class:`SubmodelMethod`; the utility is the accuracy, and there is no ``stop``.

    Raises
    ------
    InvalidInputError
        By ``fit``, if it is given groups or another utility, or no test set where it cuts.

    Examples
    --------
    >>> import proponent as pp
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.naive_bayes import GaussianNB
    >>> X, y = load_iris(return_X_y=True)
    >>> train, test = (X[::5], y[::5]), (X[1::5], y[1::5])
    >>> values = pp.ClassWiseShapley(10).fit(GaussianNB(), train, test=test).influence()
    >>> values.values.shape
    (30,)
    """

    card = MethodCard(
        name="ClassWiseShapley",
        title="Class-Wise Shapley Value",
        aliases=("CS-Shapley",),
        family="retraining",
        paper="Schoch, Xu and Ji, NeurIPS 2022",
        needs=(
            "a scikit-learn classifier, a pp.TorchLearner that classifies, or pp.Submodels that "
            "another method trained, and the test set with fit"
        ),
        full_complexity="O(KT), K = P(n + c) for P permutations and c classes",
        incremental_complexity="O(K)",
        space_complexity="O(Kn + p)",
        storage_complexity="O(Kp)",
        any_model=True,
        original_sign="the same, in accuracy",
    )
    explains_unscored = True
    _classes: Classes
    _codes: NDArray[np.intp]  # the class of each training instance
    _walks: Sequence[ClassWalks]

    def __init__(  # type: ignore[misc]  # a default of its own for one of the settings
        self,
        n_permutations: int = 100,
        *,
        tolerance: float = 0.01,
        normalise: bool = True,
        utility: str | Utility = "accuracy",
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(utility=utility, **settings)
        self.n_permutations = n_permutations
        self.tolerance = tolerance
        self.normalise = normalise

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
        """Train on the subsets; as :meth:`SubmodelMethod.fit`, with the test set."""
        if isinstance(model, CooperativeGame):
            raise self._wrong_kind(model)
        if groups is not None or (isinstance(model, Submodels) and model.grouped):
            raise InvalidInputError(
                "groups: the players of ClassWiseShapley are instances, each of one class; leave "
                "the groups out."
            )
        if utility_of(self.utility) != Accuracy():
            raise InvalidInputError(
                f"utility: ClassWiseShapley is made of accuracies; leave it at 'accuracy'. Got "
                f"{self.utility!r}."
            )
        if self.stop is not None:
            raise InvalidInputError("stop: ClassWiseShapley takes none; set n_permutations.")
        tolerance = self.tolerance
        if not isinstance(tolerance, (int, float, np.number)) or not 0 <= tolerance < np.inf:
            raise InvalidInputError(f"tolerance must be a number of at least 0; got {tolerance!r}.")
        if test is None and tolerance:
            raise InvalidInputError(
                "test: ClassWiseShapley cuts orders by the utility on the test set, so fit needs "
                "it: fit(model, train, test=(X_test, y_test)). With tolerance=0 it does not."
            )
        return super().fit(model, train, ids=ids, test=test)

    @override
    def influence(
        self,
        test: Any = None,
        *,
        ids: Any = None,
        top_k: int | None = None,
        joint: bool = True,
        shard: tuple[int, int] | None = None,
    ) -> Any:
        """Return the value of each training instance on the test set as a whole, ``(n_train,)``.

        Parameters
        ----------
        test : (X, y), dict, Dataset or Instances, optional
            None: the test set that ``fit`` was given.
        ids : array-like of shape (n_test,), optional
            Unique labels of the test instances.
        top_k : None
            There is a single row: call ``proponents(k)`` on it.
        joint : True
            It is one value for the whole test set.
        shard : (int, int), optional
            As in :meth:`InfluenceMethod.influence`.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        MethodCapabilityError
            If values are asked for test instances one by one.
        """
        rows = self._rows(shard)
        if top_k is not None or not joint:
            raise MethodCapabilityError(
                "ClassWiseShapley has one value a training instance, for the test set as a whole: "
                "call influence(), and proponents(k) on the result. TMCShapley and Shapley have "
                "one for each test instance."
            )
        instances = self._tests(test, ids)
        query = self._query(instances)
        found = query.players(rows)
        errors = None if found.std_errors is None else found.std_errors[0]
        return self._single(found.values[0], errors, rows, self._diagnostics(query), instances)

    @override
    def expected(self, test: Any = None, *, repeats: int = 5, ids: Any = None) -> Influence:
        """Return the value in expectation over seeds; as :meth:`SubmodelMethod.expected`."""
        rows, instances = self._rows(None), self._tests(test, ids)
        if self._submodels is None or not self._submodels.seeded:
            raise InvalidInputError("repeats: the training has no randomness to average over.")

        def values(repeat: int) -> Values:
            seeds = reseeded(self._coalitions.seeds, repeat)
            coalitions = replace(self._coalitions, seeds=seeds)
            return self._estimated(instances, coalitions).estimated.players(rows).values

        mean, errors, noticed = expectation(values, repeats)
        return self._single(mean[0], errors[0], rows, noticed, instances)

    def _single(
        self,
        values: Values,
        errors: Values | None,
        rows: range,
        noticed: dict[str, Any],
        instances: Instances,
    ) -> Influence:
        self._check_finite(values, rows, None)
        noticed["joint"] = {"reduction": "class-wise", "n_test": len(instances)}
        return self._answer(values, rows, None, errors, noticed)

    # It has neither memorization nor groups.
    _self_scores: Any = InfluenceMethod._self_scores
    group_influence: Any = InfluenceMethod.group_influence

    # Training and measuring

    @override
    def _train(self) -> None:
        n = len(self.train_)
        n_walks = as_count(self.n_permutations, "n_permutations")
        submodels, test = self._submodels, self._given_test
        if submodels is None:
            raise self._wrong_kind(self._game)
        labels = labels_of(submodels.train, "train")
        self._classes = Classes.of(labels)
        self._codes = self._classes.positions(labels, "train")
        test_codes = self._codes if test is None else self._test_codes(test)
        of_whole = np.random.default_rng(np.random.SeedSequence([self.seed, 0xC5]))
        seed = of_whole.integers(0, 2**63 - 1, size=1, dtype=np.int64)
        parts, walks, rows = [Coalitions(np.ones((1, n), np.bool_), seed)], [], 1
        for code in np.unique(test_codes).tolist():

            def worth(part: Coalitions, of_class: NDArray[np.bool_] = test_codes == code) -> Values:
                self._trained(part)  # kept for another test set, as long as there is memory
                return utility_of_class(self._utilities(None, part), of_class)

            found, part = walk_class(
                code,
                self._codes,
                n_walks,
                np.random.default_rng(np.random.SeedSequence([self.seed, 0xC5, code])),
                first_row=rows,
                tolerance=self.tolerance,
                worth=worth if self.tolerance else None,
            )
            rows += len(part)
            walks.append(found)
            parts.append(part)
        self._walks, self._coalitions = walks, join(parts)
        self._trained(join(parts[:1] if self.tolerance else parts))
        if test is not None:
            self._utilities(test, self._coalitions)

    @override
    def _query(self, instances: Instances) -> Asked:
        return self._estimated(instances, self._coalitions)

    def _estimated(self, instances: Instances, coalitions: Coalitions) -> Asked:
        codes = self._test_codes(instances)
        # With the rows of failed trainings: a step is found by its row.
        utilities = self._utilities(instances, coalitions)
        table = Table(coalitions, utilities, failures=self._failures(coalitions))
        return Asked(self._estimator_for(codes).on(table), table)

    def _estimator_for(self, test_codes: NDArray[np.intp]) -> ClassWiseMarginals:
        return ClassWiseMarginals(
            self._walks, test_codes, self._classes.names, normalise=self.normalise
        )

    def _test_codes(self, test: Instances) -> NDArray[np.intp]:
        return self._classes.positions(labels_of(test, "test"), "test")

    @override
    def _design(self, n: int) -> Design:
        return Permutations()

    @override
    def _size(self, n: int) -> int:
        return as_count(self.n_permutations, "n_permutations") * (n + len(self._classes)) + 1

    @override
    def _estimator(self, n: int) -> Estimator:
        return self._estimator_for(self._test_codes(self._tests(None, None)))

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        steps = sum(int((walk.rows[:, 1:] >= 0).sum()) for walk in self._walks)
        full = sum(walk.orders.size for walk in self._walks)
        walks = sum(len(walk.orders) for walk in self._walks)
        return super()._diagnostics(query) | {"permutations": walks, "walked": steps / full}
