"""The generalised Gauss-Newton matrix, by products, from reverse-mode derivatives alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import InstanceCurvature, Product
from proponent.models.torch import TorchModel, check_finite


@runtime_checkable
class SplitRisk(Protocol):
    """A risk whose outputs and loss can be had apart: ``risk = loss(outputs, target)``."""

    def outputs(self, module: nn.Module, batch: Any) -> Any:
        """Return the module's outputs for a batch."""

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """Return the loss of given outputs, (batch,)."""


class GaussNewton(InstanceCurvature):
    """Generalised Gauss-Newton matrix, ``(1/n) sum_i J_i^T (d^2 loss_i / d z^2) J_i``.

    ``J_i`` is the Jacobian of the outputs z. Positive semidefinite for a loss that is convex in
    the outputs, as all named losses are; equal to the Hessian for outputs linear in the
    parameters.

    **Source**: Schraudolph (2002); Martens (2020).

    Raises
    ------
    InvalidInputError
        If the model was given by ``risk=``, whose outputs cannot be told from its loss.
    """

    name = "Gauss-Newton matrix"
    positive = True

    def __init__(self, model: TorchModel, instances: Instances, **settings: Any) -> None:
        super().__init__(model, instances, **settings)
        self._risk = split_risk(model, self.name)

    @override
    def _product(self, batch: Any, ids: Any) -> Product:
        parameters = list(self.model.selected.values())
        outputs = self._risk.outputs(self.model.module, batch)
        if not isinstance(outputs, Tensor):
            raise InvalidInputError(
                f"the module returns {type(outputs).__name__}; the {self.name} needs one tensor "
                "of outputs (or an object with .logits). Use the Hessian instead."
            )
        free = outputs.detach().requires_grad_()
        loss = check_finite(self._risk.loss(free, batch), ids, "risk")
        (slope,) = torch.autograd.grad(loss.sum(), free, create_graph=True)
        # J v is the derivative by u of <J^T u, v>, which is linear in u.
        at = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(
            outputs, parameters, at, create_graph=True, allow_unused=True, materialize_grads=True
        )
        self._twice(slope, *pulled)

        def product(vectors: Sequence[Tensor]) -> list[Tensor]:
            moved = self._pull_back(pulled, [at], vectors)
            bent = self._pull_back([slope], [free], moved)
            return self._pull_back([outputs], parameters, bent)

        return product


def split_risk(model: TorchModel, name: str) -> SplitRisk:
    """Return the model's risk as outputs and loss.

    Raises
    ------
    InvalidInputError
        If the two cannot be told apart; ``name`` is what needs them.
    """
    if isinstance(model.risk, SplitRisk):
        return model.risk
    raise InvalidInputError(
        f"the {name} needs a risk made of outputs and a loss: TorchModel(module, loss=...). A "
        "risk= callable does not tell them apart: use the Hessian or the empirical Fisher matrix, "
        "or give risk= an object with methods outputs(module, batch) and loss(outputs, batch)."
    )
