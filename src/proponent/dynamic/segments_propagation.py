r"""What a segment of gradient descent with constant curvature does to a change of the parameters.

With P the diagonal of the learning rates, summed over the K steps, and H the curvature with
weight decay and damping, the change :math:`\delta` that a segment begins with, and the gradient g
of a risk that is left out of it, become

.. math:: e(PH)\, \delta + f(PH)\, P g, \qquad e(x) = \exp(-x) \text{ or } (1 - x/K)^K, \quad
          f(x) = (1 - e(x)) / x.

The adjoints are taken here: a test gradient u is met by g as :math:`P f(HP) u`, and is carried to
the segment before as :math:`e(HP) u`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from proponent.exceptions import NonFiniteError, SolveError

Propagation = Literal["exponential", "power"]


@dataclass(frozen=True)
class Carried:
    """Test gradients at a segment.

    Attributes
    ----------
    met : Tensor of shape (k, p)
        What training gradients of the segment meet.
    before : Tensor of shape (k, p)
        What the segment before it begins with.
    """

    met: Tensor
    before: Tensor


class Propagator(Protocol):
    """A segment, seen from its end."""

    def carry(self, vectors: Tensor) -> Carried:
        """Carry test gradients (k, p) over the segment."""

    def diagnostics(self) -> dict[str, Any]:
        """Return the extreme eigenvalues and what they do, as values that JSON can hold."""

    def warnings(self) -> list[str]:
        """Return what the user should know."""


@dataclass(frozen=True)
class Spectrum:
    """How curvature acts over a segment, along its eigenvectors.

    Parameters
    ----------
    eigenvalues : Tensor
        x: those of the curvature, times the sum of the learning rates.
    steps : int
        K.
    propagation : "exponential" or "power"
        Which of the two forms e has.
    where : str
        The segment, for messages.

    Raises
    ------
    NonFiniteError
        If an eigenvalue is not finite.
    SolveError
        If e is not finite.
    """

    eigenvalues: Tensor
    steps: int
    propagation: Propagation
    where: str

    def __post_init__(self) -> None:
        """Refuse a segment that magnifies beyond all numbers."""
        if not torch.isfinite(self.eigenvalues).all():
            raise NonFiniteError(
                f"{self.where}: the curvature is not finite. Look at the training instances whose "
                f"gradients are not, or leave them out."
            )
        if not torch.isfinite(self.kept).all():
            raise SolveError(
                f"{self.where}: the curvature's smallest eigenvalue times the learning rates is "
                f"{float(self.eigenvalues.min()):.3g}, the largest "
                f"{float(self.eigenvalues.max()):.3g}: what came before would be magnified beyond "
                f"all numbers. Use curvature='ggn' with propagation='exponential', or more "
                f"segments."
            )

    @property
    def kept(self) -> Tensor:
        """``e(x)``: what is left of a change at the end of the segment."""
        if self.propagation == "exponential":
            return torch.exp(-self.eigenvalues)
        return (1 - self.eigenvalues / self.steps) ** self.steps

    @property
    def gathered(self) -> Tensor:
        """``f(x) = (1 - e(x)) / x``, which is 1 for small x: the sum over the segment's steps."""
        x = self.eigenvalues
        if self.propagation == "exponential":
            lost = -torch.expm1(-x)
        else:
            each = x / self.steps
            near = -torch.expm1(self.steps * torch.log1p(-each.clamp(max=0.5)))
            lost = torch.where(each < 0.5, near, 1 - self.kept)
        return torch.where(x == 0, 1.0, lost / torch.where(x == 0, 1.0, x))
