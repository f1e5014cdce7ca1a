"""Normalisation layers: their weights and biases, and what they pass on."""

import pytest
import torch
from gradient_checks import N, Written, check_gradients, labels, parameter
from torch import nn
from torch.nn import functional


def randomised(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for own in layer.parameters():
            own.normal_(1.0, 0.5)
        if getattr(layer, "running_mean", None) is not None:
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return layer


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: nn.LayerNorm(6), (6,)),
        (lambda: nn.LayerNorm(6), (5, 6)),
        (lambda: nn.LayerNorm((5, 6)), (5, 6)),
        (lambda: nn.LayerNorm((5, 6)), (2, 5, 6)),
        (lambda: nn.LayerNorm(6, bias=False), (5, 6)),
        (lambda: nn.LayerNorm(6, eps=0.1), (5, 6)),
        (lambda: nn.RMSNorm(6), (6,)),
        (lambda: nn.RMSNorm(6, eps=0.1), (5, 6)),
        (lambda: nn.RMSNorm((5, 6)), (5, 6)),
        (lambda: nn.GroupNorm(2, 6), (6,)),
        (lambda: nn.GroupNorm(3, 6, eps=0.1), (6, 4)),
        (lambda: nn.GroupNorm(2, 6), (6, 3, 2)),
        (lambda: nn.BatchNorm1d(6), (6,)),
        (lambda: nn.BatchNorm1d(6, eps=0.1), (6, 4)),
        (lambda: nn.BatchNorm2d(6), (6, 3, 2)),
        (lambda: nn.BatchNorm3d(6), (6, 2, 3, 2)),
    ],
)
def test_between_linear_layers(make, shape):
    size = torch.Size(shape).numel()
    module = nn.Sequential(
        nn.Linear(3, size),
        nn.Unflatten(1, shape),
        randomised(make()),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(size, 4),
    )
    check_gradients(module, (torch.randn(N, 3), labels()))


def test_directly_on_the_data():
    module = nn.Sequential(randomised(nn.BatchNorm1d(6)), nn.Linear(6, 4))
    check_gradients(module, (torch.randn(N, 6), labels()))


def test_instance_norm_is_differentiated():
    module = nn.Sequential(
        nn.Conv1d(2, 4, 2), nn.InstanceNorm1d(4, affine=True), nn.Tanh(), nn.Flatten(),
        nn.Linear(16, 4),
    )  # fmt: skip
    own = {"1.weight", "1.bias"}
    check_gradients(module, (torch.randn(N, 2, 5), labels()), differentiated=own)


def test_root_mean_square_written_by_hand():
    # As the language models of Hugging Face have it: weight * (x / rms).
    def forward(self, x):
        x = self.first(x)
        x = self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
        return self.last(torch.tanh(x)).sum(1)

    module = Written(forward, first=nn.Linear(3, 6), weight=parameter(6), last=nn.Linear(6, 4))
    check_gradients(module, (torch.randn(N, 5, 3), labels()))


def test_batch_norm_without_affine_parameters():
    module = nn.Sequential(
        nn.Linear(3, 6), randomised(nn.BatchNorm1d(6, affine=False)), nn.Linear(6, 4)
    )
    check_gradients(module, (torch.randn(N, 3), labels()))


def test_functional_batch_norm_with_keywords():
    def forward(self, x):
        x = functional.batch_norm(
            self.first(x), weight=self.weight, running_var=self.var, running_mean=self.mean,
            bias=self.bias, eps=0.01,
        )  # fmt: skip
        return self.last(torch.tanh(x))

    module = Written(
        forward,
        first=nn.Linear(3, 6),
        weight=parameter(6),
        bias=parameter(6),
        mean=torch.randn(6),
        var=torch.rand(6) + 0.5,
        last=nn.Linear(6, 4),
    )
    check_gradients(module, (torch.randn(N, 3), labels()))
