"""Curvatures that are written down, for the solvers' tests."""

import numpy as np
import torch
from torch import Tensor, nn

from proponent.data import Instances
from proponent.gradients.curvature import Curvature
from proponent.gradients.space import ParameterSpace
from proponent.models.torch import TorchModel


class Matrices(Curvature):
    """The mean of given symmetric matrices, one an instance, (n, p, p); counts its products."""

    def __init__(self, matrices: Tensor) -> None:
        p = matrices.shape[1]
        self.matrices, self.n, self.count = matrices, len(matrices), 0
        self.space = ParameterSpace(("x",), (torch.Size([p]),), matrices.dtype, matrices.device)

    def _average(self, vectors, positions):
        self.count += 1
        chosen = self.matrices if positions is None else self.matrices[np.asarray(positions)]
        return vectors @ chosen.mean(0)

    @property
    def matrix(self) -> Tensor:
        return self.matrices.mean(0)


def with_eigenvalues(*values: float) -> Matrices:
    """One matrix with given eigenvalues, in a random basis."""
    basis = torch.linalg.qr(torch.randn(len(values), len(values)))[0]
    return Matrices(((basis * torch.tensor(values)) @ basis.T)[None])


def least_squares(n: int = 60, p: int = 8) -> Matrices:
    """The matrices x x^T of a linear regression."""
    x = torch.randn(n, p)
    return Matrices(x[:, :, None] * x[:, None, :])


def exact(curvature: Curvature, shift: float, right: Tensor) -> Tensor:
    matrix = curvature.matvec(torch.eye(curvature.size))
    return torch.linalg.solve(matrix + shift * torch.eye(curvature.size), right.T).T


def network(n: int = 20, outputs: int = 3) -> tuple[TorchModel, Instances]:
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs))
    data = torch.randn(n, 4), torch.randint(0, outputs, (n,))
    return TorchModel(module, loss="cross_entropy"), Instances.of(data)
