"""LeafInfluence: influence functions for gradient-boosted trees (survey section 5.1.1.3)."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack, override

from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.method import BLOCK_SCORES
from proponent.trees.adjoint import pulled_back
from proponent.trees.followed import single_point_moves, top_leaves_scores
from proponent.trees.losses import Values
from proponent.trees.matching import add_matching, matching_joint
from proponent.trees.method import TreeMethod, TreeSettings
from proponent.trees.view import LeafRows, LeafView


class LeafInfluence(TreeMethod):
    r"""How removing an instance changes every leaf of a boosted ensemble, to first order.

    .. math::
        I(z_i, z_{te}) = -\,w_i \, \frac{dL(z_{te}; F_T)}{dw_i}
        = -\,w_i \sum_{t, c} \frac{\partial L}{\partial F_c}\Big|_{F_T}
        \eta \frac{d\theta_{t, c, l(te)}}{dw_i}

    for trees of the same structure: the derivative, in the weight of the instance, of fitting the
    leaves of all trees one after the other, with all that earlier trees change in the gradients
    that later ones are fitted to. "I(z_i, z_te) =" estimates leave-one-out for fixed structures,
    which :class:`LeafRefit` computes without the linearisation.

    **Source** Sharchilev et al., ICML 2018; survey section 5.1.1.3.

    **Differs from the paper in** the algorithm: the exact recursion runs backwards through the
    trees for the tests, in O(n m T) where going forwards takes O(n^2 T); and in the derivatives
    between classes, which make it exact for multi-class ensembles.

    Scores are ``(n_test, n_train)`` in units of the risk; positive means that removing the
    training instance raises the test risk.

    **Cost** For each test instance and tree a pass over the training set. Memory O(n m).
    Memorization takes O(n^2 T), or O(n T) with ``update="single_point"``.

    Parameters
    ----------
    update : "all_points", "single_point" or int
        Whose scores a removal moves: those of all training instances, which is exact; those of
        the removed one alone; or of the instances in those k leaves of each tree that have moved
        most so far (top-k leaves), O(n^2 T), for one output.
    approximate
        As in :class:`TreeMethod`.

    Examples
    --------
    >>> import proponent as pp
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.ensemble import GradientBoostingClassifier
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> train, test = (X[:400], y[:400]), (X[400:], y[400:])
    >>> model = GradientBoostingClassifier(n_estimators=20).fit(*train)
    >>> pp.LeafInfluence().fit(model, train).influence(test).shape
    (169, 400)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="LeafInfluence",
        survey_name="LeafInfluence",
        title="Decision Forest Leaf Influence",
        family="trees",
        section="5.1.1.3",
        paper="Sharchilev et al., ICML 2018",
        needs="a fitted tree ensemble of XGBoost, LightGBM, CatBoost or scikit-learn",
        full_complexity="O(nT)",
        incremental_complexity="O(nT)",
        space_complexity="O(nT)",
        storage_complexity="0",
        assumes=("differentiable",),
        estimates_loo=True,
        group=True,
        original_sign="the opposite in CatBoost's get_object_importance",
    )

    def __init__(self, *, update: Any = "all_points", **settings: Unpack[TreeSettings]) -> None:
        super().__init__(**settings)
        self.update = update

    @override
    def _check(self, view: LeafView) -> None:
        known = isinstance(self.update, str) and self.update in ("all_points", "single_point")
        counted = isinstance(self.update, (int, np.integer)) and not isinstance(self.update, bool)
        if not known and not (counted and self.update >= 1):
            raise InvalidInputError(
                f"update={self.update!r}: expected 'all_points', 'single_point' or a number of "
                f"leaves, at least 1."
            )
        if counted and (view.outputs > 1 or view.steps > 1 or view.parallel > 1):
            raise InvalidInputError(
                f"update={self.update}: leaves that have moved most are followed for ensembles "
                f"with one output, one tree a round and one step a leaf; use update='all_points'."
            )

    @override
    def _is_additive(self) -> bool:
        return isinstance(self.update, str)

    @override
    def _block_rows(self, n_test: int) -> int:
        # A pass through the trees answers for all training instances.
        return len(self.train_)

    def _final(self, tests: LeafRows) -> Values:
        """Return the gradients of the test risks at the final scores, ``(K, m)``."""
        view = self.view_
        return view.loss.gradient(view.raw(tests), tests.targets)

    @override
    def _scores(self, query: LeafRows, rows: range) -> NDArray[np.floating[Any]]:
        view, final = self.view_, self._final(query)
        if self.update == "all_points":
            return pulled_back(view, rows, query, final)
        if not isinstance(self.update, str):
            return top_leaves_scores(view, rows, query, final, int(self.update))
        scores = np.zeros((len(query), len(rows)))
        train = self._train_rows(rows)
        for tree, moves in single_point_moves(view, rows):
            add_matching(scores, *self._matched(tree, train, moves, query, final))
        return scores

    @override
    def _joint_scores(self, query: LeafRows, rows: range) -> NDArray[np.floating[Any]]:
        view, final = self.view_, self._final(query)
        if self.update == "all_points":
            return np.asarray(pulled_back(view, rows, query, final, joint=True)[0])
        if not isinstance(self.update, str):
            return np.asarray(self._scores(query, rows).sum(axis=0))
        total = np.zeros(len(rows))
        train = self._train_rows(rows)
        for tree, moves in single_point_moves(view, rows):
            total += matching_joint(*self._matched(tree, train, moves, query, final))
        return total

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        train = self._train_rows(rows)
        scores = np.zeros(len(rows))
        if self.update == "single_point":
            final = self._final(train)
            for _, moves in single_point_moves(self.view_, rows):
                scores += (final * moves).sum(axis=0)
            return scores
        size = max(1, BLOCK_SCORES // len(self.train_))
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            some = train.select(slice(start, start + size))
            scores[start : start + size] = self._scores(some, part).diagonal()
        return scores

    def _matched(
        self, tree: int, train: LeafRows, moves: Values, tests: LeafRows, final: Values
    ) -> tuple[Any, Values, Any, Values, NDArray[np.intp]]:
        outputs = self.view_.outputs
        counts = np.diff(self.view_.offsets[tree * outputs : (tree + 1) * outputs + 1])
        return train.leaves[tree], moves, tests.leaves[tree], final, counts
