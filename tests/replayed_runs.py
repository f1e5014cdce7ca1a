"""Training as users do it, recorded and not: what a replay has to give back."""

import random
from types import SimpleNamespace

import numpy as np
import torch
from recorded_runs import make_loader, make_set
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset

from proponent.dynamic.replay import Replay
from proponent.models.recorder import Recorder
from proponent.models.run import TrainingRun


def plain(dtype=torch.float64):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def normalised(dtype=torch.float64, dropout=0.4):
    torch.manual_seed(1)
    layers = [nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 3)]
    return nn.Sequential(*layers).to(dtype)


class Augmented(Dataset):
    """Items that draw from all three global generators."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data[0])

    def __getitem__(self, position):
        noise = torch.randn(()) + random.random() + np.random.rand()
        return self.data[0][position] + 0.1 * noise, self.data[1][position]


def columns(dtype=torch.float64):
    x, y = make_set()
    return torch.as_tensor(x).to(dtype), torch.as_tensor(y)


def train_and_record(
    path,
    make,
    make_optimizer,
    *,
    dtype=torch.float64,
    data=None,
    loader=None,
    schedule=None,
    limit=None,
    epochs=2,
    before_step=None,
    **options,
):
    """Train while recording; return the run, its training set and every state on the way."""
    data = columns(dtype) if data is None else data
    net = make(dtype)
    optimizer = make_optimizer(net)
    scheduler = None if schedule is None else schedule(optimizer)
    options = {
        "loss": "cross_entropy",
        "train": data,
        "every": 4,
        "optimizer_state": True,
    } | options
    loader = make_loader(data) if loader is None else loader
    states, moments = [], []
    with Recorder(path, net, optimizer, **options) as recorder:
        for _ in range(epochs):
            for indices, x, y in loader:
                if before_step is not None:
                    before_step(net, optimizer, len(states) + 1)
                optimizer.zero_grad()
                functional.cross_entropy(net(x), y).backward()
                scale = 1.0
                if limit is not None:
                    norm = nn.utils.clip_grad_norm_(net.parameters(), limit)
                    scale = min(1.0, float(limit / (norm + 1e-6)))
                recorder.step(indices, clip_scale=scale)
                states.append({k: v.clone() for k, v in net.state_dict().items()})
                moments.append(state_of(net, optimizer))
                optimizer.step()
                if scheduler is not None:
                    scheduler.step()
    states.append({k: v.clone() for k, v in net.state_dict().items()})
    run = TrainingRun.load(path, make(dtype))
    return SimpleNamespace(run=run, data=data, states=states, optimizer_states=moments)


def state_of(net, optimizer):
    """Return copies of the optimizer's state and of the gradients, by parameter."""
    return SimpleNamespace(
        state={
            name: {
                entry: torch.as_tensor(value).clone()
                for entry, value in optimizer.state.get(value, {}).items()
                if value is not None
            }
            for name, value in net.named_parameters()
            if optimizer.state.get(value)
        },
        gradient={
            name: value.grad.clone()
            for name, value in net.named_parameters()
            if value.grad is not None
        },
    )


def replay_of(live, **options):
    return Replay(live.run, live.data, by="the test", **options)


def assert_is_live(moment, live, exact_gradient=True):
    """Hold a moment against the state of the live training before the same step."""
    t = moment.step.index
    for name, value in moment.parameters.items():
        assert torch.equal(value, live.states[t - 1][name]), (t, name)
    expected = live.optimizer_states[t - 1]
    assert set(moment.state) == set(expected.state), t
    for name, entries in expected.state.items():
        for entry, value in entries.items():
            assert torch.equal(moment.state[name][entry], value), (t, name, entry)
    for name, value in moment.gradient.items():
        assert torch.equal(value, expected.gradient[name]), (t, name)
