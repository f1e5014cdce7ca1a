"""Derivative and adjoint of a step of Adam or AdamW, one parameter at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamStep:
    r"""A step of :class:`torch.optim.Adam` on one parameter, as a linear map of small changes.

    With :math:`g` the gradient (with its coupled weight decay), :math:`m, v` the moments after
    the step, hats their bias-corrected values, and :math:`s = \sqrt{\hat v}`,

    .. math::
        q = \pm dg + \lambda h, \qquad dm \leftarrow \beta_1 dm + (1 - \beta_1) q, \qquad
        dv \leftarrow \beta_2 dv + 2 (1 - \beta_2)\, g \circ q,

    .. math::
        h \leftarrow h - \eta \left[ \frac{d\hat m}{s + \epsilon}
        - \frac{\hat m \circ d\hat v}{2 s (s + \epsilon)^2} \right],

    with :math:`(1 - \eta\lambda) h` in place of :math:`h`, and no :math:`\lambda` in :math:`q`,
    where the weight decay is decoupled. Entries whose gradient was 0 at every step so far have
    :math:`v = dv = 0`: their second term is 0, as its limit is.

    **Differs from** Chen et al. (2021), who treat momentum alone; derived here.

    Parameters
    ----------
    kept : float
        :math:`1 - \eta\lambda` where the decay is decoupled, else 1.
    coupled : float
        :math:`\lambda` where the decay is coupled, else 0.
    beta1, beta2 : float
    sign : float
        -1 where the optimizer maximises.
    by_mean, by_square, of_square : Tensor of the parameter's shape
        What a change of the first moment, and of the second, moves the parameter by (towards
        and away), and what a change of the gradient adds to the second.
    """

    kept: float
    coupled: float
    beta1: float
    beta2: float
    sign: float
    by_mean: Tensor
    by_square: Tensor
    of_square: Tensor

    @property
    def states(self) -> int:
        """Number of states beside the parameter."""
        return 2

    @classmethod
    def of(
        cls,
        rate: float,
        settings: Mapping[str, Any],
        parameter: Tensor,
        gradient: Tensor,
        state: Mapping[str, Tensor],
    ) -> AdamStep:
        """Return the step under recorded settings, at the values before it.

        Parameters
        ----------
        rate : float
            Learning rate of the step.
        settings : mapping
            The parameter group's.
        parameter, gradient : Tensor
            The parameter before the step, and the gradient that the optimizer was given.
        state : mapping
            ``exp_avg``, ``exp_avg_sq`` and ``step`` before the step; empty before the first one.
        """
        beta1, beta2 = (float(beta) for beta in settings["betas"])
        decay, epsilon = float(settings["weight_decay"]), float(settings["eps"])
        decoupled = bool(settings["decoupled_weight_decay"])
        sign = -1.0 if settings.get("maximize") else 1.0
        gradient = gradient * sign
        if decay and not decoupled:
            gradient = gradient + parameter * decay
        count = int(state["step"]) + 1 if state else 1
        mean, square = (1.0 - beta1) * gradient, (1.0 - beta2) * gradient.square()
        if state:
            mean = mean + beta1 * state["exp_avg"]
            square = square + beta2 * state["exp_avg_sq"]
        first, second = 1.0 - beta1**count, 1.0 - beta2**count
        root = (square / second).sqrt()
        size = root + epsilon
        away = rate * (mean / first) / (2.0 * second * root * size.square())
        return cls(
            kept=1.0 - rate * decay if decoupled else 1.0,
            coupled=0.0 if decoupled else decay,
            beta1=beta1,
            beta2=beta2,
            sign=sign,
            by_mean=(rate / first) / size,
            by_square=torch.where(root == 0, 0, away),
            of_square=2.0 * (1.0 - beta2) * gradient,
        )

    def forward(
        self, change: Tensor, states: tuple[Tensor, ...], gradient: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the changes of the parameter and of both moments after the step."""
        mean, square = states
        direction = gradient * self.sign
        if self.coupled:
            direction = direction + change * self.coupled
        mean = mean * self.beta1 + direction * (1.0 - self.beta1)
        square = square * self.beta2 + direction * self.of_square
        return change * self.kept - mean * self.by_mean + square * self.by_square, (mean, square)

    def begin(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return the moments' adjoints before any step has been pulled back."""
        return torch.zeros_like(like), torch.zeros_like(like)

    def pull(self, adjoint: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, float]:
        """Return the adjoint of the gradient as a vector and a factor; writes to the states."""
        mean, square = states
        mean.addcmul_(adjoint, self.by_mean, value=-1.0)
        square.addcmul_(adjoint, self.by_square)
        vector = (square * self.of_square).add_(mean, alpha=1.0 - self.beta1)
        return vector, self.sign

    def settle(
        self, adjoint: Tensor, states: tuple[Tensor, Tensor], vector: Tensor, factor: float
    ) -> None:
        """Make the adjoints of the parameter and the moments those before the step, in place.

        What the gradient's own dependence on the parameters adds is left to the caller.
        """
        mean, square = states
        if self.kept != 1.0:
            adjoint.mul_(self.kept)
        if self.coupled:
            adjoint.add_(vector, alpha=self.coupled * factor * self.sign)
        mean.mul_(self.beta1)
        square.mul_(self.beta2)
