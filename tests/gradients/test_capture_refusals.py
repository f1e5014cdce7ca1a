"""What has no per-instance gradient is refused, by a message that says what to do."""

import pytest
import torch
from gradient_checks import N, Written, capture_in_batches, labels
from torch import nn
from torch.nn import functional

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.gradients.capture import GradientCapture
from proponent.models.torch import TorchModel


def network():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))


def start(module, data=None, **options):
    options = options or {"loss": "cross_entropy"}
    data = (torch.randn(N, 6), labels()) if data is None else data
    return GradientCapture(TorchModel(module, **options), Instances.of(data))


def test_loss_that_is_reduced():
    with pytest.raises(InvalidInputError, match=r"\(batch,\) = \(5,\).*reduction='none'"):
        start(network(), loss=functional.cross_entropy)


def test_loss_of_each_output():
    with pytest.raises(InvalidInputError, match=r"returned \(5, 4\).*everything but the inst"):
        start(
            network(),
            (torch.randn(N, 6), torch.randn(N, 4)),
            loss=lambda output, target: (output - target).square(),
        )


def test_risk_that_is_no_tensor():
    with pytest.raises(InvalidInputError, match="returned float"):
        start(network(), risk=lambda module, batch: 1.0)


def test_mean_over_the_batch():
    def risk(module, batch):
        loss = functional.cross_entropy(module(batch[0]), batch[1])
        return loss.expand(len(batch[1]))

    with pytest.raises(InvalidInputError, match=r"changes with the other instances.*mean over"):
        start(network(), risk=risk)


def test_mean_over_a_batch_that_starts_with_copies():
    """The mean over equal instances is each one's own: other instances must be looked at."""

    def risk(module, batch):
        loss = functional.cross_entropy(module(batch[0]), batch[1])
        return loss.expand(len(batch[1]))

    x, y = torch.randn(N, 6), labels()
    x[1], x[2], y[1], y[2] = x[0], x[0], y[0], y[0]
    with pytest.raises(InvalidInputError, match="changes with the other instances"):
        start(network(), (x, y), risk=risk)


def test_loss_divided_by_the_batch_size():
    def risk(module, batch):
        losses = functional.cross_entropy(module(batch[0]), batch[1], reduction="none")
        return losses / len(losses)

    with pytest.raises(InvalidInputError, match="changes with the other instances"):
        start(network(), risk=risk)


def test_contrast_with_the_batch():
    def risk(module, batch):
        features = functional.normalize(module(batch[0]), dim=1)
        similarities = features @ features.T
        return functional.cross_entropy(similarities, torch.arange(len(features)), reduction="none")

    with pytest.raises(InvalidInputError, match="changes with the other instances"):
        start(network(), risk=risk)


@pytest.mark.parametrize(
    "module, shape",
    [
        (
            lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)),
            (6,),
        ),
        (
            lambda: nn.Sequential(
                nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4, track_running_stats=False), nn.Flatten()
            ),
            (2, 5),
        ),
    ],
)
def test_batch_norm_without_running_statistics(module, shape):
    with pytest.raises(InvalidInputError, match="BatchNorm without running statistics"):
        start(module(), (torch.randn(N, *shape), labels(4)))


def test_attention_across_the_batch():
    # A module for (length, batch, width) given (batch, length, width).
    attention = nn.MultiheadAttention(6, 2)
    module = Written(
        lambda self, x: self.last(self.attention(x, x, x)[0]).mean(1),
        attention=attention,
        last=nn.Linear(6, 4),
    )
    with pytest.raises(InvalidInputError, match="changes with the other instances"):
        start(module, (torch.randn(N, 5, 6), labels()))


def test_dropout_that_evaluation_does_not_switch_off():
    module = Written(
        lambda self, x: self.last(functional.dropout(x, 0.5, training=True)),
        last=nn.Linear(6, 4),
    )
    with pytest.raises(InvalidInputError):
        start(module)


def test_empty_set():
    with pytest.raises(InvalidInputError, match="empty"):
        start(network(), (torch.empty(0, 6), torch.empty(0, dtype=torch.long)))


@pytest.mark.parametrize("wrong", [4, -1, -7])
def test_label_out_of_range(wrong):
    x, y = torch.randn(N, 6), labels()
    y[1] = y[3] = wrong
    message = rf"label {wrong} is out of range for 4 classes.*0 \.\. 3"
    with pytest.raises(InvalidInputError, match=message):
        capture_in_batches(TorchModel(network(), loss="cross_entropy"), (x, y), 3)


@pytest.mark.parametrize("at", [0, 4])
def test_non_finite_risk_is_named(at):
    x = torch.randn(N, 6)
    x[at, 2] = float("nan")
    instances = Instances.of((x, labels()), ids=[f"row {i}" for i in range(N)])
    model = TorchModel(network(), loss="cross_entropy")
    with pytest.raises(NonFiniteError, match=rf"1 instance.*row {at}\b") as raised:
        capture_in_batches(model, instances, 3)
    others = {f"row {i}" for i in range(N)} - {f"row {at}"}
    assert not any(other in str(raised.value) for other in others)


def test_infinite_risk_is_named():
    def risk(module, batch):
        return functional.cross_entropy(module(batch[0]), batch[1], reduction="none") / batch[2]

    divisor = torch.ones(N)
    divisor[5] = divisor[6] = 0.0
    data = torch.randn(N, 6), labels(), divisor
    with pytest.raises(NonFiniteError, match=r"not finite: ids (5, )?6\."):
        capture_in_batches(TorchModel(network(), risk=risk), data, 4)


def test_differentiated_parameters_name_non_finite_risks_too():
    x = torch.randn(N, 6)
    x[4] = float("inf")
    module = nn.Sequential(nn.Linear(6, 5), nn.PReLU(), nn.Linear(5, 4))
    with pytest.raises(NonFiniteError, match=r"\b4\b"):
        capture_in_batches(TorchModel(module, loss="cross_entropy"), (x, labels()), 3)


def test_batch_without_an_instance_axis():
    items = [(torch.randn(6), int(y)) for y in labels()]

    def collate(items):
        features = torch.stack([x for x, _ in items])
        return features, torch.tensor(0.1), torch.tensor([y for _, y in items])

    module = Written(lambda self, x, noise: self.last(x + noise), last=nn.Linear(6, 4))
    model = TorchModel(module, loss="cross_entropy")
    with pytest.raises(InvalidInputError, match="instances on their first axis"):
        GradientCapture(model, Instances.of(items, collate=collate))


def test_targets_of_another_number():
    with pytest.raises(InvalidInputError, match="different numbers of instances"):
        start(network(), (torch.randn(N, 6), labels(n=N - 1)))


def test_module_that_fails_on_the_data_says_so_itself():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        start(network(), (torch.randn(N, 5), labels()))
