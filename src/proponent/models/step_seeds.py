"""Seeds of the steps of a training run: what makes its dropout and augmentation repeatable.

With a seed the recorder seeds the global generators three times a step: after the step before,
before the first item of an :func:`indexed` set is fetched, and before the module's first forward
pass. A loader that draws for itself in between (the order of an epoch, the seeds of its workers)
so moves neither the augmentation nor the dropout of the step.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from torch import nn
from torch.utils.hooks import RemovableHandle

from proponent.exceptions import RunError

_numpy_generator = np.random.MT19937(0)
_listeners: list[Callable[[], None]] = []


def seed_of_step(seed: int, step: int) -> int:
    """Return the seed of a step, in ``0 .. 2**32 - 1``: a hash of the run's seed and the step."""
    return _hash(f"{seed}:{step}")


def seed_of_forward(step_seed: int) -> int:
    """Return the seed of a step's forward pass, from the step's seed."""
    return _hash(f"{step_seed}:forward")


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, on every device in use."""
    random.seed(seed)
    np.random.seed(seed)
    # torch.manual_seed would also queue a call for accelerators that are never used.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextmanager
def lent_generators() -> Iterator[None]:
    """Let the global generators be seeded and drawn from for a while; restored on exit."""
    python = random.getstate()
    # Another generator in numpy's place is ten times quicker than reading and writing its state.
    legacy = get_bit_generator()
    in_use = torch.cuda.is_available() and torch.cuda.is_initialized()
    devices = list(range(torch.cuda.device_count())) if in_use else []
    try:
        with torch.random.fork_rng(devices=devices):
            set_bit_generator(_numpy_generator)
            yield
    finally:
        random.setstate(python)
        set_bit_generator(legacy)


def announce_item() -> None:
    """Tell who listens that an item of an indexed set is about to be fetched."""
    for listener in _listeners:
        listener()


def check_free(seed: int | None) -> None:
    """Refuse to seed for a second training loop at a time.

    Raises
    ------
    RunError
        If there is a seed, and another recorder seeds in this process.
    """
    if seed is not None and _listeners:
        raise RunError(
            "another Recorder with a seed is open in this process, and two would seed the global "
            "generators over each other, so that neither run could be replayed. Close it first "
            "(recorder.close()), record without seed=, or train in another process."
        )


class StepSeeds:
    """Seeds the generators for the steps of a training loop while it runs.

    Parameters
    ----------
    seed : int or None
        The run's seed; without one nothing is touched.
    module : torch.nn.Module
        The module that is trained; its first forward pass of a step, in training mode and with
        gradients, is seeded.
    upcoming : callable
        Returns the step that is being prepared, counted from 1.
    """

    def __init__(self, seed: int | None, module: nn.Module, upcoming: Callable[[], int]) -> None:
        self._seed = seed
        self._upcoming = upcoming
        self._process = os.getpid()
        self._fetched = self._entered = False
        self._hook: RemovableHandle | None = None
        if seed is not None:
            self._hook = module.register_forward_pre_hook(self._before_forward)
            _listeners.append(self._before_item)
        self.start_step()

    def start_step(self) -> None:
        """Seed for the upcoming step, whose fetch and forward pass are still to come."""
        self.expect()
        self._seed_now()

    def expect(self) -> None:
        """Expect another fetch and forward pass: those of the next step, or of a retry."""
        self._fetched = self._entered = False

    def close(self) -> None:
        """Seed no longer."""
        if self._hook is not None:
            self._hook.remove()
            _listeners.remove(self._before_item)
            self._hook = None

    def _seed_now(self, derived: Callable[[int], int] = int) -> None:
        if self._seed is not None:
            seed_generators(derived(seed_of_step(self._seed, self._upcoming())))

    def _before_item(self) -> None:
        # A worker process of a loader has randomness of its own, which this must not touch.
        if not self._fetched and os.getpid() == self._process:
            self._fetched = True
            self._seed_now()

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if not self._entered and module.training and torch.is_grad_enabled():
            self._entered = self._fetched = True
            self._seed_now(seed_of_forward)
