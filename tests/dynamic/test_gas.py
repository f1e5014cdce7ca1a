"""GAS: directions of gradients, bounded by the learning rates, and zero where there is none."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
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

EXACT = 1e-12
TRAIN, TEST = make_set(), make_set(1, n=4)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return trace(tmp_path_factory.mktemp("runs") / "mlp", mlp(), TRAIN, in_batches(13, 5, 2))


def test_equation_67(traced):
    influence = pp.GAS().fit(traced.run, TRAIN).influence(TEST)
    expected = influence_by_loops(traced, TEST, traced.steps, unit=True)
    assert error(influence.values, expected) < EXACT


def test_a_convolutional_network(tmp_path):
    train, test = make_images(), make_images(1, n=3)
    traced = trace(tmp_path, cnn(), train, in_batches(11, 4), every="epoch")
    expected = influence_by_loops(traced, test, [1], unit=True)
    for products in ("auto", "pair", "materialise"):
        for memory in (1, 2**29):
            method = pp.GAS(products=products, memory=memory, batch_size=3)
            method.fit(traced.run, train)
            assert error(method.influence(test).values, expected) < EXACT
            assert error(method.memorization().values, np.full(11, RATE)) < EXACT


def test_no_influence_exceeds_the_sum_of_rates_which_is_ones_own(traced):
    method = pp.GAS().fit(traced.run, TRAIN)
    total = sum(checkpoint.learning_rates["0.bias"] for checkpoint in traced.run.checkpoints[:-1])
    assert total == pytest.approx(6 * RATE)
    assert (np.abs(method.influence(TEST).values) <= total * (1 + 1e-12)).all()
    assert error(method.memorization().values, np.full(13, total)) < EXACT
    assert error(method.influence(TRAIN).values.diagonal(), np.full(13, total)) < EXACT


def test_a_joint_influence_sums_directions_not_gradients(traced):
    method = pp.GAS().fit(traced.run, TRAIN)
    expected = influence_by_loops(traced, TEST, traced.steps, unit=True).sum(axis=0)
    assert error(method.influence(TEST, joint=True).values, expected) < EXACT
    # The direction of the sum of gradients would be another number.
    summed = influence_by_loops(traced, TEST, traced.steps).sum(axis=0)
    assert abs(np.corrcoef(summed, expected)[0, 1]) < 0.999


def test_groups_of_parameters_weigh_the_products_not_the_norms(tmp_path):
    net = mlp()
    groups = [
        {"params": [net[0].weight], "lr": 0.05},
        {"params": [net[2].weight], "lr": 0.4},
        {"params": [net[2].bias], "lr": 0.0},
        {"params": [net[0].bias], "lr": 0.1},
    ]
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5), optimizer=torch.optim.SGD(groups))
    method = pp.GAS().fit(traced.run, TRAIN)
    expected = influence_by_loops(traced, TEST, traced.steps, unit=True)
    assert error(method.influence(TEST).values, expected) < EXACT
    assert error(method.influence(TEST, joint=True).values, expected.sum(axis=0)) < EXACT
    diagonal = influence_by_loops(traced, TRAIN, traced.steps, unit=True).diagonal()
    assert error(method.memorization().values, diagonal) < EXACT
    assert (diagonal < 3 * 0.4).all()


def test_the_released_codes_weights_are_a_setting(traced):
    influence = pp.GAS(scale_by_batch=True).fit(traced.run, TRAIN).influence(TEST)
    weights = {t: 1 / len(batch) for t, batch in enumerate(traced.batches, 1)}
    expected = influence_by_loops(traced, TEST, weights, unit=True)
    assert error(influence.values, expected) < EXACT


def test_the_scale_of_the_risk_does_not_matter(traced):
    def tenfold(output, target):
        return 10 * functional.cross_entropy(output, target, reduction="none")

    run = pp.TrainingRun.load(traced.path, traced.module, loss=tenfold)
    found = pp.GAS().fit(run, TRAIN).influence(TEST).values
    expected = pp.GAS().fit(traced.run, TRAIN).influence(TEST).values
    assert error(found, expected) < EXACT
    dot = [pp.TracInCP().fit(r, TRAIN).influence(TEST).values for r in (run, traced.run)]
    assert error(dot[0], 100 * dot[1]) < EXACT


def saturated(scale):
    """Return a linear classifier whose logits are ``scale`` times those of the features."""
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(scale * torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        net.bias.zero_()
    return net


# The first is classified rightly beyond doubt; the others by a little, or wrongly.
POINTS = torch.tensor([[1.0, 0.5], [0.002, 1.0], [-0.001, 1.0], [1.0, -0.5]])
LABELS = torch.tensor([0, 0, 0, 0])


@pytest.mark.parametrize("kind", [pp.GAS, pp.RenormalizedTracIn, pp.GradientCosine])
def test_a_zero_gradient_is_similar_to_nothing(tmp_path, kind):
    net, train = saturated(200.0), (POINTS, LABELS)
    study = pp.TorchModel(net, loss="cross_entropy")
    (gradient,) = torch.autograd.grad(study.risk(net, (POINTS[:1], LABELS[:1])), [net.weight])
    assert not gradient.any(), "the softmax does not saturate"
    if kind is not pp.GradientCosine:
        study = trace(tmp_path, net, train, [[0, 1, 2, 3]], rate=0.5).run
    method = kind().fit(study, train)
    influence = method.influence(train)
    assert_array_equal(influence.values[[0, 3]], 0)
    assert_array_equal(influence.values[:, [0, 3]], 0)
    assert (influence.values[1:3, 1:3] != 0).all()
    joint = method.influence(train, joint=True).values
    assert joint == pytest.approx(influence.values.sum(axis=0), rel=1e-6)
    memorization = method.memorization().values
    assert_array_equal(memorization[[0, 3]], 0)
    assert (memorization[1:3] > 0).all()


@pytest.mark.parametrize("gap", [30.0, 42.0, 46.0, 50.0, 60.0, 80.0])
def test_tiny_gradients_have_directions_too(gap):
    """Squares of float32 gradients below 1e-19 have few digits, or none."""
    torch.manual_seed(0)
    X = torch.rand(6, 3) * 0.02 + torch.tensor([1.0, 0.3, 0.1])
    y = torch.zeros(6, dtype=torch.long)
    net = nn.Linear(3, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[gap, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]]))
        net.bias.zero_()
    exact = pp.GradientCosine().fit(
        pp.TorchModel(copy.deepcopy(net).double(), loss="cross_entropy"), (X, y)
    )
    expected = exact.influence((X, y)).values
    method = pp.GradientCosine().fit(pp.TorchModel(net, loss="cross_entropy"), (X, y))
    cosines = method.influence((X, y)).values
    assert (np.abs(cosines) <= 1 + 1e-5).all()
    assert method.memorization().values == pytest.approx(np.ones(6), abs=1e-5)
    # The gradients themselves are float32's: in those of the true class 1 - p is lost.
    assert error(cosines, expected) < 0.02
