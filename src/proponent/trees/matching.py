"""Sums over the trees in which a training and a test instance share a leaf.

``S[e, i] = sum_t left[t, i] right[t, e] 1[leaf_t(i) = leaf_t(e)]``: what BoostIn and the tree
kernels are made of. A sparse product over (instance, leaf), never a comparison of all pairs.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from proponent.trees.losses import Values


@cache
def compiled() -> ModuleType | None:
    """Return the compiled loops; None where numba is not installed."""
    try:
        from proponent.trees import kernels
    except ImportError:
        return None
    return kernels


def add_matching(
    scores: Values,
    train: NDArray[Any],
    left: Values,
    test: NDArray[Any],
    right: Values,
    counts: NDArray[np.intp],
) -> None:
    """Add to ``scores`` the sum over trees in which instances share a leaf.

    Parameters
    ----------
    scores : ndarray of shape (m, n)
        Added to in place.
    train, test : unsigned integer arrays of shapes (trees, n) and (trees, m)
        The leaf of each instance, counted from 0 in each tree.
    left, right : ndarray of shapes (trees, n) and (trees, m)
        The factors of each training and each test instance.
    counts : ndarray of shape (trees,)
        Number of leaves of each tree.
    """
    kernels = compiled()
    if kernels is not None:
        kernels.add_matching(train, left, test, right, counts, scores)
        return
    first = np.concatenate([[0], np.cumsum(counts)[:-1]])[:, None]
    n, m = scores.shape[1], scores.shape[0]
    shape = int(counts.sum())
    one = scipy.sparse.csr_array(
        (left.T.ravel(), (train + first).T.ravel(), np.arange(n + 1) * len(counts)),
        shape=(n, shape),
    )
    other = np.zeros((shape, m))
    other[(test + first).T.ravel(), np.repeat(np.arange(m), len(counts))] = right.T.ravel()
    scores += (one @ other).T


def matching_joint(
    train: NDArray[Any],
    left: Values,
    test: NDArray[Any],
    right: Values,
    counts: NDArray[np.intp],
) -> Values:
    """Return the same, summed over the test instances, ``(n,)``: O((n + m) trees)."""
    total = np.zeros(train.shape[1])
    for tree, leaves in enumerate(counts):
        sums = np.bincount(test[tree], right[tree], leaves)
        total += left[tree] * sums.take(train[tree].astype(np.intp))
    return total
