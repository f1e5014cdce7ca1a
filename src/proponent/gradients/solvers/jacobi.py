"""The diagonal of a curvature, as a preconditioner."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from proponent.gradients.curvature import Curvature

Preconditioner = Callable[[Tensor], Tensor]

PROBES = 32


def jacobi(
    curvature: Curvature, shift: float, seed: int = 0, probes: int = PROBES
) -> Preconditioner:
    """Return the division by the diagonal of ``C + shift I``.

    Where the curvature does not know its diagonal it is estimated as the mean of ``z * C z`` over
    random signs z. Entries are taken by absolute value, and not below a thousandth of their mean.

    **Source**: Hutchinson (1989); Bekas, Kokiopoulou and Saad (2007).
    """
    diagonal = curvature.diagonal()
    if diagonal is None:
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (probes, curvature.size), generator=generator) * 2 - 1
        signs = signs.to(dtype=curvature.space.dtype, device=curvature.space.device)
        diagonal = (signs * curvature.matvec(signs)).mean(0)
    scale = diagonal.abs() + shift
    scale = scale.clamp(min=float(scale.mean()) / 1000)
    return lambda right: right / scale
