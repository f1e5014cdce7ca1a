"""What the readers of scikit-learn's ensembles share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError


@dataclass(frozen=True, eq=False)
class LeafNumbers:
    """Leaves of many trees, numbered within each tree in the order of its nodes.

    Attributes
    ----------
    table : ndarray
        Leaf number of every node, flat over the trees.
    starts : ndarray of shape (trees,)
        Where the nodes of each tree begin in it.
    sizes : ndarray of shape (trees,)
        Leaves of each tree.
    leaf_nodes : sequence of ndarray
        The nodes that are leaves, a tree.
    """

    table: NDArray[np.intp]
    starts: NDArray[np.intp]
    sizes: NDArray[np.intp]
    leaf_nodes: Sequence[NDArray[np.intp]]

    @classmethod
    def of_trees(cls, trees: Sequence[Any]) -> LeafNumbers:
        """Return the numbers of the leaves of ``sklearn.tree._tree.Tree`` objects."""
        return cls.of_flags([tree.children_left == -1 for tree in trees])

    @classmethod
    def of_flags(cls, flags: Sequence[NDArray[np.bool_]]) -> LeafNumbers:
        """Return the numbers of the leaves of trees, given which of their nodes are leaves."""
        lengths = np.array([len(leaf) for leaf in flags])
        return cls(
            table=np.concatenate([np.cumsum(leaf) - 1 for leaf in flags]).astype(np.intp),
            starts=(np.cumsum(lengths) - lengths).astype(np.intp),
            sizes=np.array([np.count_nonzero(leaf) for leaf in flags], dtype=np.intp),
            leaf_nodes=[np.flatnonzero(leaf) for leaf in flags],
        )

    @property
    def largest(self) -> int:
        """Leaves of the largest tree."""
        return int(self.sizes.max())

    def of(self, nodes: NDArray[Any]) -> NDArray[np.intp]:
        """Return the leaf numbers of nodes ``(rows, trees)``."""
        return np.asarray(self.table.take(nodes.astype(np.intp) + self.starts))


def held_out(
    n: int, fraction: float | int, seed: Any, stratify: NDArray[Any] | None
) -> NDArray[np.intp]:
    """Return which of n instances scikit-learn holds out for early stopping."""
    from sklearn.model_selection import train_test_split

    _, out = train_test_split(
        np.arange(n), test_size=fraction, random_state=seed, stratify=stratify
    )
    return np.asarray(out, dtype=np.intp)


def refuse_margins(base_margin: Any) -> None:
    """Refuse base margins, which scikit-learn's ensembles are not trained with."""
    if base_margin is not None:
        raise InvalidInputError(
            "base_margin: scikit-learn's ensembles take no initial scores; leave it out."
        )
