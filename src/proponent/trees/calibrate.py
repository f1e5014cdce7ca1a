"""Sums over leaves along the path of the scores, and the learning rate and L2 that explain them.

Leaves obey ``v H = -eta G - lam v - eta alpha sign(v)``, which is linear in ``(eta, lam, eta
alpha)``: least squares over all leaves finds the settings that a model was trained with, even
where its file does not hold them (a reloaded XGBoost model reports the defaults).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from proponent.trees import matching
from proponent.trees.losses import Values
from proponent.trees.view import LeafView

KEPT = 2**23  # numbers kept from the walk through the training set: 64 MB


@dataclass(frozen=True, eq=False)
class LeafSums:
    """Sums over the instances of each leaf, ``(L,)`` each.

    Attributes
    ----------
    gradient : ndarray of shape (L,)
        ``G = sum w g``.
    hessian : ndarray of shape (L,)
        ``H = sum w h``, without L2.
    """

    gradient: Values
    hessian: Values


def leaf_sums(view: LeafView) -> tuple[LeafSums, Values | None]:
    """Return the sums of gradients and Hessians of every leaf at its own scores.

    Returns
    -------
    sums : LeafSums
    kept : ndarray of shape (rounds, K, n) or None
        As :class:`LeafView` describes it.
    """
    sums = LeafSums(np.zeros(view.n_leaves), np.zeros(view.n_leaves))
    shape = (view.n_trees // view.parallel, *view.train.start.shape)
    kept = None
    if view.kind == "boosting" and np.prod(shape) <= KEPT:
        kept = np.empty(shape)
    kernels = matching.compiled()
    if view.simple and kernels is not None:
        _add_compiled(view, sums, kept, kernels)
    else:
        _add(view, sums, kept)
    return sums, kept


def _add(view: LeafView, sums: LeafSums, kept: Values | None) -> None:
    rows = view.train
    ones = np.ones_like(rows.start) if view.estimation == "gradient" else None
    for at, stage in enumerate(view.path(rows)):
        linked = view.loss.link(stage.scores)
        if kept is not None:
            kept[at] = linked
        g = view.loss.gradient_of(linked, rows.targets)
        h = view.loss.hessian_of(linked) if ones is None else ones
        for tree in stage.trees:
            weights = view.tree_weights(tree)
            wg, wh = (g, h) if weights is None else (weights * g, weights * h)
            span = view.tree_span(tree)
            view.leaf_sums(rows, tree, wg, wh, out=(sums.gradient[span], sums.hessian[span]))


def _add_compiled(view: LeafView, sums: LeafSums, kept: Values | None, kernels: ModuleType) -> None:
    rows, scores, ones = view.train, view.train.start.copy(), np.ones(len(view.train))
    for tree in range(view.n_trees):
        linked = view.loss.link(scores)
        if kept is not None:
            kept[tree] = linked
        weights, span = view.tree_weights(tree), view.tree_span(tree)
        kernels.step(
            *(rows.leaves[tree, 0], linked[0], rows.targets, ones if weights is None else weights),
            *(view.curved, view.values[span], sums.gradient[span], sums.hessian[span], scores[0]),
        )


def predicted(
    sums: LeafSums, learning_rates: Values, l2: Values, l1: float = 0.0
) -> tuple[Values, Values]:
    """Return the leaf values of the formula and the inverse denominators, ``(L,)`` each.

    Parameters
    ----------
    sums : LeafSums
    learning_rates : ndarray of shape (L,)
        Of each leaf's tree.
    l2 : ndarray of shape (L,)
    l1 : float
    """
    denominator = sums.hessian + l2
    inverse = np.zeros_like(denominator)
    moving = denominator > 0
    if l1:
        moving &= np.abs(sums.gradient) > l1
    np.divide(1.0, denominator, out=inverse, where=moving)
    numerator = sums.gradient
    if l1:
        numerator = np.sign(numerator) * np.maximum(np.abs(numerator) - l1, 0.0)
    return -learning_rates * numerator * inverse, inverse


@dataclass(frozen=True)
class Settings:
    """What explains the leaves: a learning rate, an L2 and an L1 for all of them."""

    learning_rate: float
    l2: float
    l1: float


def calibrate(view: LeafView, sums: LeafSums, *, with_l1: bool) -> Settings | None:
    """Return the settings that explain the leaf values best, or None where they are not defined.

    Parameters
    ----------
    view : LeafView
    sums : LeafSums
    with_l1 : bool
        Look for a soft threshold too.
    """
    v = view.values
    used = (np.abs(v) > 1e-6 * np.abs(v).max(initial=0.0)) & (sums.hessian > 0)
    if np.count_nonzero(used) < 2 + with_l1:
        return None
    v, gradient, hessian = v[used], sums.gradient[used], sums.hessian[used]
    columns = [-gradient, -v] + ([-np.sign(v)] if with_l1 else [])
    # Rows are divided by the denominator, so that each weighs as its leaf value does.
    design = np.stack(columns, axis=1) / hessian[:, None]
    scale = np.abs(design).max(axis=0)
    if not (scale > 0).all():
        return None
    found, _, rank, _ = np.linalg.lstsq(design / scale, v, rcond=None)
    found = found / scale
    if rank < len(found) or found[0] <= 0:
        return None
    return Settings(
        learning_rate=float(found[0]),
        l2=float(max(found[1], 0.0)),
        l1=float(max(found[2] / found[0], 0.0)) if with_l1 else 0.0,
    )


def rates_by_tree(view: LeafView, sums: LeafSums) -> Values | None:
    """Return the learning rate of each tree that explains its leaves best, ``(T,)``.

    For a learning rate that was scheduled; L2 and L1 are taken as they are. None where a tree has
    nothing to tell it from.
    """
    gradient = np.sign(sums.gradient) * np.maximum(np.abs(sums.gradient) - view.l1, 0.0)
    v, denominator = view.values, sums.hessian + view.l2
    starts = view.offsets[: -1 : view.outputs]
    # sum over leaves of v (-G / (H + lam)) over that of (G / (H + lam))^2
    step = np.zeros_like(v)
    np.divide(-gradient, denominator, out=step, where=denominator > 0)
    numerator = np.add.reduceat(v * step, starts)
    squares = np.add.reduceat(step * step, starts)
    if not ((squares > 0) & (numerator > 0)).all():
        return None
    return np.asarray(numerator / squares)
