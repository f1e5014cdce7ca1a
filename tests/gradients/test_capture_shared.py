"""Parameters used several times: the uses' gradients add up, and their cross terms count."""

import pytest
import torch
from gradient_checks import N, Written, check_gradients, labels, parameter, tokens
from references import gradients_by_loop, inner_products, relative_error
from torch import nn
from torch.nn import functional

from proponent.models.torch import TorchModel


def called_twice():
    def forward(self, x):
        return self.last(torch.tanh(self.shared(torch.tanh(self.shared(x)))))

    return Written(forward, shared=nn.Linear(6, 6), last=nn.Linear(6, 4))


def test_linear_called_twice():
    check_gradients(called_twice(), (torch.randn(N, 6), labels()))


def test_cross_terms_are_no_detail():
    """What would be lost if each call were counted as a parameter of its own."""
    shared = called_twice()

    def apart(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))

    copies = [nn.Linear(6, 6) for _ in range(2)]
    for layer in copies:
        layer.load_state_dict(shared.shared.state_dict())
    split = Written(apart, first=copies[0], second=copies[1], last=shared.last)
    x, y = torch.randn(N, 6), labels()
    risk = TorchModel(shared, loss="cross_entropy").risk
    whole = gradients_by_loop(shared, risk, (x, y), N)
    parts = gradients_by_loop(split, risk, (x, y), N)
    assert relative_error(inner_products(parts, parts), inner_products(whole, whole)) > 0.05


def test_recurrent_cell_written_out():
    def forward(self, x):
        hidden = x.new_zeros(len(x), 6)
        for step in range(x.shape[1]):
            hidden = torch.tanh(self.inner(x[:, step]) + self.recurrent(hidden))
        return self.last(hidden)

    module = Written(
        forward,
        inner=nn.Linear(3, 6),
        recurrent=nn.Linear(6, 6, bias=False),
        last=nn.Linear(6, 4),
    )
    check_gradients(module, (torch.randn(N, 5, 3), labels()))


def test_convolution_called_on_two_sizes():
    def forward(self, x):
        large = self.shared(x)
        small = self.shared(functional.avg_pool2d(torch.tanh(large), 2))
        return self.last(torch.tanh(small).flatten(1)) + large.sum((2, 3))

    module = Written(forward, shared=nn.Conv2d(4, 4, 3, padding=1), last=nn.Linear(36, 4))
    check_gradients(module, (torch.randn(N, 4, 6, 6), labels()))


def test_one_weight_for_a_linear_layer_and_a_convolution():
    def forward(self, x):
        mixed = functional.conv1d(x, self.weight[:, :, None], self.bias)
        return self.last(functional.linear(torch.tanh(mixed).mT, self.weight, self.bias)).sum(1)

    module = Written(forward, weight=parameter(6, 6), bias=parameter(6), last=nn.Linear(6, 4))
    check_gradients(module, (torch.randn(N, 6, 5), labels()))


def test_norms_called_twice():
    def forward(self, x):
        x = self.norm(x)
        x = self.group(torch.tanh(x).mT).mT
        return self.last(torch.tanh(self.norm(self.group(x.mT).mT)).flatten(1))

    module = Written(forward, norm=nn.LayerNorm(6), group=nn.GroupNorm(2, 6), last=nn.Linear(30, 4))
    check_gradients(module, (torch.randn(N, 5, 6), labels()))


def test_embedding_called_twice():
    def forward(self, x):
        return self.last(torch.tanh(self.shared(x) * self.shared(x.flip(1))).flatten(1))

    module = Written(forward, shared=nn.Embedding(11, 3), last=nn.Linear(15, 4))
    check_gradients(module, (tokens(), labels()))


def test_embedding_tied_to_the_output():
    def forward(self, x):
        return self.output(torch.tanh(self.middle(self.shared(x)))).mean(1)

    embedding = nn.Embedding(11, 6)
    output = nn.Linear(6, 11)
    output.weight = embedding.weight
    module = Written(forward, shared=embedding, middle=nn.Linear(6, 6), output=output)
    capture = check_gradients(module, (tokens(), labels(11)))
    assert "shared.weight" in capture.coverage.captured


@pytest.mark.parametrize("way", ["transposed", "by matmul", "with positions"])
def test_embedding_tied_by_function(way):
    def forward(self, x):
        hidden = self.shared(x)
        if way == "with positions":
            hidden = hidden + self.shared(torch.arange(x.shape[1]))
        hidden = torch.tanh(self.middle(hidden))
        if way == "by matmul":
            return (hidden @ self.shared.weight.T).mean(1)
        return functional.linear(hidden, self.shared.weight).mean(1)

    module = Written(forward, shared=nn.Embedding(11, 6), middle=nn.Linear(6, 6))
    check_gradients(module, (tokens(), labels(11)))


def test_tied_linear_layers_and_an_alias():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    module = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(6, 4))
    data = torch.randn(N, 6), labels()
    check_gradients(module, data)
    capture = check_gradients(module, data, parameters="2.weight")
    assert capture.coverage.captured == ("0.weight",)


def test_encoder_and_decoder_tied_by_transposition():
    def forward(self, x):
        return functional.linear(torch.tanh(self.encoder(x)), self.encoder.weight.T, self.bias)

    module = Written(forward, encoder=nn.Linear(6, 4), bias=parameter(6))
    x = torch.randn(N, 6)
    check_gradients(module, (x, x), loss="mse")


def test_layer_called_on_some_batches_only():
    """A layer that no instance of the probe uses is still counted when others use it."""

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        if x.shape[1] > 4:
            hidden = torch.tanh(self.rare(hidden))
        return self.last(hidden).mean(1)

    module = Written(forward, first=nn.Linear(3, 6), rare=nn.Linear(6, 6), last=nn.Linear(6, 4))
    short = [(torch.randn(3, 3), int(y)) for y in labels(n=3)]
    long = [(torch.randn(5, 3), int(y)) for y in labels(n=2)]
    model = TorchModel(module, loss="cross_entropy")
    from gradient_checks import assert_same_gradients, capture_in_batches, materialised

    from proponent.data import Instances
    from proponent.gradients.capture import GradientCapture

    capture = GradientCapture(model, Instances.of(short))
    instances = Instances.of(long)
    batch = model.prepare(instances.batch(slice(0, 2)))
    with model.evaluating():
        part = capture(batch, instances.ids)
    expected = gradients_by_loop(module, model.risk, batch, 2)
    assert expected["rare.weight"].any()
    assert_same_gradients(materialised([part], [2], expected), expected, 1e-12)
    assert capture_in_batches(model, short, 2)[0].coverage.captured
