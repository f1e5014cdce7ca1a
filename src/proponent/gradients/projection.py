"""Random projections of per-instance gradients to k dimensions.

``E <R g, R g'> = <g, g'>``. A projection is fixed by its seed and the parameters' names, whatever
the batches and the device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.gradients.forms import Form
from proponent.gradients.products import Gradients, Products, Query

Kind = Literal["gaussian", "rademacher", "kronecker"]
BLOCK_ENTRIES = 2**22  # entries of the dense projection that are drawn at once: 16 MB


@dataclass
class Projection:
    r"""A random projection of gradients to k dimensions.

    Parameters
    ----------
    k : int
        Number of dimensions.
    kind : "gaussian", "rademacher" or "kronecker"
        ``gaussian``: entries from N(0, 1/k), and
        :math:`Var\langle Rg, Rg'\rangle = (\|g\|^2\|g'\|^2 + \langle g, g'\rangle^2)/k`.
        ``rademacher``: entries :math:`\pm 1/\sqrt{k}`; the variance is smaller by
        :math:`2\sum_j g_j^2 g_j'^2/k`. ``kronecker``: a matrix parameter is projected on both
        sides, :math:`P_o G P_i^T`, by Gaussian factors, straight from the factors of its
        gradient; other parameters as ``gaussian``. The variance is larger and falls only with
        the root of k: for the squared norm of a rank-one gradient of norm 1 it is
        :math:`(1 + 2/k_o)(1 + 2/k_i) - 1`, with :math:`k_o k_i = k`, where ``gaussian`` has
        :math:`2/k`.
    seed : int or str
        Fixes the projection.
    memory : int
        Bytes of random numbers that are kept for the next batch instead of being drawn again.
    """

    k: int
    kind: Kind = "gaussian"
    seed: int | str = 0
    memory: int = 256 * 2**20

    def __post_init__(self) -> None:
        """Refuse unknown settings."""
        if self.k < 1:
            raise InvalidInputError(f"the number of dimensions must be at least 1; got {self.k}.")
        if self.kind not in get_args(Kind):
            raise InvalidInputError(
                f"projection={self.kind!r}: expected one of {', '.join(get_args(Kind))}."
            )
        self._drawn = RandomMatrices((self.seed, self.kind), self.memory)

    def __call__(
        self, gradients: Gradients, n: int, scales: Mapping[str, float] | None = None
    ) -> Tensor:
        """Return the projected gradients, ``(n, k)``.

        Parameters
        ----------
        gradients : mapping
            Of n instances, by parameter.
        n : int
            Number of instances.
        scales : mapping, optional
            A factor for each parameter's gradients; 1 where none is named.
        """
        total: Tensor | None = None
        for name, form in gradients.items():
            scale = (scales or {}).get(name, 1.0)
            if scale == 0.0:
                continue
            part = self._project(name, form) * scale
            total = part if total is None else total.add_(part)
        return torch.zeros(n, self.k) if total is None else total

    def _project(self, name: str, form: Form) -> Tensor:
        if self.kind != "kronecker" or len(form.shape) < 2:
            return self._dense(name, form)
        k_left, k_right = factor(self.k)
        tokens = form.tokens()
        if tokens is None:
            # Projected as from its factors: another batch may have them.
            rows, columns = form.shape[0], form.numel // form.shape[0]
            left = self._normal(name, 0, rows, k_left, form.like)
            right = self._normal(name, 1, columns, k_right, form.like)
            parts = [
                left.T @ block.flat().view(block.n, rows, columns) @ right
                for block in Products(memory=max(1, self.memory)).blocks(form)
            ]
            return torch.cat(parts).flatten(1)
        total = form.like.new_zeros(form.n, k_left, k_right)
        for token in tokens:
            right = token.right @ self._normal(name, 1, token.right.shape[2], k_right, form.like)
            if token.one_hot:
                rows = form.shape[0]
                left = self._normal(name, 0, rows, k_left, form.like)[token.left]
            else:
                left = token.left @ self._normal(name, 0, token.left.shape[2], k_left, form.like)
            total += left.mT @ right
        return total.flatten(1)

    def _dense(self, name: str, form: Form) -> Tensor:
        rows = max(1, BLOCK_ENTRIES // self.k)
        projected = []
        for instances in Products(memory=max(1, self.memory)).blocks(form):
            flat = instances.flat()
            parts = [
                part @ self._normal(name, block, part.shape[1], self.k, form.like)
                for block, part in enumerate(torch.split(flat, rows, 1))
            ]
            projected.append(torch.stack(parts).sum(0))
        return torch.cat(projected)

    def _normal(self, name: str, block: int, rows: int, columns: int, like: Tensor) -> Tensor:
        """Return a block of the projection, (rows, columns), scaled by 1/sqrt(columns)."""
        signs = self.kind == "rademacher"
        return self._drawn((name, block), rows, columns, like, signs=signs)


class RandomMatrices:
    """Random matrices by name, the same whenever they are asked for.

    Parameters
    ----------
    seed : tuple
        Fixes them, together with their names.
    memory : int
        Bytes of matrices that are kept instead of being drawn again.
    """

    def __init__(self, seed: tuple[object, ...], memory: int) -> None:
        self._seed = seed
        self._room = memory
        self._kept: dict[tuple[object, ...], Tensor] = {}

    def __call__(
        self,
        name: tuple[object, ...],
        rows: int,
        columns: int,
        like: Tensor,
        *,
        signs: bool = False,
    ) -> Tensor:
        """Return a matrix (rows, columns) of variance ``1 / columns`` an entry.

        Parameters
        ----------
        name : tuple
            What the matrix is called.
        rows, columns : int
            Its shape.
        like : Tensor
            Has its dtype and device; the numbers are drawn on the CPU.
        signs : bool
            Whether the entries are of one size with random signs, or normal.
        """
        key = (*name, columns)
        matrix = self._kept.get(key)
        if matrix is None:
            source = generator(*self._seed, *name)
            if signs:
                drawn = torch.randint(0, 2, (rows, columns), generator=source, dtype=torch.int8)
                matrix = drawn.to(like.dtype).mul_(2).sub_(1)
            else:
                matrix = torch.randn(rows, columns, generator=source).to(like.dtype)
            matrix = matrix.div_(math.sqrt(columns)).to(like.device)
            size = matrix.numel() * matrix.element_size()
            if size <= self._room:
                self._room -= size
                self._kept[key] = matrix
        return matrix


def generator(*names: object) -> torch.Generator:
    """Return a generator of random numbers that the names fix."""
    text = "/".join(map(str, names)).encode()
    seed = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "little")
    return torch.Generator().manual_seed(seed)


@dataclass
class ProjectedQuery(Query):
    """Projected gradients of m test instances, ready to meet training gradients.

    Parameters
    ----------
    vectors : Tensor of shape (m, k)
        The projected test gradients, scaled.
    projection : Projection
        Projects the training gradients.
    scales : mapping
        A factor for each parameter's training gradients; 1 where none is named.
    """

    vectors: Tensor
    projection: Projection
    scales: Mapping[str, float] = field(default_factory=dict)

    @override
    def __len__(self) -> int:
        return len(self.vectors)

    @override
    def meet(
        self, train: Gradients, n: int, *, norms: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        projected = self.projection(train, n, self.scales)
        return projected @ self.vectors.T, projected.square().sum(1) if norms else None


def factor(k: int) -> tuple[int, int]:
    """Return the two factors of k that are closest to its square root, smaller first."""
    smaller = next(size for size in range(math.isqrt(k), 0, -1) if k % size == 0)
    return smaller, k // smaller
