"""Exact nearest neighbours by Euclidean distance, in blocks."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

QUERIES_AT_ONCE = 256
BYTES_A_PAIR = 32  # of a distance, its index, and what selecting among them takes


def nearest(queries: Tensor, points: Tensor, k: int, memory: int) -> NDArray[np.int64]:
    """Return the positions of the k points nearest to each query, nearest first.

    Distances are taken in float64, whatever the precision of the points.

    Parameters
    ----------
    queries : Tensor of shape (m, d)
    points : Tensor of shape (n, d)
    k : int
        At most n.
    memory : int
        Bytes that a block of distances may take.

    Returns
    -------
    ndarray of shape (m, k)
    """
    rows = max(1, min(QUERIES_AT_ONCE, memory // (2 * BYTES_A_PAIR * k)))
    columns = max(k, memory // (2 * BYTES_A_PAIR * rows))
    found = [_nearest_of_block(some.double(), points, k, columns) for some in queries.split(rows)]
    return torch.cat(found).numpy()


def _nearest_of_block(queries: Tensor, points: Tensor, k: int, columns: int) -> Tensor:
    """Return the positions of the k nearest points, keeping the best k of the blocks so far."""
    distances = queries.new_empty(len(queries), 0)
    positions = torch.empty(len(queries), 0, dtype=torch.int64)
    for start in range(0, len(points), columns):
        block = points[start : start + columns].double()
        # The square of the query's own length would order nothing.
        further = block.square().sum(1) - 2 * queries @ block.T
        indices = torch.arange(start, start + len(block)).expand(len(queries), -1)
        distances, positions = (
            torch.cat([distances, further], 1),
            torch.cat([positions, indices], 1),
        )
        best = distances.topk(min(k, distances.shape[1]), largest=False)
        distances, positions = best.values, positions.gather(1, best.indices)
    return positions
