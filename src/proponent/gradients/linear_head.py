r"""The last linear layer on fixed features: its mean risk, gradient and curvature in closed form.

With features f_i (a constant 1 appended where the layer has a bias) and weights theta, so that the
outputs are ``theta f_i``,

.. math::
    L(\theta) = \frac{1}{n} \sum_i \ell_i(\theta f_i), \quad
    \nabla L = \frac{1}{n} \sum_i \ell'_i f_i^T, \quad
    \nabla^2 L = \frac{1}{n} \sum_i \ell''_i \otimes f_i f_i^T .

The derivatives of the loss by the few outputs are differentiated out, for any loss; the rest is
matrix products. As the outputs are linear in theta, the Hessian is the Gauss-Newton matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from proponent.gradients.curvature import Curvature, Positions
from proponent.gradients.last_layer import LastLayer
from proponent.gradients.solvers.jacobi import Preconditioner
from proponent.gradients.space import ParameterSpace

Rows = slice | Tensor
RowLoss = Callable[[Tensor, Rows], Tensor]

# Entries of features and outputs that are worked on at once, and that are kept between products:
# 32 MB and 256 MB in float64.
ENTRIES = 2**22
KEPT = 2**25


@dataclass(frozen=True)
class LinearHead:
    """A linear layer on the fixed features of n instances.

    Attributes
    ----------
    features : Tensor of shape (n, d)
        What enters the layer, without the constant.
    loss : callable
        ``loss(outputs, rows) -> (k,)``: of outputs (k, C) of the instances at ``rows``.
    theta : Tensor of shape (C, d) or (C, d + 1)
        The weights as the module has them, the bias as last column; in the precision to compute in.
    """

    features: Tensor
    loss: RowLoss
    theta: Tensor

    @classmethod
    def of(
        cls, layer: LastLayer, features: Tensor, loss: RowLoss, dtype: torch.dtype
    ) -> LinearHead:
        """Return the last layer of a model on given features."""
        columns = [layer.weight] if layer.bias is None else [layer.weight, layer.bias[:, None]]
        return cls(features, loss, torch.cat(columns, 1).to(dtype))

    @property
    def n(self) -> int:
        """The number of instances."""
        return len(self.features)

    def inputs(self, features: Tensor) -> Tensor:
        """Return features (k, d) as the weights meet them, with the constant where there is one."""
        features = features.to(self.theta.dtype)
        if features.shape[1] == self.theta.shape[1]:
            return features
        return torch.cat([features, features.new_ones(len(features), 1)], 1)

    def outputs(self, theta: Tensor) -> Tensor:
        """Return ``theta f_i`` of all instances, (n, C)."""
        return torch.cat([inputs @ theta.T for _, inputs in self.blocks()])

    def combined(self, weights: Tensor) -> Tensor:
        """Return ``sum_i weights_i f_i^T``, of the shape of theta, for weights (n, C)."""
        parts = [weights[rows].T @ inputs for rows, inputs in self.blocks()]
        return torch.stack(parts).sum(0)

    def value_and_gradient(self, theta: Tensor) -> tuple[float, Tensor]:
        """Return the mean risk and its gradient, of the shape of theta."""
        value, gradient = 0.0, torch.zeros_like(theta)
        for rows, inputs in self.blocks():
            losses, slopes, _ = self.derivatives(rows, inputs @ theta.T)
            value += float(losses.sum()) / self.n
            gradient += slopes.T @ inputs / self.n
        return value, gradient

    def slopes(self, theta: Tensor) -> Tensor:
        """Return the derivatives of the losses by the outputs, (n, C)."""
        return torch.cat(
            [self.derivatives(rows, inputs @ theta.T)[1] for rows, inputs in self.blocks()]
        )

    def derivatives(
        self, rows: Rows, outputs: Tensor, *, twice: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return losses (k,), their derivatives by the outputs (k, C), and the outputs.

        Where ``twice``, the derivatives can be differentiated by the outputs once more.
        """
        outputs = outputs.detach().requires_grad_()
        with torch.enable_grad():
            losses = self.loss(outputs, rows)
            (slopes,) = torch.autograd.grad(losses.sum(), outputs, create_graph=twice)
        return losses.detach(), slopes, outputs

    def blocks(self, positions: Positions | None = None) -> Iterator[tuple[Rows, Tensor]]:
        """Go through all instances, or those at some positions: their rows and inputs."""
        size = max(1, ENTRIES // sum(self.theta.shape))
        for first in range(0, self.n if positions is None else len(positions), size):
            rows: Rows = slice(first, first + size)
            if positions is not None:
                rows = torch.as_tensor(positions[rows], device=self.features.device)
            yield rows, self.inputs(self.features[rows])


class HeadCurvature(Curvature):
    """Hessian of a linear layer's mean risk at given weights, which is its Gauss-Newton matrix.

    Vectors are weights (C, d) written row by row, the bias as last column of each row.

    Cost: a product takes 4 n C d operations and no pass through the module.

    Parameters
    ----------
    head : LinearHead
        The layer and its features.
    theta : Tensor of shape (C, d)
        The weights, with the bias.
    progress : bool, optional
        Whether solvers show a progress bar; None: on a terminal, when the work lasts.
    """

    name = "Gauss-Newton matrix of the last layer"

    def __init__(self, head: LinearHead, theta: Tensor, *, progress: bool | None = None) -> None:
        self.head = head
        self.theta = theta
        self.n = head.n
        self.progress = progress
        self.space = ParameterSpace(("last layer",), (theta.shape,), theta.dtype, theta.device)
        self._kept: list[tuple[Tensor, Tensor, Tensor]] | None = None

    @override
    def _average(self, vectors: Tensor, positions: Positions | None) -> Tensor:
        weights = vectors.view(-1, *self.theta.shape)
        total, n = torch.zeros_like(weights), self.n if positions is None else len(positions)
        for inputs, slopes, outputs in self._products(positions):
            at_once = max(1, ENTRIES // outputs.numel())
            for start in range(0, len(weights), at_once):
                chosen = slice(start, start + at_once)
                bent = _bent(slopes, outputs, inputs @ weights[chosen].mT)
                total[chosen] += bent.mT @ inputs
        return total.view_as(vectors).div_(n)

    def _products(self, positions: Positions | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Go through the blocks, kept for the next product where they are small."""
        if positions is not None or self.n * sum(self.theta.shape) > KEPT:
            yield from self._blocks(positions)
            return
        if self._kept is None:
            self._kept = list(self._blocks(None))
        yield from self._kept

    def _blocks(self, positions: Positions | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Go through inputs, derivatives by the outputs (to be differentiated), and outputs."""
        for rows, inputs in self.head.blocks(positions):
            _, slopes, outputs = self.head.derivatives(rows, inputs @ self.theta.T, twice=True)
            yield inputs, slopes, outputs

    @override
    def dense(self) -> Tensor:
        """Return the matrix itself, by blocks of two outputs, each a product of features."""
        classes, width = self.theta.shape
        matrix = self.theta.new_zeros(classes, width, classes, width)
        for inputs, slopes, outputs in self._blocks(None):
            for c, bent in _columns(slopes, outputs):
                for other in range(c, classes):
                    matrix[c, :, other] += (inputs * bent[:, other, None]).T @ inputs / self.n
        for c in range(classes):
            matrix[c + 1 :, :, c] = matrix[c, :, c + 1 :].permute(1, 2, 0)
        return matrix.view(self.size, self.size)

    @override
    def diagonal(self) -> Tensor:
        """Return the diagonal, ``(p,)``."""
        diagonal = torch.zeros_like(self.theta)
        for inputs, slopes, outputs in self._blocks(None):
            for c, bent in _columns(slopes, outputs):
                diagonal[c] += bent[:, c] @ inputs.square() / self.n
        return diagonal.flatten()

    def kronecker(self, shift: float) -> Preconditioner:
        r"""Return an approximate inverse of ``C + shift I``, shift above 0, for preconditioning.

        In ``C = mean_i l''_i (x) f_i f_i^T`` the mean of products becomes a product of means: that
        of ``l''_i``, and that of ``f_i f_i^T`` weighted by the trace of ``l''_i``. Negative
        eigenvalues, which a loss that is not convex has, count as zero.

        **Source**: Martens and Grosse (2015), section 3, but for the weights.
        """
        classes, width = self.theta.shape
        outer = self.theta.new_zeros(classes, classes)
        inner = self.theta.new_zeros(width, width)
        for inputs, slopes, outputs in self._blocks(None):
            traces = inputs.new_zeros(len(inputs))
            for c, bent in _columns(slopes, outputs):
                outer[c] += bent.sum(0) / self.n
                traces += bent[:, c]
            inner += (inputs * traces[:, None]).T @ inputs / self.n
        sizes, rotation = torch.linalg.eigh(outer)
        lengths, basis = torch.linalg.eigh(inner / (outer.trace() or 1))
        scale = sizes.clamp(min=0)[:, None] * lengths.clamp(min=0) + shift

        def precondition(right: Tensor) -> Tensor:
            rotated = rotation.T @ right.view(-1, classes, width) @ basis
            solved: Tensor = rotation @ (rotated / scale) @ basis.T
            return solved.flatten(1)

        return precondition


def _columns(slopes: Tensor, outputs: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Go through the outputs c: c, and ``l''_i[c]``, (n, C)."""
    for c in range(outputs.shape[1]):
        unit = torch.zeros_like(outputs)
        unit[:, c] = 1
        yield c, _bent(slopes, outputs, unit[None])[0]


def _bent(slopes: Tensor, outputs: Tensor, moved: Tensor) -> Tensor:
    """Return ``l''_i u_i`` for k changes u of the outputs, (k, n, C)."""
    if not slopes.requires_grad:  # the loss is linear in the outputs
        return torch.zeros_like(moved)
    if len(moved) > 1:
        # A loss may have operations that cannot be vectorised.
        with suppress(RuntimeError):
            return _vjp(slopes, outputs, moved, batched=True)
    return torch.stack([_vjp(slopes, outputs, change, batched=False) for change in moved])


def _vjp(slopes: Tensor, outputs: Tensor, moved: Tensor, *, batched: bool) -> Tensor:
    (bent,) = torch.autograd.grad(
        slopes,
        outputs,
        moved,
        retain_graph=True,
        materialize_grads=True,
        is_grads_batched=batched,
    )
    return bent
