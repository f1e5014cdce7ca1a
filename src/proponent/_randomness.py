"""Looking at data without a trace in the random state of what goes on around."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np


@contextmanager
def fixed_randomness(seed: int = 0) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators for a while; restored on exit.

    A data set that augments its items then gives the same ones every time it is looked at, and
    the training that goes on around draws what it would have drawn. torch is left alone where it
    is not loaded.
    """
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with _torch_seeded(seed) if "torch" in sys.modules else nullcontext():
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


@contextmanager
def _torch_seeded(seed: int) -> Iterator[None]:
    import torch

    in_use = torch.cuda.is_initialized()
    device = torch.cuda.current_device() if in_use else None
    with torch.random.fork_rng(devices=[] if device is None else [device]):
        # torch.manual_seed would also reseed accelerators that are not in use yet.
        torch.default_generator.manual_seed(seed)
        if device is not None:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
