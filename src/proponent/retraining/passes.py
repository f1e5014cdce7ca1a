"""Passes through a training set, one player after the other, and what their steps change."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Marginals:
    """Means of the changes that steps make, over passes.

    Attributes
    ----------
    mean, squares : ndarray of shape (n, T + 1)
        Mean, and sum of squared deviations; the last column is of the sum over the tests.
    used, left_out : int
        Passes that count, and those that diverged.
    """

    mean: Values
    squares: Values
    used: int = 0
    left_out: int = 0

    @classmethod
    def none(cls, n: int, n_tests: int) -> Marginals:
        """Return the marginals of no pass."""
        return cls(np.zeros((n, n_tests + 1)), np.zeros((n, n_tests + 1)))

    def with_pass(self, order: NDArray[np.intp], utilities: Values) -> Marginals:
        """Add a pass, with its utilities ``(n + 1, T)``; one that diverged does not count."""
        if not np.isfinite(utilities).all():
            return Marginals(self.mean, self.squares, self.used, self.left_out + 1)
        found = np.empty_like(self.mean)
        found[order, :-1] = np.diff(utilities, axis=0)
        found[:, -1] = found[:, :-1].sum(axis=1)
        change = found - self.mean
        mean = self.mean + change / (self.used + 1)
        squares = self.squares + change * (found - mean)
        return Marginals(mean, squares, self.used + 1, self.left_out)

    @property
    def errors(self) -> Values | None:
        """Standard errors of the means, ``(n, T + 1)``; None with a single pass."""
        if self.used < 2:
            return None
        return np.asarray(np.sqrt(self.squares / (self.used * (self.used - 1))))


def steps_of(
    orders: NDArray[np.intp], seeds: NDArray[np.int64], members: NDArray[np.intp] | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the instances in the order of each pass, and after how many steps each player ends.

    Parameters
    ----------
    orders : ndarray of shape (P, players)
        The players in the order of each pass.
    seeds : ndarray of shape (P,)
        What decides the order of the instances of a group.
    members : ndarray of shape (n,), optional
        The group of each instance; None: the players are the instances.

    Returns
    -------
    steps : ndarray of shape (P, n)
    ends : ndarray of shape (P, players + 1)
        The first is 0.
    """
    if members is None:
        return orders, np.arange(orders.shape[1] + 1)[None].repeat(len(orders), axis=0)
    steps = []
    for order, seed in zip(orders, seeds.tolist(), strict=True):
        shuffled = np.random.default_rng(seed).permutation(len(members))
        rank = np.argsort(order)[members[shuffled]]
        steps.append(shuffled[np.argsort(rank, kind="stable")])
    ends = np.zeros((len(orders), orders.shape[1] + 1), np.intp)
    np.cumsum(np.bincount(members)[orders], axis=1, out=ends[:, 1:])
    return np.stack(steps), ends


def online(learner: Any) -> Any:
    """Return the learner with what single steps need: no optimizer or batches of its own."""
    import torch

    def optimizer(parameters: Any) -> Any:
        return torch.optim.SGD(parameters, lr=0.1)

    return copy.copy(learner).set_params(
        optimizer_factory=optimizer, batch_size=1, epochs=1, steps=None, batches="own"
    )


def pass_seed(seed: int, purpose: int, number: int) -> int:
    """Return the seed of a pass, whatever passes are walked with it."""
    state = np.random.SeedSequence([seed, 0x66, purpose, number]).generate_state(1, np.uint64)
    return int(state[0] >> np.uint64(1))
