"""A tree ensemble as the leaf of every instance in every tree: all that the tree methods need.

Indices are ``(t, k)``: tree t = 0..T-1 of output k = 0..K-1 (a class, or a target of a
regression), with instances on the last axis. Leaves are numbered 0..L_tk - 1 within a tree and
output; flat arrays over all leaves are cut by ``offsets``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.trees import matching
from proponent.trees.losses import Derivatives, Loss, Values
from proponent.trees.rows import LeafRows, Leaves, Round, Source, start_of

__all__ = ["LeafRows", "LeafView", "Leaves", "Round", "Source", "start_of"]


@dataclass(frozen=True, eq=False)
class LeafView:
    """A trained tree ensemble and its training set, as leaves.

    Raw predictions are ``F_T(x) = F_0(x) + sum_t v[leaf_t(x)]`` for boosting and forests alike.
    A forest is one round of T parallel trees that were fitted to F_0 = 0 with the squared loss
    (on one-hot targets for a classifier) and the learning rate 1/T.

    A leaf was fitted as ``v = eta sum_s scale_s theta_s`` in ``steps`` steps (one but for
    CatBoost, where a step may have been halved), ``theta_s = -G_l / (H_l + l2)``, with
    ``G_l = sum_j w_tj g_j`` and ``H_l = sum_j w_tj h_j``.

    Attributes
    ----------
    library : str
        "xgboost", "lightgbm", "catboost" or "scikit-learn".
    kind : {"boosting", "forest"}
    train : LeafRows
        The training set.
    weights : ndarray of shape (n,)
        Sample weights, with class weights in; 0 for rows that were held out from training.
    counts : ndarray of shape (T, n) or None
        How often each instance was drawn for each tree (bootstrap counts, or a sampling mask);
        None where every tree saw every instance once.
    loss : Loss
        What the leaves were fitted with.
    offsets : ndarray of shape (T * K + 1,)
        Leaf ``l`` of ``(t, k)`` stands at ``offsets[t * K + k] + l`` of the flat arrays.
    values : ndarray of shape (L,)
        ``v``: leaf values with the learning rate in (and 1/T for a forest).
    learning_rates : ndarray of shape (T,)
        ``eta`` of each tree (divided by ``parallel`` where trees are parallel).
    l2 : ndarray of shape (L,)
        Added to each leaf's denominator, ``lam``.
    l1 : float
        Soft threshold on ``G_l``: ``theta = -sign(G) max(|G| - l1, 0) / (H + l2)``.
    theta : ndarray of shape (steps, L)
        Steps of each leaf before the learning rate and ``step_scales``.
    inverse : ndarray of shape (steps, L)
        ``1 / (H_l + l2)`` at each step; 0 for a leaf that does not move with its instances: an
        empty one, one held at 0 by ``l1``, the only leaf of a tree that was not grown.
    step_scales : ndarray of shape (steps, T)
        By which the steps of a tree's leaves were scaled: 1, or less where CatBoost's
        backtracking halved them, 0 for a step that was not taken.
    coupled_inverse : ndarray of shape (steps, L / K, K, K) or None
        For a coupled loss, the inverse of each leaf's K x K matrix; leaf ``l`` of tree t stands at
        ``offsets[t * K] // K + l``. ``inverse`` then holds its diagonals.
    estimation : {"newton", "gradient"}
        Whether ``h`` is the Hessian or 1.
    steps : int
        Steps a leaf takes (CatBoost's leaf_estimation_iterations).
    parallel : int
        Trees a round.
    classes : ndarray of shape (C,) or None
        The labels of a classifier, in the order of its outputs.
    residual : float
        Largest relative departure of a leaf value from its formula: the validity test.
    approximate : bool
        Whether the formulas only hold approximately; ``reasons`` says why.
    notes : tuple of str
        What was assumed or reconstructed while reading.
    kept : ndarray of shape (rounds, K, n) or None
        Probabilities (scores, for the squared loss) of the training set before each round, where
        they fit into little memory; :meth:`train_path` uses them.
    """

    library: str
    kind: Literal["boosting", "forest"]
    train: LeafRows
    weights: Values
    counts: NDArray[Any] | None
    loss: Loss
    offsets: NDArray[np.intp]
    values: Values
    learning_rates: Values
    l2: Values
    theta: Values
    inverse: Values
    step_scales: Values
    estimation: Literal["newton", "gradient"] = "newton"
    l1: float = 0.0
    coupled_inverse: Values | None = None
    parallel: int = 1
    classes: NDArray[Any] | None = None
    residual: float = 0.0
    approximate: bool = False
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    instances: Instances | None = field(default=None, repr=False)
    kept: Values | None = field(default=None, repr=False)
    source: Source | None = field(default=None, repr=False)

    @classmethod
    def read(cls, model: Any, train: Any, **given: Any) -> LeafView:
        """Read a trained ensemble once, for several methods to share.

        Parameters
        ----------
        model : estimator or booster
            Of XGBoost, LightGBM, CatBoost or scikit-learn (GradientBoosting,
            HistGradientBoosting, RandomForest, ExtraTrees), trained.
        train : (X, y) or Instances
            The whole training set, in the order of training.
        **given
            ``base_margin``, ``sample_weight``, ``sample_mask`` and ``approximate``, as ``fit`` of
            the tree methods and their constructors take them.

        Raises
        ------
        InvalidInputError
            As ``fit`` of the tree methods.

        Examples
        --------
        >>> import proponent as pp
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.ensemble import HistGradientBoostingClassifier
        >>> train = load_breast_cancer(return_X_y=True)
        >>> model = HistGradientBoostingClassifier(max_iter=10).fit(*train)
        >>> view = pp.LeafView.read(model, train)
        >>> pp.BoostIn().fit(view, train).memorization().shape
        (569,)
        """
        from proponent.trees.read import read

        return read(model, train, **given)

    # Sizes

    @property
    def n_trees(self) -> int:
        """T: trees an output."""
        return int(self.train.leaves.shape[0])

    @property
    def outputs(self) -> int:
        """K: scores an instance."""
        return int(self.train.leaves.shape[1])

    @property
    def n_leaves(self) -> int:
        """L: leaves over all trees and outputs."""
        return int(self.offsets[-1])

    @property
    def steps(self) -> int:
        """Steps that a leaf takes on its tree."""
        return len(self.theta)

    @property
    def shared(self) -> bool:
        """Whether the outputs of a tree share its structure."""
        return self.outputs == 1 or self.train.leaves.strides[1] == 0

    @property
    def simple(self) -> bool:
        """Whether it is boosted trees with one output, one tree a round and one step a leaf."""
        return self.outputs == self.steps == self.parallel == 1 and self.kind == "boosting"

    @property
    def curved(self) -> int:
        """What compiled loops know derivatives by.

        0 for the squared loss, 1 for the logistic with gradient steps, 2 with Newton steps.
        """
        return 0 if self.loss.name == "squared" else 1 + (self.estimation == "newton")

    def span(self, tree: int, output: int) -> slice:
        """Return where the leaves of one tree and output stand in the flat arrays."""
        at = tree * self.outputs + output
        return slice(int(self.offsets[at]), int(self.offsets[at + 1]))

    def tree_span(self, tree: int) -> slice:
        """Return where the leaves of one tree stand, over all outputs."""
        at = tree * self.outputs
        return slice(int(self.offsets[at]), int(self.offsets[at + self.outputs]))

    # Instances

    def place(self, test: Any, *, base_margin: Any = None, role: str = "test") -> LeafRows:
        """Place other instances in the leaves.

        Parameters
        ----------
        test : (X, y) or Instances
        base_margin : array of shape (n,) or (n, K), optional
            Their initial scores, where the ensemble was trained with some.
        role : str
            The argument's name in error messages.
        """
        if self.source is None:
            raise InvalidInputError(f"{role}: this leaf view has no model to place instances with.")
        instances = Instances.of(test, role=role)
        features = instances.features(role)
        targets, labels = self.source.targets_of(instances, role)
        start = start_of(self.source, features, len(instances), self.outputs, base_margin, role)
        return LeafRows(self.source.leaves_of(features), start, targets, instances.ids, labels)

    def leaves_of(self, features: Any) -> Leaves:
        """Return the leaves ``(T, K, n)`` of any rows."""
        if self.source is None:
            raise InvalidInputError("this leaf view has no model to place instances with.")
        return self.source.leaves_of(features)

    def tree_weights(self, tree: int) -> Values | None:
        """Return the weight of each training instance in one tree, ``(n,)``; None if all are 1."""
        if self.counts is not None:
            return np.asarray(self.weights * self.counts[tree])
        return self.weights if self.weighted else None

    def weight_rows(self, trees: range) -> Values:
        """Return the same for some trees, ``(trees, n)``; one row where it is all of them's."""
        if self.counts is None:
            return self.weights[None]
        return np.asarray(self.weights * self.counts[trees.start : trees.stop])

    @cached_property
    def weighted(self) -> bool:
        """Whether sample weights are not all 1."""
        return bool((self.weights != 1.0).any())

    # Scores and derivatives

    def tree_values(self, rows: LeafRows, tree: int, flat: Values | None = None) -> Values:
        """Return what a tree adds to the scores of instances, ``(K, n)``.

        Parameters
        ----------
        rows : LeafRows
        tree : int
        flat : ndarray of shape (L,), optional
            Gather this instead of ``values``.
        """
        flat = self.values if flat is None else flat
        if self.shared:
            block = flat[self.tree_span(tree)].reshape(self.outputs, -1)
            return np.asarray(block.take(rows.leaf(tree, 0), axis=1))
        added = np.empty((self.outputs, len(rows)))
        for output in range(self.outputs):
            flat[self.span(tree, output)].take(rows.leaf(tree, output), out=added[output])
        return added

    def leaf_sums(
        self, rows: LeafRows, tree: int, *values: Values, out: tuple[Values, ...] | None = None
    ) -> tuple[Values, ...]:
        """Return sums over the instances of each leaf of a tree, flat as in ``tree_span``.

        Parameters
        ----------
        rows : LeafRows
        tree : int
        *values : ndarray of shape (K, n)
            Each is summed.
        out : tuple of ndarray, optional
            Where to write the sums, one array for each of ``values``.
        """
        whole = self.tree_span(tree)
        if out is None:
            out = tuple(np.empty(whole.stop - whole.start) for _ in values)
        kernels = matching.compiled() if len(values) == 2 else None
        for output in range(self.outputs):
            span = self.span(tree, output)
            part = slice(span.start - whole.start, span.stop - whole.start)
            if kernels is not None:
                for sums in out:
                    sums[part] = 0.0
                each = [*(each[output] for each in values), *(sums[part] for sums in out)]
                kernels.add_pairs(rows.leaves[tree, output], *each)
                continue
            leaf = rows.leaf(tree, output)
            for sums, summed in zip(out, values, strict=True):
                sums[part] = np.bincount(leaf, summed[output], part.stop - part.start)
        return out

    def raw(self, rows: LeafRows) -> Values:
        """Return the raw predictions ``F_T``, ``(K, n)``."""
        scores = rows.start.copy()
        for tree in range(self.n_trees):
            scores += self.tree_values(rows, tree)
        return scores

    def path(self, rows: LeafRows, *, reverse: bool = False) -> Iterator[Round]:
        """Walk through the rounds with the scores before each, ``F_{t-1}``.

        Parameters
        ----------
        rows : LeafRows
            The training set (``view.train``) or others.
        reverse : bool
            From the last round to the first.
        """
        rounds = range(0, self.n_trees, self.parallel)
        if self.kind == "forest":
            for first in reversed(rounds) if reverse else rounds:
                yield Round(range(first, first + self.parallel), rows.start)
            return
        scores = self.raw(rows) if reverse else rows.start
        for first in reversed(rounds) if reverse else rounds:
            trees = range(first, first + self.parallel)
            added = self.tree_values(rows, first)
            for tree in trees[1:]:
                added += self.tree_values(rows, tree)
            if reverse:
                scores = scores - added
                yield Round(trees, scores)
            else:
                yield Round(trees, scores)
                scores = scores + added

    def derivatives(self, rows: LeafRows, scores: Values) -> Derivatives:
        """Return the derivatives as the leaves were fitted with them.

        Where leaves are estimated by gradient steps ``hessian`` is 1 and ``slope`` 0, so one
        formula serves both: ``dtheta = -inverse (dw (g + theta h) + sum_j w_j (1 + theta slope_j)
        dg_j)``. :meth:`Derivatives.curve` is the loss's own second derivative in both.
        """
        return self._as_fitted(self.loss.derivatives(scores, rows.targets))

    def train_path(self, *, reverse: bool = False) -> Iterator[tuple[range, Derivatives]]:
        """Walk through the rounds with the training set's derivatives before each.

        The same as :meth:`path` with :meth:`derivatives`, and cheaper, as the reading keeps what
        it computed.

        Parameters
        ----------
        reverse : bool
            From the last round to the first.
        """
        if self.kept is None:
            for stage in self.path(self.train, reverse=reverse):
                yield stage.trees, self.derivatives(self.train, stage.scores)
            return
        order = range(len(self.kept))
        for at in reversed(order) if reverse else order:
            first = at * self.parallel
            found = self.loss.derivatives_of(self.kept[at], self.train.targets)
            yield range(first, first + self.parallel), self._as_fitted(found)

    def _as_fitted(self, found: Derivatives) -> Derivatives:
        if self.estimation == "newton":
            return found
        ones = np.ones_like(found.gradient)
        return Derivatives(found.gradient, ones, 0.0 * ones, found.probabilities)

    def step_scores(self, rows: LeafRows, tree: int, step: int, scores: Values) -> Values:
        """Return the scores at which a step of the leaves was taken: ``F_{t-1}`` at step 0.

        Parameters
        ----------
        rows : LeafRows
        tree, step : int
        scores : ndarray of shape (K, n)
            ``F_{t-1}``. Steps within a tree are not shrunk by the learning rate.
        """
        if step == 0:
            return scores
        return scores + self.tree_values(rows, tree, self.moved(step))

    def moved(self, steps: int) -> Values:
        """Return how far each leaf has moved after some steps, before the learning rate, ``(L,)``.

        Parameters
        ----------
        steps : int
            ``view.steps`` for all.
        """
        sizes = np.diff(self.offsets[:: self.outputs])
        scales = np.repeat(self.step_scales[:steps], sizes, axis=1)
        return np.asarray((scales * self.theta[:steps]).sum(axis=0))
