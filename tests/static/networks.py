"""A small network, and its gradients and Gauss-Newton matrix written out by automatic
differentiation alone, in float64."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional

import proponent as pp

N, M, CLASSES = 23, 7, 3


@dataclass
class Network:
    """A tanh network on N training and M test instances without meaning."""

    seed: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        self.module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES)).double()
        self.train = torch.randn(N, 4).double(), torch.randint(CLASSES, (N,))
        self.test = torch.randn(M, 4).double(), torch.randint(CLASSES, (M,))
        self.model = pp.TorchModel(self.module, loss="cross_entropy")

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.module.named_parameters()}

    @property
    def theta(self) -> Tensor:
        return torch.cat([value.flatten() for value in self.parameters.values()])

    def gradients(self, data: tuple[Tensor, Tensor]) -> Tensor:
        """The gradient of each instance's risk, (n, p)."""

        def risks(parameters):
            logits = functional_call(self.module, parameters, (data[0],))
            return functional.cross_entropy(logits, data[1], reduction="none")

        return _rows(jacrev(risks)(self.parameters), len(data[0]))

    @cached_property
    def gauss_newton(self) -> Tensor:
        """(1/n) sum_i J_i^T D_i J_i, (p, p)."""
        X = self.train[0]
        jacobian = jacrev(lambda p: functional_call(self.module, p, (X,)))(self.parameters)
        J = torch.cat([part.flatten(2) for part in jacobian.values()], 2)
        p = torch.softmax(self.module(X).detach(), 1)
        D = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return torch.einsum("nap,nab,nbq->pq", J, D, J) / len(X)

    @cached_property
    def hessian(self) -> Tensor:
        """The Hessian of the mean risk, (p, p)."""
        shapes = {name: value.shape for name, value in self.parameters.items()}
        lengths = [value.numel() for value in self.parameters.values()]

        def risk(theta):
            parts = theta.split(lengths)
            named = {n: part.view(shapes[n]) for n, part in zip(shapes, parts, strict=True)}
            logits = functional_call(self.module, named, (self.train[0],))
            return functional.cross_entropy(logits, self.train[1])

        return torch.autograd.functional.hessian(risk, self.theta)

    def inverse(self, shift: float) -> Tensor:
        return torch.linalg.inv(self.gauss_newton + shift * torch.eye(len(self.theta)).double())


def close(found, expected, tolerance: float = 1e-10) -> bool:
    """Whether two arrays agree, norm-wise and relatively."""
    expected = np.asarray(expected)
    difference = np.asarray(found) - expected
    return bool(np.linalg.norm(difference) <= tolerance * np.linalg.norm(expected))


def _rows(parts: dict[str, Tensor], n: int) -> Tensor:
    return torch.cat([part.reshape(n, -1) for part in parts.values()], 1)
