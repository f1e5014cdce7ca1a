"""How well an ordering finds marked instances, exactly with ties and under resampling weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from proponent.progress import progress

# Largest number of entries of one block of resamples: 1 MB in float64, to stay in the cache.
BLOCK_ENTRIES = 125_000


class Ordering:
    """Instances ordered from the highest score down, with ties known as such.

    Parameters
    ----------
    scores : array of shape (n,)
        Higher is checked earlier.
    marked : boolean array of shape (n,)
        What is to be found.
    """

    def __init__(self, scores: NDArray[np.float64], marked: NDArray[np.bool_]) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ordered = scores[self._order]
        self._ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(scores) - 1)
        self._marked = marked[self._order]

    def figures(self, weights: NDArray[np.float64], checked: float) -> NDArray[np.float64]:
        """AUROC, average precision and share found, of shape (n_resamples, 3).

        ``weights`` of shape (n_resamples, n) says how often each instance occurs.
        """
        ordered = weights[:, self._order]
        found = np.cumsum(ordered * self._marked, axis=1)[:, self._ends]
        seen = np.cumsum(ordered, axis=1)[:, self._ends]
        return ranking_figures(found, seen, checked)

    def curve(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Share of the instances checked and share of the marked ones found, from 0 to 1."""
        found = np.cumsum(self._marked)[self._ends]
        return (
            np.append(0.0, (self._ends + 1) / len(self._order)),
            np.append(0.0, found / found[-1]),
        )


def ranking_figures(
    found: NDArray[np.float64], seen: NDArray[np.float64], checked: float
) -> NDArray[np.float64]:
    """AUROC, average precision and share found from cumulative counts at the end of each tie.

    - AUROC is the chance that a marked instance stands above an unmarked one, a tie counting
      one half.
    - Average precision is ``sum_g (R_g - R_{g-1}) P_g`` over ties g, with R the recall and P the
      precision once the whole tie has been checked.
    - The share found is the expectation when ties are broken at random, so the curve is linear
      within a tie.

    Parameters
    ----------
    found, seen : array of shape (n_resamples, n_ties)
        Marked instances, and all instances, down to and including each tie.
    checked : float
        Fraction of the instances that are checked.

    Returns
    -------
    array of shape (n_resamples, 3)
    """
    n_marked, n_seen = found[:, -1:], seen[:, -1:]
    found_before, seen_before = _shifted(found), _shifted(seen)
    found_here, seen_here = found - found_before, seen - seen_before
    above = found_before + 0.5 * found_here
    pairs = (n_marked * (n_seen - n_marked))[:, 0]
    auroc = np.einsum("bg,bg->b", seen_here - found_here, above) / pairs
    # In a resample the first ties may be empty: their share of the recall is 0 as well.
    precision = found / np.maximum(seen, 1.0)
    average_precision = np.einsum("bg,bg->b", found_here, precision) / n_marked[:, 0]

    budget = checked * n_seen
    tie = (seen < budget).sum(axis=1, keepdims=True)

    def at(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.take_along_axis(counts, tie, axis=1)

    within = (budget - at(seen_before)) / at(seen_here)
    share = ((at(found_before) + within * at(found_here)) / n_marked)[:, 0]
    return np.stack([auroc, average_precision, share], axis=1)


def bootstrap_figures(
    orderings: list[Ordering],
    marked: NDArray[np.bool_],
    checked: float,
    n_bootstrap: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Figures of every ordering on the same stratified bootstrap resamples.

    Marked and unmarked instances are resampled apart, because their numbers were fixed by
    design, and so that no resample is without a marked one.

    Returns
    -------
    array of shape (n_orderings, n_bootstrap, 3)
    """
    blocks = []
    sizes = _block_sizes(n_bootstrap, len(marked))
    for size in progress(sizes, description="bootstrap"):
        weights = np.empty((size, len(marked)))
        for group in (marked, ~marked):
            weights[:, group] = resample(rng, int(group.sum()), size)
        blocks.append(np.stack([o.figures(weights, checked) for o in orderings]))
    return np.concatenate(blocks, axis=1)


def random_figures(
    marked: NDArray[np.bool_], checked: float, n_orders: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Figures of random orders, of shape (n_orders, 3)."""
    seen = np.arange(1.0, len(marked) + 1.0)
    blocks = []
    for size in _block_sizes(n_orders, len(marked)):
        shuffled = rng.permuted(np.tile(marked, (size, 1)), axis=1)
        found = np.cumsum(shuffled, axis=1, dtype=np.float64)
        blocks.append(ranking_figures(found, np.broadcast_to(seen, found.shape), checked))
    return np.concatenate(blocks)


def expected_average_precision(n_instances: int, n_marked: int) -> float:
    r"""Exact expectation of the average precision over all orders.

    With n instances of which m are marked, the one at position k is marked with probability
    m/n, and each of the k - 1 before it then with probability (m - 1)/(n - 1), so

    .. math:: E[AP] = \frac1n \sum_{k=1}^n \frac1k \left(1 + \frac{(k-1)(m-1)}{n-1}\right)
              = \frac1n \left(H_n + \frac{(m-1)(n-H_n)}{n-1}\right)

    with the harmonic number H_n. It is above the prevalence m/n, by about (log n)/n.

    **Source**: Bestgen, "Exact expected average precision of the random baseline for system
    evaluation", 2015.
    """
    harmonic = float((1.0 / np.arange(1, n_instances + 1)).sum())
    rest = (n_marked - 1) * (n_instances - harmonic) / (n_instances - 1)
    return (harmonic + rest) / n_instances


def resample(
    rng: np.random.Generator, n_observations: int, n_resamples: int
) -> NDArray[np.float64]:
    """Draw how often each observation occurs in each bootstrap resample.

    Returns
    -------
    array of shape (n_resamples, n_observations)
        Every row sums to ``n_observations``.
    """
    drawn = rng.integers(0, n_observations, (n_resamples, n_observations))
    drawn += np.arange(n_resamples)[:, None] * n_observations
    counts = np.bincount(drawn.ravel(), minlength=n_resamples * n_observations)
    return counts.reshape(n_resamples, n_observations).astype(np.float64)


def _shifted(cumulative: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = np.zeros_like(cumulative)
    shifted[:, 1:] = cumulative[:, :-1]
    return shifted


def _block_sizes(n_rows: int, n_columns: int) -> list[int]:
    size = max(1, BLOCK_ENTRIES // n_columns)
    return [min(size, n_rows - start) for start in range(0, n_rows, size)]
