"""Cosines layer by layer, against plain loops over instances and layers, in float64."""

import numpy as np
import pytest
import torch
from references import flat
from torch import nn
from traced_runs import (
    RATE,
    as_batch,
    cnn,
    cross_entropies,
    error,
    in_batches,
    make_images,
    make_set,
    mlp,
    per_batch,
    trace,
)

import proponent as pp
from proponent.exceptions import InvalidInputError

EXACT = 1e-12
TRAIN, TEST = make_set(), make_set(1, n=4)


def by_loops(traced, test, layers, weights, train=None):
    """Return ``sum_t w_t mean_l eta cos(g_i^l, g_te^l)`` for layers named by prefixes."""
    train = traced.train if train is None else train
    total = 0
    for t, weight in weights.items():
        sides = traced.gradients(t, test), traced.gradients(t, train)
        for layer in layers:
            a, b = (
                flat({n: g.double() for n, g in side.items() if n.rpartition(".")[0] == layer})
                for side in sides
            )
            norms = a.norm(dim=1)[:, None] * b.norm(dim=1)[None, :]
            cosines = torch.where(norms > 0, a @ b.T / norms.clamp_min(1e-300), 0.0).numpy()
            total = total + RATE * np.asarray(weight) * cosines / len(layers)
    return total


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return trace(tmp_path_factory.mktemp("runs") / "mlp", mlp(), TRAIN, in_batches(13, 5, 2))


def test_the_mean_of_the_layers_cosines(traced):
    weights = dict.fromkeys(traced.steps, 1.0)
    expected = by_loops(traced, TEST, ["0", "2"], weights)
    method = pp.GAS(layerwise=True).fit(traced.run, TRAIN)
    found = method.influence(TEST)
    assert error(found.values, expected) < EXACT
    assert error(method.influence(TEST, joint=True).values, expected.sum(0)) < EXACT
    assert error(method.memorization().values, np.full(13, 6 * RATE)) < EXACT
    assert found.settings["layerwise"] is True
    whole = pp.GAS().fit(traced.run, TRAIN).influence(TEST).values
    assert error(found.values, whole) > 0.01


def test_a_layer_is_a_module_with_its_own_parameters(tmp_path):
    # The normalisations are layers of their own; the convolutions have several positions.
    train, test = make_images(), make_images(1, n=3)
    traced = trace(tmp_path, cnn(), train, in_batches(11, 4), every="epoch")
    expected = by_loops(traced, test, ["0", "1", "4", "5", "7"], {1: 1.0})
    for products in ("auto", "pair", "materialise"):
        for memory in (1, 2**29):
            method = pp.GAS(layerwise=True, products=products, memory=memory, batch_size=3)
            assert error(method.fit(traced.run, train).influence(test).values, expected) < EXACT
            assert error(method.memorization().values, np.full(11, RATE)) < EXACT


def test_one_chosen_layer_is_the_plain_cosine(traced):
    settings = {"parameters": "2.*"}
    plain = pp.GAS(**settings).fit(traced.run, TRAIN).influence(TEST)
    layered = pp.GAS(layerwise=True, **settings).fit(traced.run, TRAIN).influence(TEST)
    assert error(layered.values, plain.values) < EXACT


def test_at_every_step_and_at_the_model(traced):
    weights = per_batch(traced)
    expected = by_loops(traced, TEST, ["0", "2"], weights)
    method = pp.RenormalizedTracIn(layerwise=True).fit(traced.run, TRAIN)
    assert error(method.influence(TEST).values, expected) < EXACT
    model = pp.TorchModel(traced.at(3), loss="cross_entropy")
    cosines = pp.GradientCosine(layerwise=True).fit(model, TRAIN)
    expected = by_loops(traced, TEST, ["0", "2"], {3: 1 / RATE})
    assert error(cosines.influence(TEST).values, expected) < EXACT
    assert error(cosines.influence(TEST, joint=True).values, expected.sum(0)) < EXACT
    assert error(cosines.memorization().values, np.ones(13)) < EXACT


def test_a_layer_without_gradient_counts_as_zero():
    # Behind a ReLU that is shut the first layer has no gradient for some instances.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(2))
        net[0].bias.zero_()
    train = np.array([[1.0, 2.0], [-1.0, -2.0], [3.0, 1.0]]), np.array([0, 1, 2])
    model = pp.TorchModel(net, loss="cross_entropy")
    method = pp.GradientCosine(layerwise=True).fit(model, train)
    own = method.memorization().values
    assert own == pytest.approx(np.array([1.0, 0.5, 1.0]), rel=1e-14)
    found = method.influence(train).values
    assert error(found.diagonal(), own) < EXACT
    head = pp.GradientCosine(parameters="2.*").fit(model, train).influence(train).values
    assert found[:, 1] == pytest.approx(head[:, 1] / 2, rel=1e-12)


def test_layers_that_did_not_move_are_no_layers(tmp_path):
    net = mlp()
    optimizer = torch.optim.SGD([{"params": net[2].parameters()}], lr=RATE)
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5), optimizer=optimizer)
    expected = by_loops(traced, TEST, ["2"], dict.fromkeys(traced.steps, 1.0))
    method = pp.GAS(layerwise=True).fit(traced.run, TRAIN)
    assert error(method.influence(TEST).values, expected) < EXACT
    assert error(method.memorization().values, np.full(13, 3 * RATE)) < EXACT


def test_tiny_gradients_keep_their_directions():
    # In float32 the squares of these gradients are 0.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    train, test = make_set(n=6), make_set(1, n=3)

    def faint(module, batch):
        return cross_entropies(module, batch) * 1e-25

    loud = pp.TorchModel(net, risk=cross_entropies)
    quiet = pp.TorchModel(net, risk=faint)
    as32 = [(data[0].astype(np.float32), data[1]) for data in (train, test)]
    expected, found = (
        pp.GradientCosine(layerwise=True).fit(m, as32[0]).influence(as32[1]).values
        for m in (loud, quiet)
    )
    assert error(found, expected) < 1e-5
    assert as_batch(net, train)[0].dtype == torch.float32


def test_the_switch_is_a_switch(traced):
    with pytest.raises(InvalidInputError, match="layerwise must be True or False"):
        pp.GAS(layerwise="mean").fit(traced.run, TRAIN)
    assert repr(pp.GAS(layerwise=True)) == "GAS(layerwise=True)"
