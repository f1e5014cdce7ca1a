"""Small models in float64, and their gradients written out, for methods that project them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from references import flat, gradients_by_loop
from torch import Tensor, nn
from torch.nn import functional

import proponent as pp


@dataclass
class Study:
    """A model on a training and a test set, neither with meaning."""

    module: nn.Module
    loss: Any
    train: tuple[Tensor, ...]
    test: tuple[Tensor, ...]

    @property
    def model(self) -> pp.TorchModel:
        return pp.TorchModel(self.module, loss=self.loss)

    def gradients(self, of: Callable[..., Tensor], data: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Gradients of ``of(module, batch)`` by one backward pass an instance."""
        return gradients_by_loop(self.module, of, data, len(data[0]))

    def risk_gradients(self, data: tuple[Tensor, ...]) -> dict[str, Tensor]:
        return self.gradients(self.model.risk, data)


def binary(n: int = 40, seed: int = 0) -> Study:
    """A tanh network with one logit: 21 parameters, whose gradients span all dimensions."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    sets = [
        (torch.randn(size, 3).double(), torch.randint(2, (size, 1)).double()) for size in (n, 7)
    ]
    return Study(module, "bce_with_logits", *sets)


def classifier(n: int = 30, seed: int = 0) -> Study:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    sets = [(torch.randn(size, 4).double(), torch.randint(3, (size,))) for size in (n, 6)]
    return Study(module, "cross_entropy", *sets)


def sequence(n: int = 12) -> Study:
    """An embedding, tokens, a norm, and a loss on every token."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Embedding(7, 4), nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 3)
    ).double()
    sets = [(torch.randint(7, (size, 6)), torch.randint(3, (size, 6))) for size in (n, 4)]
    return Study(net, "cross_entropy", *sets)


def images(n: int = 10) -> Study:
    """Convolutions, one of them grouped, a batch normalisation and a custom regression loss."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(),
        nn.Conv2d(4, 4, 2, groups=2), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2),
    ).double()  # fmt: skip
    sets = [(torch.randn(size, 2, 4, 4).double(), torch.randn(size, 2).double()) for size in (n, 3)]
    net(sets[0][0])
    return Study(net, lambda out, y: functional.smooth_l1_loss(out, y, reduction="none").sum(1),
                 *sets)  # fmt: skip


def log_odds(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """log(p / (1 - p)) by the definition."""
    logits, y = module(batch[0]), batch[1]
    if logits.shape[1] == 1:
        p = torch.sigmoid(logits)
        p = torch.where(y == 1, p, 1 - p)[:, 0]
    else:
        p = torch.softmax(logits, 1)[torch.arange(len(y)), y]
    return torch.log(p) - torch.log(1 - p)


def matrix(gradients: dict[str, Tensor]) -> Tensor:
    return flat(gradients)


def close(found: Any, expected: Any, tolerance: float = 1e-10) -> bool:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    size = np.linalg.norm(expected)
    return bool(size > 0 and np.linalg.norm(found - expected) <= tolerance * size)
