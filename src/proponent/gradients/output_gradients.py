"""A model's outputs, instance by instance: their gradients, and the loss as their function."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.gauss_newton import SplitRisk, split_risk
from proponent.gradients.products import Gradients
from proponent.gradients.space import ParameterSpace
from proponent.models.torch import TorchModel, check_finite


@dataclass(frozen=True)
class LossDerivatives:
    """The loss of n instances as a function of their m outputs each.

    Attributes
    ----------
    slopes : Tensor of shape (n, m)
        First derivatives by the outputs.
    curvatures : Tensor of shape (n, m, m)
        Second derivatives.
    """

    slopes: Tensor
    curvatures: Tensor


class OutputGradients:
    """Gradients of the outputs of a model by its chosen parameters.

    All methods are to be called within ``model.evaluating()``, with prepared batches.

    Parameters
    ----------
    model : TorchModel
        Its risk must be a loss of outputs and targets.
    instances : Instances
        Where the capture takes the few instances from that it is tried on.
    dtype : torch.dtype
        Type in which gradients are held.

    Attributes
    ----------
    count : int
        m, the outputs of an instance.

    Raises
    ------
    InvalidInputError
        If the outputs cannot be told from the loss, or are not one tensor with the instances on
        its first axis.
    """

    def __init__(self, model: TorchModel, instances: Instances, dtype: torch.dtype) -> None:
        self._model = model
        self._space = ParameterSpace.of(model)
        self._risk = split_risk(model, "gradient of the outputs")
        with model.evaluating(), torch.no_grad():
            first = model.prepare(instances.batch(slice(0, 1)))
            outputs = self._risk.outputs(model.module, first)
        if not isinstance(outputs, Tensor) or len(outputs) != 1:
            raise InvalidInputError(
                "the module must return one tensor of outputs with the instances on its first "
                "axis for them to be told apart."
            )
        self.count = math.prod(outputs.shape[1:])
        self._shape = outputs.shape[1:]
        combined = TorchModel(
            model.module, risk=_Combination(self._risk), parameters=model.parameters
        )
        self._capture = GradientCapture(combined, _Weighted(instances, self._shape), dtype)

    def combined(self, batch: Any, weights: Tensor, ids: NDArray[Any]) -> Gradients:
        """Return the gradients of ``sum_c weights_ic z_ic``, for weights (n, m)."""
        return self._capture((batch, weights.reshape(-1, *self._shape)), ids)

    def jacobian(self, batch: Any, ids: NDArray[Any]) -> Tensor:
        """Return the gradient of each output of each instance, ``(n, m, p)``."""
        rows = [
            self._space.gradients(self.combined(batch, weights, ids), len(ids))
            for weights in self._units(len(ids))
        ]
        return torch.stack(rows, 1)

    def values(self, batch: Any) -> Tensor:
        """Return the outputs, ``(n, ...)`` as the module gives them."""
        with torch.no_grad():
            outputs: Tensor = self._risk.outputs(self._model.module, batch)
        return outputs.detach()

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the risks at other outputs, ``(n,)``."""
        with torch.no_grad():
            return self._risk.loss(outputs, batch)

    def derivatives(self, batch: Any, ids: NDArray[Any]) -> LossDerivatives:
        """Return the derivatives of the loss by the outputs."""
        free = self.values(batch).requires_grad_()
        risks = check_finite(self._risk.loss(free, batch), ids, "risk")
        (slopes,) = torch.autograd.grad(risks.sum(), free, create_graph=True)
        columns = [
            torch.autograd.grad(
                slopes, free, weights.view_as(slopes), retain_graph=True, materialize_grads=True
            )[0]
            if slopes.requires_grad
            else torch.zeros_like(slopes)  # a loss that is linear in the outputs
            for weights in self._units(len(ids), slopes)
        ]
        flat = [part.detach().reshape(len(ids), self.count) for part in (slopes, *columns)]
        return LossDerivatives(flat[0], torch.stack(flat[1:], 2))

    def _units(self, n: int, like: Tensor | None = None) -> Iterator[Tensor]:
        """Go through the outputs: weights (n, m) that pick one of each instance."""
        for output in range(self.count):
            weights = torch.zeros(n, self.count, dtype=self._space.dtype, device=self._space.device)
            weights[:, output] = 1.0
            yield weights if like is None else weights.to(like)


class _Combination:
    """The sum of the outputs of each instance, with weights that come with the batch."""

    def __init__(self, risk: SplitRisk) -> None:
        self._risk = risk

    def __call__(self, module: nn.Module, weighted: Any) -> Tensor:
        batch, weights = weighted
        products: Tensor = self._risk.outputs(module, batch) * weights
        return products.flatten(1).sum(1) if products.ndim > 1 else products


class _Weighted(Instances):
    """Instances whose batches come with weights of their outputs, no two alike."""

    def __init__(self, instances: Instances, shape: torch.Size) -> None:
        super().__init__((instances.ids,), instances.ids)
        self._instances = instances
        self._weights = torch.linspace(1, 2, math.prod(shape)).reshape(1, *shape)

    @override
    def batch(self, indices: slice | NDArray[np.integer[Any]]) -> Any:
        n = len(self.ids[indices])
        return self._instances.batch(indices), self._weights.expand(n, *self._weights.shape[1:])
