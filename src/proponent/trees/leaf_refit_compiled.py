"""Refits of a boosted ensemble with one output, compiled: the numbers are those of numpy's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from proponent.trees.leaf_refit_boosting import fixed_leaves, newton_step
from proponent.trees.leaf_refit_removals import Changes, Removals
from proponent.trees.losses import Values
from proponent.trees.view import LeafRows, LeafView

NUMBERS = 2**24  # of trees and training instances that are gone through in a call: 128 MB


@dataclass(frozen=True, eq=False)
class _Base:
    """The ensemble fitted again with nothing removed."""

    gradient: Values
    hessian: Values
    values: Values
    final: Values
    linked: Values | None  # (T, n) where it is small


@dataclass(frozen=True, eq=False)
class CompiledRefits:
    """Refits of an ensemble with one output, one tree a round and one step a leaf.

    Parameters
    ----------
    view : LeafView
    kernels : module
        The compiled loops.
    """

    view: LeafView
    kernels: ModuleType

    @staticmethod
    def takes(view: LeafView) -> bool:
        """Whether an ensemble is of this kind."""
        return view.simple and view.loss.name in ("squared", "logistic")

    @property
    def lanes(self) -> int:
        """Removals that are refitted at once."""
        return int(self.kernels.LANES)

    @property
    def values(self) -> Values:
        """Leaf values with nothing removed, ``(L,)``."""
        return self._base.values

    @cached_property
    def fixed(self) -> NDArray[np.bool_]:
        """Leaves that were not fitted and stay as they are, ``(L,)``."""
        return fixed_leaves(self.view)

    @property
    def _trees(self) -> int:
        return max(1, NUMBERS // len(self.view.train))

    @cached_property
    def _base(self) -> _Base:
        view, rows, n = self.view, self.view.train, len(self.view.train)
        gradient, hessian, values = np.zeros((3, view.n_leaves))
        kept = np.empty((view.n_trees, n)) if view.n_trees <= self._trees else None
        scores, ones = rows.start.copy(), np.ones((1, n))
        for tree in range(view.n_trees):
            linked = view.loss.link(scores)
            if kept is not None:
                kept[tree] = linked[0]
            g = view.loss.gradient_of(linked, rows.targets)
            h = view.loss.hessian_of(linked) if view.estimation == "newton" else ones
            weights = view.tree_weights(tree)
            if weights is not None:
                g, h = g * weights, h * weights
            span = view.tree_span(tree)
            gradient[span], hessian[span] = view.leaf_sums(rows, tree, g, h)
            step = newton_step(gradient[span], hessian[span], view.l2[span], view.l1)
            value = view.learning_rates[tree] * step
            values[span] = np.where(self.fixed[span], view.values[span], value)
            scores += view.tree_values(rows, tree, values)
        return _Base(gradient, hessian, values, scores, kept)

    def changes(
        self,
        removals: Removals,
        tests: LeafRows | None = None,
        *,
        train: bool = False,
        leaves: bool = False,
    ) -> Changes:
        """Return what removals change in final scores and in leaf values."""
        parts = self._in_lanes(removals)
        moved = [self._run(*part, tests, train=train, leaves=leaves) for part in parts]
        raised = np.concatenate([part[0] for part in moved], axis=1)[None] if moved else None
        changed = np.concatenate([part[3] for part in moved], axis=1) if leaves else None
        everywhere = None
        if train:
            everywhere = np.concatenate([part[1] for part in moved], axis=1)[None]
            own = np.concatenate([part[2] for part in moved])
            everywhere[0, removals.members, removals.lanes] = own
        return Changes(raised if tests is not None else None, everywhere, changed)

    def own(self, removals: Removals) -> Values:
        """Return the change of the final scores of each removed instance, ``(1, R)``."""
        parts = self._in_lanes(removals)
        return np.concatenate([self._run(*part, None)[2] for part in parts])[None]

    def _in_lanes(self, removals: Removals) -> list[tuple[Removals, int]]:
        size, count = self.lanes, len(removals)
        starts = range(0, count, size)
        stops = [min(start + size, count) for start in starts]
        return [
            (removals.part(start, stop), stop - start)
            for start, stop in zip(starts, stops, strict=True)
        ]

    def _run(
        self,
        removals: Removals,
        count: int,
        tests: LeafRows | None,
        *,
        train: bool = False,
        leaves: bool = False,
    ) -> tuple[Values, Values, Values, Values]:
        """Return the changes of tests, of training instances, of the removed, and of leaves."""
        view, base, lanes, n = self.view, self._base, self.lanes, len(self.view.train)
        pointers = np.concatenate(
            [removals.pointers, np.full(lanes - count, removals.pointers[-1])]
        )
        m = 0 if tests is None else len(tests)
        of_tests = np.empty((view.n_trees, 0), np.uint8) if tests is None else tests.leaves[:, 0]
        moved, raised = np.zeros((n, lanes)), np.zeros((m, lanes))
        own = np.zeros(len(removals.members))
        pending = np.zeros((int(np.diff(view.offsets).max()), lanes))
        reach, last = np.zeros(lanes), np.zeros(n, np.int64)
        changed = np.zeros((view.n_leaves if leaves else 0, lanes))
        curved = view.curved
        scores = view.train.start.copy()
        for start in range(0, view.n_trees, self._trees):
            stop = min(start + self._trees, view.n_trees)
            linked = base.linked
            if linked is None:
                linked = np.empty((stop - start, n))
                for tree in range(start, stop):
                    linked[tree - start] = view.loss.link(scores)[0]
                    scores += view.tree_values(view.train, tree, base.values)
            span = slice(int(view.offsets[start]), int(view.offsets[stop]))
            self.kernels.refit(
                *(view.train.leaves[start:stop, 0], linked, view.train.targets),
                view.weight_rows(range(start, stop)),
                *(base.gradient[span], base.hessian[span]),
                view.offsets[start : stop + 1] - view.offsets[start],
                *(base.values[span], view.l2[span], self.fixed[span]),
                *(float(view.l1), view.learning_rates[start:stop], curved),
                *(removals.members, pointers, of_tests[start:stop]),
                *(moved, reach, own, pending, last, changed[span] if leaves else changed, raised),
            )
        if train:
            if curved and reach[0] >= 0:
                moved = np.log1p(moved)
            moved += pending[last]
        return raised[:, :count], moved[:, :count], own, changed[:, :count]
