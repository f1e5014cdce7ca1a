"""Every chosen parameter is counted exactly once, and wrongly counted ones are found out."""

import dataclasses

import pytest
import torch
from gradient_checks import (
    N,
    Written,
    assert_same_gradients,
    capture_in_batches,
    check_gradients,
    labels,
    materialised,
)
from references import gradients_by_loop
from torch import nn
from torch.nn import functional

from proponent.data import Instances
from proponent.gradients import rules
from proponent.gradients.capture import GradientCapture
from proponent.gradients.forms import Dense, Outer
from proponent.models.torch import TorchModel


def network():
    return nn.Sequential(
        nn.Linear(6, 5), nn.LayerNorm(5), nn.PReLU(), nn.Conv1d(1, 2, 2), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def with_channel():
    module = network()
    module.insert(3, nn.Unflatten(1, (1, 5)))
    return module


@pytest.mark.parametrize("parameters", ["all", "last", ["*.bias"], ["0.weight", "2.weight"]])
def test_captured_and_differentiated_are_the_chosen(parameters):
    capture = check_gradients(
        with_channel(),
        (torch.randn(N, 6), labels()),
        parameters=parameters,
        differentiated=None,
    )
    model = TorchModel(with_channel(), loss="cross_entropy", parameters=parameters)
    counted = capture.coverage.captured + capture.coverage.differentiated
    assert len(counted) == len(set(counted))
    assert set(counted) == set(model.selected)
    assert set(capture.coverage.differentiated) == {"2.weight"} & set(model.selected)


def broken(rule, change):
    """Return a rule whose gradients are changed in one way."""

    def gradient(arguments, output_gradient, name):
        form = rule.gradient(arguments, output_gradient, name)
        return None if form is None else change(form, name)

    return dataclasses.replace(rule, gradient=gradient)


@pytest.mark.parametrize(
    "change",
    [
        lambda form, name: form.scaled(torch.full((form.n,), 1.001, dtype=form.like.dtype)),
        lambda form, name: Dense(form.materialise().flip(0)),
        lambda form, name: Dense(torch.zeros_like(form.materialise())),
        lambda form, name: Dense(torch.full_like(form.materialise(), float("nan"))),
        lambda form, name: None,
    ],
    ids=["scaled", "instances swapped", "zero", "not a number", "refused"],
)
@pytest.mark.parametrize(
    "function, names",
    [
        (functional.linear, {"0.weight", "0.bias", "6.weight", "6.bias"}),
        (functional.layer_norm, {"1.weight", "1.bias"}),
        (functional.conv1d, {"4.weight", "4.bias"}),
    ],
)
def test_a_wrong_rule_is_found_out(change, function, names, monkeypatch):
    """A rule that is wrong costs time, not truth."""
    monkeypatch.setitem(rules.RULES, function, broken(rules.RULES[function], change))
    data = torch.randn(N, 6), labels()
    check_gradients(with_channel(), data, differentiated=names | {"2.weight"})


def test_a_wrong_rule_for_one_argument(monkeypatch):
    def change(form, name):
        return form if name == "bias" else form.scaled(2 * torch.ones(form.n))

    rule = rules.RULES[functional.linear]
    monkeypatch.setitem(rules.RULES, functional.linear, broken(rule, change))
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    data = torch.randn(N, 6), labels()
    check_gradients(module, data, differentiated={"0.weight", "2.weight"})


def test_a_rule_that_counts_one_use_of_two(monkeypatch):
    """The forgotten cross terms of a shared layer."""
    uses = []

    def change(form, name):
        uses.append(name)
        return form if len(uses) % 4 < 2 else Dense(torch.zeros_like(form.materialise()))

    rule = rules.RULES[functional.linear]
    monkeypatch.setitem(rules.RULES, functional.linear, broken(rule, change))
    module = Written(
        lambda self, x: self.shared(torch.tanh(self.shared(x))), shared=nn.Linear(6, 6)
    )
    data = torch.randn(N, 6), labels(6)
    check_gradients(module, data, differentiated={"shared.weight", "shared.bias"})


def test_a_rule_that_refuses_later_batches(monkeypatch):
    """A rule may hold for the probe and refuse another batch: that one is differentiated."""
    refuse = []

    def change(form, name):
        return None if refuse and name == "weight" else form

    rule = rules.RULES[functional.linear]
    monkeypatch.setitem(rules.RULES, functional.linear, broken(rule, change))
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    model = TorchModel(module, loss="cross_entropy")
    instances = Instances.of((torch.randn(N, 6), labels()))
    capture = GradientCapture(model, instances)
    refuse.append(True)
    batch = model.prepare(instances.batch(slice(0, N)))
    with model.evaluating():
        forms = capture(batch, instances.ids)
    assert isinstance(forms["0.weight"], Dense)
    expected = gradients_by_loop(module, model.risk, batch, N)
    assert_same_gradients(materialised([forms], [N], expected), expected, 1e-12)


def test_small_gradients_are_checked_too():
    """A parameter whose gradient is a millionth of the whole is not lost in the whole."""

    def forward(self, x):
        return self.last(x) + 1e-6 * self.small(torch.tanh(x))

    module = Written(forward, small=nn.Linear(6, 4), last=nn.Linear(6, 4))
    check_gradients(module, (torch.randn(N, 6), labels()))


def test_factors_stay_factors():
    """What is captured is held in factors: the memory of a layer is not its weight's."""
    module = nn.Sequential(nn.Linear(6, 50), nn.Tanh(), nn.Linear(50, 4))
    model = TorchModel(module, loss="cross_entropy")
    _, (part, *_), _ = capture_in_batches(model, (torch.randn(N, 6), labels()), 3)
    form = part["0.weight"]
    assert isinstance(form, Outer)
    assert form.left.shape == (3, 1, 50)
    assert form.right.shape == (3, 1, 6)
    assert not form.left.requires_grad
    assert not form.right.requires_grad


@pytest.mark.parametrize("loss", ["cross_entropy", nn.CrossEntropyLoss()], ids=["name", "module"])
def test_gradients_carry_no_graph(loss):
    """Neither the captured ones nor those by vmap, which the other parameters take part in."""
    model = TorchModel(with_channel(), loss=loss)
    _, parts, _ = capture_in_batches(model, (torch.randn(N, 6), labels()), 3)
    for part in parts:
        for form in part.values():
            assert not form.like.requires_grad
            assert not form.materialise().requires_grad
