"""What instances add to the equations of their leaves, compiled for many trees at once."""

from __future__ import annotations

import numpy as np

from proponent.trees import matching
from proponent.trees.losses import Values
from proponent.trees.view import LeafView


def takes(view: LeafView) -> bool:
    """Whether the equations of an ensemble are compiled.

    It has one output, one tree a round and one step a leaf, its walk through the training set was
    kept, and numba is installed.
    """
    return view.simple and view.kept is not None and matching.compiled() is not None


def equations(
    view: LeafView, trees: range, factors: Values, scale: Values, *, pull: bool = False
) -> tuple[Values, Values]:
    """Return what each training instance adds to the equation of its leaf in some trees.

    Parameters
    ----------
    view : LeafView
        One that :func:`takes` names.
    trees : range
        B of them.
    factors : ndarray of shape (B,)
        What leaf steps are multiplied by.
    scale : ndarray of shape (L,)
        What the results are multiplied by.
    pull : bool
        Whether the second result is asked for.

    Returns
    -------
    ndarray of shape (B, n)
        ``scale w (g + factor theta h)``.
    ndarray of shape (B, n), or (0, n) where it is not asked for
        ``w (1 + theta s) l''``: how the equation changes with the instance's score.
    """
    kernels = matching.compiled()
    if kernels is None or view.kept is None:
        raise RuntimeError("this view's equations are not compiled")
    n, which = len(view.train), slice(trees.start, trees.stop)
    own, pulled = np.empty((len(trees), n)), np.empty((len(trees) if pull else 0, n))
    offsets = view.offsets[trees.start : trees.stop + 1]
    leaves = slice(offsets[0], offsets[-1])
    kernels.equations(
        *(view.train.leaves[which, 0], offsets - offsets[0], view.kept[which, 0]),
        *(view.train.targets, view.weight_rows(trees), view.curved, view.theta[0, leaves], factors),
        *(scale[leaves], own, pulled),
    )
    return own, pulled
