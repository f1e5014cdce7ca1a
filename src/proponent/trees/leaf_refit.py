"""LeafRefit: leaves fitted again without an instance (survey section 4.1.3)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack, override

from proponent._results.select import group_positions
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.influence import Influence
from proponent.progress import progress
from proponent.trees.leaf_refit_boosting import BoostingRefits
from proponent.trees.leaf_refit_compiled import CompiledRefits
from proponent.trees.leaf_refit_forest import ForestRefits
from proponent.trees.leaf_refit_removals import Refits, Removals
from proponent.trees.losses import Values
from proponent.trees.method import Margin, TreeMethod, TreeSettings
from proponent.trees.view import LeafRows, LeafView

if TYPE_CHECKING:
    from typing_extensions import Self

NUMBERS = 2**22  # changes of test scores that are held at once: 32 MB


@dataclass(frozen=True, eq=False)
class Asked:
    """Test instances with the scores (K, m) and the risks (m,) that they have."""

    rows: LeafRows
    scores: Values
    risks: Values


class LeafRefit(TreeMethod):
    r"""The risk without an instance, with the structure of all trees kept: exact leave-one-out.

    .. math::
        I(z_i, z_{te}) = L(z_{te}; F_T^{-i}) - L(z_{te}; F_T)

    "I(z_i, z_te) =" has in :math:`F_T^{-i}` the same trees and the same starting score, and every
    leaf fitted again without the instance, to the gradients at the scores that the refitted trees
    before it have led to: :math:`\theta_l^{-i} = -G_l^{-i} / (H_l^{-i} + \lambda)`. In a forest
    each leaf is the mean of its bootstrap sample without the instance, in closed form.

    **Source** Sharchilev et al., ICML 2018; survey section 4.1.3.

    **Differs from the paper in** what it also takes: Newton and gradient leaves of several steps,
    L1, sample weights, several classes, forests, and groups, which are removed together. The risk
    with all instances is that of leaves fitted by the same formula, so that what a library rounds
    is nobody's influence. A leaf that loses all its instances adds 0 to the score; in a forest its
    tree is left out of the mean. What CatBoost's backtracking halved stays halved.

    Scores are ``(n_test, n_train)`` in units of the risk; positive means that removing the
    training instance raises the test risk. They are not additive over instances.

    **Cost** O(n^2 T) for all training instances, whatever the number of tests, and O(n) memory
    for each of the removals that are refitted side by side; O(n T) for a forest.

    Parameters
    ----------
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal when the work lasts.
    approximate
        As in :class:`TreeMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.ensemble import GradientBoostingClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> train, test = (X[:100], y[:100]), (X[400:], y[400:])
    >>> model = GradientBoostingClassifier(n_estimators=5).fit(*train)
    >>> pp.LeafRefit().fit(model, train).influence(test).shape
    (169, 100)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="LeafRefit",
        survey_name="LeafRefit",
        title="Decision Forest Leaf Refitting",
        family="trees",
        section="4.1.3",
        paper="Sharchilev et al., ICML 2018",
        needs="a fitted tree ensemble of XGBoost, LightGBM, CatBoost or scikit-learn",
        full_complexity="O(n^2 T)",
        incremental_complexity="O(nT)",
        space_complexity="O(nT)",
        storage_complexity="O(nL), L leaves",
        assumes=("differentiable",),
        estimates_loo=True,
        group=True,
        original_sign="the same",
    )

    def __init__(self, *, progress: bool | None = None, **settings: Unpack[TreeSettings]) -> None:
        super().__init__(**settings)
        self.progress = progress

    @override
    def fit(
        self,
        model: Any,
        train: Any,
        *,
        ids: Any = None,
        groups: Any = None,
        base_margin: Margin = None,
        sample_weight: Any = None,
        sample_mask: Any = None,
    ) -> Self:
        """Read a trained tree ensemble, and the training set it was trained on.

        Parameters
        ----------
        model, train, ids, base_margin, sample_weight, sample_mask
            As in :meth:`TreeMethod.fit`.
        groups : array-like of shape (n,), or mapping of names to train ids, optional
            Score groups instead of instances, each removed as a whole: the name of the group of
            each instance, or the members of each group. Groups come in ascending order of their
            names.

        Raises
        ------
        InvalidInputError
            As :meth:`TreeMethod.fit`, or if a group is empty or has unknown ids.
        """
        super().fit(
            model,
            train,
            ids=ids,
            base_margin=base_margin,
            sample_weight=sample_weight,
            sample_mask=sample_mask,
        )
        self._refits = refits_of(self.view_)
        self._grouped = groups is not None
        self._removals = Removals.single(range(len(self.train_)))
        if groups is not None:
            names, members = group_positions(groups, self.train_.ids)
            order = np.argsort(names, kind="stable")
            self._removals = Removals.groups([members[at] for at in order])
            self.train_ = Instances.of((np.arange(len(names)),), ids=names[order])
        return self

    # What a user asks

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
        names, positions = group_positions(groups, self._ids(self._rows(None)))
        members = [
            np.concatenate([self._removals.part(at, at + 1).members for at in part])
            for part in positions
        ]
        instances = self._tests(test, ids)
        query = self._query(instances)
        values = self._risen(query, Removals.groups(members))
        values.setflags(write=False)
        return Influence(
            values,
            train_ids=names,
            test_ids=instances.ids,
            method=self.card.name,
            settings=self._settings(),
            diagnostics=self._diagnostics(query),
            additive=False,
        )

    @override
    def cooks_distance(self) -> Influence:
        r"""Return how far removing each training instance moves the fit to the training set.

        .. math::
            D_i = \frac{1}{p} \sum_j w_j \, \Delta_j^\top \nabla^2\ell(F_T(x_j)) \, \Delta_j,
            \qquad \Delta_j = F_T(x_j) - F_T^{-i}(x_j)

        for p leaf values: Cook's distance of the leaf values in the metric of the curvature, with
        exact changes. For a single tree with the squared loss it is Cook's classical distance
        times the residual variance.

        Returns
        -------
        Influence
            ``(n_train,)``, at least 0, in units of the risk.

        Notes
        -----
        **Source**: Cook (1977); survey eq. (5).
        """
        rows, view = self._rows(None), self.view_
        scores = view.train.start.copy()
        for tree in range(view.n_trees):
            scores += view.tree_values(view.train, tree, self._refits.values)
        found = view.loss.derivatives(scores, view.train.targets)
        distances = np.empty(len(rows))
        for part in self._parts(self._removals, len(view.train)):
            moved = self._refits.changes(self._removals.part(*part), train=True).train
            if moved is None:
                raise RuntimeError("changes of the training scores were asked for")
            squares = (moved * found.curve(moved)).sum(axis=0)
            distances[slice(*part)] = view.weights @ squares / view.n_leaves
        return self._answer(distances, rows, None, None, self._diagnostics(None))

    def parameter_changes(self, instances: Any = None) -> dict[str, NDArray[np.floating[Any]]]:
        """Return the change of the leaf values that training instances make.

        Parameters
        ----------
        instances : integer array of shape (k,), optional
            Positions in the training set (of the groups, where there are any); None: all of them.

        Returns
        -------
        dict
            ``"leaf_values"``: ``v - v_{-i}``, ``(k, L)``, flat over trees and outputs as
            :class:`LeafView` has them, with the learning rate in.

        Raises
        ------
        InvalidInputError
            If a position is outside the training set.
        """
        n = len(self._rows(None))
        positions = np.arange(n) if instances is None else np.asarray(instances)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            raise InvalidInputError("instances: expected a list of integer positions.")
        if positions.size and not (positions.min() >= 0 and positions.max() < n):
            raise InvalidInputError(f"instances: positions must be in 0 .. {n - 1}.")
        chosen = Removals.groups(
            [self._removals.part(at, at + 1).members for at in positions.tolist()]
        )
        changes = np.empty((len(positions), self.view_.n_leaves))
        for start, stop in self._parts(chosen, self.view_.n_leaves):
            moved = self._refits.changes(chosen.part(start, stop), leaves=True).leaves
            if moved is None:
                raise RuntimeError("changes of the leaves were asked for")
            changes[start:stop] = -moved.T
        return {"leaf_values": changes}

    # The frame's hooks

    @override
    def _is_additive(self) -> bool:
        return False

    @override
    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in super()._settings().items() if name != "progress"}

    @override
    def _query(self, instances: Instances) -> Asked:
        rows, view = self._place(instances), self.view_
        scores = rows.start.copy()
        for tree in range(view.n_trees):
            scores += view.tree_values(rows, tree, self._refits.values)
        return Asked(rows, scores, view.loss.risk(scores, rows.targets))

    @override
    def _scores(self, query: Asked, rows: range) -> Values:
        return self._risen(query, self._removals.part(rows.start, rows.stop))

    @override
    def _joint_scores(self, query: Asked, rows: range) -> Values:
        return self._risen(query, self._removals.part(rows.start, rows.stop), joint=True).ravel()

    @override
    def _self_scores(self, rows: range) -> Values:
        if self._grouped:
            raise MethodCapabilityError(
                f"{self.card.name}: memorization is the influence of a training instance on "
                f"itself; here groups are scored. Fit without groups."
            )
        view, removals = self.view_, self._removals.part(rows.start, rows.stop)
        train = view.train.select(slice(rows.start, rows.stop))
        scores = train.start.copy()
        for tree in range(view.n_trees):
            scores += view.tree_values(train, tree, self._refits.values)
        moved = np.empty_like(scores)
        for start, stop in self._parts(removals, 1):
            moved[:, start:stop] = self._refits.own(removals.part(start, stop))
        risk = view.loss.risk
        return np.asarray(risk(scores + moved, train.targets) - risk(scores, train.targets))

    def _parts(self, removals: Removals, numbers: int) -> Iterator[tuple[int, int]]:
        """Cut removals that take so many numbers each, and show how far they have come."""
        size = min(self._refits.lanes, max(1, NUMBERS // (numbers * self.view_.outputs)))
        starts = range(0, len(removals), size)
        with progress(starts, description=self.card.name, enabled=self.progress) as bar:
            for start in bar:
                yield start, min(start + size, len(removals))

    def _risen(self, query: Asked, removals: Removals, *, joint: bool = False) -> Values:
        """Return how removals raise the risks, ``(m, R)``, or their sum ``(1, R)``."""
        view, m = self.view_, len(query.rows)
        risen = np.empty((1 if joint else m, len(removals)))
        for start, stop in self._parts(removals, m):
            moved = self._refits.changes(removals.part(start, stop), query.rows).tests
            if moved is None:
                raise RuntimeError("changes of the test scores were asked for")
            moved += query.scores[:, :, None]
            targets = np.repeat(query.rows.targets, stop - start, axis=-1)
            risks = view.loss.risk(moved.reshape(view.outputs, -1), targets).reshape(m, -1)
            risks -= query.risks[:, None]
            risen[:, start:stop] = risks.sum(axis=0) if joint else risks
        return risen


def refits_of(view: LeafView) -> Refits:
    """Return what refits the leaves of an ensemble, the fastest there is."""
    if view.kind == "forest":
        return ForestRefits(view)
    if CompiledRefits.takes(view):
        try:
            from proponent.trees import refit_kernels
        except ImportError:
            return BoostingRefits(view)
        return CompiledRefits(view, refit_kernels)
    return BoostingRefits(view)
