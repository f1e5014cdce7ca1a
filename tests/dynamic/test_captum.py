"""Equal to captum where captum is right; where it and dattri are wrong, right here.

Known defects of peers, each held against plain loops: parameters of layers that are dropped,
batch normalisation in training mode, tied weights, frozen parameters, ragged last batches,
losses that are means, shuffled loaders, instances with NaN, a learning rate of 1 that nobody gave.
"""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from references import flat, gradients_by_loop, inner_products
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from traced_runs import (
    RATE,
    as_batch,
    cross_entropies,
    error,
    in_batches,
    influence_by_loops,
    make_images,
    make_set,
    mlp,
    trace,
)

import proponent as pp
from proponent.exceptions import InvalidInputError, NonFiniteError

EXACT = 1e-12
TRAIN, TEST = make_set(), make_set(1, n=4)


# Where captum is right


def small_cnn():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    ).double()


def by_captum(traced, train, test, folder):
    """Return captum's TracInCP at the recorded states, (n_test, n_train), and self-influence."""
    influence = pytest.importorskip("captum.influence")
    paths = []
    for t in traced.steps:
        paths.append(folder / f"{t:03}.pt")
        torch.save(traced.states[t - 1], paths[-1])

    def load(model, path):
        model.load_state_dict(torch.load(path))
        return RATE

    net = copy.deepcopy(traced.module).float().eval()
    train_batch, test_batch = as_batch(net, train), as_batch(net, test)
    peer = influence.TracInCP(
        net,
        TensorDataset(*train_batch),
        [str(path) for path in paths],
        load,
        loss_fn=nn.CrossEntropyLoss(reduction="sum"),
        sample_wise_grads_per_batch=True,
        batch_size=len(train[1]),
    )
    return peer.influence(test_batch).detach().numpy(), peer.self_influence().detach().numpy()


@pytest.mark.parametrize(
    ("net", "sets"),
    [(mlp(), (TRAIN, TEST)), (small_cnn(), (make_images(), make_images(1, n=3)))],
    ids=["MLP", "CNN"],
)
def test_equal_to_captum(tmp_path, net, sets):
    train, test = sets
    net = copy.deepcopy(net).float()
    traced = trace(tmp_path / "run", net, train, in_batches(len(train[1]), 5))
    expected, of_themselves = by_captum(traced, train, test, tmp_path)
    method = pp.TracInCP().fit(traced.run, train)
    assert error(method.influence(test).values, expected) < 1e-5
    assert error(method.memorization().values, of_themselves) < 1e-5


# Where it is not


class Sentences(nn.Module):
    """Layers whose parameters captum drops: embedding, convolution of sequences, layer norm."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.convolution = nn.Conv1d(6, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens):
        hidden = self.convolution(self.embedding(tokens).mT).mT
        return self.head(self.norm(torch.tanh(hidden)).mean(1))


class Tied(nn.Module):
    """Two modules that share a weight, and a third use of it by hand."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.head(torch.tanh(functional.linear(hidden, self.first.weight)))


class Unused(nn.Module):
    """A submodule with the name ``module``, and one that no risk depends on."""

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(4, 3)
        self.idle = nn.Linear(2, 2)

    def forward(self, x):
        return self.module(x)


def make_sentences(seed=0, n=13):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 11, size=(n, 5)), generator.integers(0, 3, size=n)


@pytest.mark.parametrize("products", ["auto", "pair", "materialise"])
@pytest.mark.parametrize(
    ("kind", "sets"),
    [
        (Sentences, (make_sentences(), make_sentences(1, 4))),
        (Tied, (TRAIN, TEST)),
        (Unused, (TRAIN, TEST)),
    ],
)
def test_no_parameter_is_dropped_and_none_counts_twice(tmp_path, kind, sets, products):
    torch.manual_seed(1)
    train, test = sets
    traced = trace(tmp_path, kind().double(), train, in_batches(13, 5))
    method = pp.TracInCP(products=products).fit(traced.run, train)
    influence = method.influence(test)
    assert error(influence.values, influence_by_loops(traced, test, traced.steps)) < EXACT
    counted = influence.diagnostics["captured"] + influence.diagnostics["differentiated"]
    assert sorted(counted) == sorted(name for name, _ in traced.module.named_parameters())
    diagonal = influence_by_loops(traced, train, traced.steps).diagonal()
    assert error(method.memorization().values, diagonal) < EXACT


def normalised():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3)
    ).double()


def test_batch_normalisation_and_dropout_left_in_training_mode(tmp_path):
    traced = trace(tmp_path, normalised(), TRAIN, in_batches(13, 7, epochs=2))
    expected = influence_by_loops(traced, TEST, traced.steps)
    net = traced.module.train()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    for batch_size in (1, 5, 64):
        method = pp.TracInCP(batch_size=batch_size).fit(traced.run, TRAIN)
        for _ in range(2):
            assert error(method.influence(TEST).values, expected) < EXACT
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, buffers[name]), f"{name} has moved"
    assert all(part.training for part in net.modules())


def test_statistics_of_the_batch_are_refused(tmp_path):
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False)).double()
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 7)[:1])
    with pytest.raises(InvalidInputError, match="BatchNorm without running statistics"):
        pp.TracInCP().fit(traced.run, TRAIN)


@pytest.mark.parametrize("when", ["before training", "after training"])
def test_frozen_parameters_do_not_count(tmp_path, when):
    net = mlp()
    if when == "before training":
        net[0].weight.requires_grad_(False)
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5))
    run, module = traced.run, traced.module
    if when == "after training":
        module[0].weight.requires_grad_(False)
        run = pp.TrainingRun.load(tmp_path, module)
    expected = influence_by_loops(traced, TEST, traced.steps, names=lambda name: name != "0.weight")
    influence = pp.TracInCP().fit(run, TRAIN).influence(TEST)
    assert error(influence.values, expected) < EXACT
    assert "0.weight" not in influence.diagnostics["captured"]
    assert not module[0].weight.requires_grad


@pytest.mark.parametrize("batch_size", [1, 2, 5, 12, 13, 100])
def test_a_ragged_last_batch_counts_like_any_other(tmp_path, batch_size):
    traced = trace(tmp_path, mlp(), TRAIN, in_batches(13, 5))
    influence = pp.TracInCP(batch_size=batch_size).fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, influence_by_loops(traced, TEST, traced.steps)) < EXACT


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_the_reduction_of_a_loss_module_does_not_matter(tmp_path, reduction):
    traced = trace(tmp_path, mlp(), TRAIN, in_batches(13, 5))
    expected = influence_by_loops(traced, TEST, traced.steps)
    loss = nn.CrossEntropyLoss(reduction=reduction)
    run = pp.TrainingRun.load(tmp_path, mlp(), loss=loss)
    assert error(pp.TracInCP(batch_size=5).fit(run, TRAIN).influence(TEST).values, expected) < EXACT
    assert loss.reduction == reduction
    model = pp.TorchModel(traced.at(1), loss=loss)
    dot = pp.GradientDot(batch_size=5).fit(model, TRAIN).influence(TEST).values
    assert error(RATE * dot, influence_by_loops(traced, TEST, [1])) < EXACT


@pytest.mark.parametrize(
    "loss",
    [
        functional.cross_entropy,
        lambda output, target: functional.cross_entropy(output, target, reduction="sum"),
        lambda output, target: functional.cross_entropy(output, target).expand(len(target)),
        lambda output, target: (
            functional.cross_entropy(output, target, reduction="none") / len(target)
        ),
    ],
    ids=["mean", "sum", "mean for each", "divided by the batch"],
)
def test_a_callable_that_reduces_over_the_batch_is_refused(tmp_path, loss):
    traced = trace(tmp_path, mlp(), TRAIN, in_batches(13, 5))
    run = pp.TrainingRun.load(tmp_path, traced.module, loss=loss)
    with pytest.raises(InvalidInputError, match="risk"):
        pp.TracInCP().fit(run, TRAIN)


def test_a_shuffling_loader_is_refused(tmp_path):
    traced = trace(tmp_path, mlp(), TRAIN, in_batches(13, 5))
    data = TensorDataset(*map(torch.as_tensor, TRAIN))
    for loader in (DataLoader(data, shuffle=True), DataLoader(data, batch_size=4, drop_last=True)):
        with pytest.raises(InvalidInputError, match="pass the data set behind the loader"):
            pp.TracInCP().fit(traced.run, loader)
    influence = pp.TracInCP().fit(traced.run, data).influence(TEST)
    assert error(influence.values, influence_by_loops(traced, TEST, traced.steps)) < EXACT


def test_an_instance_with_nan_is_neither_ranked_first_nor_a_row_of_zeros():
    X, y = TRAIN[0].copy(), TRAIN[1]
    X[5, 2] = np.nan
    method = pp.GradientDot().fit(pp.TorchModel(mlp(), loss="cross_entropy"), (X, y))
    for asked in ({}, {"top_k": 3}, {"joint": True}):
        with pytest.raises(NonFiniteError, match="ids 5"):
            method.influence(TEST, **asked)
    kept = np.delete(np.arange(13), 5)
    without = pp.Instances.of((X, y)).select(kept)
    method = pp.GradientDot().fit(pp.TorchModel(mlp(), loss="cross_entropy"), without)
    influence = method.influence(TEST)
    assert_array_equal(influence.train_ids, kept)
    expected = [
        gradients_by_loop(mlp(), cross_entropies, as_batch(mlp(), d), len(d[1]))
        for d in (TEST, (X[kept], y[kept]))
    ]
    assert error(influence.values, inner_products(*expected).numpy()) < EXACT


def test_the_learning_rate_is_the_recorded_one_never_1(tmp_path):
    dot = None
    for rate in (1.0, 0.25, 1e-3):
        traced = trace(tmp_path / str(rate), mlp(), TRAIN, in_batches(13, 5)[:1], rate=rate)
        values = pp.TracInCP().fit(traced.run, TRAIN).influence(TEST).values
        dot = values if dot is None else dot
        assert error(values, rate * dot) < EXACT


def test_nothing_is_left_on_the_module(tmp_path):
    traced = trace(tmp_path, mlp(), TRAIN, in_batches(13, 5))
    states = {name: value.clone() for name, value in traced.module.state_dict().items()}
    method = pp.TracInCP().fit(traced.run, TRAIN)
    method.influence(TEST), method.memorization()
    for name, parameter in traced.module.named_parameters():
        assert parameter.grad is None
        assert not vars(parameter), "an attribute was left, as .sample_grad"
        assert torch.equal(parameter, states[name])


def test_products_are_not_projected_unless_asked(tmp_path):
    # A gradient of more entries than a projection would keep.
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 150), nn.Tanh(), nn.Linear(150, 3)).double()
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5))
    assert flat(traced.gradients(1, TEST)).shape[1] > 1024
    influence = pp.TracInCP().fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, influence_by_loops(traced, TEST, traced.steps)) < EXACT
