"""Random draws of each instance's own, the same whatever it is batched or asked with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from proponent._content import update_rounded
from proponent.data import Instances

if TYPE_CHECKING:
    from proponent.data import Batch


def generator(*words: object) -> np.random.Generator:
    """Return a generator of its own for every sequence of words, independent of all others."""
    key = blake2b("/".join(map(repr, words)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key, np.uint64)))


class InstanceNoise:
    """Standard normal draws by seed, side, point of the path and content of the instance.

    Equal instances of a side have equal draws; those of the other side are independent.

    Parameters
    ----------
    shape : tuple of int
        Of one draw.
    draws : int
        How many an instance gets.
    seed : int
        Fixes them.
    """

    def __init__(self, shape: tuple[int, ...], draws: int, seed: int) -> None:
        self.shape = shape
        self.draws = draws
        self.seed = seed
        self._label = ""

    @contextmanager
    def at(self, label: str) -> Iterator[None]:
        """Draw what belongs to a point of the path, for a while."""
        before, self._label = self._label, label
        try:
            yield
        finally:
            self._label = before

    def of(self, side: str, content: bytes) -> NDArray[np.float64]:
        """Return an instance's draws at the current point, ``(draws, *shape)``."""
        stream = generator(self.seed, side, self._label, content)
        return stream.standard_normal((self.draws, *self.shape))


class DrawnInstances(Instances):
    """Instances whose batches come with their noise: ``(batch, noise)``.

    Parameters
    ----------
    instances : Instances
        The instances.
    noise : InstanceNoise
        Their draws.
    side : str
        ``"train"`` or ``"test"``: which of the independent draws.
    """

    def __init__(self, instances: Instances, noise: InstanceNoise, side: str) -> None:
        super().__init__(
            instances._source,
            instances.ids,
            instances._collate,
            instances.feature_names,
            instances._frame,
        )
        self._noise = noise
        self._side = side
        self._content: dict[int, bytes] = {}

    @override
    def batch(self, indices: slice | NDArray[np.integer[Any]]) -> Batch:
        positions = range(len(self))[indices] if isinstance(indices, slice) else indices
        draws = [self._noise.of(self._side, self._key(int(where))) for where in positions]
        return super().batch(indices), torch.from_numpy(np.stack(draws))

    def _key(self, position: int) -> bytes:
        if position not in self._content:
            digest = blake2b(digest_size=16)
            update_rounded(digest, self.item(position))
            self._content[position] = digest.digest()
        return self._content[position]
