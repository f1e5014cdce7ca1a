"""Small models of every kind of layer, and dense references for their Kronecker factors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gradient_checks import Written
from references import gradients_by_loop
from torch import Tensor, nn
from torch.nn import functional

from proponent.gradients.kfac import KroneckerFactors
from proponent.gradients.labels import with_fisher_labels
from proponent.models.torch import TorchModel

N = 17
VOCABULARY, LENGTH, WIDTH, CLASSES = 7, 5, 4, 3


def _risk_of(model: TorchModel, batch: Any, module: nn.Module, _: Any) -> Tensor:
    return model.risk(module, batch)


@dataclass(frozen=True)
class Example:
    model: TorchModel
    data: tuple[Tensor, ...]

    def gradients(self, **options: Any) -> dict[str, Tensor]:
        """Each pseudo-gradient by one backward pass an instance, ``(n, *shape)``."""
        model, instances = with_fisher_labels(self.model, self.data, **options)
        found = []
        for i in range(len(instances)):
            batch = model.prepare(instances.batch(slice(i, i + 1)))
            risk = partial(_risk_of, model, batch)
            found.append(gradients_by_loop(model.module, risk, torch.zeros(1), 1))
        return {name: torch.cat([each[name] for each in found]) for name in model.selected}


def mlp() -> Example:
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    return Example(TorchModel(net, loss="cross_entropy"), (torch.randn(N, 5), classes(N)))


def relu_regression() -> Example:
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    return Example(TorchModel(net, loss="mse"), (torch.randn(N, 5), torch.randn(N, 2)))


def cnn() -> Example:
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Conv2d(3, 2, 2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return Example(TorchModel(net, loss="cross_entropy"), (torch.randn(N, 2, 5, 5), classes(N)))


def cnn_of_other_dimensions() -> Example:
    net = nn.Sequential(
        nn.Conv3d(1, 2, (2, 1, 2), padding=(0, 1, 0)),
        nn.Tanh(),
        nn.Flatten(2),
        nn.Conv1d(2, 2, 3, dilation=2, stride=3),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    data = torch.randn(N, 1, 3, 2, 3)
    net(data)
    return Example(TorchModel(net, loss="cross_entropy"), (data, classes(N)))


def sequence() -> Example:
    """An embedding and layers on each token; some labels are left out."""
    net = nn.Sequential(
        nn.Embedding(VOCABULARY, WIDTH, padding_idx=0),
        nn.LayerNorm(WIDTH),
        nn.Linear(WIDTH, 5),
        nn.Tanh(),
        nn.Linear(5, CLASSES),
    )
    targets = torch.randint(0, CLASSES, (N, LENGTH))
    targets[torch.rand(N, LENGTH) < 0.3] = -100
    targets[:, 0] = 1
    return Example(TorchModel(net, loss="cross_entropy"), (words(), targets))


def called_twice() -> Example:
    """A linear layer and a convolution that are each called twice."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = torch.tanh(self.linear(torch.tanh(self.linear(x))))
        x = torch.tanh(self.conv(torch.tanh(self.conv(x[:, None]))))
        return self.head(x[:, 0])

    net = Written(
        forward,
        linear=nn.Linear(4, 4),
        conv=nn.Conv1d(1, 1, 3, padding=1),
        head=nn.Linear(4, CLASSES),
    )
    return Example(TorchModel(net, loss="cross_entropy"), (torch.randn(N, 4), classes(N)))


def transposed() -> Example:
    """Weights that stand transposed: ``addmm`` as in GPT-2, and a product without a bias."""

    def forward(self: Any, x: Tensor) -> Tensor:
        rows = torch.addmm(self.first_bias, x.reshape(-1, 4), self.first_weight).tanh()
        return (rows.view(len(x), -1, 3) @ self.second).sum(1)

    net = Written(
        forward,
        first_weight=nn.Parameter(torch.randn(4, 3)),
        first_bias=nn.Parameter(torch.randn(3)),
        second=nn.Parameter(torch.randn(3, CLASSES)),
    )
    return Example(TorchModel(net, loss="cross_entropy"), (torch.randn(N, 2, 4), classes(N)))


def without_factors() -> Example:
    """A tied embedding, a grouped convolution, a norm and a free scale."""

    def forward(self: Any, x: Tensor) -> Tensor:
        hidden = self.table(x).mT
        hidden = self.norm(self.grouped(hidden)).mT * self.scale
        return functional.linear(hidden.mean(1), self.table.weight)

    net = Written(
        forward,
        table=nn.Embedding(VOCABULARY, WIDTH),
        grouped=nn.Conv1d(WIDTH, WIDTH, 3, padding=1, groups=2),
        norm=nn.GroupNorm(2, WIDTH),
        scale=nn.Parameter(torch.randn(WIDTH)),
    )
    return Example(TorchModel(net, loss="cross_entropy"), (words(), classes(N, VOCABULARY)))


EXAMPLES: dict[str, Callable[[], Example]] = {
    make.__name__: make
    for make in (
        mlp,
        relu_regression,
        cnn,
        cnn_of_other_dimensions,
        sequence,
        called_twice,
        transposed,
        without_factors,
    )
}


def classes(n: int, count: int = CLASSES) -> Tensor:
    return torch.randint(0, count, (n,))


def words(n: int = N) -> Tensor:
    return torch.randint(0, VOCABULARY, (n, LENGTH))


def joint(block: Any, gradients: Mapping[str, Tensor]) -> Tensor:
    """A block's gradients with the bias as the last row or column, as rows, ``(n, entries)``."""
    layer = block.layer
    weight = gradients[layer.weight]
    if layer.diagonal:
        return weight.flatten(1)
    weight = weight.flatten(2)
    if layer.bias is not None:
        bias = gradients[layer.bias]
        border = bias[:, None] if layer.bias_on_left else bias[:, :, None]
        weight = torch.cat([weight, border], 1 if layer.bias_on_left else 2)
    return weight.flatten(1)


def basis(block: Any) -> Tensor:
    """The eigenvectors of a block as columns, by a Kronecker product written out."""
    rows, columns = block.layer.rows, block.layer.columns
    if block.layer.diagonal:
        return torch.eye(block.eigenvalues.numel())
    left = torch.eye(rows) if block.left is None else block.left
    return torch.kron(left, torch.eye(columns) if block.right is None else block.right)


def second_moment(block: Any, gradients: Mapping[str, Tensor]) -> Tensor:
    """The dense Fisher of one block."""
    rows = joint(block, gradients)
    return rows.T @ rows / len(rows)


def matrix(block: Any) -> Tensor:
    """The dense matrix that a block stands for."""
    vectors = basis(block)
    return vectors @ torch.diag(block.eigenvalues.flatten()) @ vectors.T


def dense_curvature(factors: KroneckerFactors) -> Tensor:
    """All blocks in the order of the flat vectors, one product with a basis vector at a time."""
    total = torch.zeros(factors.size, factors.size)
    numbers = torch.arange(factors.size)[None]
    positions = factors.space.unflatten(numbers.to(factors.space.dtype))
    for block in factors.blocks:
        where = joint(block, positions)[0].long()
        total[where[:, None], where] = matrix(block)
    return total
