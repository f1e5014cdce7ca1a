"""TracInCP and TracIn-Last against plain loops over the checkpoints, in float64."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from references import relative_error
from torch import nn
from torch.nn import functional
from traced_runs import (
    RATE,
    cnn,
    error,
    in_batches,
    influence_by_loops,
    make_images,
    make_set,
    mlp,
    trace,
)

import proponent as pp
from proponent.exceptions import InvalidInputError

EXACT = 1e-12
TRAIN, TEST = make_set(), make_set(1, n=4)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Two epochs in batches of 5, 5 and 3, stored at every step."""
    path = tmp_path_factory.mktemp("runs") / "mlp"
    return trace(path, mlp(), TRAIN, in_batches(13, 5, epochs=2))


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "cnn"
    return trace(path, cnn(), make_images(), in_batches(11, 4, epochs=2), every="epoch")


def test_equation_55(traced):
    method = pp.TracInCP().fit(traced.run, TRAIN)
    expected = influence_by_loops(traced, TEST, traced.steps)
    influence = method.influence(TEST)
    assert error(influence.values, expected) < EXACT
    assert influence.diagnostics["points"] == [f"step {t}" for t in range(1, 7)]
    assert influence.diagnostics["weights"] == [RATE] * 6
    assert list(influence.diagnostics["captured"]) == [n for n, _ in mlp().named_parameters()]


def test_self_influence_is_the_sum_of_squared_norms(traced):
    expected = np.zeros(13)
    for t in traced.steps:
        for gradient in traced.gradients(t, TRAIN).values():
            expected += RATE * gradient.flatten(1).square().sum(1).numpy()
    memorization = pp.TracInCP().fit(traced.run, TRAIN).memorization()
    assert error(memorization.values, expected) < EXACT


def test_a_convolutional_network_with_its_recorded_statistics(convolutional):
    train, test = make_images(), make_images(1, n=3)
    assert [checkpoint.t for checkpoint in convolutional.run.checkpoints] == [1, 4, 7]
    # The running statistics have seen the batch of the step, the parameters have not.
    assert not torch.equal(convolutional.states[0]["1.running_mean"], torch.zeros(3))
    method = pp.TracInCP().fit(convolutional.run, train)
    expected = influence_by_loops(convolutional, test, [1, 4])
    assert error(method.influence(test).values, expected) < EXACT
    diagonal = influence_by_loops(convolutional, train, [1, 4]).diagonal()
    assert error(method.memorization().values, diagonal) < EXACT


@pytest.mark.parametrize("products", ["auto", "pair", "materialise"])
@pytest.mark.parametrize("memory", [1, 3_000, 2**29])
def test_neither_memory_nor_the_way_of_products_changes_the_numbers(
    convolutional, products, memory
):
    train, test = make_images(), make_images(1, n=3)
    method = pp.TracInCP(products=products, memory=memory, batch_size=4)
    method.fit(convolutional.run, train)
    expected = influence_by_loops(convolutional, test, [1, 4])
    assert error(method.influence(test).values, expected) < EXACT
    joint = method.influence(test, joint=True)
    assert error(joint.values, expected.sum(axis=0)) < EXACT
    diagonal = influence_by_loops(convolutional, train, [1, 4]).diagonal()
    assert error(method.memorization().values, diagonal) < EXACT


def test_each_parameter_group_has_its_own_learning_rate(tmp_path):
    net = mlp()
    groups = [
        {"params": [net[0].weight], "lr": 0.03},
        {"params": [net[0].bias], "lr": 0.5},
        {"params": [net[2].bias], "lr": 0.0},
        {"params": [net[2].weight], "lr": 0.2},
    ]
    optimizer = torch.optim.SGD(groups)
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5), optimizer=optimizer)
    assert sorted(traced.rates[0].values()) == [0.0, 0.03, 0.2, 0.5]
    method = pp.TracInCP().fit(traced.run, TRAIN)
    expected = influence_by_loops(traced, TEST, traced.steps)
    influence = method.influence(TEST)
    assert error(influence.values, expected) < EXACT
    assert error(method.influence(TEST, joint=True).values, expected.sum(axis=0)) < EXACT
    diagonal = influence_by_loops(traced, TRAIN, traced.steps).diagonal()
    assert error(method.memorization().values, diagonal) < EXACT


def test_what_did_not_move_does_not_count(tmp_path):
    net = mlp()
    net[0].weight.requires_grad_(False)
    moved = [parameter for name, parameter in net.named_parameters() if name != "2.bias"]
    optimizer = torch.optim.SGD(moved, lr=0.3)  # without the last bias, with the frozen weight
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5), optimizer=optimizer)
    expected = influence_by_loops(
        traced, TEST, traced.steps, names=lambda name: name in ("0.bias", "2.weight")
    )
    influence = pp.TracInCP().fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, expected) < EXACT
    # Frozen while it trained, whatever it is now.
    for parameter in traced.module.parameters():
        parameter.requires_grad_(True)
    thawed = pp.TracInCP(parameters="all").fit(traced.run, TRAIN).influence(TEST)
    assert "0.weight" in thawed.diagnostics["captured"]
    assert error(thawed.values, expected) < EXACT


def test_the_learning_rate_is_that_of_the_step_after_the_checkpoint(tmp_path):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.8)
    halved = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    traced = trace(
        tmp_path,
        net,
        TRAIN,
        in_batches(13, 5, epochs=2),
        optimizer=optimizer,
        scheduler=halved,
        every=2,
    )
    influence = pp.TracInCP().fit(traced.run, TRAIN).influence(TEST)
    assert influence.diagnostics["weights"] == pytest.approx([0.8, 0.2, 0.05])
    expected = influence_by_loops(traced, TEST, [1, 3, 5])
    assert error(influence.values, expected) < EXACT


def test_many_checkpoints_keep_their_order(tmp_path):
    # By file name, step 10 would come before step 2 and take its learning rate.
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
    batches = in_batches(13, 5, epochs=4)
    traced = trace(tmp_path, net, TRAIN, batches, optimizer=optimizer, scheduler=falling)
    assert len(traced.run.checkpoints) == 13
    influence = pp.TracInCP().fit(traced.run, TRAIN).influence(TEST)
    assert influence.diagnostics["weights"] == pytest.approx([0.5 / t for t in range(1, 13)])
    assert error(influence.values, influence_by_loops(traced, TEST, traced.steps)) < EXACT


@pytest.mark.parametrize(("reduction", "divides"), [("mean", True), ("sum", False)])
def test_scale_by_batch_divides_by_the_divisor_of_each_step(tmp_path, reduction, divides):
    batches = in_batches(13, 5)
    assert [len(batch) for batch in batches] == [5, 5, 3]
    traced = trace(tmp_path, mlp(), TRAIN, batches, reduction=reduction, rate=0.05)
    influence = pp.TracInCP(scale_by_batch=True).fit(traced.run, TRAIN).influence(TEST)
    weights = {t: 1 / len(batch) if divides else 1.0 for t, batch in enumerate(batches, 1)}
    assert error(influence.values, influence_by_loops(traced, TEST, weights)) < EXACT


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    ],
)
def test_momentum_decay_and_adaptive_rates_are_not_seen(tmp_path, optimizer):
    net = mlp()
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5), optimizer=optimizer(net.parameters()))
    influence = pp.TracInCP().fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, influence_by_loops(traced, TEST, traced.steps)) < EXACT


@pytest.mark.parametrize(
    ("choose", "names"),
    [
        (lambda net: "all", ("0.weight", "0.bias", "2.weight", "2.bias")),
        (lambda net: "last", ("2.weight", "2.bias")),
        (lambda net: "*.weight", ("0.weight", "2.weight")),
        (lambda net: net[0], ("0.weight", "0.bias")),
        (lambda net: ["2.bias", net[0]], ("0.weight", "0.bias", "2.bias")),
    ],
    ids=["all", "last", "glob", "module", "list"],
)
def test_parameters_choose_whose_gradients_are_compared(traced, choose, names):
    method = pp.TracInCP(parameters=choose(traced.module)).fit(traced.run, TRAIN)
    expected = influence_by_loops(traced, TEST, traced.steps, names=lambda name: name in names)
    influence = method.influence(TEST)
    assert error(influence.values, expected) < EXACT
    assert tuple(influence.diagnostics["captured"]) == names


def test_the_methods_parameters_go_before_those_of_the_run(traced):
    run = pp.TrainingRun.load(traced.path, traced.module, parameters="2.*")
    last = influence_by_loops(traced, TEST, traced.steps, names=lambda name: name[0] == "2")
    first = influence_by_loops(traced, TEST, traced.steps, names=lambda name: name[0] == "0")
    assert error(pp.TracInCP().fit(run, TRAIN).influence(TEST).values, last) < EXACT
    method = pp.TracInCP(parameters="0.*").fit(run, TRAIN)
    assert error(method.influence(TEST).values, first) < EXACT
    assert list(run.model.selected) == ["2.weight", "2.bias"]


def test_products_in_float64_of_a_float32_module(tmp_path):
    # A sum of products of opposite signs, whose digits float32 would lose.
    traced = trace(tmp_path, mlp().float(), TRAIN, in_batches(13, 5, epochs=2))
    double = pp.TracInCP(dtype="float64").fit(traced.run, TRAIN).influence(TEST)
    single = pp.TracInCP().fit(traced.run, TRAIN).influence(TEST)
    assert (double.values.dtype, single.values.dtype) == (np.float64, np.float32)
    # The loops add float32 gradients of single instances up in float64.
    expected = influence_by_loops(traced, TEST, traced.steps)
    assert error(double.values, expected) < 3e-7
    assert error(single.values, expected) < 3e-6
    assert next(traced.module.parameters()).dtype == torch.float32


def test_a_run_of_a_float32_module_studied_in_float64(traced, tmp_path):
    coarse = trace(tmp_path, mlp().float(), TRAIN, in_batches(13, 5))
    run = pp.TrainingRun.load(tmp_path, mlp())
    influence = pp.TracInCP().fit(run, TRAIN).influence(TEST)
    coarse.module = coarse.module.double()
    assert error(influence.values, influence_by_loops(coarse, TEST, coarse.steps)) < EXACT


def test_shards_scored_with_other_batches_and_memory_still_join(traced):
    settings = [
        {"batch_size": 2},
        {"memory": 1, "products": "materialise"},
        {"batch_size": 3, "products": "pair", "progress": False},
    ]
    parts = [
        pp.TracInCP(**setting).fit(traced.run, TRAIN).influence(TEST, shard=(i, 3))
        for i, setting in enumerate(settings)
    ]
    joined = pp.Influence.join(parts)
    assert error(joined.values, influence_by_loops(traced, TEST, traced.steps)) < EXACT
    other = pp.TracInCP(scale_by_batch=True).fit(traced.run, TRAIN).influence(TEST, shard=(2, 3))
    with pytest.raises(InvalidInputError, match="settings"):
        pp.Influence.join([*parts[:2], other])


def test_a_progress_bar_is_shown_when_asked_for(traced, capsys):
    for progress in (True, False, None):
        pp.TracInCP(progress=progress).fit(traced.run, TRAIN).influence(TEST)
        shown = capsys.readouterr().err
        assert ("TracInCP" in shown) == (progress is True)
        assert ("6/6" in shown) == (progress is True)


def test_equal_instances_score_equal(traced, tmp_path):
    twice = tuple(np.concatenate([column, column[:1]]) for column in TRAIN)
    traced = trace(tmp_path, mlp(), twice, in_batches(14, 5))
    values = pp.TracInCP().fit(traced.run, twice).influence(TEST).values
    assert error(values[:, 13], values[:, 0]) < EXACT
    assert error(values[:, 1], values[:, 0]) > 0.1


def test_a_small_run_by_hand(tmp_path):
    # One weight: the risk (w x - y)^2 has the gradient 2 (w x - y) x.
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(net.weight, 0.5)
    train = np.array([[1.0], [2.0]]), np.array([[1.0], [-1.0]])
    test = np.array([[3.0]]), np.array([[1.0]])

    def risk(module, batch):
        return functional.mse_loss(module(batch[0]), batch[1], reduction="none")[:, 0]

    traced = trace(tmp_path, net, train, [[0], [1]], loss="mse", risk=risk, rate=0.25)
    # At w = 0.5: gradients -1 and 8; the test's is 3. A step of 0.25 on the first: w = 0.75.
    # There: -0.5 and 10; the test's is 7.5.
    values = pp.TracInCP().fit(traced.run, train).influence(test).values
    assert values == pytest.approx(np.array([[0.25 * (-3 - 3.75), 0.25 * (24 + 75)]]), rel=1e-14)


# TracIn-Last


def closed_form(traced, test, steps, features, bias):
    """Return ``sum_c eta_c (f . f' + bias)(d . d')`` with ``d = softmax - onehot``."""
    total = 0
    for t in steps:
        net = traced.at(t)
        sides = []
        for X, y in (test, traced.train):
            X, y = torch.as_tensor(X), torch.as_tensor(y)
            with torch.no_grad():
                f, logits = features(net, X), net(X)
            sides.append((f, logits.softmax(1) - functional.one_hot(y, 3)))
        (f_te, d_te), (f, d) = sides
        total = total + RATE * (f_te @ f.T + bias) * (d_te @ d.T)
    return total


@pytest.mark.parametrize("bias", [True, False])
def test_tracin_last_is_its_closed_form(tmp_path, bias):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=bias)).double()
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5, epochs=2))
    expected = closed_form(traced, TEST, traced.steps, lambda net, X: net[:2](X), float(bias))
    method = pp.TracInLast().fit(traced.run, TRAIN)
    assert relative_error(torch.tensor(method.influence(TEST).values), expected) < EXACT
    diagonal = closed_form(traced, TRAIN, traced.steps, lambda net, X: net[:2](X), float(bias))
    memorization = torch.tensor(method.memorization().values)
    assert relative_error(memorization, diagonal.diagonal()) < EXACT


class HeadFirst(nn.Module):
    """A network whose last layer is registered first."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(5, 3)
        self.body = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def test_a_last_layer_that_does_not_run_last_is_refused_and_may_be_named(tmp_path):
    torch.manual_seed(1)
    traced = trace(tmp_path, HeadFirst().double(), TRAIN, in_batches(13, 5))
    with pytest.raises(InvalidInputError, match=r"'body'.*registered last, but 'head' runs last"):
        pp.TracInLast().fit(traced.run, TRAIN)
    expected = closed_form(
        traced, TEST, traced.steps, lambda net, X: torch.tanh(net.body(X)), bias=1.0
    )
    named = pp.TracInCP(parameters="head.*").fit(traced.run, TRAIN).influence(TEST)
    assert relative_error(torch.tensor(named.values), expected) < EXACT


def test_tracin_last_is_tracincp_of_the_last_layer(convolutional):
    train, test = make_images(), make_images(1, n=3)
    last = pp.TracInLast().fit(convolutional.run, train).influence(test)
    preset = pp.TracInCP(parameters="last").fit(convolutional.run, train).influence(test)
    assert_array_equal(last.values, preset.values)
    expected = influence_by_loops(convolutional, test, [1, 4], names=lambda n: n[0] == "7")
    assert error(last.values, expected) < EXACT


def test_tracin_last_needs_a_linear_layer(tmp_path):
    train = make_images()
    net = nn.Sequential(nn.Conv2d(1, 3, 6), nn.Flatten()).double()
    traced = trace(tmp_path, net, train, in_batches(11, 5))
    with pytest.raises(InvalidInputError, match=r"'last': the module has no Linear"):
        pp.TracInLast().fit(traced.run, train)
