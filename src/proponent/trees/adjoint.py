r"""The exact first-order effect of removing instances, by going backwards through the trees.

How the removal of instance i moves a leaf depends, through the gradients of all instances in it,
on how it has moved every leaf before. The recursion is linear in the moves, so it is run in
reverse for the tests instead of forwards for every training instance: with :math:`A` the adjoint
of the training instances' scores, from the last tree to the first

.. math::
    Z_l = -\frac{\eta}{H_l + \lambda}\Bigl(\sum_{j \in l} A_j + 1[l_{te} = l] L'_{te}\Bigr),
    \qquad I_i \mathrel{-}= w_i (g_i + \theta h_i) Z_{l(i)},
    \qquad A_j \mathrel{+}= w_j (1 + \theta s_j) \nabla^2\ell_j Z_{l(j)},

where :math:`s_j = k_j / h_j` is how the library's Hessian follows its gradient. O(n m T) time and
O(n m) memory for n training and m test instances, where going forwards takes O(n^2 T).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from proponent.trees import matching
from proponent.trees.equations import equations, takes
from proponent.trees.losses import Derivatives, Values
from proponent.trees.view import LeafRows, LeafView

COLUMNS = 128  # tests that are pulled back at once
NUMBERS = 2**24  # own and pull factors held at once, and moves of leaves: 128 MB each


def pulled_back(
    view: LeafView, rows: range, tests: LeafRows, final: Values, *, joint: bool = False
) -> Values:
    """Return what removing training instances does to functions of the final scores.

    Parameters
    ----------
    view : LeafView
    rows : range
        The training instances that are asked for.
    tests : LeafRows
    final : ndarray of shape (K, m)
        Derivatives of the functions in the tests' final scores.
    joint : bool
        Return the sum over the tests.

    Returns
    -------
    ndarray of shape (m, len(rows)), or (1, len(rows)) where ``joint``
    """
    m = len(tests)
    column = np.zeros(m, dtype=np.intp) if joint else np.arange(m)
    if view.simple and matching.compiled() is not None:
        return _compiled(view, rows, tests, final[0], column)
    n, columns = len(view.train), 1 if joint else m
    size = max(1, NUMBERS // (n * view.outputs))
    if columns <= size:
        return _plain(view, rows, tests, final, column, columns)
    blocks = (slice(start, start + size) for start in range(0, m, size))
    return np.concatenate(
        [
            _plain(view, rows, tests.select(block), final[:, block], column[: len(final[0, block])],
                   len(final[0, block]))
            for block in blocks
        ]
    )  # fmt: skip


def _compiled(
    view: LeafView, rows: range, tests: LeafRows, final: Values, column: NDArray[np.intp]
) -> Values:
    kernels = matching.compiled()
    if kernels is None:
        raise ImportError("numba is not installed")
    train, n, trees = view.train, len(view.train), view.n_trees
    leaves, test = train.leaves[:, 0], tests.leaves[:, 0]
    rates = np.repeat(view.learning_rates, np.diff(view.offsets))
    scale = -rates * view.inverse[0]
    total = int(column.max()) + 1
    cuts = [slice(start, min(start + COLUMNS, total)) for start in range(0, total, COLUMNS)]
    members = [np.flatnonzero((column >= cut.start) & (column < cut.stop)) for cut in cuts]
    adjoints = [np.zeros((n, cut.stop - cut.start)) for cut in cuts]
    scores = [np.zeros((len(rows), cut.stop - cut.start)) for cut in cuts]
    held = max(1, min(NUMBERS // n, NUMBERS * trees // (view.n_leaves * min(COLUMNS, total))))
    for block, own, pull in _factors(view, held):
        offsets = view.offsets[block.start : block.stop + 1]
        part = scale[offsets[0] : offsets[-1]]
        for cut, which, adjoint, score in zip(cuts, members, adjoints, scores, strict=True):
            kernels.pull_back(
                *(leaves[block], own, pull, part, offsets - offsets[0]),
                *(test[block, which], final[which], column[which] - cut.start),
                *(adjoint, rows.start, score),
            )
    del adjoints
    found = np.empty((total, len(rows)))
    for cut, score in zip(cuts, scores, strict=True):
        found[cut] = score.T
    return found


def _factors(view: LeafView, held: int) -> Iterator[tuple[slice, Values, Values]]:
    """Walk back through the trees of one output, some at a time.

    Yields
    ------
    slice
        The trees.
    ndarray of shape (trees, n)
        ``w (g + theta h)``.
    ndarray of shape (trees, n)
        ``w (1 + theta s) l''``.
    """
    path = view.train_path(reverse=True)
    ones = np.ones(view.n_leaves)
    for stop in range(view.n_trees, 0, -held):
        trees = range(max(0, stop - held), stop)
        if takes(view):
            own, pull = equations(view, trees, np.ones(len(trees)), ones, pull=True)
        else:
            own, pull = np.empty((2, len(trees), len(view.train)))
            for tree, (_, found) in zip(reversed(trees), path, strict=False):
                theta = view.tree_values(view.train, tree, view.theta[0])
                own[tree - trees.start] = _own(view, found, theta)
                pull[tree - trees.start] = _bend(view, found, theta, np.ones_like(theta))
            weights = view.weight_rows(trees)
            own *= weights
            pull *= weights
        yield slice(trees.start, trees.stop), own, pull


def _own(view: LeafView, found: Derivatives, theta: Values) -> Values:
    """Return what an instance adds to the equation of its leaf: ``g + h theta``, ``(K, n)``."""
    if view.coupled_inverse is not None:
        return np.asarray(found.gradient + found.curve(theta))
    return found.gradient + theta * found.hessian


def _bend(view: LeafView, found: Derivatives, theta: Values, moves: Values) -> Values:
    """Return the adjoint of how that changes with the scores, for moves ``(K, n, ...)``."""
    if view.coupled_inverse is not None:
        return np.asarray(found.curve(moves) + found.bend(theta, moves))
    slope = 1.0 + theta * found.slope
    return found.curve(slope.reshape(slope.shape + (1,) * (moves.ndim - 2)) * moves)


def _plain(
    view: LeafView,
    rows: range,
    tests: LeafRows,
    final: Values,
    column: NDArray[np.intp],
    columns: int,
) -> Values:
    """Return the same for any ensemble, by sparse products."""
    train, n, outputs = view.train, len(view.train), view.outputs
    adjoint = np.zeros((outputs, n, columns))
    scores = np.zeros((len(rows), columns))
    asked = slice(rows.start, rows.stop)
    for stage in view.path(train, reverse=True):
        change = np.zeros_like(adjoint)
        for tree in stage.trees:
            weights = view.tree_weights(tree)
            placed = [_one_hot(view, train, tree, k) for k in range(outputs)]
            base = []
            for k in range(outputs):
                sums = placed[k] @ adjoint[k]
                np.add.at(sums, (tests.leaf(tree, k), column), final[k])
                base.append(view.learning_rates[tree] * sums)
            pulled = np.zeros_like(adjoint)
            for step in reversed(range(view.steps)):
                at = view.step_scores(train, tree, step, stage.scores)
                found = view.derivatives(train, at)
                theta = view.tree_values(train, tree, view.theta[step])
                # Later steps of the leaf start from where this one has led.
                sums = [base[k] + placed[k] @ pulled[k] for k in range(outputs)]
                moves = np.stack(
                    [
                        solved.take(train.leaf(tree, k), axis=0)
                        for k, solved in enumerate(_solved(view, tree, step, sums))
                    ]
                )
                own = _own(view, found, theta)
                if weights is not None:
                    own = own * weights
                scores -= np.einsum("ki,kic->ic", own[:, asked], moves[:, asked])
                if weights is not None:
                    moves *= weights[:, None]
                pulled += _bend(view, found, theta, moves)
            change += pulled
        adjoint += change
    return np.ascontiguousarray(scores.T)


def _one_hot(view: LeafView, train: LeafRows, tree: int, output: int) -> scipy.sparse.csr_array:
    """Return which training instances are in each leaf, ``(leaves, n)``."""
    leaf = train.leaf(tree, output)
    span = view.span(tree, output)
    counts = np.bincount(leaf, minlength=span.stop - span.start)
    pointers = np.concatenate([[0], np.cumsum(counts)])
    order = np.argsort(leaf, kind="stable")
    return scipy.sparse.csr_array(
        (np.ones(len(leaf)), order, pointers), shape=(len(counts), len(leaf))
    )


def _solved(view: LeafView, tree: int, step: int, sums: list[Values]) -> list[Values]:
    """Return ``-(H + lam)^-1`` times the adjoints of a step of a tree's leaves, per output."""
    if view.coupled_inverse is None:
        return [
            -view.inverse[step, view.span(tree, k)][:, None] * part for k, part in enumerate(sums)
        ]
    span = view.tree_span(tree)
    matrices = view.coupled_inverse[step, span.start // view.outputs : span.stop // view.outputs]
    return list(-np.einsum("lkd,klc->dlc", matrices, np.stack(sums)))
