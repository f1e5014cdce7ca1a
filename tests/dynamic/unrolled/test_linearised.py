"""Products with a batch's Hessian and gradients, in full and by hand, against dense matrices."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from traced_runs import as_batch, cnn, make_images, make_set, mlp

from proponent.data import Instances
from proponent.dynamic.unrolled.batches import ReplayedBatches
from proponent.dynamic.unrolled.layered import Layered
from proponent.dynamic.unrolled.linear_taps import LinearTaps
from proponent.dynamic.unrolled.linearised import Linearised, differentiable
from proponent.gradients.capture import GradientCapture
from proponent.gradients.products import Products, VectorQuery
from proponent.gradients.twice import twice_differentiable
from proponent.models.torch import TorchModel

EXACT = 1e-12
N = 6


class Recurrent(nn.Module):
    """A linear layer that is called three times, one without a bias, and a normalisation."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inwards = nn.Linear(4, 3, bias=False)
        self.again = nn.Linear(3, 3)
        self.norm = nn.LayerNorm(3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        h = self.inwards(x)
        for _ in range(3):
            h = self.norm(torch.tanh(self.again(h)) + h)
        return h


class Tokens(nn.Module):
    """Linear layers at several positions, with self-attention between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inwards = nn.Linear(2, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.inwards(x.unflatten(1, (2, 2)))
        return self.head((h + self.attention(h, h, h)[0]).mean(1))


class Tied(nn.Module):
    """A weight that is used by its layer, and once more beside it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(4, 3)

    def forward(self, x):
        return self.one(x) + torch.tanh(x) @ self.one.weight.T


def normalised():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


MODULES = {
    "mlp": mlp,
    "convolutions": cnn,
    "called thrice": Recurrent,
    "attention": Tokens,
    "tied": Tied,
    "batch normalisation": normalised,
}
BY_HAND = {"mlp", "called thrice", "batch normalisation"}


class Example:
    """A module in training mode, a weighted batch, and its derivatives as dense matrices."""

    def __init__(self, name):
        self.module = MODULES[name]().double().train()
        data = make_images(n=N) if name == "convolutions" else make_set(n=N)
        self.batch = as_batch(self.module, data)
        self.model = TorchModel(self.module, loss="cross_entropy")
        self.parameters = self.model.selected
        self.weights = torch.linspace(0.1, 0.5, N, dtype=torch.float64)
        self.ids = np.arange(N)
        self.instances = Instances.of(data)
        shapes = {n: p.shape for n, p in self.parameters.items()}

        def risks(theta):
            cut = theta.split([shape.numel() for shape in shapes.values()])
            values = {n: c.view(s) for (n, s), c in zip(shapes.items(), cut, strict=True)}
            output = torch.func.functional_call(self.module, values, (self.batch[0],))
            return nn.functional.cross_entropy(output, self.batch[1], reduction="none")

        theta = torch.cat([p.detach().flatten() for p in self.parameters.values()])
        with twice_differentiable():
            self.gradients = torch.autograd.functional.jacobian(risks, theta)
            self.hessian = torch.autograd.functional.hessian(
                lambda t: self.weights @ risks(t), theta
            )
        generator = torch.Generator().manual_seed(0)
        self.flat = torch.randn(3, len(theta), generator=generator, dtype=torch.float64)
        cut = self.flat.split([shape.numel() for shape in shapes.values()], 1)
        self.vectors = {n: c.view(3, *s) for (n, s), c in zip(shapes.items(), cut, strict=True)}

    def flattened(self, vectors):
        return torch.cat([vectors[n].flatten(1) for n in self.parameters], 1)

    def entering(self):
        return differentiable(self.parameters, [])


def error(found, expected):
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("at_once", [1, 2, 64])
@pytest.mark.parametrize("name", MODULES)
def test_in_full(name, at_once):
    example = Example(name)
    with example.entering(), twice_differentiable():
        linearised = Linearised(
            example.model,
            example.parameters,
            example.batch,
            example.weights,
            example.ids,
            at_once=at_once,
        )
        products, inner = linearised.products(example.vectors)
        others = torch.linspace(1, 2, N).double()
        rows = linearised.gradients(torch.stack([others, example.weights]))
        alone = linearised.hessian(example.vectors, example.weights * 2)
    assert error(example.flattened(products), example.flat @ example.hessian) < EXACT
    assert error(inner, example.flat @ example.gradients.T) < EXACT
    expected = torch.stack([others, example.weights]) @ example.gradients
    assert error(example.flattened(rows), expected) < EXACT
    assert error(example.flattened(alone), 2 * example.flat @ example.hessian) < EXACT
    gradient = example.flattened({n: g[None] for n, g in linearised.gradient.items()})
    assert error(gradient[0], example.weights @ example.gradients) < EXACT


@pytest.mark.parametrize("name", [name for name in MODULES if name != "tied"])
def test_linear_layers_by_hand(name):
    example = Example(name)
    taps = LinearTaps(example.module, example.parameters)
    assert taps.names, "no layer was found"
    factors = {n: 0.5 + i for i, n in enumerate(example.parameters)}
    with example.entering(), twice_differentiable():
        layered = Layered(
            example.model, example.parameters, taps, example.batch, example.weights, example.ids
        )
        products = layered.multiply(example.vectors, factors)
        total = {n: v.clone() for n, v in example.vectors.items()}
        products.add_to(total)
    scaled = example.flattened({n: v * factors[n] for n, v in example.vectors.items()})
    expected = example.flat + scaled @ example.hessian
    assert error(example.flattened(total), expected) < EXACT
    assert error(products.inner, scaled @ example.gradients.T) < EXACT
    gradient = example.flattened({n: g[None] for n, g in layered.gradient.items()})
    assert error(gradient[0], example.weights @ example.gradients) < EXACT
    assert all(p.requires_grad for p in example.parameters.values())


def test_vectors_of_some_parameters():
    example = Example("mlp")
    some = {n: v for n, v in example.vectors.items() if n in ("0.bias", "2.weight")}
    flat = example.flattened({n: v * (n in some) for n, v in example.vectors.items()})
    taps = LinearTaps(example.module, example.parameters)
    arguments = example.batch, example.weights, example.ids
    with example.entering():
        layered = Layered(example.model, example.parameters, taps, *arguments)
        full = Linearised(example.model, example.parameters, *arguments)
        for linearised in (layered, full):
            total = {n: torch.zeros_like(v) for n, v in example.vectors.items()}
            products = linearised.multiply(some, {})
            products.add_to(total)
            assert error(example.flattened(total), flat @ example.hessian) < EXACT
            assert error(products.inner, flat @ example.gradients.T) < EXACT


@pytest.mark.parametrize("name", MODULES)
def test_the_quick_ways_are_taken_where_they_are_right(name):
    """A tied weight is seen to make treating the layer alone wrong."""
    example = Example(name)
    replay = SimpleNamespace(
        entering=lambda moment: nullcontext(), batch=lambda moment: (example.batch, N)
    )
    step = SimpleNamespace(
        index=1, indices=np.arange(N), weights=example.weights.numpy(), without_gradient=None
    )
    moment = SimpleNamespace(step=step)
    products = Products()
    capture = GradientCapture(example.model, example.instances)
    batches = ReplayedBatches(
        replay, example.model, example.instances, capture, products, memory=2**30
    )
    with batches.linearised(moment) as linearised:
        assert isinstance(linearised, Layered) == (name != "tied")
        found = linearised.multiply(example.vectors, {})
        total = {n: torch.zeros_like(v) for n, v in example.vectors.items()}
        found.add_to(total)
    assert error(example.flattened(total), example.flat @ example.hessian) < EXACT
    met = batches.meet(moment, [VectorQuery(example.vectors, products)])
    # Instances that meet in a batch have no gradients of their own to be captured.
    assert (met is None) == (name in ("batch normalisation", "convolutions"))
    if met is not None:
        assert error(met[0], example.flat @ example.gradients.T) < EXACT
