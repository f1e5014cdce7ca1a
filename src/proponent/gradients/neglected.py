"""What the Gauss-Newton matrix leaves out of the Hessian, and the damping that makes up for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from typing_extensions import override

from proponent.data import Instances
from proponent.gradients.curvature import InstanceCurvature, Product
from proponent.gradients.gauss_newton import split_risk
from proponent.gradients.solvers.lanczos import extreme_eigenvalues
from proponent.models.torch import TorchModel, check_finite

# Instances, spread over the training set, that are enough for an extreme eigenvalue.
SAMPLE = 4096


class Neglected(InstanceCurvature):
    """The Hessian of the mean risk less its Gauss-Newton matrix.

    ``H - G = (1/n) sum_i sum_o (d loss_i / d z_io) d^2 z_io / d theta^2``: the curvature of the
    outputs z, weighted by the slopes of the loss. Zero for outputs linear in the parameters.
    """

    name = "curvature that the default damping makes up for"
    remedy = (
        "Give damping= a number; curvature='empirical_fisher' and solver='ekfac' then need "
        "gradients alone."
    )

    def __init__(self, model: TorchModel, instances: Instances, **settings: Any) -> None:
        super().__init__(model, instances, **settings)
        self._risk = split_risk(model, self.name)

    @override
    def _product(self, batch: Any, ids: Any) -> Product:
        parameters = list(self.model.selected.values())
        outputs = self._risk.outputs(self.model.module, batch)
        free = outputs.detach().requires_grad_()
        losses = check_finite(self._risk.loss(free, batch), ids, "risk")
        (slopes,) = torch.autograd.grad(losses.sum(), free)
        gradients = torch.autograd.grad(
            (slopes * outputs).sum(),
            parameters,
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        self._twice(*gradients)
        return lambda vectors: self._pull_back(gradients, parameters, vectors)


def neglected_shift(model: TorchModel, instances: Instances, **settings: Any) -> float:
    r"""Return the shift at which the Gauss-Newton matrix no longer underrates curvature.

    It is ``max(0, -lambda_min(H - G))``: what has to be added to the diagonal for the Hessian,
    which is at least ``G + lambda_min(H - G)``, to be positive semidefinite. Directions of G that
    are smaller say nothing about how far parameters would move there.

    Parameters
    ----------
    model : TorchModel
        Its risk must be a loss of outputs and targets.
    instances : Instances
        The training set; of a large one 4,096 instances, evenly spread, are looked at.
    settings
        Of :class:`InstanceCurvature`.
    """
    n = len(instances)
    some = instances if n <= SAMPLE else instances.select(np.linspace(0, n - 1, SAMPLE).astype(int))
    neglected = Neglected(model, some, **settings)
    space = neglected.space
    like = torch.empty(space.size, dtype=space.dtype, device=space.device)
    smallest, _ = extreme_eigenvalues(neglected.matvec, like)
    return max(0.0, -float(smallest))
