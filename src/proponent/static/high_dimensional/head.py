"""A torch module's last linear layer as a sparse linear model of the features before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.last_layer import BATCH_SIZE, LastLayer
from proponent.gradients.output_loss import OutputLoss
from proponent.static.high_dimensional.arrays import Array
from proponent.static.high_dimensional.losses import Loss
from proponent.static.high_dimensional.models import SparseLastLayer
from proponent.static.high_dimensional.penalties import ElasticNet
from proponent.static.high_dimensional.sparse import SparseLinear

# Outputs at which a loss is tried.
FAR = 20.0


def sparse_head(
    studied: SparseLastLayer, train: Instances, *, batch_size: int | None, progress: bool | None
) -> SparseLinear:
    """Return the last linear layer of a module as a sparse linear model.

    Raises
    ------
    InvalidInputError
        If the module has no such layer, or its loss is not known as a function of the outputs.
    """
    size = BATCH_SIZE if batch_size is None else batch_size
    layer = LastLayer(studied.model, train, batch_size=size, progress=progress)
    columns = [_array(layer.weight)]
    if layer.bias is not None:
        columns.append(_array(layer.bias)[:, None])
    coefficients = np.column_stack(columns)
    penalised = np.ones(coefficients.shape[1])
    if layer.bias is not None:
        penalised[-1] = studied.penalise_bias

    loss = layer.read(train.select(slice(0, 1))).loss

    def read(instances: Instances, role: str) -> tuple[Array, Tensor]:
        readout = layer.read(instances)
        return _array(readout.features), readout.targets

    return SparseLinear(
        coefficients,
        ElasticNet.of(studied.penalty, studied.l1_ratio, penalised),
        None if layer.bias is None else 1.0,
        ModuleLoss(loss, len(coefficients)),
        read,
    )


@dataclass(frozen=True)
class ModuleLoss(Loss):
    """The loss of a torch module, differentiated by the outputs; targets are the module's own.

    Attributes
    ----------
    loss : OutputLoss
        Of the module's outputs.
    outputs : int
        k.
    """

    loss: OutputLoss
    outputs: int

    @override
    def value(self, outputs: Array, targets: Tensor) -> Array:
        with torch.no_grad():
            return _array(self.loss(_tensor(outputs, targets), targets))

    @override
    def gradient(self, outputs: Array, targets: Tensor) -> Array:
        return _array(self._slope(_tensor(outputs, targets).requires_grad_(), targets))

    @override
    def product(self, outputs: Array, targets: Tensor, directions: Array) -> Array:
        free = _tensor(outputs, targets).requires_grad_()
        slope = self._slope(free, targets)
        if not slope.requires_grad:  # a loss that is linear
            return np.zeros_like(directions)
        (bent,) = torch.autograd.grad(slope, free, _tensor(directions, targets))
        return _array(bent)

    @override
    def label_directions(self, targets: Tensor) -> Array | None:
        n, k = len(targets), self.outputs
        if k > 1 and targets.numel() == n and not targets.is_floating_point():
            classes = targets.reshape(n).cpu().numpy()
            if classes.min() < 0 or classes.max() >= k:
                raise InvalidInputError(
                    f"a label is not in 0 .. {k - 1}: the instance has no class whose logit could "
                    f"be looked at. Leave it out of the set, or use signed='loss'."
                )
            found: Array = np.eye(k)[classes]
            return found
        if targets.numel() == n * k and self._tells_two_classes(targets):
            return 2 * _array(targets.reshape(n, k)) - 1
        return None

    def _tells_two_classes(self, targets: Tensor) -> bool:
        """Whether a label 1 asks for ever larger outputs, and a label 0 for ever smaller ones."""
        outputs = np.array([[-FAR], [FAR]]) * np.ones(self.outputs)
        ones = torch.ones_like(targets[:1]).expand(2, *targets.shape[1:])
        falls = self.gradient(outputs, ones) < 0
        rises = self.gradient(outputs, torch.zeros_like(ones)) > 0
        return bool(falls.all() and rises.all())

    def _slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        with torch.enable_grad():
            risks = self.loss(outputs, targets)
            (slope,) = torch.autograd.grad(risks.sum(), outputs, create_graph=True)
        return slope


def _tensor(values: Array, like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().double().numpy())
