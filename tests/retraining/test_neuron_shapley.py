"""Neuron Shapley: equal to switching off units one by one in networks written by hand."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from retraining.games import enumerated
from scipy.special import log_softmax
from sklearn.linear_model import Ridge
from torch import nn

import proponent as pp
from proponent.exceptions import InvalidInputError, MethodCapabilityError, NotFittedError
from proponent.retraining import neuron_game
from proponent.retraining.stopping import MaxModels

torch.manual_seed(0)
MLP = nn.Sequential(
    nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)
).double()
CONVOLUTION = nn.Sequential(
    nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2), nn.Linear(2, 2)
).double()
for network in (MLP, CONVOLUTION):
    for value in network.parameters():
        value.data *= 3  # so that every unit matters
X = torch.randn(11, 3, dtype=torch.float64)
IMAGES = torch.randn(11, 1, 3, 3, dtype=torch.float64)
Y = torch.arange(11) % 2
MLP_MODEL = pp.TorchModel(MLP, loss="cross_entropy")
TEST, REFERENCE = slice(0, 4), slice(4, 11)


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.state_dict().items()}


def mlp_outputs(x, inside, means, chosen=("0", "2")):
    """Return the logits of a few rows, with the units that are not inside at their means."""
    w = arrays(MLP)
    kept = iter(inside)

    def ablated(name, output):
        if name not in chosen:
            return output
        on = np.array([next(kept) for _ in range(output.shape[1])])
        return np.where(on, output, means[name])

    first = ablated("0", x @ w["0.weight"].T + w["0.bias"])
    second = ablated("2", np.tanh(first) @ w["2.weight"].T + w["2.bias"])
    return np.tanh(second) @ w["4.weight"].T + w["4.bias"]


def mlp_means(x):
    w = arrays(MLP)
    first = x @ w["0.weight"].T + w["0.bias"]
    second = np.tanh(first) @ w["2.weight"].T + w["2.bias"]
    return {"0": first.mean(axis=0), "2": second.mean(axis=0)}


def worth_of_all(outputs, units, labels):
    """Return minus the cross-entropy of every coalition of units, ``(2^units, T)``."""
    rows = []
    for number in range(2**units):
        inside = [bool(number >> unit & 1) for unit in range(units)]
        rows.append(log_softmax(outputs(inside), axis=1)[np.arange(len(labels)), labels])
    return np.array(rows)


def mlp_worth(units, chosen=("0", "2")):
    means = mlp_means(X[REFERENCE].numpy())

    def outputs(inside):
        return mlp_outputs(X[TEST].numpy(), inside, means, chosen)

    return worth_of_all(outputs, units, Y[TEST].numpy())


def shapley(worth, units):
    return enumerated(worth, np.full(units, 1 / units))


def fitted(model=MLP_MODEL, data=X, **settings):
    method = pp.NeuronShapley(**settings)
    return method.fit(model, (data[REFERENCE], Y[REFERENCE]), test=(data[TEST], Y[TEST]))


@pytest.mark.parametrize("rows_at_once", [1, 7, 4096])
@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_equal_to_switching_off_units_by_hand(batch_size, rows_at_once, monkeypatch):
    monkeypatch.setattr(neuron_game, "ROWS_AT_ONCE", rows_at_once)
    worth = mlp_worth(7)
    assert (np.abs(shapley(worth, 7)).max(axis=0) > 1e-3).all()
    method = fitted(batch_size=batch_size)
    found = method.influence()
    assert_allclose(found.values, shapley(worth, 7), atol=1e-12)
    assert found.train_ids.tolist() == ["0:0", "0:1", "0:2", "0:3", "2:0", "2:1", "2:2"]
    assert found.test_ids.tolist() == [0, 1, 2, 3]
    assert found.diagnostics["estimator"] == "exact" and found.std_error is None
    # The whole network is worth minus its risk; without any unit it knows nothing of x.
    assert_allclose(found.values.sum(axis=1), worth[-1] - worth[0], atol=1e-12)
    assert_allclose(method.influence(joint=True).values, shapley(worth, 7).sum(axis=0), atol=1e-12)


@pytest.mark.parametrize(
    ("layers", "chosen", "units"),
    [("0", ("0",), 4), (["2"], ("2",), 3), (("0", "2"), ("0", "2"), 7)],
)
def test_the_layers_that_play(layers, chosen, units):
    found = fitted(layers=layers).influence()
    assert_allclose(found.values, shapley(mlp_worth(units, chosen), units), atol=1e-12)
    assert [unit.partition(":")[0] for unit in found.train_ids] == [
        name for name in chosen for _ in range(4 if name == "0" else 3)
    ]


def test_channels_of_a_convolution_are_switched_off_as_a_whole():
    w = arrays(CONVOLUTION)

    def channels(images):
        patches = np.stack(
            [images[:, 0, i : i + 2, j : j + 2] for i in range(2) for j in range(2)], axis=1
        )
        found = np.einsum("npij,cij->ncp", patches, w["0.weight"][:, 0])
        return found + w["0.bias"][:, None]

    # The mean of a channel is over instances and places.
    means = channels(IMAGES[REFERENCE].numpy()).mean(axis=(0, 2))
    features = channels(IMAGES[TEST].numpy())

    def outputs(inside):
        on = np.array(inside)[None, :, None]
        hidden = np.maximum(np.where(on, features, means[None, :, None]), 0).reshape(4, 12)
        logits = hidden @ w["3.weight"].T + w["3.bias"]
        return logits @ w["4.weight"].T + w["4.bias"]

    model = pp.TorchModel(CONVOLUTION, loss="cross_entropy")
    found = fitted(model, IMAGES, layers="0").influence()
    expected = shapley(worth_of_all(outputs, 3, Y[TEST].numpy()), 3)
    assert_allclose(found.values, expected, atol=1e-12)
    by_default = fitted(model, IMAGES).influence()
    assert by_default.train_ids.tolist() == ["0:0", "0:1", "0:2", "3:0", "3:1"]


class Tokens(nn.Module):
    """A linear layer over each of several tokens, whose outputs are then averaged."""

    def __init__(self):
        super().__init__()
        self.each = nn.Linear(2, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.each(x)).mean(dim=1))


def test_units_of_a_layer_over_tokens():
    network = Tokens().double()
    tokens = torch.randn(11, 5, 2, dtype=torch.float64)
    w = arrays(network)
    each = tokens.numpy() @ w["each.weight"].T + w["each.bias"]
    means = each[REFERENCE].mean(axis=(0, 1))

    def outputs(inside):
        kept = np.where(np.array(inside), each[TEST], means)
        return np.tanh(kept).mean(axis=1) @ w["head.weight"].T + w["head.bias"]

    found = fitted(pp.TorchModel(network, loss="cross_entropy"), tokens).influence()
    assert_allclose(found.values, shapley(worth_of_all(outputs, 3, Y[TEST].numpy()), 3), atol=1e-12)


def test_a_module_with_several_outputs_of_its_own_risk():
    def risk(module, batch):
        return (module(batch["x"]) ** 2).sum(dim=1)

    model = pp.TorchModel(MLP, risk=risk)
    method = pp.NeuronShapley(layers="0").fit(model, {"x": X[REFERENCE]})
    found = method.influence({"x": X[TEST]})
    means = mlp_means(X[REFERENCE].numpy())
    worth = [
        -(mlp_outputs(X[TEST].numpy(), [j >> i & 1 for i in range(4)], means, ("0",)) ** 2).sum(1)
        for j in range(16)
    ]
    assert_allclose(found.values, shapley(np.array(worth), 4), atol=1e-12)


@pytest.mark.parametrize("estimator", ["regression", "means", "permutations", "antithetic"])
def test_sampled_coalitions(estimator):
    truth = shapley(mlp_worth(7), 7)
    found = fitted(n_models=3002, estimator=estimator).influence()
    assert (np.abs(found.values - truth) < 4 * found.std_error + 1e-12).all()
    assert 0 < found.std_error.max() < 0.03 < np.abs(truth).max()
    assert_allclose(found.values.sum(axis=1), truth.sum(axis=1), atol=1e-10)
    again = fitted(n_models=3002, estimator=estimator).influence()
    assert_array_equal(found.values, again.values)


def test_a_unit_that_is_not_read_has_no_value():
    network = copy.deepcopy(MLP)
    with torch.no_grad():
        network[2].weight[:, 1] = 0.0
        network[0].weight[2], network[0].bias[2] = 0.0, 1.5  # always at its mean
    found = fitted(pp.TorchModel(network, loss="cross_entropy"), layers="0").influence().values
    assert_allclose(found[:, 1:3], 0.0, atol=1e-13)
    assert np.abs(found[:, [0, 3]]).min() > 1e-4


def test_the_network_comes_back_as_it_was():
    network = copy.deepcopy(MLP).train()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    inputs = torch.randn(5, 3, dtype=torch.float64)
    before = network(inputs).detach()
    fitted(pp.TorchModel(network, loss="cross_entropy")).influence()
    assert network.training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert torch.equal(network(inputs), before)
    assert not any(module._forward_hooks for module in network.modules())


def test_dropout_and_batch_statistics_stand_still():
    network = nn.Sequential(
        nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2)
    ).double()
    network(X)  # running statistics of its own
    model = pp.TorchModel(network.train(), loss="cross_entropy")
    w = arrays(copy.deepcopy(network))
    first = X.numpy() @ w["0.weight"].T + w["0.bias"]
    means = first[REFERENCE].mean(axis=0)

    def outputs(inside):
        kept = np.where(np.array(inside), first[TEST], means) - w["1.running_mean"]
        kept = kept / np.sqrt(w["1.running_var"] + 1e-5) * w["1.weight"] + w["1.bias"]
        return kept @ w["3.weight"].T + w["3.bias"]

    found = fitted(model).influence()
    assert_allclose(found.values, shapley(worth_of_all(outputs, 3, Y[TEST].numpy()), 3), atol=1e-12)


def test_a_test_set_of_its_own_and_none():
    method = pp.NeuronShapley(layers="0").fit(MLP_MODEL, (X[REFERENCE], Y[REFERENCE]))
    found = method.influence((X[TEST], Y[TEST]), ids=list("abcd"))
    assert found.test_ids.tolist() == list("abcd")
    assert_array_equal(found.values, fitted(layers="0").influence().values)
    with pytest.raises(InvalidInputError, match="test: pass the test set"):
        method.influence()
    with pytest.raises(NotFittedError):
        pp.NeuronShapley().influence((X, Y))


def test_a_rule_that_counts_stops_it():
    data = (X[REFERENCE], Y[REFERENCE]), (X[TEST], Y[TEST])
    method = pp.NeuronShapley(n_models=500, estimator="means", stop=MaxModels(70))
    found = method.fit(MLP_MODEL, data[0], test=data[1]).influence()
    assert found.diagnostics["coalitions"] == 70


def test_what_it_is_not():
    method = fitted(layers="0")
    with pytest.raises(MethodCapabilityError, match="players are units"):
        method.memorization()
    with pytest.raises(MethodCapabilityError):
        method.group_influence({"all": ["0:0", "0:1"]})
    with pytest.raises(InvalidInputError, match="no randomness"):
        method.expected()


@pytest.mark.parametrize(
    ("settings", "given", "message"),
    [
        ({"layers": "7"}, {}, r"layers: '7' given; the network has 0, 1, 2, 3, 4"),
        ({"layers": []}, {}, "layers: none given"),
        ({"layers": ["0", "0"]}, {}, "layers: '0' named twice"),
        ({"utility": "accuracy"}, {}, "utility: units are scored by the risk"),
        ({"batch_size": 0}, {}, "batch_size"),
        ({"n_models": 0}, {}, "n_models"),
        ({"estimator": "bandit"}, {}, "estimator must be"),
        ({}, {"ids": np.arange(7)}, "ids: the players are units"),
        ({}, {"groups": np.arange(7)}, "groups: the players are units"),
    ],
)
def test_an_argument_that_makes_no_sense(settings, given, message):
    with pytest.raises(InvalidInputError, match=message):
        pp.NeuronShapley(**settings).fit(MLP_MODEL, (X, Y), **given)


def test_models_and_sets_that_make_no_sense():
    with pytest.raises(InvalidInputError, match="TorchModel"):
        pp.NeuronShapley().fit(Ridge(), (X.numpy(), Y.numpy()))
    with pytest.raises(InvalidInputError, match="train: pass a reference set"):
        pp.NeuronShapley().fit(MLP_MODEL)
    with pytest.raises(InvalidInputError, match="train: the set is empty"):
        pp.NeuronShapley().fit(MLP_MODEL, (X[:0], Y[:0]))
    alone = pp.TorchModel(nn.Sequential(nn.Linear(3, 2)).double(), loss="cross_entropy")
    with pytest.raises(InvalidInputError, match="no convolution or linear layer before its last"):
        pp.NeuronShapley().fit(alone, (X, Y))


class Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used = nn.Linear(3, 2)
        self.spare = nn.Linear(3, 2)

    def forward(self, x):
        return self.used(x)


def test_a_layer_that_takes_no_part():
    model = pp.TorchModel(Spare().double(), loss="cross_entropy", parameters=["used.*"])
    with pytest.raises(InvalidInputError, match="'spare' took no part in the risk"):
        pp.NeuronShapley(layers=["used", "spare"]).fit(model, (X, Y))
