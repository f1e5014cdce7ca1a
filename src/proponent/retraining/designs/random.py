"""Random numbers of a design: coalition j has the same, however many are drawn."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCK = 64  # coalitions whose random numbers are drawn together


def blocks(start: int, stop: int, block: int = BLOCK) -> Iterator[tuple[int, slice]]:
    """Yield the numbers of the blocks of ``start .. stop - 1``, and what of each is asked."""
    for number in range(start // block, -(-stop // block)):
        first = number * block
        yield number, slice(max(start - first, 0), min(stop - first, block))


def generator(seed: int, purpose: str, number: int) -> np.random.Generator:
    """Return the generator of a block, for a purpose that no other one shares."""
    return np.random.default_rng(
        np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), number])
    )


def fresh_seeds(seed: int, purpose: str, start: int, stop: int) -> NDArray[np.int64]:
    """Return a seed of its own for the training on each of the coalitions ``start .. stop - 1``."""
    parts = [
        generator(seed, f"seeds of {purpose}", number).integers(0, 2**63 - 1, BLOCK)[some]
        for number, some in blocks(start, stop)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def coin_tosses(generator: np.random.Generator, count: int, n: int) -> NDArray[np.bool_]:
    """Return coalitions that everyone is in with probability 1/2, ``(count, n)``: a bit each."""
    width = -(-n // 8)
    drawn = np.frombuffer(generator.bytes(count * width), np.uint8).reshape(count, width)
    return np.unpackbits(drawn, axis=1, count=n).view(np.bool_)


def uniform_masks(
    generator: np.random.Generator, sizes: NDArray[np.int64], n: int
) -> NDArray[np.bool_]:
    """Return a uniform coalition of each of the given sizes, ``(len(sizes), n)``."""
    row = np.arange(n)
    ranks = generator.permuted(np.tile(row, (len(sizes), 1)), axis=1)
    return np.asarray(ranks < sizes[:, None])
