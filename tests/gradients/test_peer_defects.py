"""What captum and dattri get wrong about gradients (peers/gradient.md), as tests of this engine."""

import pytest
import torch
from gradient_checks import N, Written, capture_in_batches, check_gradients, labels, tokens
from references import flat, gradients_by_loop, relative_error
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.gradients.products import GradientQuery, Products
from proponent.models.torch import TorchModel


def similarities(model, data, size):
    """Return <g_i, g_j> over a data set captured in batches."""
    _, parts, sizes = capture_in_batches(model, data, size)
    query = GradientQuery(parts, sizes, Products())
    return torch.cat([query.meet(p, n)[0] for p, n in zip(parts, sizes, strict=True)])


def test_no_layer_is_dropped():
    """captum's hooks know Linear and Conv2d, and drop the parameters of all other layers."""
    module = nn.Sequential(
        nn.Embedding(11, 6), nn.LayerNorm(6), nn.Conv1d(5, 4, 3), nn.BatchNorm1d(4),
        nn.GroupNorm(2, 4), nn.PReLU(), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    model = TorchModel(module, loss="cross_entropy")
    data = tokens(), labels()
    expected = gradients_by_loop(module, model.risk, data, N)
    _, parts, _ = capture_in_batches(model, data, 3)
    counted = {name: form.numel for name, form in parts[0].items()}
    assert sum(counted.values()) == sum(p.numel() for p in module.parameters())
    assert relative_error(similarities(model, data, 3), flat(expected) @ flat(expected).T) < 1e-12


def noisy():
    module = nn.Sequential(
        nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(inplace=True), nn.Dropout(0.5),
        nn.Linear(5, 4),
    ).train()  # fmt: skip
    module(torch.randn(30, 6))
    return module


def test_train_mode_batch_norm_and_dropout():
    """captum leaves the mode alone: scores depend on the batch size, and no two calls agree."""
    module = noisy()
    data = torch.randn(N, 6), labels()
    statistics = module[1].running_mean.clone(), module[1].num_batches_tracked.clone()
    model = TorchModel(module, loss="cross_entropy")
    first = similarities(model, data, 7)
    for size in (7, 3, 2, 1):
        assert relative_error(similarities(model, data, size), first) < 1e-12
    assert torch.equal(module[1].running_mean, statistics[0])
    assert torch.equal(module[1].num_batches_tracked, statistics[1])
    assert module.training
    assert (
        relative_error(
            similarities(TorchModel(module.eval(), loss="cross_entropy"), data, 7), first
        )
        < 1e-12
    )


def test_tied_weights():
    """captum: the later module overwrites the earlier one's gradient."""
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    module = nn.Sequential(first, nn.Tanh(), second)
    check_gradients(module, (torch.randn(N, 6), labels(6)))


def test_weight_used_outside_its_layer():
    """captum misses ``F.linear(x, layer.weight)``, and only the last use where there are two."""
    layer = nn.Linear(6, 6)
    module = Written(
        lambda self, x: functional.linear(torch.tanh(self.layer(x)), self.layer.weight),
        layer=layer,
    )
    check_gradients(module, (torch.randn(N, 6), labels(6)))


def test_frozen_parameters():
    """captum's loop raises on them, its hooks include them."""
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    module[0].weight.requires_grad_(False)
    capture = check_gradients(module, (torch.randn(N, 6), labels()))
    assert set(capture.coverage.captured) == {"0.bias", "2.weight", "2.bias"}
    assert not module[0].weight.requires_grad


def test_unused_parameters():
    """captum's loop raises on them."""
    module = Written(lambda self, x: self.used(x), used=nn.Linear(6, 4), unused=nn.Linear(6, 4))
    check_gradients(module, (torch.randn(N, 6), labels()))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_loss_module_of_any_reduction(reduction):
    """Peers divide by the batch size where the reduction is a mean, more in a ragged batch."""
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    loss = nn.CrossEntropyLoss(reduction=reduction)
    data = torch.randn(N, 6), labels()
    found = similarities(TorchModel(module, loss=loss), data, 3)
    named = similarities(TorchModel(module, loss="cross_entropy"), data, 5)
    assert relative_error(found, named) < 1e-12
    assert loss.reduction == reduction


def test_ragged_last_batch():
    module = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    model = TorchModel(module, loss="cross_entropy")
    data = torch.randn(N, 6), labels()
    whole = similarities(model, data, N)
    for size in range(1, N):
        assert relative_error(similarities(model, data, size), whole) < 1e-12


def test_callable_mean_loss():
    """captum warns and returns scores that are off by a factor."""
    model = TorchModel(nn.Linear(6, 4), loss=lambda output, y: functional.cross_entropy(output, y))
    with pytest.raises(InvalidInputError, match="a reduced loss hides the instances"):
        capture_in_batches(model, (torch.randn(N, 6), labels()), 3)


def test_not_a_number_is_named():
    """captum ranks it first, dattri turns it into a row of zeros."""
    x = torch.randn(N, 6)
    x[4] = float("nan")
    with pytest.raises(NonFiniteError, match=r"ids 4\."):
        capture_in_batches(TorchModel(nn.Linear(6, 4), loss="cross_entropy"), (x, labels()), 3)


@pytest.mark.parametrize("shuffle", [True, False])
def test_data_loader(shuffle):
    """captum takes a shuffled loader without a word, and its columns are of other instances."""
    loader = DataLoader(TensorDataset(torch.randn(N, 6), labels()), shuffle=shuffle)
    with pytest.raises(InvalidInputError, match="pass the data set behind the loader"):
        Instances.of(loader)


def test_submodule_called_module():
    """captum's bookkeeping breaks on the name."""
    module = Written(
        lambda self, x: self.module(torch.tanh(self.risk(x))),
        module=nn.Linear(5, 4),
        risk=nn.Linear(6, 5),
        slope=nn.PReLU(),
    )
    check_gradients(module, (torch.randn(N, 6), labels()))
    module.written = lambda self, x: self.module(self.slope(self.risk(x)))
    check_gradients(module, (torch.randn(N, 6), labels()), differentiated={"slope.weight"})


def test_two_dimensional_batches_of_a_plain_network():
    """dattri's LoGra crashes on them."""
    check_gradients(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)),
        (torch.randn(N, 6), labels()),
    )


def test_parameters_that_move_between_calls():
    """dattri's checkpoints alias the live weights: here the module's own are always meant."""
    module = nn.Linear(6, 4)
    model = TorchModel(module, loss="cross_entropy")
    data = torch.randn(N, 6), labels()
    before = similarities(model, data, 3)
    saved = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        module.weight.mul_(2)
    assert relative_error(similarities(model, data, 3), before) > 1e-3
    with model.at(saved):
        assert relative_error(similarities(model, data, 3), before) < 1e-12
