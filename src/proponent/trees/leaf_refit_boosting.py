r"""Leaves of a boosted ensemble fitted again, tree after tree, without some instances.

The structure and the starting scores stay. Without the instances of a set U, each leaf of each
step of a tree is

.. math::
    \theta_l^{-U} = -\frac{\sum_{j \in l, j \notin U} w_j g_j(F_{t-1}^{-U}(x_j))}
    {\sum_{j \in l, j \notin U} w_j h_j(F_{t-1}^{-U}(x_j)) + \lambda}

with the gradients at the scores that the refitted ensemble had *before* the tree. Many removals
go through the trees side by side, on the last axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from proponent.trees.adjoint import _one_hot
from proponent.trees.leaf_refit_removals import Changes, Removals
from proponent.trees.losses import Values
from proponent.trees.method import leaf_sizes
from proponent.trees.view import LeafRows, LeafView

NUMBERS = 2**19  # scores of the training set that are refitted at once: 4 MB an array


@dataclass(frozen=True, eq=False)
class BoostingRefits:
    """Refits of any boosted ensemble with numpy.

    Parameters
    ----------
    view : LeafView
    """

    view: LeafView

    @property
    def lanes(self) -> int:
        """Removals that are refitted at once."""
        return max(1, NUMBERS // self.view.train.start.size)

    @cached_property
    def fixed(self) -> NDArray[np.bool_]:
        """Leaves that were not fitted and stay as they are, ``(L,)``."""
        return fixed_leaves(self.view)

    @cached_property
    def values(self) -> Values:
        """Leaf values with nothing removed, ``(L,)``: the library's own, in our precision."""
        nothing = Removals(np.empty(0, np.intp), np.zeros(2, np.intp))
        return np.ascontiguousarray(self._refitted(nothing)[1][:, 0])

    def changes(
        self,
        removals: Removals,
        tests: LeafRows | None = None,
        *,
        train: bool = False,
        leaves: bool = False,
    ) -> Changes:
        """Return what removals change in final scores and in leaf values."""
        view = self.view
        scores, values = self._refitted(removals)
        moves = values - self.values[:, None]
        final = scores - self._final[:, :, None] if train else None
        moved = None
        if tests is not None:
            moved = np.zeros((view.outputs, len(tests), len(removals)))
            for tree in range(view.n_trees):
                for k in range(view.outputs):
                    moved[k] += moves[view.span(tree, k)].take(tests.leaf(tree, k), axis=0)
        return Changes(moved, final, moves if leaves else None)

    def own(self, removals: Removals) -> Values:
        """Return the change of the final scores of each removed instance, ``(K, R)``."""
        moved = self._refitted(removals)[0] - self._final[:, :, None]
        return np.asarray(moved[:, removals.members, np.arange(len(removals))])

    @cached_property
    def _final(self) -> Values:
        scores = self.view.train.start.copy()
        for tree in range(self.view.n_trees):
            scores += self.view.tree_values(self.view.train, tree, self.values)
        return scores

    def _refitted(self, removals: Removals) -> tuple[Values, Values]:
        """Return the final scores ``(K, n, R)`` and the leaf values ``(L, R)``."""
        view, count = self.view, len(removals)
        rows = view.train
        scores = np.repeat(rows.start[:, :, None], count, axis=2)
        values = np.zeros((view.n_leaves, count))
        for first in range(0, view.n_trees, view.parallel):
            added = np.zeros_like(scores)
            for tree in range(first, first + view.parallel):
                weights = self._weights(tree, removals)
                placed = [_one_hot(view, rows, tree, k) for k in range(view.outputs)]
                total = [np.zeros((part.shape[0], count)) for part in placed]
                at = scores
                for step in range(view.steps):
                    theta = self._step(tree, step, at, weights, placed)
                    scale = view.step_scales[step, tree]
                    for k, part in enumerate(theta):
                        total[k] += scale * part
                    if step + 1 < view.steps:
                        at = at + np.stack(
                            [
                                scale * part.take(rows.leaf(tree, k), axis=0)
                                for k, part in enumerate(theta)
                            ]
                        )
                for k, part in enumerate(total):
                    span = view.span(tree, k)
                    value = view.learning_rates[tree] * part
                    fixed = self.fixed[span]
                    value[fixed] = view.values[span][fixed, None]
                    values[span] = value
                    added[k] += value.take(rows.leaf(tree, k), axis=0)
            scores += added
        return scores, values

    def _weights(self, tree: int, removals: Removals) -> Values:
        """Return the weight of each instance, 0 where it is removed, ``(n, R)``."""
        given = self.view.tree_weights(tree)
        n, count = len(self.view.train), len(removals)
        weights = np.ones((n, count)) if given is None else np.repeat(given[:, None], count, axis=1)
        weights[removals.members, removals.lanes] = 0.0
        return weights

    def _step(
        self,
        tree: int,
        step: int,
        scores: Values,
        weights: Values,
        placed: list[scipy.sparse.csr_array],
    ) -> list[Values]:
        """Return the step of the leaves of each output, ``(leaves, R)``."""
        view, outputs = self.view, self.view.outputs
        shape = scores.shape
        targets = np.repeat(view.train.targets, shape[2], axis=-1)
        linked = view.loss.link(scores.reshape(outputs, -1))
        gradient = view.loss.gradient_of(linked, targets).reshape(shape)
        if view.estimation == "newton":
            hessian = view.loss.hessian_of(linked).reshape(shape)
        else:
            hessian = np.ones(shape)
        above = [part @ (weights * gradient[k]) for k, part in enumerate(placed)]
        below = [part @ (weights * hessian[k]) for k, part in enumerate(placed)]
        if view.coupled_inverse is not None:
            theta = self._coupled(tree, linked.reshape(shape), weights, placed[0], above, below)
        else:
            theta = [
                newton_step(above[k], below[k], view.l2[view.span(tree, k), None], view.l1)
                for k in range(outputs)
            ]
        for k, part in enumerate(theta):
            span = view.span(tree, k)
            part[self.fixed[span]] = view.theta[step, span][self.fixed[span], None]
        return theta

    def _coupled(
        self,
        tree: int,
        p: Values,
        weights: Values,
        placed: scipy.sparse.csr_array,
        above: list[Values],
        below: list[Values],
    ) -> list[Values]:
        view, outputs = self.view, self.view.outputs
        matrices = np.zeros((*below[0].shape, outputs, outputs))
        for c in range(outputs):
            matrices[:, :, c, c] = below[c] + view.l2[view.span(tree, c), None]
            weighted = weights * p[c]
            for d in range(c):
                matrices[:, :, c, d] = matrices[:, :, d, c] = -(placed @ (weighted * p[d]))
        used = np.sum(below, axis=0) > 0
        theta = np.zeros((*used.shape, outputs))
        gradients = np.stack(above, axis=-1)
        theta[used] = -np.linalg.solve(matrices[used], gradients[used][:, :, None])[:, :, 0]
        return [np.ascontiguousarray(theta[:, :, c]) for c in range(outputs)]


def newton_step(gradient: Values, hessian: Values, l2: Values, l1: float) -> Values:
    """Return ``-G / (H + lam)`` with the soft threshold on G; 0 where nothing divides."""
    if l1:
        gradient = np.sign(gradient) * np.maximum(np.abs(gradient) - l1, 0.0)
    denominator = hessian + l2
    step = np.zeros_like(gradient)
    np.divide(-gradient, denominator, out=step, where=denominator > 0)
    return step


def fixed_leaves(view: LeafView) -> NDArray[np.bool_]:
    """Return the leaves that do not follow their instances: those of trees that were not grown.

    A leaf that L1 holds at 0 is none of them: its gradients are within the threshold.
    """
    still: NDArray[np.bool_] = view.inverse[0] == 0
    if not still.any():
        return still
    still &= leaf_sizes(view) > 0
    if view.l1 and still.any():
        sums = np.zeros(view.n_leaves)
        for trees, found in view.train_path():
            for tree in trees:
                weights = view.tree_weights(tree)
                g = found.gradient if weights is None else found.gradient * weights
                (sums[view.tree_span(tree)],) = view.leaf_sums(view.train, tree, g)
        still &= np.abs(sums) > view.l1 * (1 + 1e-6)
    return still
