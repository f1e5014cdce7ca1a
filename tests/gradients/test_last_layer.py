"""The last linear layer: what is seen of it, and the modules that have none to see."""

import numpy as np
import pytest
import torch
from gradient_checks import Written, parameter
from torch import nn
from torch.nn import functional

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.gradients.last_layer import LastLayer
from proponent.gradients.linear_calls import LinearCalls
from proponent.models.torch import TorchModel

N = 11


def network(**settings) -> nn.Sequential:
    net = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 3, **settings)
    )
    net[1].running_mean.normal_()
    return net.double().train()


def data(classes: int = 3):
    return torch.randn(N, 4, dtype=torch.float64), torch.randint(0, classes, (N,))


def layer_of(module, train=None, *, loss="cross_entropy", **settings) -> LastLayer:
    train = data() if train is None else train
    return LastLayer(TorchModel(module, loss=loss), Instances.of(train), **settings)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_features_outputs_and_targets(batch_size: int, bias: bool) -> None:
    net, (x, y) = network(bias=bias), data()
    layer = layer_of(net, (x, y), batch_size=batch_size)
    readout = layer.read((x, y))
    assert net.training and all(part.training for part in net)
    net.eval()
    features = net[:4](x)
    torch.testing.assert_close(layer.features((x, y)), features, rtol=1e-14, atol=0)
    torch.testing.assert_close(readout.features, features, rtol=1e-14, atol=0)
    torch.testing.assert_close(readout.outputs, net(x), rtol=1e-12, atol=0)
    assert torch.equal(readout.targets, y)
    losses = functional.cross_entropy(net(x), y, reduction="none")
    torch.testing.assert_close(readout.loss(readout.outputs, readout.targets), losses)
    assert torch.equal(layer.weight, net[4].weight)
    assert (layer.bias is None) if not bias else torch.equal(layer.bias, net[4].bias)
    assert layer.name == "4"
    assert not readout.features.requires_grad and not layer.weight.requires_grad


def test_a_readout_is_cut_by_instances() -> None:
    train = data()
    readout = layer_of(network(), train).read(train)
    part = readout[3:7]
    assert len(part) == 4
    assert torch.equal(part.features, readout.features[3:7])
    assert torch.equal(part.outputs, readout.outputs[3:7])
    assert torch.equal(part.targets, train[1][3:7])


def test_the_layer_that_runs_last_is_taken_wherever_it_was_registered() -> None:
    net = Written(
        lambda self, x: self.head(self.body(x).relu()), head=nn.Linear(6, 3), body=nn.Linear(4, 6)
    ).double()
    layer = layer_of(net)
    assert layer.name == "head"
    assert torch.equal(layer.weight, net.head.weight)


def test_a_layer_written_by_hand_and_a_frozen_one() -> None:
    by_hand = Written(
        lambda self, x: functional.linear(self.body(x), self.w, bias=self.b),
        body=nn.Linear(4, 6), w=parameter(3, 6), b=parameter(3),
    ).double()  # fmt: skip
    assert torch.equal(layer_of(by_hand).weight, by_hand.w)
    net = network()
    net[4].requires_grad_(False)
    assert torch.equal(layer_of(net).weight, net[4].weight)
    assert not net[4].weight.requires_grad


def test_outputs_may_be_reshaped_or_named_logits() -> None:
    x, y = torch.randn(N, 4), torch.randint(0, 2, (N,)).double()
    single = Written(lambda self, x: self.head(x).squeeze(-1), head=nn.Linear(4, 1))
    readout = layer_of(single, (x, y), loss="bce_with_logits").read((x, y))
    assert readout.outputs.shape == (N, 1)
    expected = functional.binary_cross_entropy_with_logits(single(x), y, reduction="none")
    torch.testing.assert_close(readout.loss(readout.outputs, readout.targets), expected)

    class Answer:
        def __init__(self, logits) -> None:
            self.logits = logits

    named = Written(lambda self, inputs: Answer(self.head(inputs)), head=nn.Linear(4, 3))
    train = {"inputs": x, "labels": torch.randint(0, 3, (N,))}
    readout = layer_of(named, train).read(train)
    torch.testing.assert_close(readout.outputs, named.head(x))
    assert torch.equal(readout.targets, train["labels"])
    torch.testing.assert_close(
        readout.loss(readout.outputs, readout.targets),
        functional.cross_entropy(named.head(x), train["labels"], reduction="none"),
    )


def test_features_are_no_views_that_hold_a_whole_sequence() -> None:
    pooled = Written(lambda self, x: self.head(self.body(x)[:, 0]), body=nn.Linear(4, 6),
                     head=nn.Linear(6, 3)).double()  # fmt: skip
    train = torch.randn(N, 9, 4, dtype=torch.float64), torch.randint(0, 3, (N,))
    features = layer_of(pooled, train).features(train)
    torch.testing.assert_close(features, pooled.body(train[0])[:, 0])
    assert features.untyped_storage().nbytes() == N * 6 * 8


REFUSED = {
    "softmax": (lambda self, x: self.b(self.a(x)).log_softmax(1), "not the module's output"),
    "in place": (lambda self, x: self.b(self.a(x)).relu_(), "not the module's output"),
    "temperature": (lambda self, x: self.b(self.a(x)) / 2, "not the module's output"),
    "reordered": (lambda self, x: self.b(self.a(x)).flip(1), "not the module's output"),
    "convolution": (lambda self, x: x[:, :3] * 2, "runs no linear layer"),
    "twice": (lambda self, x: self.b(self.b(self.a(x)) @ self.b.weight), "used 2 times"),
    "batch": (lambda self, x: self.b(self.a(x) - self.a(x).mean(0)), "other instances"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_modules_without_a_last_layer_to_see(case: str) -> None:
    forward, message = REFUSED[case]
    net = Written(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3)).double()
    with pytest.raises(InvalidInputError, match=message):
        layer_of(net)


@pytest.mark.parametrize("flattened", [False, True])
def test_sequences_are_refused_and_the_remedy_named(flattened: bool) -> None:
    def forward(self, x):
        return self.head(x.flatten(0, 1) if flattened else x).reshape(len(x), 5, 3)

    net = Written(forward, head=nn.Linear(4, 3))
    train = torch.randn(N, 5, 4), torch.randint(0, 3, (N, 5))
    with pytest.raises(InvalidInputError, match=r"one position an instance.*Pool"):
        layer_of(net, train)


def test_something_that_only_some_instances_show_is_refused_when_met() -> None:
    """The module clips large outputs, which the few instances of the trial do not have."""
    net = Written(lambda self, x: self.head(x).clamp(max=100.0), head=nn.Linear(4, 3)).double()
    x, y = data()
    x[1] = 1e4 * net.head.weight[0].detach()  # position 1 is not among the five that are tried
    layer = layer_of(net, (x, y))
    with pytest.raises(InvalidInputError, match="not the module's output"):
        layer.read((x, y))


def test_features_that_are_written_over_are_refused() -> None:
    def forward(self, x):
        hidden = self.body(x)
        outputs = self.head(hidden)
        hidden.zero_()
        return outputs

    net = Written(forward, body=nn.Linear(4, 6), head=nn.Linear(6, 3)).double()
    with pytest.raises(InvalidInputError, match="not the module's output"):
        layer_of(net)


def test_a_risk_without_outputs_has_features_alone() -> None:
    net, (x, y) = network(), data()
    risk = lambda module, batch: functional.cross_entropy(  # noqa: E731
        module(batch[0]), batch[1], reduction="none"
    )
    model = TorchModel(net, risk=risk)
    layer = LastLayer(model, Instances.of((x, y)))
    assert torch.equal(layer.features((x, y)), layer_of(net, (x, y)).features((x, y)))
    with pytest.raises(InvalidInputError, match="outputs and a loss"):
        layer.read((x, y))


class _Risk:
    """A risk in two parts whose loss looks at the target, and at the inputs if asked."""

    def __init__(self, look: bool) -> None:
        self.look = look

    def outputs(self, module, batch):
        return module(batch[0])

    def loss(self, outputs, batch):
        losses = (outputs - batch[-1]).square().sum(1)
        return losses * batch[0][:, 0].abs() if self.look else losses

    def __call__(self, module, batch):
        return self.loss(self.outputs(module, batch), batch)


def test_a_loss_that_looks_at_more_than_the_target_is_refused() -> None:
    x = torch.randn(N, 4)
    train, net = (x, torch.randn(N, 3)), nn.Linear(4, 3)
    layer = LastLayer(TorchModel(net, risk=_Risk(False)), Instances.of(train))
    readout = layer.read(train)
    expected = (net(x) - train[1]).square().sum(1)
    torch.testing.assert_close(readout.loss(readout.outputs, train[1]), expected)
    layer = LastLayer(TorchModel(net, risk=_Risk(True)), Instances.of(train))
    with pytest.raises(InvalidInputError, match="more of a batch than its target"):
        layer.read(train)


def test_a_loss_of_one_precision_says_so() -> None:
    x, y = torch.randn(N, 4), torch.randint(0, 3, (N,))
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0], dtype=torch.float32))
    readout = layer_of(nn.Linear(4, 3).float(), (x, y), loss=weighted).read((x, y))
    assert readout.outputs.dtype == torch.float32
    with pytest.raises(InvalidInputError, match="dtype='float32'"):
        readout.loss(readout.outputs.double(), y)
    expected = functional.cross_entropy(readout.outputs, y, weighted.weight, reduction="none")
    torch.testing.assert_close(readout.loss(readout.outputs, y), expected)


@pytest.mark.parametrize("position", [0, 3])
def test_what_is_not_finite_is_named(position: int) -> None:
    x, y = data()
    x[position, 1] = torch.nan
    ids = [f"instance-{i}" for i in range(N)]
    instances = Instances.of((x, y), ids=ids)
    layer = LastLayer(TorchModel(network(), loss="cross_entropy"), instances)
    for ask in (layer.features, layer.read):
        with pytest.raises(NonFiniteError, match=rf"input .*instance-{position}\."):
            ask(instances)


def test_a_target_that_is_not_finite_is_named() -> None:
    train = torch.randn(N, 4), torch.randn(N, 1)
    train[1][2] = torch.nan
    layer = layer_of(nn.Linear(4, 1), train, loss="mse")
    with pytest.raises(NonFiniteError, match=r"risk of 1 instance.* 2\."):
        layer.read(train)
    assert torch.equal(layer.features(train), train[0])


def test_sizes_that_cannot_be() -> None:
    x, y = data()
    for size in (0, -1, 2.5, None):
        with pytest.raises(InvalidInputError, match="batch_size"):
            layer_of(network(), batch_size=size)
    assert layer_of(network(), batch_size=np.int64(3))
    with pytest.raises(InvalidInputError, match="empty"):
        layer_of(network(), (x[:0], y[:0]))
    with pytest.raises(InvalidInputError, match="empty"):
        layer_of(network(), (x, y)).features((x[:0], y[:0]))


def test_linear_calls_are_noted_in_their_order() -> None:
    net = network()
    with LinearCalls() as watch:
        outputs = net(data()[0])
    layers = [net[0], net[4]]
    assert all(w is layer.weight for w, layer in zip(watch.weights, layers, strict=True))
    assert watch.last.output is outputs
    assert watch.last.untouched
    with torch.no_grad():
        watch.last.input.mul_(2)
    assert not watch.last.untouched
