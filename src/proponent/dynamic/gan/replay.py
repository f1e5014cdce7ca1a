"""An adversarial training, gone through again from its last step to its first."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from proponent.data import Instances
from proponent.dynamic.gan.adversaries import PLAYERS, Adversaries, Move, State
from proponent.dynamic.gan.optimizers import made_again
from proponent.dynamic.gan.run import AdversarialRun, StoredState
from proponent.dynamic.replay.schedule import next_kept
from proponent.exceptions import InvalidInputError


class AdversarialReplay:
    """Copies of the two players, which go through the recorded states.

    States that are not stored are computed again from the stored one before them, as few times
    as the memory for states allows (:func:`next_kept`).

    Parameters
    ----------
    run : AdversarialRun
        The recorded training.
    train : Instances
        The training set.
    memory : int
        Bytes for states.

    Attributes
    ----------
    adversaries : Adversaries
        The players.
    compared : dict of int to float
        For each stored state that was reached from the one before it, the largest absolute
        difference to it; 0.0 if it is the same bit by bit.
    """

    def __init__(self, run: AdversarialRun, train: Instances, *, memory: int) -> None:
        self._run = run
        self._memory = memory
        self.compared: dict[int, float] = {}
        modules = {player: _copied(run.modules[player], player) for player in PLAYERS}
        first = run.moves[0]
        optimizers = {}
        for player, module in modules.items():
            described = run.players[player]
            moved = {name for group in described["groups"] for name in group}
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(name in moved)
            optimizers[player] = made_again(
                described["optimizer"], first.settings[player], described["groups"], module
            )
        self.adversaries = Adversaries(
            modules,
            optimizers,
            loss=run.loss,
            noise=run.noise,
            train=train,
            seed=run.seed,
            max_norm=run.max_norm,
        )

    def final(self) -> Adversaries:
        """Return the players at the end of the training."""
        self.adversaries.restore(self._run.states[-1].load())
        return self.adversaries

    def backward(self, first: int = 1) -> Iterator[Move]:
        """Go from the last step to step ``first``: the players are in the state before each.

        They may be moved meanwhile; the next step begins with restoring them.
        """
        states = self._run.states
        for stored, following in reversed(list(pairwise(states))):
            if following.t > first:
                state = stored.load()
                size = sum(tensor.nbytes for tensor in state.values())
                slots = self._memory // max(size, 1)
                yield from self._stretch(state, stored.t, following, slots, first)

    def _stretch(
        self, state: State, start: int, reached: StoredState, slots: int, first: int
    ) -> Iterator[Move]:
        """Go back from a stored state to the one before it, no further than step ``first``."""
        kept = [(start, state)]
        stop = reached.t
        for t in range(stop - 1, max(start, first) - 1, -1):
            at, held = kept[-1]
            self.adversaries.restore(held)
            while at < t:
                free = slots - (len(kept) - 1)
                ahead = next_kept(t - at + 1, free)
                for step in range(at, at + ahead):
                    self._take(step)
                at += ahead
                if free:
                    kept.append((at, self.adversaries.snapshot()))
            if t == stop - 1:
                self._compare(reached)
            if kept[-1][0] == t:
                kept.pop()
            yield self._adopted(t)

    def _compare(self, reached: StoredState) -> None:
        """Take the step to a stored state, compare, and go back."""
        here = self.adversaries.snapshot()
        self._take(reached.t - 1)
        self.compared[reached.t] = self._difference(reached.load())
        self.adversaries.restore(here)

    def _take(self, t: int) -> None:
        self.adversaries.take(self._adopted(t))

    def _adopted(self, t: int) -> Move:
        move = self._run.moves[t - 1]
        self.adversaries.adopt(move)
        return move

    def _difference(self, reached: Mapping[str, torch.Tensor]) -> float:
        """Return how far the state is from a stored one; not a number where it is not finite."""
        present = self.adversaries.state()
        if set(present) != set(reached):
            return float("inf")
        largest = 0.0
        for key, tensor in present.items():
            there = reached[key].to(tensor)
            if not torch.equal(tensor, there):
                largest = max(largest, float((tensor.double() - there.double()).abs().max()))
        return largest

    def report(self) -> dict[str, Any]:
        """Return what the replay found, as JSON knows it."""
        differing = {t: value for t, value in self.compared.items() if value}
        worst = max(differing, key=differing.__getitem__, default=None)
        return {
            "states_compared": len(self.compared),
            "bit_exact": not differing,
            "diverged_before_step": min(differing, default=None),
            "largest_difference": None if worst is None else _finite(differing[worst]),
        }


def _copied(module: nn.Module, player: str) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(
            f"{player}: it cannot be copied for the replay ({error}); normalise weights by "
            f"torch.nn.utils.parametrizations, and keep no tensors of earlier passes in it."
        ) from error


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
