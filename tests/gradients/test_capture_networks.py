"""Whole networks of the usual kinds: every parameter from layer inputs and output gradients."""

import pytest
import torch
from gradient_checks import N, check_gradients, labels, tokens
from references import gradients_by_loop, gradients_by_vmap, relative_error
from torch import nn
from torch.nn import functional

from proponent.models.torch import TorchModel


class Block(nn.Module):
    """A causal transformer block, its attention written with one projection for all heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            nn.Dropout(0.5),
        )

    def forward(self, x):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.projection(self.norm(x)).chunk(3, -1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(x)


class SmallGPT(nn.Module):
    """Learned positions, LayerNorm, and an output layer tied to the embedding."""

    def __init__(self, vocabulary=11, width=8, length=6, padding=None, tied=True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=padding)
        self.positions = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, 2) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, input_ids):
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.tokens(input_ids) + self.positions(positions)
        return self.head(self.norm(self.blocks(x)))


class Residual(nn.Module):
    """A ResNet block: convolutions without bias, BatchNorm, ReLU in place, a strided shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after)
        )

    def forward(self, x):
        out = self.body(x)
        out += self.shortcut(x)
        return functional.relu(out, inplace=True)


def mlp():
    return nn.Sequential(
        nn.Linear(6, 9), nn.ReLU(inplace=True), nn.Linear(9, 5), nn.ReLU(inplace=True),
        nn.Linear(5, 4),
    )  # fmt: skip


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d(6), nn.ReLU(inplace=True),
        nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


def trained_statistics(module: nn.Module, *inputs: torch.Tensor) -> nn.Module:
    """Give BatchNorm layers running statistics, weights and biases that are not 0 and 1."""
    with torch.no_grad():
        for _ in range(3):
            module.train()(*inputs)
        for part in module.modules():
            if isinstance(part, (nn.BatchNorm2d, nn.LayerNorm)):
                part.weight.normal_(1.0, 0.3)
                part.bias.normal_(0.0, 0.3)
    return module


def test_mlp_with_relu_in_place():
    check_gradients(mlp(), (torch.randn(N, 6), labels()))


def test_mlp_of_one_layer_without_bias():
    check_gradients(nn.Linear(6, 4, bias=False), (torch.randn(N, 6), labels()))


def test_cnn_with_batch_norm():
    images = torch.randn(N, 3, 10, 10)
    check_gradients(trained_statistics(cnn(), images), (images, labels()))


def test_residual_network():
    images = torch.randn(N, 3, 8, 8)
    network = nn.Sequential(
        Residual(3, 4, 1), Residual(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 4),
    )  # fmt: skip
    check_gradients(trained_statistics(network, images), (images, labels()))


@pytest.mark.parametrize("tied", [True, False])
def test_small_gpt(tied):
    text = tokens(6)
    module = trained_statistics(SmallGPT(tied=tied), text)
    capture = check_gradients(module, {"input_ids": text, "labels": text}, loss="causal_lm")
    assert ("head.weight" in capture.coverage.captured) is not tied


def test_small_gpt_with_padding():
    text = tokens(6)
    text[2, 3:] = text[5, 1:] = 0
    targets = torch.where(text == 0, -100, text)
    module = SmallGPT(padding=0, tied=False)
    check_gradients(module, {"input_ids": text, "labels": targets}, loss="causal_lm")


def test_padding_of_a_tied_embedding_stops_only_the_lookup():
    # The padding row receives no gradient as an input, but does as an output.
    text = tokens(6)
    text[:, 4:] = 0
    data = {"input_ids": text, "labels": text}
    check_gradients(SmallGPT(padding=0, tied=True), data, loss="causal_lm")


@pytest.mark.parametrize("padding", [None, 2, -1])
def test_embedding_model(padding):
    text = tokens(5, 6)
    module = nn.Sequential(nn.Embedding(6, 3, padding_idx=padding), nn.Flatten(), nn.Linear(15, 4))
    check_gradients(module, (text, labels()))


def test_embedding_of_one_category_an_instance():
    module = nn.Sequential(nn.Embedding(6, 3), nn.Tanh(), nn.Linear(3, 4))
    check_gradients(module, (torch.randint(0, 6, (N,)), labels()))


def test_one_dimensional_network_on_sequences():
    module = nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 4)
    )
    check_gradients(module, (torch.randn(N, 3, 6), labels()))


def test_regression():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    check_gradients(module, (torch.randn(N, 6), torch.randn(N, 2)), loss="mse")


@pytest.mark.parametrize("make, shape", [(mlp, (6,)), (cnn, (3, 10, 10))])
def test_the_two_slow_truths_agree(make, shape):
    module, batch = make().eval(), (torch.randn(N, *shape), labels())
    risk = TorchModel(module, loss=nn.CrossEntropyLoss()).risk
    by_loop = gradients_by_loop(module, risk, batch, N)
    by_vmap = gradients_by_vmap(module, risk, batch)
    assert by_loop.keys() == by_vmap.keys()
    for name, value in by_loop.items():
        assert relative_error(by_vmap[name], value) < 1e-12
