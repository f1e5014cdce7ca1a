r"""Random projection of gradients to k dimensions, straight from their factors.

.. math:: R_{(s, a, c), \cdot} = u_{sa} \otimes v_{sc}, \qquad
          (R g)_{sac} = \sum_t \langle u_{sa}, l_t \rangle \langle v_{sc}, r_t \rangle

with independent normal vectors ``u_sa`` and ``v_sc`` for s = 1 .. k / b^2 and a, c = 1 .. b: the
(row-wise) Khatri-Rao product of two random matrices whose rows are taken in blocks of b.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.gradients.kfac.layers import Layer
from proponent.gradients.layer_maps import Factors, mapped, matrices, pieces, sides
from proponent.gradients.products import Gradients
from proponent.gradients.projection import RandomMatrices

# Rows in a block. Each factor is multiplied with k / b vectors, so that blocks of 4 cost a quarter;
# the variance grows with b + 1 (see KhatriRaoProjection).
BLOCK = 4


class KhatriRaoProjection:
    r"""A random projection of gradients to k dimensions by the factors of each layer's gradient.

    ``E <R g, R g'> = <g, g'>``. For a rank-one gradient of norm 1 the variance of the squared
    norm is :math:`4 (b + 1) / k`, where a dense Gaussian projection has :math:`2 / k` and one
    Kronecker product of two Gaussian factors falls only with the root of k. A position of a
    layer with o outputs and d inputs costs :math:`(o + d) k / b + k` multiply-adds, a dense
    projection :math:`o d k` an instance.

    Parameters
    ----------
    layers : sequence of Layer
        The layers, each parameter in one of them.
    k : int
        Number of dimensions.
    seed : object
        Fixes the projection, together with the layers' names.
    memory : int
        Bytes that random numbers, and as many that mapped factors may take.

    Notes
    -----
    **Source**: Sun, Guo, Tropp and Udell, "Tensor random projection for low memory dimension
    reduction" (2018), for b = 1.
    """

    def __init__(self, layers: Sequence[Layer], k: int, seed: object, memory: int) -> None:
        if k < 1:
            raise InvalidInputError(f"the number of dimensions must be at least 1; got {k}.")
        self.layers = tuple(layers)
        self.k = k
        self._width = next(b for b in (BLOCK, 2, 1) if k % b**2 == 0)
        self._blocks = k // self._width**2
        self._memory = memory
        self._drawn = RandomMatrices((seed, "khatri_rao"), memory)

    def __call__(self, gradients: Gradients, n: int) -> Tensor:
        """Return the projected gradients of n instances, ``(n, k)``."""
        form = next(iter(gradients.values()), None)
        like = torch.zeros(0) if form is None else form.like
        total = like.new_zeros(n, self._blocks, self._width, self._width)
        for layer in self.layers:
            rows, columns = sides(layer)
            left, right = self._side(layer, 0, rows, like), self._side(layer, 1, columns, like)
            entries = left.shape[1] + right.shape[1]
            for where, piece in pieces(layer, gradients, entries, self._memory):
                factors = mapped(layer, piece, left, right, self.k)
                if factors is None:
                    self._add_matrices(total[where], matrices(layer, piece), left, right)
                else:
                    self._add_factors(total[where], factors)
        # Each side's entries have variance 1 / (b blocks); their products' is to be 1 / k.
        return total.flatten(1).mul_(math.sqrt(self._blocks))

    def _side(self, layer: Layer, side: int, size: int, like: Tensor) -> Tensor:
        return self._drawn((layer.weight, side), size, self._blocks * self._width, like)

    def _add_factors(self, total: Tensor, factors: Sequence[Factors]) -> None:
        blocks = (self._blocks, self._width)
        for part in factors:
            left, right = part.left.unflatten(2, blocks), part.right.unflatten(2, blocks)
            if left.shape[1] == 1:
                total.addcmul_(left[:, 0, :, :, None], right[:, 0, :, None, :])
            else:
                total += torch.einsum("ntsa,ntsc->nsac", left, right)

    def _add_matrices(self, total: Tensor, whole: Tensor, left: Tensor, right: Tensor) -> None:
        blocks = (self._blocks, self._width)
        halves = (whole @ right).unflatten(2, blocks)
        total += torch.einsum("rsa,nrsc->nsac", left.unflatten(1, blocks), halves)
