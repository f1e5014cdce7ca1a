"""Clipping by norm, differentiated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# torch.nn.utils.clip_grad_norm_ divides by the norm and this.
ADDED_TO_NORM = 1e-6


@dataclass(frozen=True)
class Clipping:
    r"""The map from a change of the gradient to that of the clipped gradient.

    Where the norm exceeds its bound, :math:`g' = s g` with :math:`s = c / (\|g\| + 10^{-6})`, so

    .. math::
        dg' = s \left( dg - \hat g \langle \hat g, dg \rangle
        \frac{\|g\|}{\|g\| + 10^{-6}} \right),

    which is its own transpose.

    Parameters
    ----------
    scale : float
        s.
    direction : mapping
        :math:`\hat g`, by parameter: those that the step moved.
    shrink : float
        The last factor.
    """

    scale: float
    direction: Mapping[str, Tensor]
    shrink: float

    @classmethod
    def of(cls, scale: float, clipped: Mapping[str, Tensor], moved: Iterable[str]) -> Clipping:
        """Return the map at a step whose gradient came out as ``clipped``.

        Parameters
        ----------
        scale : float
            The recorded factor, below 1.
        clipped : mapping
            The gradient after clipping.
        moved : iterable of str
            Names of the parameters whose gradients were clipped together.
        """
        parts = {name: clipped[name] for name in moved}
        norms = torch.stack([torch.linalg.vector_norm(part) for part in parts.values()])
        length = float(torch.linalg.vector_norm(norms))
        norm = length / scale if scale else 0.0
        if norm == 0.0:
            return cls(scale, {}, 0.0)
        return cls(
            scale,
            {name: part / length for name, part in parts.items()},
            norm / (norm + ADDED_TO_NORM),
        )

    def along(self, changes: Mapping[str, Tensor]) -> Tensor:
        """Return ``<g_hat, change_k>``, (k,), for changes ``(k, *shape)``."""
        total = None
        for name, direction in self.direction.items():
            part = changes[name].flatten(1) @ direction.flatten()
            total = part if total is None else total + part
        if total is None:
            changed = next(iter(changes.values()))
            total = changed.new_zeros(len(changed))
        return total

    def __call__(self, changes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the changes, or adjoints, on the other side of the clipping."""
        along = self.along(changes) * (-self.scale * self.shrink)
        found = {}
        for name, change in changes.items():
            scaled = change * self.scale
            direction = self.direction.get(name)
            if direction is not None:
                scaled.flatten(1).addr_(along, direction.flatten())
            found[name] = scaled
        return found
