"""Risks and batches of every kind: masked tokens, dicts, outputs with logits, several heads."""

from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from gradient_checks import N, Written, capture_in_batches, check_gradients, labels, tokens
from torch import Tensor, nn
from torch.nn import functional

from proponent.models.torch import TorchModel


def language_model(output=lambda logits: logits):
    def forward(self, input_ids, attention_mask=None):
        hidden = torch.tanh(self.middle(self.embedding(input_ids)))
        if attention_mask is not None:
            hidden = hidden * attention_mask.unsqueeze(-1)
        return output(self.head(self.norm(hidden)))

    return Written(
        forward,
        embedding=nn.Embedding(11, 6),
        middle=nn.Linear(6, 6),
        norm=nn.LayerNorm(6),
        head=nn.Linear(6, 11),
    )


def partly_masked(length: int = 5) -> Tensor:
    targets = tokens(length)
    targets[0, 2:] = targets[3, :4] = -100
    return targets


@dataclass
class ModelOutput:
    logits: Tensor
    hidden_states: tuple = ()


class NamedOutput(NamedTuple):
    loss: Tensor | None
    logits: Tensor


def test_masked_tokens():
    check_gradients(language_model(), (tokens(), partly_masked()), loss="cross_entropy")


def test_an_instance_without_a_target():
    targets = partly_masked()
    targets[1] = -100
    data = tokens(), targets
    model = TorchModel(language_model(), loss="cross_entropy")
    _, parts, _ = capture_in_batches(model, data, N)
    assert all(not form.materialise()[1].any() for form in parts[0].values())
    assert all(form.materialise()[0].any() for form in parts[0].values())
    check_gradients(language_model(), data)


def test_next_token():
    check_gradients(language_model(), (tokens(), partly_masked()), loss="causal_lm")


@pytest.mark.parametrize("name", ["labels", "label", "target", "y"])
def test_dict_batches(name):
    mask = (torch.rand(N, 5) > 0.3).long()
    data = {"input_ids": tokens(), "attention_mask": mask, name: partly_masked()}
    check_gradients(language_model(), data, loss="cross_entropy")


@pytest.mark.parametrize(
    "output", [ModelOutput, lambda logits: NamedOutput(None, logits)], ids=["object", "tuple"]
)
def test_output_object_with_logits(output):
    data = {"input_ids": tokens(), "labels": partly_masked()}
    check_gradients(language_model(output), data, loss="causal_lm")


def test_several_inputs():
    module = Written(
        lambda self, x, y: self.last(torch.tanh(self.first(x) * self.second(y))),
        first=nn.Linear(3, 6),
        second=nn.Linear(2, 6),
        last=nn.Linear(6, 4),
    )
    check_gradients(module, (torch.randn(N, 3), torch.randn(N, 2), labels()))


def test_loss_of_the_users_own():
    def hinge(output, target):
        margins = output - output.gather(1, target[:, None]) + 1
        return margins.clamp(min=0).sum(1)

    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    check_gradients(module, (torch.randn(N, 6), labels()), loss=hinge)


def test_variational_risk_of_two_outputs():
    """Reconstruction and divergence of an autoencoder; there are no labels."""

    def forward(self, x):
        hidden = torch.tanh(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        return self.decoder(torch.tanh(mean)), mean, log_variance

    def risk(module, batch):
        (x,) = batch
        output, mean, log_variance = module(x)
        divergence = mean.square() + log_variance.exp() - 1 - log_variance
        return (output - x).square().sum(1) + 0.5 * divergence.sum(1)

    module = Written(
        forward,
        encoder=nn.Linear(6, 5),
        mean=nn.Linear(5, 2),
        log_variance=nn.Linear(5, 2),
        decoder=nn.Linear(2, 6),
    )
    check_gradients(module, torch.randn(N, 6), risk=risk)


def test_risk_that_calls_the_module_twice():
    def risk(module, batch):
        first, second, alike = batch
        distance = (module(first) - module(second)).square().sum(1)
        return torch.where(alike, distance, functional.relu(1 - distance))

    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    alike = torch.arange(N) % 2 == 0
    check_gradients(module, (torch.randn(N, 6), torch.randn(N, 6), alike), risk=risk)


def test_risk_by_differentiation():
    """A risk that holds an input gradient of its own (a physics-informed or penalised loss)."""

    def risk(module, batch):
        x = batch[0].detach().requires_grad_(True)
        output = module(x).sum(1)
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        return (slope.norm(dim=1) - 1).square() + output.square()

    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    data = torch.randn(N, 6), labels()
    check_gradients(module, data, risk=risk, differentiated=None)


def test_risk_of_one_layer_of_many():
    module = nn.ModuleDict({"a": nn.Linear(6, 4), "b": nn.Linear(6, 4)})
    check_gradients(
        module,
        (torch.randn(N, 6), labels()),
        risk=lambda parts, batch: functional.cross_entropy(
            parts["b"](batch[0]), batch[1], reduction="none"
        ),
    )


@pytest.mark.parametrize(
    "parameters, names",
    [
        ("last", {"head.weight", "head.bias"}),
        ("embedding", {"embedding.weight"}),
        ("*.weight", {"embedding.weight", "middle.weight", "norm.weight", "head.weight"}),
        (["norm.bias", "middle.*"], {"norm.bias", "middle.weight", "middle.bias"}),
    ],
)
def test_chosen_parameters_alone(parameters, names):
    capture = check_gradients(
        language_model(), (tokens(), tokens()), loss="causal_lm", parameters=parameters
    )
    assert set(capture.coverage.captured) == names


def test_map_style_data_set_and_collate():
    """Sequences of several lengths, padded by the user's own function."""
    # The longest last, so that the probe and the probe less one are padded differently.
    lengths = [2, 3, 5, 2, 4, 3, 5]
    items = [
        {"input_ids": row[:length], "labels": row[:length]}
        for row, length in zip(tokens(5), lengths, strict=True)
    ]

    def collate(items):
        length = max(len(item["input_ids"]) for item in items)

        def padded(name, value):
            rows = [
                functional.pad(item[name], (0, length - len(item[name])), value=value)
                for item in items
            ]
            return torch.stack(rows)

        return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100)}

    from proponent.data import Instances

    instances = Instances.of(items, collate=collate)
    check_gradients(language_model(), instances, loss="causal_lm", sizes=(7, 3, 2, 1))
