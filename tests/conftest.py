"""What every test stands on: one thread, fixed seeds, no network."""

import os

# Before numpy and torch are loaded, and inherited by the processes that tests start. Two threads
# on a busy two-core machine make small training many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import settings

try:
    import torch
except ModuleNotFoundError:
    torch = None  # the torch-free part of the suite still runs
else:
    torch.set_num_threads(1)

# No deadline, for no test may depend on time; the same examples at every run.
settings.register_profile("proponent", deadline=None, derandomize=True)
settings.load_profile("proponent")


@pytest.fixture(autouse=True)
def fixed_seeds() -> Iterator[None]:
    """Start every test from the same global random states, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    if torch is not None:
        torch.manual_seed(0)
    yield


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a fresh generator with a fixed seed."""
    return np.random.default_rng(0)
