"""Checks of what the recorder is given."""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim import Optimizer

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, RunError


def checked_set(data: Any, role: str) -> Instances | None:
    """Return the set as instances, None if it was not given; refuse an empty one."""
    instances = None if data is None else Instances.of(data, role=role)
    if instances is not None and not len(instances):
        raise InvalidInputError(f"{role}: the set is empty.")
    return instances


def checked_module(module: Any) -> nn.Module:
    """Return the module whose parameters are trained; refuse what is no module."""
    if not isinstance(module, nn.Module):
        raise InvalidInputError(f"module: expected a torch.nn.Module; got {type(module).__name__}.")
    # A compiled module shares its parameters with the module that it was made from.
    original: nn.Module = getattr(module, "_orig_mod", module)
    return original


def checked_optimizer(optimizer: Any) -> Optimizer:
    """Return the optimizer that takes the steps; refuse what has no learning rates."""
    # Lightning and accelerate wrap the optimizer that takes the steps.
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    if not isinstance(optimizer, Optimizer):
        raise InvalidInputError(
            f"optimizer: expected a torch.optim.Optimizer; got {type(optimizer).__name__}."
        )
    if any("lr" not in group for group in optimizer.param_groups):
        raise InvalidInputError(f"optimizer: {type(optimizer).__name__} has no learning rate 'lr'.")
    return optimizer


def check_single_process() -> None:
    """Refuse to record the training of several processes together."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_world_size() > 1:
        raise RunError("training in several processes cannot be recorded.")


def positions(indices: Any, n_train: int | None) -> NDArray[np.int64]:
    """Return the positions of a batch in the training set, ``(batch,)``, in order."""
    array = indices.numpy(force=True) if isinstance(indices, torch.Tensor) else np.asarray(indices)
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"indices: expected the positions of the batch in the training set, a non-empty list "
            f"of integers; got {array.dtype} of shape {array.shape}."
        )
    listed = array.tolist()  # quicker than numpy for what a batch has
    lowest, highest = min(listed), max(listed)
    if lowest < 0:
        raise InvalidInputError(f"indices: positions count from 0; got {lowest}.")
    if n_train is not None and highest >= n_train:
        raise InvalidInputError(
            f"indices: {highest} is out of range; the training set has {n_train:,} instances."
        )
    return array.astype(np.int64, copy=False)


def divisors(divisor: Any, batch_size: int) -> float | list[float]:
    """Return what the risks of a batch are divided by: a number, or one an instance."""
    if divisor is None:
        return float(batch_size)
    values = np.asarray(divisor)
    if values.dtype.kind not in "iuf" or values.shape not in ((), (batch_size,)):
        raise InvalidInputError(
            f"divisor: expected a number, or one for each of the {batch_size} instances; got "
            f"{divisor!r}."
        )
    values = values.astype(float)
    if not (np.isfinite(values) & (values > 0)).all():
        raise InvalidInputError(f"divisor: expected positive numbers; got {divisor!r}.")
    return float(values.flat[0]) if (values == values.flat[0]).all() else values.tolist()


def checked_clip_scale(clip_scale: Any) -> float | None:
    """Return the factor by which the gradient was scaled."""
    if clip_scale is None:
        return None
    if not 0 <= (factor := float(clip_scale)) < float("inf"):
        raise InvalidInputError(
            f"clip_scale: expected a factor of at least 0, or None; got {clip_scale!r}."
        )
    return factor


def checked_seed(seed: Any) -> int | None:
    """Return the seed of the run's steps as a Python int."""
    if seed is None:
        return None
    try:
        number = index(seed)
    except TypeError:
        number = -1
    if isinstance(seed, bool) or number < 0:
        raise InvalidInputError(f"seed: expected an integer of at least 0, or None; got {seed!r}.")
    return number
