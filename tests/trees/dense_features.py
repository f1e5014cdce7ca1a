"""The features of the tree kernels, formed with plain numpy."""

import numpy as np


def dense_features(view, rows, kernel):
    """Return the features of instances, ``(n, features)``, a tree and output at a time."""
    columns = []
    for tree in range(view.n_trees):
        for k in range(view.outputs):
            if k and view.shared and kernel in ("lp", "lpw"):
                continue
            values = view.values[view.span(tree, k)]
            sizes = np.bincount(view.train.leaf(tree, k), minlength=len(values))
            of_leaf = {
                "lp": np.ones(len(values)),
                "lpw": 1 / np.where(sizes > 0, sizes, np.inf),
                "lo": values,
                "low": values / np.where(sizes > 0, sizes, np.inf),
                "to": values,
            }[kernel]
            placed = np.eye(len(values))[rows.leaf(tree, k)]
            columns.append(placed @ of_leaf[:, None] if kernel == "to" else placed * of_leaf)
    return np.concatenate(columns, axis=1)
