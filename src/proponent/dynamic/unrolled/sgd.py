"""Derivative and adjoint of a step of stochastic gradient descent, one parameter at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# A factor below this is multiplied out, so that the values keep within range.
SMALLEST_FACTOR = 1e-4


@dataclass
class ScaledBuffer:
    """Values times a factor, so that a momentum costs no pass over the values.

    Parameters
    ----------
    values : Tensor
    factor : float
    """

    values: Tensor
    factor: float = 1.0

    def add(self, vector: Tensor, times: float) -> None:
        """Add a multiple of a vector."""
        self.values.add_(vector, alpha=times / self.factor)

    def scale(self, times: float) -> None:
        """Multiply by a number."""
        self.factor *= times
        if abs(self.factor) < SMALLEST_FACTOR:
            self.values.mul_(self.factor)
            self.factor = 1.0


@dataclass(frozen=True)
class SGDStep:
    r"""A step of :class:`torch.optim.SGD` on one parameter, as a linear map of small changes.

    With the gradient's change :math:`dg`, the parameter's :math:`h` and the buffer's :math:`b`

    .. math::
        q = \pm dg + \lambda h, \qquad b \leftarrow \mu b + (1 - \delta) q
        \ (\text{at first } b \leftarrow q), \qquad h \leftarrow h - \eta b
        \ (\text{Nesterov: } h - \eta (q + \mu b)),

    and the transpose of that. Without the Hessian the map is the same for every entry.

    Parameters
    ----------
    rate : float
        Learning rate of the step.
    momentum, dampening, weight_decay : float
    nesterov : bool
    sign : float
        -1 where the optimizer maximises.
    first : bool
        Whether the buffer begins with this gradient, as torch has it, also with dampening.
    """

    rate: float
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    sign: float = 1.0
    first: bool = False

    @property
    def states(self) -> int:
        """Number of states beside the parameter."""
        return 1

    @classmethod
    def of(cls, rate: float, settings: Mapping[str, Any], *, first: bool) -> SGDStep:
        """Return the step under a parameter group's recorded settings."""
        return cls(
            rate=rate,
            momentum=float(settings["momentum"]),
            dampening=float(settings["dampening"]),
            weight_decay=float(settings["weight_decay"]),
            nesterov=bool(settings["nesterov"]),
            sign=-1.0 if settings.get("maximize") else 1.0,
            first=first,
        )

    def forward(
        self, change: Tensor, states: tuple[Tensor, ...], gradient: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the changes of the parameter and of the buffer after the step.

        ``gradient`` is the change of the gradient that the optimizer was given.
        """
        (buffer,) = states
        direction = gradient * self.sign
        if self.weight_decay:
            direction = direction + change * self.weight_decay
        if self.momentum:
            if self.first:
                buffer = direction
            else:
                buffer = buffer * self.momentum + direction * (1.0 - self.dampening)
            direction = direction + buffer * self.momentum if self.nesterov else buffer
        return change - direction * self.rate, (buffer,)

    def begin(self, like: Tensor) -> ScaledBuffer:
        """Return the buffer's adjoint before any step has been pulled back."""
        return ScaledBuffer(torch.zeros_like(like))

    def pull(self, adjoint: Tensor, buffer: ScaledBuffer) -> tuple[Tensor, float]:
        """Return the adjoint of the gradient as a vector and a factor; writes to the buffer's.

        The vector may be the adjoint or the buffer's itself: use it before :meth:`settle`.
        """
        if not self.momentum:
            return adjoint, -self.rate * self.sign
        kept = 1.0 if self.first else 1.0 - self.dampening
        if not self.nesterov:
            buffer.add(adjoint, -self.rate)
            return buffer.values, buffer.factor * kept * self.sign
        buffer.add(adjoint, -self.rate * self.momentum)
        moved = torch.add(buffer.values * (buffer.factor * kept), adjoint, alpha=-self.rate)
        return moved, self.sign

    def settle(self, adjoint: Tensor, buffer: ScaledBuffer, vector: Tensor, factor: float) -> None:
        """Make the adjoints of the parameter and the buffer those before the step, in place.

        What the gradient's own dependence on the parameters adds is left to the caller.
        """
        if self.weight_decay:
            adjoint.add_(vector, alpha=self.weight_decay * factor * self.sign)
        if self.momentum:
            buffer.scale(0.0 if self.first else self.momentum)

    def adjoint(self, adjoint: float, buffer: float) -> tuple[float, float, float]:
        """Return the adjoints of the gradient, of the parameter and of the buffer before the step.

        For one entry, without the gradient's own dependence on the parameters.
        """
        moved = adjoint * -self.rate
        if not self.momentum:
            direction = moved
        elif self.nesterov:
            buffer = buffer + moved * self.momentum
            direction = moved + buffer * (1.0 if self.first else 1.0 - self.dampening)
        else:
            buffer = buffer + moved
            direction = buffer * (1.0 if self.first else 1.0 - self.dampening)
        if self.momentum:
            buffer = buffer * (0.0 if self.first else self.momentum)
        if self.weight_decay:
            adjoint = adjoint + direction * self.weight_decay
        return direction * self.sign, adjoint, buffer
