r"""What is minimised when an instance is left out: retraining, and the proximal Bregman response.

With the risk a loss of outputs, :math:`\ell_j(z_j(\theta))`, decay :math:`\lambda`, damping
:math:`\delta` and the trained parameters :math:`\theta_s`, removing instance i minimises

.. math::

   J_{-i}(\theta) &= \frac1n \sum_{j \ne i} \ell_j(z_j(\theta)) + \frac\lambda2 \|\theta\|^2 \\
   P_{-i}(\theta) &= J_{-i}(\theta) + \frac\delta2 \|\theta - \theta_s\|^2 \\
   B_{-i}(\theta) &= \frac1n \sum_j D_{\ell_j}(z_j(\theta), z_j(\theta_s))
       - \frac1n \ell_i(z_i(\theta)) + \frac{\lambda + \delta}2 \|\theta - \theta_s\|^2

where :math:`D_\ell(z, z') = \ell(z) - \ell(z') - \nabla\ell(z')^T (z - z')` measures how far
outputs have moved, and not whether they have become better. The trained parameters minimise B
where nothing is removed, whether or not training has converged; and the first derivative of its
minimum in the weight of instance i is :math:`-(G + \lambda + \delta)^{-1} \nabla\ell_i`, with the
generalised Gauss-Newton matrix G.

**Source**: Bae, Ng, Lo, Ghassemi and Grosse, NeurIPS 2022.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proponent.data import Instances
from proponent.evaluation.minimise import Objective
from proponent.exceptions import InvalidInputError
from proponent.gradients.gauss_newton import SplitRisk
from proponent.gradients.space import ParameterSpace
from proponent.models.torch import TorchModel


@dataclass(frozen=True)
class Pull:
    """``(1/2) sum_p strength_p (theta_p - centre_p)^2``."""

    strength: Tensor
    centre: Tensor

    def __call__(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the value and the gradient (p,)."""
        force = self.strength * (theta - self.centre)
        return float(force @ (theta - self.centre)) / 2, force


class Removals:
    """The objectives of a model from which training instances are left out, one at a time.

    Nothing else than the chosen parameters moves. ``None`` in place of an instance leaves out
    nothing.

    Parameters
    ----------
    model : TorchModel
        The trained model, whose risk is a loss of outputs.
    train : Instances
        Its training set, of n instances.
    decay, damping : Tensor of shape (p,)
        lambda and delta of each entry.
    renormalised : bool
        Whether an instance takes its share ``(1/n) (lambda / 2) ||theta||^2`` of the weight
        decay with it, as the mean over the n - 1 others has it.
    batch_size : int
        Instances in a pass. It does not change the minima.

    Raises
    ------
    InvalidInputError
        If the risk cannot be told apart into outputs and loss.
    """

    def __init__(
        self,
        model: TorchModel,
        train: Instances,
        *,
        decay: Tensor,
        damping: Tensor,
        renormalised: bool,
        batch_size: int,
    ) -> None:
        self.model = model
        self.space = ParameterSpace.of(model)
        self.start = parameters_of(model)
        self.n = len(train)
        self._risk = _split_risk(model)
        self._train = train
        self._decay = decay
        self._damping = damping
        self._renormalised = renormalised
        self._batch_size = batch_size
        with self._at(self.start):
            self._tilts = [self._tilt(batch) for _, batch in self._batches()]

    def warm(self, removed: int | None) -> Objective:
        """Return J, that of retraining without the instance."""
        return self._objective(removed, [Pull(self._kept_decay(removed), self._origin)], False)

    def proximal(self, removed: int | None) -> Objective:
        """Return P, that of retraining which is held near the trained parameters."""
        decay = Pull(self._kept_decay(removed), self._origin)
        return self._objective(removed, [decay, Pull(self._damping, self.start)], False)

    def bregman(self, removed: int | None) -> Objective:
        """Return B, up to a constant: its minimum is the proximal Bregman response."""
        near = Pull(self._decay + self._damping, self.start)
        taken = Pull(self._kept_decay(removed) - self._decay, self._origin)
        return self._objective(removed, [near, taken], True)

    def removed_gradients(self, gradients: Tensor) -> Tensor:
        """Return the gradients (k, p) of what instances take with them, from those of the risks."""
        return gradients + self._decay * self.start if self._renormalised else gradients

    @property
    def _origin(self) -> Tensor:
        return torch.zeros_like(self.start)

    def _kept_decay(self, removed: int | None) -> Tensor:
        taken = removed is not None and self._renormalised
        return self._decay * (1 - 1 / self.n) if taken else self._decay

    def _objective(self, removed: int | None, pulls: list[Pull], bregman: bool) -> Objective:
        def evaluate(theta: Tensor) -> tuple[float, Tensor]:
            value, slopes = self._data(theta, removed, bregman)
            for pull in pulls:
                more, force = pull(theta)
                value, slopes = value + more, slopes + force
            return value, slopes

        return evaluate

    def _data(self, theta: Tensor, removed: int | None, bregman: bool) -> tuple[float, Tensor]:
        """Return the losses' part of an objective, and its gradient (p,).

        ``(1/n) sum_{j != i} loss_j``, where the divergences are asked for less ``(1/n) sum_j
        tilt_j . z_j``: what depends on theta, without the instance's own loss, which cancels.
        """
        parameters = list(self.model.selected.values())
        total, slopes = 0.0, torch.zeros_like(theta)
        with self._at(theta):
            for (rows, batch), tilt in zip(self._batches(), self._tilts, strict=True):
                outputs = self._risk.outputs(self.model.module, batch)
                losses = self._risk.loss(outputs, batch)
                kept = torch.ones_like(losses)
                if removed is not None and removed in rows:
                    kept[removed - rows.start] = 0
                part = (kept * losses).sum()
                if bregman:
                    part = part - (tilt * outputs).sum()
                total += float(part.detach())
                slopes += gradient(part, parameters, self.space)
        return total / self.n, slopes / self.n

    def _tilt(self, batch: Any) -> Tensor:
        """Return the derivatives of the losses by the outputs."""
        with torch.no_grad():
            outputs = self._risk.outputs(self.model.module, batch)
        if not isinstance(outputs, Tensor):
            raise InvalidInputError(
                f"the module returns {type(outputs).__name__}; a Bregman divergence needs one "
                "tensor of outputs (or an object with .logits)."
            )
        outputs = outputs.detach().requires_grad_()
        (tilt,) = torch.autograd.grad(self._risk.loss(outputs, batch).sum(), outputs)
        return tilt

    @contextmanager
    def _at(self, theta: Tensor) -> Iterator[None]:
        """Give the module the parameters for a while."""
        with self.model.evaluating(), self.model.at(named_parameters(theta, self.space)):
            yield

    def _batches(self) -> Iterator[tuple[range, Any]]:
        for start in range(0, self.n, self._batch_size):
            rows = range(start, min(start + self._batch_size, self.n))
            yield rows, self.model.prepare(self._train.batch(slice(rows.start, rows.stop)))


def _split_risk(model: TorchModel) -> SplitRisk:
    if isinstance(model.risk, SplitRisk):
        return model.risk
    raise InvalidInputError(
        "the risk is a callable of module and batch, which has no outputs apart from its loss, and "
        "so no Bregman divergence of outputs: fit the method to TorchModel(module, loss=...), or "
        "to a risk= with methods outputs(module, batch) and loss(outputs, batch)."
    )


def gradient(value: Tensor, parameters: Sequence[Tensor], space: ParameterSpace) -> Tensor:
    """Return the derivative (p,) of a number by the chosen parameters."""
    found = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
    named = zip(space.names, found, strict=True)
    return space.flatten({name: part[None] for name, part in named})[0]


def parameters_of(model: TorchModel) -> Tensor:
    """Return the chosen parameters as a vector (p,)."""
    named = {name: value.detach()[None] for name, value in model.selected.items()}
    return ParameterSpace.of(model).flatten(named)[0].clone()


def named_parameters(theta: Tensor, space: ParameterSpace) -> dict[str, Tensor]:
    """Cut a vector (p,) into parameters: copies, which a module may write to."""
    return {name: value[0] for name, value in space.unflatten(theta[None].clone()).items()}
