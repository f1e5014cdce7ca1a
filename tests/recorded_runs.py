"""Small training runs for the tests of what is recorded of them."""

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from proponent.models.recorder import indexed

N = 23


def make_set(seed=0, n=N):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, 4)), generator.integers(0, 3, size=n)


def make_net(dropout=0.0):
    torch.manual_seed(1)
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3)]
    return nn.Sequential(*layers).double()


def plain_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def make_loader(data, batch_size=5, **options):
    generator = torch.Generator().manual_seed(3)
    return DataLoader(
        indexed(data), batch_size=batch_size, shuffle=True, generator=generator, **options
    )


def sgd(net, **options):
    return torch.optim.SGD(net.parameters(), lr=0.1, **options)


def backward(net, optimizer, x, y):
    optimizer.zero_grad()
    functional.cross_entropy(net(x), y).backward()


def copy_state(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def train(recorder, net, optimizer, loader, epochs=2, scheduler=None, on_step=None):
    """Train as users do; return the states before each step and the batches."""
    states, batches = [], []
    for _ in range(epochs):
        for indices, x, y in loader:
            backward(net, optimizer, x, y)
            states.append(copy_state(net))
            batches.append(indices.tolist())
            if recorder is not None:
                recorder.step(indices)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return [*states, copy_state(net)], batches


def assert_same_state(found, expected):
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
