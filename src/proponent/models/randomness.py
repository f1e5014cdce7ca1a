"""Looking at data without a trace in the random state of the training that goes on."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def fixed_randomness(seed: int = 0) -> Iterator[None]:
    """Seed Python's, numpy's and torch's generators for a while; restored on exit.

    A data set that augments its items then gives the same ones every time it is looked at, and
    the training that goes on around draws what it would have drawn.
    """
    in_use = torch.cuda.is_initialized()
    device = torch.cuda.current_device() if in_use else None
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[] if device is None else [device]):
            random.seed(seed)
            np.random.seed(seed)
            # torch.manual_seed would also reseed accelerators that are not in use yet.
            torch.default_generator.manual_seed(seed)
            if device is not None:
                torch.cuda.default_generators[device].manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
