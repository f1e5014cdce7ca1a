r"""Leaf influence with the moves of some training instances alone followed through the trees.

The variants of Sharchilev et al. let the removal of instance i move the scores of i alone
(single point), or of i and of the instances in those k leaves of each tree whose scores have
moved most so far (top-k leaves); all others are held where they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse

from proponent.trees.losses import Derivatives, Values
from proponent.trees.view import LeafRows, LeafView

NUMBERS = 2**23  # moves held at once: 64 MB


def single_point_moves(view: LeafView, rows: range) -> Iterator[tuple[int, Values]]:
    """Walk through the trees with what removing each instance moves its own leaf by.

    Parameters
    ----------
    view : LeafView
    rows : range
        Positions in the training set.

    Yields
    ------
    int, ndarray of shape (K, len(rows))
        The tree, and the moves of the leaf values.
    """
    some = view.train.select(slice(rows.start, rows.stop))
    moved = np.zeros_like(some.start)
    for stage in view.path(some):
        total = np.zeros_like(moved)
        for tree in stage.trees:
            inside = np.zeros_like(moved)
            for step in range(view.steps):
                at = view.step_scores(some, tree, step, stage.scores)
                found = view.derivatives(some, at)
                theta = view.tree_values(some, tree, view.theta[step])
                equation = _equation(view, found, theta, moved + inside)
                weights = view.tree_weights(tree)
                if weights is not None:
                    equation = equation * weights[rows.start : rows.stop]
                inside = inside + _solved(view, some, tree, step, equation)
            inside = inside * view.learning_rates[tree]
            yield tree, inside
            total += inside
        moved += total


def _equation(view: LeafView, found: Derivatives, theta: Values, moved: Values) -> Values:
    """Return what leaves the equation of an instance's leaf with it, ``(K, n)``."""
    if view.coupled_inverse is not None:
        stays = found.curve(moved) + found.bend(theta, moved)
        return np.asarray(found.gradient + found.curve(theta) - stays)
    stays = (1.0 + theta * found.slope) * found.curve(moved)
    return np.asarray(found.gradient + theta * found.hessian - stays)


def _solved(view: LeafView, some: LeafRows, tree: int, step: int, equation: Values) -> Values:
    if view.coupled_inverse is None:
        return np.asarray(equation * view.tree_values(some, tree, view.inverse[step]))
    first = view.tree_span(tree).start // view.outputs
    matrices = view.coupled_inverse[step, first + some.leaf(tree, 0)]
    return np.asarray(np.einsum("icd,di->ci", matrices, equation))


def top_leaves_scores(
    view: LeafView, rows: range, tests: LeafRows, final: Values, leaves: int
) -> Values:
    """Return the scores where the k leaves that have moved most are followed, ``(m, len(rows))``.

    O(n T) for each training instance, as nothing here is linear. For ensembles with one output
    whose leaves take one step.
    """
    n = len(view.train)
    scores = np.zeros((len(tests), len(rows)))
    size = max(1, NUMBERS // n)
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        scores[:, start : start + len(part)] = _top_leaves(view, part, tests, final[0], leaves)
    return scores


def _top_leaves(view: LeafView, part: range, tests: LeafRows, final: Values, leaves: int) -> Values:
    train, n, columns = view.train, len(view.train), np.arange(len(part))
    own = np.asarray(part)
    moved = np.zeros((n, len(part)))
    scores = np.zeros((len(tests), len(part)))
    for (tree,), found in view.train_path():
        leaf, span = train.leaf(tree, 0), view.span(tree, 0)
        weights = view.tree_weights(tree)
        theta = view.tree_values(train, tree, view.theta[0])
        pull = (1.0 + theta * found.slope) * found.curve(np.ones_like(theta))
        leaves_with = found.gradient + theta * found.hessian
        if weights is not None:
            pull, leaves_with = pull * weights, leaves_with * weights
        shape = (span.stop - span.start, n)
        placed = scipy.sparse.csr_array((np.ones(n), (leaf, np.arange(n))), shape=shape)
        sizes = placed @ abs(moved)
        chosen = np.zeros(sizes.shape, dtype=bool)
        strongest = np.argsort(-sizes, axis=0, kind="stable")[:leaves]
        np.put_along_axis(chosen, strongest, True, axis=0)
        pulled = pull[0, :, None] * moved
        sums = np.where(chosen, placed @ pulled, 0.0)
        in_own = leaf[own], columns
        # A leaf that is not followed moves by its own instance alone.
        sums[in_own] += np.where(chosen[in_own], 0.0, pulled[own, columns])
        sums[in_own] -= leaves_with[0, own]
        change = -view.learning_rates[tree] * view.inverse[0, span, None] * sums
        scores += final[:, None] * change[tests.leaf(tree, 0)]
        alone = moved[own, columns] + change[in_own]
        moved += np.where(chosen, change, 0.0)[leaf]
        moved[own, columns] = alone
    return scores
