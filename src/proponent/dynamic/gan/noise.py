"""What the generator starts from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proponent.exceptions import InvalidInputError

Noise = int | Sequence[int] | Callable[[int], Any]


def noise_of(given: Noise) -> Callable[[int], Any]:
    """Return the function that draws the noise of n instances.

    Parameters
    ----------
    given : int, sequence of int, or callable
        The shape of one instance's standard normal noise, or ``noise(n)`` that returns the
        generator's arguments: a tensor, or a tuple of the noise and conditions.

    Raises
    ------
    InvalidInputError
        If it is none of those.
    """
    if callable(given):
        return given
    shape = [given] if isinstance(given, int) and not isinstance(given, bool) else given
    if isinstance(shape, (str, bytes)) or not isinstance(shape, Sequence):
        shape = [-1]
    sizes = tuple(shape)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise InvalidInputError(
            f"noise: expected the size or shape of one instance's standard normal noise, or a "
            f"callable noise(n); got {given!r}."
        )
    return StandardNormal(sizes)


@dataclass(frozen=True)
class StandardNormal:
    """Standard normal noise of a shape."""

    sizes: tuple[int, ...]

    def __call__(self, n: int) -> Tensor:
        """Return the noise of n instances, ``(n, *sizes)``."""
        return torch.randn(n, *self.sizes)


def moved_to(batch: Any, module: nn.Module) -> Any:
    """Move a batch to the module's device, its floating tensors to the module's dtype."""
    like = next(value for value in module.parameters() if value.is_floating_point())
    return _moved(batch, like)


def _moved(batch: Any, like: Tensor) -> Any:
    if isinstance(batch, Tensor):
        dtype = like.dtype if batch.is_floating_point() else batch.dtype
        return batch.to(device=like.device, dtype=dtype)
    if isinstance(batch, Mapping):
        return {key: _moved(value, like) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(_moved(value, like) for value in batch)
    return batch
