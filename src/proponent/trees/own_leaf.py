r"""How an instance moves the value of the leaf that it is in, while all else stays.

Without instance i, of weight :math:`w_i`, a leaf :math:`\theta = -G / (H + \lambda)` moves by

.. math:: m_i = \frac{w_i (g_i + \theta h_i)}{H + \lambda}

to first order. A leaf that takes several steps on its tree moves at each by this and by what its
instances were moved by the steps before; where classes are coupled the division is a solution
with the leaf's matrix, and :math:`h_i \theta` the instance's own Hessian times the vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from proponent.trees.equations import equations, takes
from proponent.trees.losses import Derivatives, Values
from proponent.trees.view import LeafRows, LeafView

Step = Literal["theta", "value"]


@dataclass(frozen=True, eq=False)
class OwnMoves:
    r"""How some training instances move the leaves that they are in, round by round.

    Parameters
    ----------
    view : LeafView
    rows : range
        Positions in the training set.
    step : "theta" or "value"
        Whether :math:`\theta` stands in the formula, or the shrunk value :math:`\eta\theta`, as in
        the published code of BoostIn.
    edit : ndarray of shape (K, n), optional
        How much larger the gradient of each training instance is than with another label: the
        moves are then those of giving it that label, whose Hessian is the same.
    """

    view: LeafView
    rows: range
    step: Step = "theta"
    edit: Values | None = None

    @property
    def train(self) -> LeafRows:
        """The training instances at ``rows``."""
        if len(self.rows) == len(self.view.train):
            return self.view.train
        return self.view.train.select(slice(self.rows.start, self.rows.stop))

    def walk(self, at_once: int = 1) -> Iterator[tuple[range, Values, Values]]:
        r"""Walk through the trees.

        Parameters
        ----------
        at_once : int
            Trees that may be gone through together.

        Yields
        ------
        range
            Some trees: those of whole rounds.
        ndarray of shape (trees, K, len(rows))
            :math:`m_i` in each of them.
        ndarray of shape (trees, K, len(rows))
            The gradients before each.
        """
        view = self.view
        if takes(view) and self.edit is None and self.train is view.train:
            for first in range(0, view.n_trees, at_once):
                yield self._together(range(first, min(first + at_once, view.n_trees)))
            return
        for trees, moves, gradient in self._by_round():
            yield trees, moves, np.broadcast_to(gradient, moves.shape)

    def _together(self, trees: range) -> tuple[range, Values, Values]:
        view = self.view
        which = slice(trees.start, trees.stop)
        if view.kept is None:
            raise RuntimeError("the walk through the training set was not kept")
        rates = view.learning_rates[which] if self.step == "value" else np.ones(len(trees))
        moves, _ = equations(view, trees, rates, view.inverse[0])
        gradients = view.loss.gradient_of(view.kept[which, 0], view.train.targets)
        return trees, moves[:, None], gradients[:, None]

    def _by_round(self) -> Iterator[tuple[range, Values, Values]]:
        """Walk through the rounds; the gradients are ``(K, len(rows))``."""
        view, rows, some = self.view, self.rows, self.train
        if view.steps > 1:
            # What a step moves the next one by takes all instances of a leaf.
            for stage in view.path(view.train):
                gradients = view.derivatives(view.train, stage.scores).gradient
                moves = np.stack([self._in_steps(tree, stage.scores) for tree in stage.trees])
                wanted = slice(rows.start, rows.stop)
                yield stage.trees, moves[:, :, wanted], gradients[:, wanted]
            return
        if some is view.train:
            path = view.train_path()
        else:
            path = ((s.trees, view.derivatives(some, s.scores)) for s in view.path(some))
        edit = None if self.edit is None else self.edit[:, rows.start : rows.stop]
        for trees, found in path:
            moves = np.empty((len(trees), *found.gradient.shape))
            for tree, move in zip(trees, moves, strict=True):
                weights = view.tree_weights(tree)
                move[:] = self._in_one_step(some, tree, found, edit)
                if weights is not None:
                    move *= weights[rows.start : rows.stop]
            yield trees, moves, found.gradient

    def _in_one_step(
        self, some: LeafRows, tree: int, found: Derivatives, edit: Values | None
    ) -> Values:
        view = self.view
        own = edit
        if own is None:
            own = view.tree_values(some, tree, view.theta[0])
            if self.step == "value":
                own *= view.learning_rates[tree]
            own = own * found.hessian if view.coupled_inverse is None else found.curve(own)
            own += found.gradient
        if view.coupled_inverse is None:
            return np.asarray(own * view.tree_values(some, tree, view.inverse[0]))
        first = view.tree_span(tree).start // view.outputs
        matrices = view.coupled_inverse[0, first + some.leaf(tree, 0)]
        return np.asarray(np.einsum("icd,di->ci", matrices, own))

    def _in_steps(self, tree: int, scores: Values) -> Values:
        view, rows = self.view, self.view.train
        span, weights = view.tree_span(tree), view.tree_weights(tree)
        moved = np.zeros_like(scores)
        for step in range(view.steps):
            found = view.derivatives(rows, view.step_scores(rows, tree, step, scores))
            theta = view.tree_values(rows, tree, view.theta[step])
            if self.step == "value":
                theta *= view.learning_rates[tree]
            own = self.edit if self.edit is not None else found.gradient + theta * found.hessian
            bend = found.hessian * (1.0 + theta * found.slope)
            if weights is not None:
                own, bend = own * weights, bend * weights
            flat = np.zeros(view.n_leaves)
            (flat[span],) = view.leaf_sums(rows, tree, bend)
            own = own - view.tree_values(rows, tree, flat) * moved
            moved = moved + own * view.tree_values(rows, tree, view.inverse[step])
        return moved
