"""Training many small torch modules at once, each on a subset of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.models.torch_batches import BatchTable
from proponent.models.torch_recipe import State, TorchRecipe
from proponent.models.torch_rows import HeldRows
from proponent.models.torch_stack import Together


def train_many(
    recipe: TorchRecipe,
    train: HeldRows,
    counts: NDArray[Any],
    seeds: list[int],
    exact: bool = False,
) -> State:
    """Train several submodels at once; each takes the steps that it would take alone.

    Parameters
    ----------
    recipe : TorchRecipe
        How; its optimizer must step entries one by one.
    train : HeldRows
        The training set, n.
    counts : ndarray of shape (K, n)
        The subsets.
    seeds : list of int
        One for each.
    exact : bool
        Whether a batch may not be filled up: the subsets must then have the same size.

    Returns
    -------
    dict of Tensor
        Parameters and buffers by name, ``(K, *shape)``.
    """
    lengths = np.array(
        [recipe.plan.length(row, seed) for row, seed in zip(counts, seeds, strict=True)]
    )
    # Those that train longest first: the ones still training are then always the first ones.
    order = np.argsort(-lengths, kind="stable")
    counts, seeds, lengths = counts[order], [seeds[row] for row in order], lengths[order]
    together = Together(recipe, train, seeds)
    table = BatchTable(recipe.plan, counts, seeds)
    for step in range(int(lengths[0])):
        active = int(np.searchsorted(-lengths, -step, side="left"))
        positions, weights, shared = table.next(active)
        if exact:
            full = weights[0] > 0
            positions, weights = positions[:, full], weights[:, full]
        together.step(positions, weights, shared)
    inverse = np.argsort(order)
    return {name: tensor[inverse] for name, tensor in together.state.items()}
