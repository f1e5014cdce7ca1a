"""BoostIn: TracIn for gradient-boosted trees (survey section 5.2.1.3)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack, override

from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.trees.losses import Values
from proponent.trees.matching import add_matching, matching_joint
from proponent.trees.method import TreeMethod, TreeSettings, leaf_sizes
from proponent.trees.own_leaf import OwnMoves
from proponent.trees.view import LeafRows, LeafView

NUMBERS = 2**17  # moves of leaves that are held at once: what fits a cache is fastest

LeafStep = Literal["value", "theta"]
Weighting = Literal["none", "size", "squared_size"]


class BoostIn(TreeMethod):
    r"""The test risk that an instance took off in every tree, by moving the leaf that both share.

    .. math::
        I(z_i, z_{te}) = \sum_{t, c} \frac{\partial L(z_{te})}{\partial F_c}\Big|_{F_{t-1}}
        1[l_t(i) = l_t(te)] \, \eta \, w_i \frac{g_i + \theta_l h_i}{H_l + \lambda}

    with the gradient :math:`g_i` and Hessian :math:`h_i` of the training risk before tree t, and
    :math:`H_l` the sum of the leaf's Hessians: each tree is a step, and the fraction what the
    instance's removal would change of its leaf's value. "I(z_i, z_te) =" sums over trees, as
    TracIn sums over steps of gradient descent.

    **Source** Brophy, Hammoudeh and Lowd, JMLR 2023; survey section 5.2.1.3.

    **Differs from the paper in** nothing by default: its code puts the shrunk leaf value
    :math:`\eta\theta_l` where the derivative of the leaf has :math:`\theta_l`
    (``leaf_step="theta"``, the exact derivative of the leaf). Neither wins clearly when instances
    are removed; where leaves are pure their rankings differ much.

    Scores are ``(n_test, n_train)`` in units of the risk; positive means that removing the
    training instance raises the test risk.

    **Cost** One pass over the trees for the training and for the test set, and for each test
    instance and tree the training instances in its leaf. The sum over a test set
    (``joint=True``) and memorization take O((n + n_test) T).

    Parameters
    ----------
    leaf_step : "value" or "theta"
        What stands for the leaf's step in its own derivative: the value with the learning rate in
        it, as published, or the step itself, which is exact.
    weighting : "none", "size" or "squared_size"
        Divide by the number of training instances in the leaf, or by its square (the paper's
        variants W1 and W2).
    new_labels : "flip" or array of shape (n,), optional
        Ask for the influence of each training label instead (label edit): the influence with the
        label that it has less that with the new one; positive means that the present label is the
        better one for the test instance. "flip" takes the other of two classes.
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
    >>> pp.BoostIn().fit(model, train).influence(test).shape
    (169, 400)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="BoostIn",
        survey_name="BoostIn",
        title="Boosted Tree Influence",
        family="trees",
        section="5.2.1.3",
        paper="Brophy, Hammoudeh and Lowd, JMLR 2023",
        needs="a fitted gradient-boosted ensemble of XGBoost, LightGBM, CatBoost or scikit-learn",
        full_complexity="O(nT)",
        incremental_complexity="O(nT)",
        space_complexity="O(nT)",
        storage_complexity="0",
        assumes=("differentiable", "optimizer"),
        group=True,
        original_sign="the same",
    )

    def __init__(
        self,
        *,
        leaf_step: LeafStep = "value",
        weighting: Weighting = "none",
        new_labels: Any = None,
        **settings: Unpack[TreeSettings],
    ) -> None:
        super().__init__(**settings)
        self.leaf_step = leaf_step
        self.weighting = weighting
        self.new_labels = new_labels

    @override
    def _check(self, view: LeafView) -> None:
        for name, kinds in (("leaf_step", LeafStep), ("weighting", Weighting)):
            value = getattr(self, name)
            if value not in get_args(kinds):
                raise InvalidInputError(
                    f"{name}={value!r}: expected one of {', '.join(map(repr, get_args(kinds)))}."
                )
        if view.kind == "forest":
            raise InvalidInputError(
                "model: BoostIn follows the steps of boosting, and the trees of a forest are "
                "fitted side by side. LeafRefit is exact for forests; TreeSim and TREX take them."
            )
        if view.steps > 1 and view.coupled_inverse is not None:
            raise InvalidInputError(
                "model: leaf_estimation_iterations above 1 with a multi-class loss has no BoostIn; "
                "train with leaf_estimation_iterations=1, or use LeafInfluence."
            )
        self._sizes = None if self.weighting == "none" else leaf_sizes(view)
        self._edit = None if self.new_labels is None else _edit(view, self.new_labels)

    # Scores

    @override
    def _scores(self, query: LeafRows, rows: range) -> NDArray[np.floating[Any]]:
        scores = np.zeros((len(query), len(rows)))
        for block in self._blocks_of_trees(query, rows):
            add_matching(scores, *block)
        return scores

    @override
    def _joint_scores(self, query: LeafRows, rows: range) -> NDArray[np.floating[Any]]:
        total = np.zeros(len(rows))
        for block in self._blocks_of_trees(query, rows):
            total += matching_joint(*block)
        return total

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        scores = np.zeros(len(rows))
        own = self._moves(rows)
        for trees, moves, gradients in own.walk(self._at_once(len(rows))):
            self._scale(trees, moves, own.train)
            scores += np.einsum("tki,tki->i", moves, gradients)
        return scores

    def _at_once(self, numbers: int) -> int:
        return max(1, NUMBERS // max(1, numbers * self.view_.outputs))

    def _moves(self, rows: range) -> OwnMoves:
        return OwnMoves(self.view_, rows, self.leaf_step, self._edit)

    def _blocks_of_trees(self, tests: LeafRows, rows: range) -> Iterator[Block]:
        """Walk through blocks of trees, few enough to hold the moves in all of them."""
        view, own = self.view_, self._moves(rows)
        train = own.train
        held = self._at_once(len(train) + len(tests))
        path = view.path(tests)
        moves, gradients, first = [], [], 0
        for trees, moved, _ in own.walk(held):
            self._scale(trees, moved, train)
            moves.append(moved)
            for stage in islice(path, len(trees) // view.parallel):
                gradient = view.loss.gradient(stage.scores, tests.targets)
                gradients += [gradient] * view.parallel
            if len(gradients) >= held or trees.stop == view.n_trees:
                block = range(first, trees.stop)
                whole = moves[0] if len(moves) == 1 else np.concatenate(moves)
                yield self._block(block, train, whole, tests, np.stack(gradients))
                moves, gradients, first = [], [], trees.stop

    def _block(
        self, trees: range, train: LeafRows, moves: Values, tests: LeafRows, factors: Values
    ) -> Block:
        view = self.view_
        which = slice(trees.start, trees.stop)
        at = trees.start * view.outputs, trees.stop * view.outputs + 1
        return (
            train.leaves[which].reshape(-1, len(train)),
            moves.reshape(-1, len(train)),
            tests.leaves[which].reshape(-1, len(tests)),
            factors.reshape(-1, len(tests)),
            np.diff(view.offsets[at[0] : at[1]]),
        )

    def _scale(self, trees: range, moves: Values, train: LeafRows) -> None:
        """Multiply the moves in some trees by their learning rates and the leaves' weights."""
        view = self.view_
        moves *= view.learning_rates[trees.start : trees.stop, None, None]
        if self.weighting != "none":
            power = 1 if self.weighting == "size" else 2
            for tree, move in zip(trees, moves, strict=True):
                move /= view.tree_values(train, tree, self._sizes) ** power


Block = tuple[NDArray[Any], Values, NDArray[Any], Values, NDArray[np.intp]]


def _edit(view: LeafView, new_labels: Any) -> Values:
    """Return how much larger each training gradient is than with the new label, ``(K, n)``."""
    train = view.train
    if isinstance(new_labels, str) and new_labels == "flip":
        if view.loss.name != "logistic":
            raise InvalidInputError(
                f"new_labels='flip' needs two classes, and the model's loss is {view.loss.name}; "
                f"give the new labels, one for each training instance."
            )
        return np.asarray(1.0 - 2.0 * train.targets)[None]
    labels = np.asarray(new_labels)
    if labels.shape[:1] != (len(train),):
        raise InvalidInputError(
            f"new_labels: expected one for each of the {len(train):,} training instances, or "
            f"'flip'; got shape {labels.shape}."
        )
    if view.classes is None:
        targets = np.asarray(labels, dtype=np.float64).T
        if targets.shape != train.targets.shape or not np.isfinite(targets).all():
            raise InvalidInputError(
                "new_labels: expected finite targets in the shape of the training targets."
            )
        return np.atleast_2d(targets - train.targets)
    classes = view.classes.tolist()
    unknown = sorted(set(labels.tolist()) - set(classes), key=repr)
    if unknown:
        raise InvalidInputError(
            f"new_labels: {unknown[0]!r} is not a class of the model; its classes are {classes}."
        )
    positions = np.array([classes.index(label) for label in labels.tolist()])
    if view.loss.name == "logistic":
        return np.asarray(positions - train.targets, dtype=np.float64)[None]
    every = np.arange(len(train))
    edit = np.zeros((view.outputs, len(train)))
    edit[positions, every] += 1.0
    edit[train.targets, every] -= 1.0
    return edit
