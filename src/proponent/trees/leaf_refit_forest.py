r"""The leaves of a forest without some instances, in closed form.

Trees of a forest do not follow each other, and their bootstrap counts c are kept, so that without
a set U of instances a leaf with the weight W and the mean :math:`\theta` has the mean

.. math:: \theta^{-U} = \theta + \frac{\sum_{j \in U} c_j (\theta - y_j)}{W - \sum_{j \in U} c_j}.

A tree whose leaf has lost all its instances has nothing to say, and the forest is the mean over
the others; where no tree is left, it is the mean target of what was not removed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from proponent.trees.leaf_refit_removals import Changes, Removals
from proponent.trees.losses import Values
from proponent.trees.view import LeafRows, LeafView

ENTRIES = 2**20  # leaves that removals touch, held at once


@dataclass(frozen=True, eq=False)
class _Touched:
    """Leaves that lose instances: removal and leaf (over all trees), in order of both."""

    removal: NDArray[np.intp]
    leaf: NDArray[np.intp]
    moves: Values  # (K, entries): of the mean; minus the mean where the leaf is emptied
    emptied: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ForestRefits:
    """Refits of a random forest or of extremely randomised trees.

    Parameters
    ----------
    view : LeafView
    """

    view: LeafView

    @property
    def lanes(self) -> int:
        """Removals that are refitted at once."""
        return max(1, ENTRIES // self.view.n_trees)

    @property
    def values(self) -> Values:
        """Leaf values with nothing removed, ``(L,)``."""
        return self.view.values

    def changes(
        self,
        removals: Removals,
        tests: LeafRows | None = None,
        *,
        train: bool = False,
        leaves: bool = False,
    ) -> Changes:
        """Return what removals change in final scores and in leaf values."""
        touched = self._touched(removals)
        return Changes(
            None if tests is None else self._placed(touched, removals, tests),
            self._placed(touched, removals, self.view.train) if train else None,
            self._values(touched, len(removals)) if leaves else None,
        )

    def own(self, removals: Removals) -> Values:
        """Return the change of the final scores of each removed instance, ``(K, R)``."""
        touched, count = self._touched(removals), len(removals)
        moves = np.empty((self.view.outputs, count))
        for k, part in enumerate(touched.moves):
            moves[k] = np.bincount(touched.removal, part, count)
        emptied = np.bincount(touched.removal, touched.emptied, count).astype(np.float64)
        raw = self.view.raw(self.view.train)[:, removals.members]
        return self._mean(moves, emptied, raw, self._left(removals))

    # Leaves over all trees, of which the outputs share the structure: M of them

    @cached_property
    def _first(self) -> NDArray[np.intp]:
        """The first leaf of each tree, ``(T + 1,)``."""
        return self.view.offsets[:: self.view.outputs] // self.view.outputs

    @cached_property
    def _theta(self) -> Values:
        """The means, ``(K, M)``."""
        view = self.view
        parts = [
            view.theta[0, view.tree_span(t)].reshape(view.outputs, -1) for t in range(view.n_trees)
        ]
        return np.concatenate(parts, axis=1)

    @cached_property
    def _weight(self) -> tuple[Values, NDArray[np.intp]]:
        """The weight of each leaf, and how many instances have some, ``(M,)`` each."""
        view, rows = self.view, self.view.train
        weights = np.empty(self._theta.shape[1])
        members = np.empty(len(weights), dtype=np.intp)
        for tree in range(view.n_trees):
            span = slice(self._first[tree], self._first[tree + 1])
            leaf, given = rows.leaf(tree, 0), view.tree_weights(tree)
            given = np.ones(len(rows)) if given is None else given
            weights[span] = np.bincount(leaf, given, span.stop - span.start)
            members[span] = np.bincount(leaf, given > 0, span.stop - span.start)
        return weights, members

    def _touched(self, removals: Removals) -> _Touched:
        view, rows = self.view, self.view.train
        members, lanes = removals.members, removals.lanes
        leaf = rows.leaves[:, 0, members].astype(np.intp) + self._first[:-1, None]
        given = np.ones(leaf.shape)
        for tree in range(view.n_trees):
            weights = view.tree_weights(tree)
            if weights is not None:
                given[tree] = weights[members]
        targets = np.broadcast_to(np.atleast_2d(rows.targets), (view.outputs, len(rows)))
        differences = self._theta[:, leaf] - targets[:, None, members]
        inside = given > 0
        leaves = self._theta.shape[1]
        keys, entry = np.unique((lanes * leaves + leaf)[inside], return_inverse=True)
        entry, given = entry.reshape(-1), given[inside]
        removal, leaf = np.divmod(keys, leaves)
        weights, sizes = self._weight
        emptied = np.bincount(entry, minlength=len(keys)) == sizes[leaf]
        left = weights[leaf] - np.bincount(entry, given, len(keys))
        moves = np.empty((view.outputs, len(keys)))
        for k, difference in enumerate(differences):
            moved = np.bincount(entry, given * difference[inside], len(keys))
            moves[k] = -self._theta[k, leaf]
            np.divide(moved, left, out=moves[k], where=~emptied)
        return _Touched(removal, leaf, moves, emptied)

    def _placed(self, touched: _Touched, removals: Removals, rows: LeafRows) -> Values:
        """Return the changes of final scores, ``(K, m, R)``."""
        trees, m, leaves = self.view.n_trees, len(rows), self._theta.shape[1]
        shape = (leaves, len(removals))
        columns = rows.leaves[:, 0].astype(np.intp) + self._first[:-1, None]
        one_hot = scipy.sparse.csr_array(
            (np.ones(trees * m), columns.T.ravel(), np.arange(m + 1) * trees), shape=(m, leaves)
        )

        def summed(data: Values) -> Values:
            table = scipy.sparse.csr_array((data, (touched.leaf, touched.removal)), shape=shape)
            return np.asarray((one_hot @ table).toarray())

        moves = np.stack([summed(part) for part in touched.moves])
        emptied = summed(touched.emptied.astype(np.float64))
        return self._mean(moves, emptied, self.view.raw(rows)[:, :, None], self._left(removals))

    def _mean(self, moves: Values, emptied: Values, raw: Values, left: Values) -> Values:
        """Return the changes of means over the trees that still say something."""
        trees = self.view.n_trees
        speaking = trees - emptied
        silent = speaking == 0
        change = (moves + emptied * raw) / np.where(silent, 1.0, speaking)
        if not silent.any():
            return change
        # those of the removals, (K, R), beside every test
        prior = left if moves.ndim == 2 else left[:, None, :]
        return np.where(silent, prior - raw, change)

    def _left(self, removals: Removals) -> Values:
        """Return the mean target of what is not removed, ``(K, R)``; 0 where nothing is left."""
        view, count = self.view, len(removals)
        targets = np.broadcast_to(
            np.atleast_2d(view.train.targets), (view.outputs, len(view.train))
        )
        weights = view.weights
        total = weights.sum() - np.bincount(removals.lanes, weights[removals.members], count)
        mean = np.zeros((view.outputs, count))
        for k, target in enumerate(targets):
            gone = np.bincount(removals.lanes, (weights * target)[removals.members], count)
            np.divide(weights @ target - gone, total, out=mean[k], where=total > 0)
        return mean

    def _values(self, touched: _Touched, count: int) -> Values:
        """Return the changes of leaf values, ``(L, R)``."""
        view = self.view
        changed = np.zeros((view.n_leaves, count))
        tree = np.searchsorted(self._first, touched.leaf, side="right") - 1
        within = touched.leaf - self._first[tree]
        for k, moved in enumerate(touched.moves):
            at = view.offsets[tree * view.outputs + k] + within
            changed[at, touched.removal] = moved * view.learning_rates[tree]
        return changed
