r"""Tree kernels: how alike two instances are in what an ensemble makes of them.

An instance is :math:`\phi(x)`, with one number for the leaf it falls into in each tree (and
output) and 0 for all other leaves, so that
:math:`k(x, x') = \langle\phi(x), \phi(x')\rangle = \sum_t \phi_l^2 \, 1[l_t(x) = l_t(x') = l]`:
a sum over the trees in which both share a leaf. The features themselves are never formed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError
from proponent.trees.losses import Values
from proponent.trees.matching import add_matching
from proponent.trees.method import leaf_sizes
from proponent.trees.view import LeafRows, LeafView

Kernel = Literal["lpw", "lp", "lo", "low", "to"]
ON_PATHS = ("fp", "fpw", "fo", "fow")  # with features of all nodes on the path

NUMBERS = 2**23  # features held at once: 64 MB


@cache
def leaf_loops() -> ModuleType | None:
    """Return the compiled loops; None where numba is not installed."""
    try:
        from proponent.trees import tree_kernels_loops
    except ImportError:
        return None
    return tree_kernels_loops


@dataclass(frozen=True, eq=False)
class TreeKernel:
    """The features of an ensemble's leaves.

    Attributes
    ----------
    name : str
    features : ndarray of shape (L,)
        What stands in the features for each leaf, tree after tree.
    first : ndarray of shape (R + 1,)
        Where the leaves of each of the R trees begin; the trees of several outputs count one
        each, unless they share their structure and all that the kernel looks at.
    of_trees : bool
        Whether the leaves of a tree share a feature, that has the leaf's number for a value: the
        tree's output.
    outputs : int
        Into how many rows the trees of a round are laid out, of the view's K.
    """

    name: str
    features: Values
    first: NDArray[np.intp]
    of_trees: bool
    outputs: int

    @property
    def n_trees(self) -> int:
        """R."""
        return len(self.first) - 1

    @property
    def size(self) -> int:
        """The number of features."""
        return self.n_trees if self.of_trees else len(self.features)

    def leaves(self, rows: LeafRows) -> NDArray[Any]:
        """Return the leaves that count, ``(R, n)``."""
        return rows.leaves[:, : self.outputs].reshape(self.n_trees, len(rows))

    # Linear maps between instances and features

    def predict(self, rows: LeafRows, weights: Values) -> Values:
        """Return ``<W_c, phi(x)>``, ``(C, n)``, for weights of the features, ``(C, size)``."""
        flat = weights * self.features if not self.of_trees else self._repeated(weights)
        return self._gathered(rows, np.ascontiguousarray(flat))

    def combine(self, rows: LeafRows, values: Values) -> Values:
        """Return ``sum_i values[c, i] phi(x_i)``, ``(C, size)``: the adjoint of ``predict``."""
        leaves, sums = self.leaves(rows), np.zeros((len(values), len(self.features)))
        loops = leaf_loops()
        if loops is not None:
            loops.scatter(leaves, self.first, np.ascontiguousarray(values), sums)
        else:
            for tree in range(self.n_trees):
                span = slice(*self.first[tree : tree + 2])
                leaf = leaves[tree].astype(np.intp)
                for of, value in zip(sums, values, strict=True):
                    of[span] = np.bincount(leaf, value, span.stop - span.start)
        sums *= self.features
        return np.asarray(np.add.reduceat(sums, self.first[:-1], axis=1)) if self.of_trees else sums

    def squares(self, rows: LeafRows, weights: Values) -> Values:
        """Return ``sum_i weights[c, i] phi(x_i)^2`` of each feature, ``(C, size)``."""
        squared = TreeKernel(self.name, self.features**2, self.first, self.of_trees, self.outputs)
        return squared.combine(rows, weights)

    def norms(self, rows: LeafRows, power: int = 2) -> Values:
        """Return the sum of ``|phi(x)|^power`` over the features, ``(n,)``."""
        return np.asarray(self._gathered(rows, (np.abs(self.features) ** power)[None])[0])

    def _repeated(self, weights: Values) -> Values:
        return np.asarray(np.repeat(weights, np.diff(self.first), axis=1) * self.features)

    def _gathered(self, rows: LeafRows, flat: Values) -> Values:
        leaves, total = self.leaves(rows), np.zeros((len(flat), len(rows)))
        loops = leaf_loops()
        if loops is not None:
            loops.gather(leaves, self.first, flat, total)
            return total
        for tree in range(self.n_trees):
            block = flat[:, slice(*self.first[tree : tree + 2])]
            total += block.take(leaves[tree].astype(np.intp), axis=1)
        return total

    # Products of instances

    def products(self, rows: LeafRows, others: LeafRows, *, power: int = 2) -> Values:
        """Return ``k(x, x')`` of ``others`` and ``rows``, ``(m, n)``.

        Parameters
        ----------
        rows, others : LeafRows
        power : int
            1 sums ``|phi|`` instead of its square over the leaves that are shared.
        """
        scores = np.zeros((len(others), len(rows)))
        for trees, left, train, test in self.blocks(rows, others):
            if self.of_trees:
                scores += self.of(trees, test).T @ left
                continue
            both = np.abs(left) ** power
            counts = np.diff(self.first[trees.start : trees.stop + 1])
            add_matching(scores, train, both, test, np.ones(test.shape), counts)
        return scores

    def blocks(
        self, rows: LeafRows, others: LeafRows
    ) -> Iterator[tuple[range, Values, NDArray[Any], NDArray[Any]]]:
        """Walk through blocks of trees, few enough to hold the features in all of them.

        Yields
        ------
        range
            The trees.
        ndarray of shape (trees, n)
            The features of ``rows`` in them.
        ndarray of shapes (trees, n) and (trees, m)
            The leaves of ``rows`` and of ``others``.
        """
        train, test = self.leaves(rows), self.leaves(others)
        held = max(1, NUMBERS // max(1, len(rows) + len(others)))
        for start in range(0, self.n_trees, held):
            trees = range(start, min(start + held, self.n_trees))
            cut = slice(trees.start, trees.stop)
            yield trees, self.of(trees, train[cut]), train[cut], test[cut]

    def of(self, trees: range, leaves: NDArray[Any]) -> Values:
        """Return the features of some leaves in some trees, in the shape of ``leaves``."""
        found = np.empty(leaves.shape)
        for tree, leaf, row in zip(trees, leaves, found, strict=True):
            self.features[self.first[tree] : self.first[tree + 1]].take(leaf, out=row)
        return found


def tree_kernel(view: LeafView, name: str) -> TreeKernel:
    r"""Return a tree kernel of an ensemble.

    Parameters
    ----------
    view : LeafView
    name : str
        What a leaf has for a feature: "lp" (leaf path) 1; "lpw" (weighted leaf path) 1 /
        the number of its training instances; "lo" (leaf output) its value; "low" its value / the
        number. "to" has an output of each tree for features, so that other leaves count too. A
        leaf without training instances has 0 where they are divided by.

    Raises
    ------
    InvalidInputError
        If there is no such kernel, or it needs more than leaves.
    """
    if name in ON_PATHS:
        raise InvalidInputError(
            f"kernel={name!r} looks at every node on the path to a leaf, and tree ensembles are "
            f"read as leaves alone, for which all libraries have a call. The kernels of leaves "
            f"are {', '.join(map(repr, get_args(Kernel)))}."
        )
    if name not in get_args(Kernel):
        raise InvalidInputError(
            f"kernel={name!r}: expected one of {', '.join(map(repr, get_args(Kernel)))}."
        )
    if name in ("lp", "lpw") and view.shared:
        # Their features are the same for all outputs of a tree, which count once.
        starts = view.offsets[:: view.outputs]
        first = np.concatenate([[0], np.cumsum(np.diff(starts) // view.outputs)]).astype(np.intp)
        kept = np.zeros(view.n_leaves, dtype=bool)
        for start, size in zip(starts[:-1], np.diff(first), strict=True):
            kept[start : start + size] = True
        outputs = 1
    else:
        first, kept, outputs = view.offsets, np.ones(view.n_leaves, dtype=bool), view.outputs
    features = np.ones(view.n_leaves) if name in ("lp", "lpw") else view.values.copy()
    if name in ("lpw", "low"):
        sizes = leaf_sizes(view)
        features = np.divide(features, sizes, out=np.zeros_like(features), where=sizes > 0)
    return TreeKernel(name, features[kept], first, name == "to", outputs)
