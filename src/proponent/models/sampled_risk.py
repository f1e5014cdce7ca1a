"""Risks that are expectations over random draws, with the draws in the caller's hands."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from proponent.exceptions import InvalidInputError

# Given the shape of one draw of one instance, returns standard normal noise (batch, draws, *shape).
Draw = Callable[[tuple[int, ...]], Tensor]


class SampledRisk(ABC):
    """A risk that is a mean over random draws: ``risk(module, batch) -> (batch,)``.

    A subclass writes :meth:`with_draws`, and asks there for its noise instead of drawing it. In
    training mode noise is then fresh from torch's generator, as a training loop wants it; in
    evaluation mode all instances get the same few draws, so that the risk of an instance is its
    own and does not change; and :class:`~proponent.VAETracIn` gives each instance draws of its own.

    Parameters
    ----------
    draws : int
        Number of draws that a risk is the mean of.
    seed : int
        Fixes the draws of evaluation mode.
    """

    def __init__(self, *, draws: int = 1, seed: int = 0) -> None:
        self.draws = checked_draws(draws)
        self.seed = seed

    @abstractmethod
    def with_draws(self, module: nn.Module, batch: Any, draw: Draw) -> Tensor:
        """Return the risk of each instance, ``(batch,)``, the mean over the noise that it asks for.

        Parameters
        ----------
        module : torch.nn.Module
            The module.
        batch : batch
            As the data set gives it.
        draw : callable
            ``draw(shape)`` returns independent standard normal numbers ``(batch, draws, *shape)``.
            To be called once.
        """

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the risk of each instance, ``(batch,)``."""
        first = next(leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
        like = next((p for p in module.parameters() if p.is_floating_point()), first)

        def draw(shape: tuple[int, ...]) -> Tensor:
            if module.training:
                size = (len(first), self.draws, *shape)
                return torch.randn(size, device=like.device, dtype=like.dtype)
            common = np.random.default_rng(self.seed).standard_normal((1, self.draws, *shape))
            return torch.as_tensor(common).to(like).expand(len(first), -1, *shape)

        return self.with_draws(module, batch, draw)

    def noise_shape(self, module: nn.Module, batch: Any) -> tuple[int, ...]:
        """Return the shape of the noise of one draw of one instance."""
        asked: list[tuple[int, ...]] = []
        first = next(leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
        like = next((p for p in module.parameters() if p.is_floating_point()), first)

        def draw(shape: tuple[int, ...]) -> Tensor:
            asked.append(tuple(shape))
            return like.new_zeros((len(first), 1, *shape))

        with torch.no_grad():
            self.with_draws(module, batch, draw)
        if len(asked) != 1:
            raise InvalidInputError(
                f"{type(self).__name__}.with_draws asked {len(asked)} times for noise; it has to "
                f"ask once (for noise of several kinds, ask for all of it and take it apart)."
            )
        return asked[0]


class GivenDraws:
    """A sampled risk on batches that bring their noise: ``risk(module, (batch, noise))``."""

    def __init__(self, risk: SampledRisk) -> None:
        self.risk = risk

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the risk of each instance for its own noise, ``(batch,)``."""
        inner, noise = batch
        return self.risk.with_draws(module, inner, lambda shape: noise)


def checked_draws(draws: object) -> int:
    """Return a number of draws, 1 or more.

    Raises
    ------
    InvalidInputError
        If it is something else.
    """
    if isinstance(draws, bool) or not isinstance(draws, (int, np.integer)) or draws < 1:
        raise InvalidInputError(f"draws must be a positive integer; got {draws!r}.")
    return int(draws)


def inputs_of(batch: Any) -> Tensor:
    """Return the inputs of a batch: the tensor itself, the first of a tuple, the one of a dict.

    Raises
    ------
    InvalidInputError
        If a dict has several entries.
    """
    if isinstance(batch, Mapping):
        if len(batch) != 1:
            raise InvalidInputError(
                f"a dict batch needs one entry, the inputs; it has {', '.join(map(str, batch))}."
            )
        batch = tuple(batch.values())
    found: Tensor = batch[0] if isinstance(batch, (tuple, list)) else batch
    return found
