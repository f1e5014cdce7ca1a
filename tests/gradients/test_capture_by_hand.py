"""Parameters that meet the data outside any layer, or after they were made into something else."""

import pytest
import torch
from gradient_checks import N, Written, check_gradients, labels, parameter
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations


def test_layer_weight_used_by_function():
    # captum loses this use.
    def forward(self, x):
        hidden = torch.tanh(self.layer(x))
        return self.last(torch.tanh(functional.linear(hidden, self.layer.weight)))

    module = Written(forward, layer=nn.Linear(6, 6), last=nn.Linear(6, 4))
    check_gradients(module, (torch.randn(N, 6), labels()))


@pytest.mark.parametrize("shape", [(6,), (5, 6), (2, 5, 6)])
@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: x @ w,
        torch.matmul,
        lambda x, w: torch.matmul(input=x, other=w),
        lambda x, w: x.matmul(w),
        lambda x, w: x @ w.T.T,
        lambda x, w: functional.linear(x, w.T),
    ],
)
def test_matrix_products(shape, product):
    def forward(self, x):
        hidden = torch.tanh(product(self.first(x), self.weight))
        return self.last(hidden.flatten(1, -2).sum(1) if hidden.ndim > 2 else hidden)

    module = Written(forward, first=nn.Linear(6, 6), weight=parameter(6, 5), last=nn.Linear(5, 4))
    check_gradients(module, (torch.randn(N, *shape), labels()))


class Conv1D(nn.Module):
    """GPT-2's layer in Hugging Face: a linear layer with a transposed weight, by ``addmm``."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.nf = after
        self.weight = parameter(before, after)
        self.bias = parameter(after)

    def forward(self, x):
        out = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return out.view(*x.size()[:-1], self.nf)


@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_addmm(shape):
    module = nn.Sequential(
        Conv1D(6, 5), nn.Tanh(), Conv1D(5, 3), nn.Flatten(),
        nn.Linear(3 * torch.Size(shape[:-1]).numel(), 4),
    )  # fmt: skip
    check_gradients(module, (torch.randn(N, *shape), labels()))


def test_addmm_with_factors_is_differentiated():
    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight, beta=0.5, alpha=2.0)

    module = Written(forward, weight=parameter(6, 4), bias=parameter(4))
    check_gradients(module, (torch.randn(N, 6), labels()), differentiated=("weight", "bias"))


@pytest.mark.parametrize("scale", [(6,), (1, 6), (5, 1), (5, 6), (1, 5, 6), (1, 1, 1), ()])
@pytest.mark.parametrize(
    "meet",
    [
        lambda x, p: x + p,
        lambda x, p: p + x,
        lambda x, p: x * p,
        lambda x, p: p * x,
        lambda x, p: torch.add(x, p),
        lambda x, p: torch.mul(p, x),
        lambda x, p: x.mul(p).add(p),
    ],
    ids=["x+p", "p+x", "x*p", "p*x", "add", "mul", "both"],
)
def test_elementwise(scale, meet):
    def forward(self, x):
        return self.last(torch.tanh(meet(self.first(x), self.scale)).flatten(1))

    module = Written(forward, first=nn.Linear(3, 6), scale=parameter(*scale), last=nn.Linear(30, 4))
    check_gradients(module, (torch.randn(N, 5, 3), labels()), sizes=(3,))


@pytest.mark.parametrize(
    "meet",
    [
        lambda x, p: x - p,
        lambda x, p: p - x,
        lambda x, p: x / (p.square() + 1),
        lambda x, p: torch.add(x, p, alpha=2.0),
        lambda x, p: x.addcmul(x, p),
        lambda x, p: torch.where(x > 0, x, p * x),
        lambda x, p: torch.einsum("btd,d->btd", x, p),
        lambda x, p: torch.lerp(x, p.expand_as(x), 0.3),
    ],
)
def test_elementwise_calls_however_they_are_had(meet):
    def forward(self, x):
        return self.last(torch.tanh(meet(self.first(x), self.scale)).flatten(1))

    module = Written(forward, first=nn.Linear(3, 6), scale=parameter(6), last=nn.Linear(30, 4))
    data = torch.randn(N, 5, 3), labels()
    check_gradients(module, data, differentiated=None, sizes=(3,))


def test_addition_in_place():
    def forward(self, x):
        x = self.first(x)
        x += self.bias
        x.add_(self.bias)
        return self.last(x.tanh_())

    module = Written(forward, first=nn.Linear(3, 6), bias=parameter(6), last=nn.Linear(6, 4))
    check_gradients(module, (torch.randn(N, 3), labels()), differentiated=None)


def test_addition_in_place_to_a_slice():
    def forward(self, x):
        x = self.first(x)
        x[:, :2] += self.bias
        x[:, 2:] *= self.scale
        return self.last(x)

    module = Written(
        forward,
        first=nn.Linear(3, 6),
        bias=parameter(2),
        scale=parameter(4),
        last=nn.Linear(6, 4),
    )
    check_gradients(module, (torch.randn(N, 3), labels()), differentiated=None)


@pytest.mark.parametrize("spread", ["expand", "expand_as", "repeat", "plus zeros"])
def test_vision_transformer(spread):
    """Patches, a class token, learned positions and a LayerScale."""

    def forward(self, image):
        x = self.patches(image).flatten(2).mT
        first = {
            "expand": lambda: self.first.expand(len(x), -1, -1),
            "expand_as": lambda: self.first.expand_as(x[:, :1]),
            "repeat": lambda: self.first.repeat(len(x), 1, 1),
            "plus zeros": lambda: self.first + torch.zeros_like(x[:, :1]),
        }[spread]()
        x = torch.cat([first, x], 1) + self.positions
        x = x + self.layer_scale * torch.tanh(self.mlp(self.norm(x)))
        return self.head(x[:, 0])

    module = Written(
        forward,
        patches=nn.Conv2d(3, 6, 2, stride=2),
        first=parameter(1, 1, 6),
        positions=parameter(1, 5, 6),
        norm=nn.LayerNorm(6),
        mlp=nn.Linear(6, 6),
        layer_scale=parameter(6),
        head=nn.Linear(6, 4),
    )
    capture = check_gradients(module, (torch.randn(N, 3, 4, 4), labels()), differentiated=None)
    left = set(capture.coverage.differentiated)
    assert left <= ({"first"} if spread in ("expand_as", "repeat") else set())


@pytest.mark.parametrize(
    "parametrise",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda layer: parametrizations.orthogonal(layer, orthogonal_map="householder"),
    ],
    ids=["weight_norm", "spectral_norm", "orthogonal"],
)
def test_parametrised_weights(parametrise):
    module = nn.Sequential(
        parametrise(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 4), nn.Unflatten(1, (2, 2)),
        parametrise(nn.Conv1d(2, 4, 2)), nn.Flatten(),
    )  # fmt: skip
    check_gradients(module, (torch.randn(N, 6), labels()), tolerance=1e-11)


@pytest.mark.parametrize("kind", ["matrix_exp", "cayley"])
def test_parametrisation_that_is_hard_to_follow(kind):
    parametrised = parametrizations.orthogonal(nn.Linear(6, 5), orthogonal_map=kind)
    module = nn.Sequential(parametrised, nn.Tanh(), nn.Linear(5, 4))
    data = torch.randn(N, 6), labels()
    check_gradients(module, data, differentiated=None, tolerance=1e-11)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated:FutureWarning")
def test_weight_norm_of_old():
    module = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 4))
    check_gradients(module, (torch.randn(N, 6), labels()))


def test_low_rank_update_of_a_frozen_layer():
    """LoRA: the frozen weight is excluded, the two factors are captured."""

    def forward(self, x):
        return self.last(torch.tanh(self.frozen(x) + 0.5 * self.up(self.down(x))))

    module = Written(
        forward,
        frozen=nn.Linear(6, 5).requires_grad_(False),
        down=nn.Linear(6, 2, bias=False),
        up=nn.Linear(2, 5, bias=False),
        last=nn.Linear(5, 4),
    )
    capture = check_gradients(module, (torch.randn(N, 6), labels()))
    names = {"down.weight", "up.weight", "last.weight", "last.bias"}
    assert set(capture.coverage.captured) == names


def test_weight_made_of_two_parameters():
    def forward(self, x):
        return functional.linear(x, self.weight + 0.5 * self.up @ self.down, self.bias * 2)

    module = Written(
        forward,
        weight=parameter(4, 6),
        up=parameter(4, 2),
        down=parameter(2, 6),
        bias=parameter(4),
    )
    check_gradients(module, (torch.randn(N, 6), labels()))


def test_risk_with_a_penalty_on_the_parameters():
    def risk(module, batch):
        x, y = batch
        penalty = sum(p.square().sum() for p in module.parameters())
        return functional.cross_entropy(module(x), y, reduction="none") + 0.1 * penalty

    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    check_gradients(module, (torch.randn(N, 6), labels()), risk=risk, differentiated=None)


def test_forward_hook_of_the_user_counts():
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True), nn.Linear(6, 4))
    module[0].register_forward_hook(lambda layer, inputs, output: 2 * output)
    check_gradients(module, (torch.randn(N, 6), labels()))


@pytest.mark.parametrize("padding", [None, 3, -1])
def test_embedding_by_function(padding):
    def forward(self, x):
        return self.last(functional.embedding(x, self.table, padding_idx=padding).flatten(1))

    module = Written(forward, table=parameter(5, 3), last=nn.Linear(15, 4))
    check_gradients(module, (torch.randint(0, 5, (N, 5)), labels()))


@pytest.mark.parametrize("size", [1, 2, 7])
def test_spread_and_used_in_another_way(size):
    """Spread over one instance, a tensor is a view of itself: its other uses count once."""

    def forward(self, x):
        token = 2 * self.token
        x = self.first(x) + token
        x = torch.cat([token.expand(len(x), -1, -1), x], 1)
        return self.last(torch.tanh(x).flatten(1))

    module = Written(
        forward, token=parameter(1, 1, 6), first=nn.Linear(3, 6), last=nn.Linear(18, 4)
    )
    check_gradients(module, (torch.randn(N, 2, 3), labels()), sizes=(size,))
