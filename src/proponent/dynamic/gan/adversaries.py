"""A generator, a discriminator and their optimizers: one step, taken or differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.dynamic.gan.losses import AdversarialLoss, checked_terms
from proponent.dynamic.gan.noise import moved_to
from proponent.dynamic.gan.optimizers import (
    GroupSettings,
    give_settings,
    give_state,
    settings_of,
    state_of,
)
from proponent.dynamic.unrolled.clipping import ADDED_TO_NORM
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.models.layout import find_aliases, state_tensors

PLAYERS = ("generator", "discriminator")

Gradients = dict[str, dict[str, Tensor]]  # by player and parameter
State = dict[str, Tensor]  # tensors named "player/parameters/name" or "player/entry/name"


@dataclass(frozen=True, eq=False)
class Move:
    """One step of the training.

    Parameters
    ----------
    index : int
        t, counted from 1.
    players : tuple of str
        Who moves: one, or both at once.
    indices : array of shape (batch,)
        Positions of the real instances; none where only the generator moves.
    generated : int
        Number of generated instances.
    settings : dict of str to tuple of dict
        The settings of each group of each optimizer.
    evaluating : dict of str to list of str
        The parts of each player that are in evaluation mode.
    has_checkpoint : bool
        Whether the state before the step is stored.
    """

    index: int
    players: tuple[str, ...]
    indices: NDArray[np.int64]
    generated: int
    settings: Mapping[str, GroupSettings]
    evaluating: Mapping[str, list[str]]
    has_checkpoint: bool = False


class Adversaries:
    """The two players, and how they move.

    Training and replaying go through the same code, so that a replay is exact.

    Parameters
    ----------
    modules, optimizers : dict
        By player; the modules and optimizers themselves.
    loss : AdversarialLoss
        What they minimise.
    noise : callable
        ``noise(n)`` draws the generator's arguments.
    train : Instances
        The training set.
    seed : int
        Seed of everything that is random in a step, with the step's number.
    max_norm : float, optional
        Largest norm of each player's gradient; it is scaled down to that.

    Attributes
    ----------
    trained : dict
        Each player's parameters that move, by name.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        *,
        loss: AdversarialLoss,
        noise: Callable[[int], Any],
        train: Instances,
        seed: int,
        max_norm: float | None = None,
    ) -> None:
        self.modules = modules
        self.optimizers = optimizers
        self.trained = {
            player: _trained(modules[player], optimizers[player], player) for player in PLAYERS
        }
        self._loss = loss
        self._noise = noise
        self._train = train
        self._seed = seed
        self._max_norm = max_norm

    # The state

    def state(self) -> State:
        """Return the parameters, buffers and optimizers' states, no copies."""
        found: State = {}
        for player, module in self.modules.items():
            tensors = state_tensors(module)
            aliases = find_aliases(tensors)
            found |= {
                f"{player}/parameters/{name}": tensor.detach()
                for name, tensor in tensors.items()
                if name not in aliases
            }
            moments = state_of(self.optimizers[player], self.trained[player])
            found |= {f"{player}/{key}": tensor for key, tensor in moments.items()}
        return found

    def snapshot(self) -> State:
        """Return a copy of the state."""
        return {key: tensor.clone() for key, tensor in self.state().items()}

    def restore(self, state: State) -> None:
        """Go back to a state."""
        moments: dict[str, State] = {player: {} for player in PLAYERS}
        own = self.state()
        with torch.no_grad():
            for key, value in state.items():
                player, _, rest = key.partition("/")
                if rest.startswith("parameters/"):
                    own[key].copy_(value)
                else:
                    moments[player][rest] = value
        for player, entries in moments.items():
            give_state(self.optimizers[player], self.trained[player], entries)

    def settings(self) -> dict[str, GroupSettings]:
        """Return the optimizers' settings as they are."""
        return {player: settings_of(self.optimizers[player]) for player in PLAYERS}

    def evaluating(self) -> dict[str, list[str]]:
        """Return the parts of each player that are in evaluation mode."""
        return {
            player: [name for name, part in module.named_modules() if not part.training]
            for player, module in self.modules.items()
        }

    def settings_by_name(self, player: str, move: Move) -> dict[str, dict[str, Any]]:
        """Return the settings of a move for each of a player's parameters."""
        names = {id(value): name for name, value in self.trained[player].items()}
        groups = self.optimizers[player].param_groups
        return {
            names[id(value)]: settings
            for settings, group in zip(move.settings[player], groups, strict=True)
            for value in group["params"]
            if id(value) in names
        }

    def adopt(self, move: Move) -> None:
        """Take over the settings and the modes that a move was made with."""
        for player, module in self.modules.items():
            still = set(move.evaluating[player])
            for name, part in module.named_modules():
                part.training = name not in still
            give_settings(self.optimizers[player], move.settings[player])

    # A step

    def take(self, move: Move) -> None:
        """Take a step with the settings and modes as they are."""
        gradients = self.gradients(move)
        for player, found in gradients.items():
            scale = self.clip_scale(found)
            for name, parameter in self.trained[player].items():
                gradient = found.get(name)
                parameter.grad = gradient if gradient is None or scale == 1.0 else gradient * scale
            try:
                self.optimizers[player].step()
            finally:
                for parameter in self.trained[player].values():
                    parameter.grad = None

    def clip_scale(self, gradient: Mapping[str, Tensor]) -> float:
        """Return the factor that brings a player's gradient to the largest norm."""
        if self._max_norm is None or not gradient:
            return 1.0
        norms = [torch.linalg.vector_norm(part) for part in gradient.values()]
        norm = float(torch.linalg.vector_norm(torch.stack(norms)))
        return min(1.0, self._max_norm / (norm + ADDED_TO_NORM))

    def gradients(self, move: Move, weights: Tensor | None = None) -> Gradients:
        r"""Return the gradients of a step, by player and parameter, those that there are.

        Parameters
        ----------
        move : Move
            The step.
        weights : Tensor of shape (batch,), optional
            Relative weights of the real instances, to differentiate by: the gradients then
            carry a graph back to them and to the parameters of both players.

        Raises
        ------
        NonFiniteError
            If a loss is not finite.
        """
        with_graph = weights is not None
        with fixed_randomness(step_seed(self._seed, move.index)), torch.enable_grad():
            losses = self._losses(move, weights)
            found: Gradients = {}
            for player, loss in losses.items():
                trained = self.trained[player]
                parts = torch.autograd.grad(
                    loss,
                    list(trained.values()),
                    create_graph=with_graph,
                    retain_graph=with_graph or len(losses) > 1,
                    allow_unused=True,
                )
                found[player] = {
                    name: part
                    for name, part in zip(trained, parts, strict=True)
                    if part is not None
                }
            return found

    def _losses(self, move: Move, weights: Tensor | None) -> dict[str, Tensor]:
        """Return the loss of each player that moves."""
        generator, discriminator = (self.modules[player] for player in PLAYERS)
        batch = None
        if "discriminator" in move.players:
            batch = moved_to(self._train.batch(move.indices), discriminator)
        noise = moved_to(self._noise(move.generated), generator)
        start, *conditions = noise if isinstance(noise, tuple) else (noise,)
        for_generator = weights is not None or "generator" in move.players
        with nullcontext() if for_generator else torch.no_grad():
            generated = (generator(start, *conditions), *conditions)
        losses = {}
        if "discriminator" in move.players:
            real, fake = self._loss.discriminator(discriminator, batch, generated)
            real = checked_terms(real, len(move.indices), "the discriminator's of real instances")
            fake = checked_terms(fake, None, "the discriminator's of generated instances")
            weighted = real if weights is None else weights * real
            losses["discriminator"] = weighted.mean() + fake.mean()
        if "generator" in move.players:
            terms = self._loss.generator(discriminator, generated)
            losses["generator"] = checked_terms(terms, None, "the generator's").mean()
        for player, loss in losses.items():
            if not torch.isfinite(loss):
                raise NonFiniteError(
                    f"the {player}'s loss is not finite at step {move.index}; lower the learning "
                    f"rate, or look at the data."
                )
        return losses


def step_seed(seed: int, step: int) -> int:
    """Return the seed of everything that is random in a step."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1)[0])


def _trained(module: nn.Module, optimizer: Optimizer, player: str) -> dict[str, nn.Parameter]:
    """Return the parameters that the optimizer moves, by name."""
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    own = dict(module.named_parameters())
    if strange := held - {id(value) for value in own.values()}:
        raise InvalidInputError(
            f"{player}_optimizer: {len(strange)} of its parameters are not the {player}'s; each "
            f"player needs an optimizer of its own."
        )
    found = {
        name: value for name, value in own.items() if id(value) in held and value.requires_grad
    }
    if not found:
        raise InvalidInputError(
            f"{player}_optimizer: it moves no parameter of the {player}; give the one that does."
        )
    return found
