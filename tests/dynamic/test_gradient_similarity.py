"""The gradient dot product and cosine: TracInCP and GAS at one point, with learning rate 1."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from references import flat, gradients_by_loop, inner_products
from torch import nn
from torch.nn import functional
from traced_runs import (
    as_batch,
    cnn,
    cross_entropies,
    error,
    in_batches,
    make_images,
    make_set,
    mlp,
    trace,
)

import proponent as pp
from proponent.exceptions import InvalidInputError

EXACT = 1e-12
TRAIN, TEST = make_set(), make_set(1, n=4)


def by_loop(net, train, test, risk=cross_entropies):
    """Return products and cosines, (m, n), from one backward pass an instance."""
    sides = [
        gradients_by_loop(net, risk, as_batch(net, data), len(data[-1])) for data in (train, test)
    ]
    products = inner_products(*sides).T
    norms = [flat(side).norm(dim=1) for side in sides]
    return products.numpy(), (products / norms[0] / norms[1][:, None]).numpy()


@pytest.mark.parametrize("kind", [pp.GradientDot, pp.GradientCosine])
@pytest.mark.parametrize(
    ("net", "sets"),
    [(mlp(), (TRAIN, TEST)), (cnn(), (make_images(), make_images(1, n=3)))],
    ids=["MLP", "CNN"],
)
def test_the_model_as_it_is(kind, net, sets):
    train, test = sets
    expected = by_loop(net, train, test)[kind is pp.GradientCosine]
    method = kind().fit(pp.TorchModel(net, loss="cross_entropy"), train)
    assert error(method.influence(test).values, expected) < EXACT
    assert error(method.influence(test, joint=True).values, expected.sum(axis=0)) < EXACT
    diagonal = by_loop(net, train, train)[kind is pp.GradientCosine].diagonal()
    assert error(method.memorization().values, diagonal) < EXACT


def test_it_is_what_a_small_step_on_the_instance_takes_off_the_test_risk():
    net, rate = mlp(), 1e-6
    influence = pp.GradientDot().fit(pp.TorchModel(net, loss="cross_entropy"), TRAIN)
    values = influence.influence(TEST).values
    before = cross_entropies(net, as_batch(net, TEST)).detach()
    for i in range(13):
        stepped = copy.deepcopy(net)
        optimizer = torch.optim.SGD(stepped.parameters(), lr=rate)
        cross_entropies(stepped, as_batch(net, [column[i : i + 1] for column in TRAIN])).backward()
        optimizer.step()
        after = cross_entropies(stepped, as_batch(net, TEST)).detach()
        assert error(values[:, i] * rate, (before - after).numpy()) < 1e-4


def test_tracincp_with_one_checkpoint_and_rate_1(tmp_path):
    traced = trace(tmp_path, mlp(), TRAIN, [list(range(13))], rate=1.0)
    model = pp.TorchModel(traced.at(1), loss="cross_entropy")
    for at_model, along_run in ((pp.GradientDot, pp.TracInCP), (pp.GradientCosine, pp.GAS)):
        here = at_model().fit(model, TRAIN)
        there = along_run().fit(traced.run, TRAIN)
        assert_array_equal(here.influence(TEST).values, there.influence(TEST).values)
        assert_array_equal(here.memorization().values, there.memorization().values)
    half = trace(tmp_path / "half", mlp(), TRAIN, in_batches(13, 5), rate=0.5, every="epoch")
    dot = pp.GradientDot().fit(model, TRAIN).influence(TEST).values
    assert error(pp.TracInCP().fit(half.run, TRAIN).influence(TEST).values, 0.5 * dot) < EXACT


def test_cosines_are_between_minus_1_and_1():
    model = pp.TorchModel(mlp(), loss="cross_entropy")
    method = pp.GradientCosine().fit(model, TRAIN)
    cosines = method.influence(TRAIN).values
    assert (np.abs(cosines) <= 1 + 1e-12).all()
    assert cosines.min() < -0.3
    assert error(cosines.diagonal(), np.ones(13)) < EXACT


class Words(nn.Module):
    """A small language task with dict batches, an attention mask, and padding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask):
        weights = attention_mask[:, :, None] / attention_mask.sum(1)[:, None, None]
        return self.head((self.norm(self.embedding(input_ids)) * weights).sum(1))


def test_batches_may_be_dicts():
    torch.manual_seed(0)
    net = Words().double()
    tokens = torch.randint(1, 9, (7, 5))
    mask = (torch.arange(5) < torch.randint(1, 6, (7,))[:, None]).long()
    train = {"input_ids": tokens * mask, "attention_mask": mask, "labels": torch.arange(7) % 3}
    test = {key: value[[5, 2]] for key, value in train.items()}

    def risk(module, batch):
        output = module(batch["input_ids"], batch["attention_mask"])
        return functional.cross_entropy(output, batch["labels"], reduction="none")

    expected = inner_products(
        gradients_by_loop(net, risk, test, 2), gradients_by_loop(net, risk, train, 7)
    ).numpy()
    for model in (pp.TorchModel(net, loss="cross_entropy"), pp.TorchModel(net, risk=risk)):
        influence = pp.GradientDot(batch_size=3).fit(model, train).influence(test)
        assert error(influence.values, expected) < EXACT


def test_one_instance_on_either_side():
    X, y = TRAIN
    model = pp.TorchModel(mlp(), loss="cross_entropy")
    expected = by_loop(mlp(), (X[:1], y[:1]), (X[1:2], y[1:2]))[0]
    method = pp.GradientDot().fit(model, (X[:1], y[:1]))
    assert error(method.influence((X[1:2], y[1:2])).values, expected) < EXACT


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive integer.*got 0"),
        ({"batch_size": 2.5}, r"batch_size must be a positive integer.*got 2\.5"),
        ({"dtype": "bfloat16"}, "dtype must be 'float32', 'float64' or None; got 'bfloat16'"),
        ({"products": "fast"}, "products='fast': expected one of auto, pair, materialise"),
        ({"memory": 0}, "memory must be a positive number of bytes; got 0"),
        ({"parameters": "nowhere.*"}, r"no parameter matches 'nowhere\.\*'; there are 0\.weight"),
    ],
)
def test_wrong_settings_are_refused_by_fit(settings, message):
    model = pp.TorchModel(mlp(), loss="cross_entropy")
    with pytest.raises(InvalidInputError, match=message):
        pp.GradientDot(**settings).fit(model, TRAIN)


def test_a_batch_size_may_be_numpys():
    model = pp.TorchModel(mlp(), loss="cross_entropy")
    (size,) = np.array([7])
    influence = pp.GradientDot(batch_size=size).fit(model, TRAIN).influence(TEST)
    assert error(influence.values, by_loop(mlp(), TRAIN, TEST)[0]) < EXACT
