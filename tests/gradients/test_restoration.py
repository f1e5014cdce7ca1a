"""The module comes back as it was: after success, an exception anywhere, or an interrupt."""

import random

import numpy as np
import pytest
import torch
from gradient_checks import N, Written, capture_in_batches, labels, tokens
from torch import nn
from torch.nn import functional
from torch.overrides import _len_torch_function_stack

from proponent.data import Instances
from proponent.gradients.capture import GradientCapture
from proponent.models.torch import TorchModel


class Stopped(Exception):
    """Raised in the middle of a module."""


class Lively(nn.Module):
    """Layers in several modes, buffers that a forward pass changes, hooks, random draws."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 5)
        self.norm = nn.BatchNorm1d(5)
        self.dropout = nn.Dropout(0.5)
        self.slope = nn.PReLU()
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.last = nn.Linear(5, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("average", torch.full((5,), float("nan")))
        self.calls_until_stopped = -1
        self.error: type[BaseException] = Stopped

    def forward(self, x):
        np.random.rand()
        random.random()
        torch.rand(1)
        self.calls += 1
        x = self.dropout(self.norm(self.first(x)))
        self.average = x.mean(0).detach()
        if self.calls_until_stopped == 0:
            raise self.error
        self.calls_until_stopped -= 1
        return self.last(self.slope(self.frozen(x)))


def lively():
    module = Lively()
    with torch.no_grad():
        module.train()(torch.randn(20, 6))
    module.average = torch.full((5,), float("nan"))
    module.norm.eval()
    module.last.eval()
    module.norm.weight.requires_grad_(False)
    module.first.register_forward_hook(lambda layer, inputs, output: None)
    module.last.register_full_backward_hook(lambda layer, before, after: None)
    module.first.weight.grad = torch.randn(5, 6)
    return module


def portrait(module):
    """Return everything that must not change, in a form that can be compared."""
    parts = list(module.modules())
    return {
        "training": [part.training for part in parts],
        "requires_grad": [p.requires_grad for p in module.parameters()],
        "parameters": [(p.data_ptr(), p.detach().clone()) for p in module.parameters()],
        "versions": [p._version for p in module.parameters()],
        "gradients": [p.grad if p.grad is None else p.grad.clone() for p in module.parameters()],
        "buffers": [(name, id(b), b.clone()) for name, b in module.named_buffers()],
        "hooks": [
            (len(p._forward_hooks), len(p._forward_pre_hooks), len(p._backward_hooks))
            for p in parts
        ],
        "attributes": [sorted(vars(p)) for p in parts],
        "parameter hooks": [
            (p._backward_hooks, p._post_accumulate_grad_hooks) for p in module.parameters()
        ],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1:3],
        "python": random.getstate(),
        "gradients enabled": torch.is_grad_enabled(),
        "function modes": _len_torch_function_stack(),
    }


def same(before, after):
    if isinstance(before, torch.Tensor):
        return isinstance(after, torch.Tensor) and torch.equal(
            torch.nan_to_num(before, nan=-1.0), torch.nan_to_num(after, nan=-1.0)
        )
    if isinstance(before, np.ndarray):
        return np.array_equal(before, after)
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(same, before, after))
    return before == after


def assert_untouched(before, module):
    after = portrait(module)
    changed = [name for name, value in before.items() if not same(value, after[name])]
    assert not changed


def data():
    return torch.randn(N, 6), labels()


def capture_everything(model):
    capture_in_batches(model, data(), 3)


@pytest.mark.parametrize("parameters", ["all", "last"])
def test_after_success(parameters):
    module, examples = lively(), data()
    model = TorchModel(module, loss="cross_entropy", parameters=parameters)
    before = portrait(module)
    capture_in_batches(model, examples, 3)
    assert_untouched(before, module)
    model.risks(examples, batch_size=3)
    assert_untouched(before, module)


@pytest.mark.parametrize("enabled", [True, False])
def test_whether_or_not_gradients_are_enabled(enabled):
    module, examples = lively(), data()
    model = TorchModel(module, loss="cross_entropy")
    _, expected, _ = capture_in_batches(model, examples, N)
    with torch.set_grad_enabled(enabled):
        before = portrait(module)
        _, found, _ = capture_in_batches(model, examples, N)
        assert_untouched(before, module)
    for name, form in expected[0].items():
        assert torch.equal(found[0][name].materialise(), form.materialise())


@pytest.mark.parametrize("error", [Stopped, RuntimeError, KeyboardInterrupt])
def test_after_an_error_at_any_moment(error):
    """The module is stopped in its first, second, third ... call, until it gets through."""
    module, examples = lively(), data()
    module.error = error
    model = TorchModel(module, loss="cross_entropy")
    stops = 0
    for calls in range(200):
        module.calls_until_stopped = calls
        before = portrait(module)
        try:
            capture_in_batches(model, examples, 3)
        except BaseException as raised:
            # A probe of one instance alone may wrap an error of the module, and says so.
            assert isinstance(raised, error) or isinstance(raised.__cause__, error)
            stops += 1
        assert_untouched(before, module)
        if module.calls_until_stopped > 0:
            break
    else:
        pytest.fail("the module never got through")
    assert stops >= 5


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_after_an_error_in_the_risk(error):
    module, examples = lively(), data()
    calls = []

    def risk(module, batch):
        losses = functional.cross_entropy(module(batch[0]), batch[1], reduction="none")
        calls.append(1)
        if len(calls) == stop:
            raise error
        return losses

    stop = 0
    for moment in (1, 3, 6):
        stop = moment
        calls.clear()
        before = portrait(module)
        with pytest.raises(error):
            capture_in_batches(TorchModel(module, risk=risk), examples, 3)
        assert_untouched(before, module)
    stop = 2
    calls.clear()
    with pytest.raises(error):
        TorchModel(module, risk=risk).risks(examples, batch_size=3)
    assert_untouched(before, module)


def test_after_an_error_in_the_data_set():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, position):
            if position == 5:
                raise Stopped
            return torch.ones(6) * position, 1

    module = lively()
    model = TorchModel(module, loss="cross_entropy")
    before = portrait(module)
    with pytest.raises(Stopped):
        capture_in_batches(model, Broken(), 3)
    assert_untouched(before, module)


def test_data_set_that_draws_random_numbers():
    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return N

        def __getitem__(self, position):
            noise = np.random.rand() + random.random() + torch.rand(6)
            return torch.ones(6) * position + noise, 1

    module = lively()
    model = TorchModel(module, loss="cross_entropy")
    before = portrait(module)
    capture_in_batches(model, Augmented(), 3)
    model.risks(Augmented())
    assert_untouched(before, module)


def test_embedding_that_renormalises_what_it_looks_up():
    module = nn.Sequential(nn.Embedding(11, 6, max_norm=0.5), nn.Flatten(), nn.Linear(30, 4))
    weight = module[0].weight.detach().clone()
    assert (weight.norm(dim=1) > 0.5).any()
    model = TorchModel(module, loss="cross_entropy")
    capture_in_batches(model, (tokens(), labels()), 3)
    model.risks((tokens(), labels()))
    assert torch.equal(module[0].weight, weight)


def test_training_goes_on_as_if_nothing_had_happened():
    def train(look):
        torch.manual_seed(0)
        module = Written(
            lambda self, x: self.last(self.dropout(torch.relu(self.norm(self.first(x))))),
            first=nn.Linear(6, 5),
            norm=nn.BatchNorm1d(5),
            dropout=nn.Dropout(0.5),
            last=nn.Linear(5, 4),
        )
        examples = torch.randn(N, 6), labels()
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            loss = functional.cross_entropy(module(examples[0]), examples[1])
            loss.backward()
            if look:
                # Between the backward pass and the step, where gradients and momentum live.
                capture_in_batches(TorchModel(module, loss="cross_entropy"), examples, 3)
            optimizer.step()
            optimizer.zero_grad()
        return module.state_dict()

    watched, alone = train(look=True), train(look=False)
    for name, value in alone.items():
        assert torch.equal(watched[name], value), name


def test_nothing_is_left_on_the_data():
    x, y = data()
    instances = Instances.of((x, y))
    model = TorchModel(lively(), loss="cross_entropy")
    before = x.clone(), y.clone()
    GradientCapture(model, instances)
    capture_everything(model)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert not x.requires_grad
    assert x.grad_fn is None
