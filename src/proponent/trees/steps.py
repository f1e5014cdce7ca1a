"""Leaves that take several steps on their tree, or couple the classes: CatBoost's.

Step s of a leaf is ``theta_s = -(H + lam)^-1 G`` at the scores that the earlier steps have
reached, not yet shrunk by the learning rate; ``v = eta sum_s scale_s theta_s``. With MultiClass
the Hessian of a leaf is the full K x K matrix. A step that does not lower the loss is halved and
counts as one (CatBoost's backtracking). Near convergence the library's own rounding decides
that, so what it decided is found from the leaf values.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from proponent.trees.losses import Values
from proponent.trees.view import LeafView

CLOSE = 1e-8  # of a leaf value to the formula, relative to the tree's largest
UNSURE = 1e-5  # relative change of the loss of which CatBoost may think otherwise
HOPELESS = 3  # trees that no halving explains before the search is given up


@dataclass(frozen=True, eq=False)
class Step:
    """A step of the leaves of one tree, flat over its outputs and leaves."""

    theta: Values
    inverse: Values
    matrices: Values | None  # (leaves, K, K)
    scale: float = 1.0


@dataclass(frozen=True, eq=False)
class Steps:
    """Steps of all leaves, as :class:`~proponent.trees.view.LeafView` describes them."""

    theta: Values
    inverse: Values
    scales: Values
    matrices: Values | None


def refit_steps(view: LeafView, steps: int) -> Steps:
    """Return the steps of all leaves by the formula, along the path of the model's own scores.

    Parameters
    ----------
    view : LeafView
        With ``l2``; its own steps are not looked at.
    steps : int
        How many, or how many attempts.
    """
    outputs = view.outputs
    theta, inverse = np.zeros((2, steps, view.n_leaves))
    scales = np.zeros((steps, view.n_trees))
    coupled = view.loss.coupled and view.estimation == "newton"
    matrices = np.zeros((steps, view.n_leaves // outputs, outputs, outputs)) if coupled else None
    unexplained = 0
    for stage in view.path(view.train):
        for tree in stage.trees:
            span = view.tree_span(tree)
            target = view.values[span] / view.learning_rates[tree]
            search = _Search(view, tree, target)
            found = search.straight(stage.scores, steps)
            if not search.done and steps > 1 and unexplained < HOPELESS:
                search.attempt_from(stage.scores, steps)
                unexplained += not search.done
                found = search.best
            for at, step in enumerate(found):
                theta[at, span], inverse[at, span] = step.theta, step.inverse
                scales[at, tree] = step.scale
                if matrices is not None and step.matrices is not None:
                    matrices[at, span.start // outputs : span.stop // outputs] = step.matrices
    return Steps(theta, inverse, scales, matrices)


class _Search:
    """The attempts of one tree's leaves, compared with the values that they ended at."""

    def __init__(self, view: LeafView, tree: int, target: Values) -> None:
        self._view, self._tree, self._target = view, tree, target
        self._tolerance = CLOSE * float(np.abs(target).max(initial=0.0))
        self._departure = np.inf
        self.best: list[Step] = []

    @property
    def done(self) -> bool:
        """Whether the leaf values are explained."""
        return self._departure <= self._tolerance

    def straight(self, scores: Values, steps: int) -> list[Step]:
        """Return all steps in full."""
        view, tree, taken = self._view, self._tree, []
        for at in range(steps):
            step = leaf_step(view, tree, scores)
            taken.append(step)
            if at + 1 < steps:
                scores = scores + self._added(step)
        self._compare(taken)
        return taken

    def attempt_from(self, scores: Values, steps: int) -> None:
        """Look for the halvings that explain the leaf values."""
        self._explore(scores, self._loss(scores), steps, [])

    def _explore(self, scores: Values, loss: float, left: int, taken: list[Step]) -> None:
        if left == 0:
            self._compare(taken)
            return
        step = leaf_step(self._view, self._tree, scores)
        added = self._added(step)
        for halvings in range(left):
            scale = 0.5**halvings
            moved = scores + scale * added
            reached = self._loss(moved)
            unsure = UNSURE * abs(loss)
            if reached < loss + unsure:
                scaled = Step(step.theta, step.inverse, step.matrices, scale)
                self._explore(moved, reached, left - halvings - 1, [*taken, scaled])
            if self.done or reached < loss - unsure:
                return
        self._compare(taken)  # every attempt that was left failed

    def _compare(self, taken: list[Step]) -> None:
        reached = sum((step.scale * step.theta for step in taken), np.zeros_like(self._target))
        departure = float(np.abs(reached - self._target).max(initial=0.0))
        if departure < self._departure:
            self._departure, self.best = departure, taken

    def _loss(self, scores: Values) -> float:
        risks = self._view.loss.risk(scores, self._view.train.targets)
        weights = self._view.tree_weights(self._tree)
        return float(risks.sum() if weights is None else np.dot(weights, risks))

    def _added(self, step: Step) -> Values:
        view, tree = self._view, self._tree
        block = step.theta.reshape(view.outputs, -1)
        return np.asarray(block.take(view.train.leaf(tree, 0), axis=1))


def leaf_step(view: LeafView, tree: int, scores: Values) -> Step:
    """Return the step that the leaves of a tree take at some scores of the training set.

    Parameters
    ----------
    view : LeafView
        Whose outputs share the structure of a tree.
    tree : int
    scores : ndarray of shape (K, n)
    """
    span, weights, outputs = view.tree_span(tree), view.tree_weights(tree), view.outputs
    found = view.derivatives(view.train, scores)
    g, h = found.gradient, found.hessian
    if weights is not None:
        g, h = weights * g, weights * h
    gradient, hessian = view.leaf_sums(view.train, tree, g, h)
    if not view.loss.coupled or view.estimation == "gradient" or found.probabilities is None:
        denominator = hessian + view.l2[span]
        inverse = np.zeros_like(denominator)
        # a leaf without instances does not move, whatever its L2
        np.divide(1.0, denominator, out=inverse, where=hessian > 0)
        return Step(-gradient * inverse, inverse, None)
    leaves = len(gradient) // outputs
    matrices = _coupled_inverse(view, tree, found.probabilities, hessian.reshape(outputs, leaves))
    theta = -np.einsum("lcd,dl->cl", matrices, gradient.reshape(outputs, leaves))
    return Step(theta.ravel(), np.diagonal(matrices, axis1=1, axis2=2).T.ravel(), matrices)


def _coupled_inverse(view: LeafView, tree: int, p: Values, diagonal: Values) -> Values:
    """Return the inverse K x K matrix of each leaf of a tree, 0 for an empty leaf."""
    outputs, leaves = diagonal.shape
    span, weights = view.tree_span(tree), view.tree_weights(tree)
    leaf = view.train.leaf(tree, 0)
    matrix = np.zeros((leaves, outputs, outputs))
    for c in range(outputs):
        matrix[:, c, c] = diagonal[c]
        weighted = p[c] if weights is None else weights * p[c]
        for d in range(c):
            matrix[:, c, d] = matrix[:, d, c] = -np.bincount(leaf, weighted * p[d], leaves)
    matrix[:, range(outputs), range(outputs)] += view.l2[span].reshape(outputs, leaves).T
    used = diagonal.sum(axis=0) > 0
    inverse = np.zeros_like(matrix)
    inverse[used] = np.linalg.inv(matrix[used])
    return inverse
