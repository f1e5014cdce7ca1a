"""TracIn (eq. 54) and its renormalised form against plain loops over all steps, in float64."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn
from traced_runs import (
    RATE,
    Traced,
    as_batch,
    cnn,
    cross_entropies,
    error,
    in_batches,
    influence_by_loops,
    make_images,
    make_set,
    mlp,
    per_batch,
    trace,
)

import proponent as pp
from proponent.exceptions import InvalidInputError, RunError

EXACT = 1e-12
TRAIN, TEST = make_set(), make_set(1, n=4)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    return trace(tmp_path_factory.mktemp("runs") / "mlp", mlp(), TRAIN, in_batches(13, 5, 2))


def test_equation_54(traced):
    method = pp.TracIn().fit(traced.run, TRAIN)
    expected = influence_by_loops(traced, TEST, per_batch(traced))
    assert error(method.influence(TEST).values, expected) < EXACT
    assert error(method.influence(TEST, joint=True).values, expected.sum(axis=0)) < EXACT
    diagonal = influence_by_loops(traced, TRAIN, per_batch(traced)).diagonal()
    assert error(method.memorization().values, diagonal) < EXACT


def test_a_convolutional_network(tmp_path):
    train, test = make_images(), make_images(1, n=3)
    traced = trace(tmp_path, cnn(), train, in_batches(11, 4))
    expected = influence_by_loops(traced, test, per_batch(traced))
    for batch_size in (2, 64):
        method = pp.TracIn(batch_size=batch_size).fit(traced.run, train)
        assert error(method.influence(test).values, expected) < EXACT


def test_the_divisor_of_a_sum_is_1(tmp_path):
    batches = in_batches(13, 5)
    traced = trace(tmp_path, mlp(), TRAIN, batches, reduction="sum", rate=0.05)
    weights = {t: weight * len(batches[t - 1]) for t, weight in per_batch(traced).items()}
    influence = pp.TracIn().fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, influence_by_loops(traced, TEST, weights)) < EXACT


def record(path, batches, *, divisors=None, clip_scales=None):
    """Train on weighted, clipped gradients and record the weights."""
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    columns = as_batch(net, TRAIN)
    states, scales = [], []
    with pp.Recorder(path, net, optimizer, loss="cross_entropy", train=TRAIN, every=1) as recorder:
        for number, batch in enumerate(batches):
            optimizer.zero_grad()
            divisor = torch.as_tensor(divisors[number] if divisors else float(len(batch)))
            risks = cross_entropies(net, tuple(column[batch] for column in columns))
            (risks / divisor).sum().backward()
            scale = 1.0
            if clip_scales is not None:
                norm = nn.utils.clip_grad_norm_(net.parameters(), clip_scales)
                scale = min(1.0, clip_scales / (float(norm) + 1e-6))
            scales.append(scale)
            states.append({name: value.clone() for name, value in net.state_dict().items()})
            recorder.step(batch, divisor=divisor, clip_scale=scale)
            optimizer.step()
    states.append(dict(net.state_dict()))
    run = pp.TrainingRun.load(path, mlp())
    rates = [dict.fromkeys(states[0], RATE)] * len(batches)
    return Traced(path, run, mlp(), TRAIN, states, batches, rates, cross_entropies), scales


def test_the_recorded_divisors_weigh_each_instance(tmp_path):
    batches = in_batches(13, 5)
    divisors = [np.linspace(1, 4, len(batch)) for batch in batches]
    traced, _ = record(tmp_path, batches, divisors=divisors)
    weights = {}
    for t, batch in enumerate(batches, 1):
        weights[t] = np.zeros(13)
        weights[t][batch] = 1 / divisors[t - 1]
    influence = pp.TracIn().fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, influence_by_loops(traced, TEST, weights)) < EXACT


def test_clipped_gradients_count_as_clipped(tmp_path):
    traced, scales = record(tmp_path, in_batches(13, 5, 2), clip_scales=0.4)
    assert min(scales) < 0.9, "nothing was clipped"
    weights = per_batch(traced, dict(enumerate(scales, 1)))
    influence = pp.TracIn().fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, influence_by_loops(traced, TEST, weights)) < EXACT
    assert "warnings" not in influence.diagnostics
    # To first order the steps' influences are the fall of the test risk: so the scales matter.
    fall = traced.risks(1, TEST) - traced.risks(len(scales) + 1, TEST)
    assert error(influence.values.sum(axis=1), fall) < 0.2


def test_an_unknown_clipping_is_said(tmp_path):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    columns = as_batch(net, TRAIN)
    with pp.Recorder(
        tmp_path, net, optimizer, loss="cross_entropy", train=TRAIN, every=1
    ) as recorder:
        cross_entropies(net, columns).mean().backward()
        nn.utils.clip_grad_value_(net.parameters(), 0.1)
        recorder.step(range(13), clip_scale=None)
        optimizer.step()
    run = pp.TrainingRun.load(tmp_path, net)
    influence = pp.TracIn().fit(run, TRAIN).influence(TEST)
    assert any("clipped at 1 steps" in text for text in influence.diagnostics["warnings"])


def test_an_instance_counts_as_often_as_it_stands_in_a_batch(tmp_path):
    batches = [[2, 2, 7], [0, 1, 2, 0, 0], [12, 12]]
    traced = trace(tmp_path, mlp(), TRAIN, batches)
    weights = {1: np.zeros(13), 2: np.zeros(13), 3: np.zeros(13)}
    weights[1][[2, 7]] = 2 / 3, 1 / 3
    weights[2][[0, 1, 2]] = 3 / 5, 1 / 5, 1 / 5
    weights[3][12] = 1.0
    method = pp.TracIn().fit(traced.run, TRAIN)
    expected = influence_by_loops(traced, TEST, weights)
    assert error(method.influence(TEST).values, expected) < EXACT
    diagonal = influence_by_loops(traced, TRAIN, weights).diagonal()
    assert error(method.memorization().values, diagonal) < EXACT


def test_instances_that_were_never_trained_on_have_none(tmp_path):
    batches = in_batches(13, 5)[:2]  # as a loader that drops the last batch
    traced = trace(tmp_path, mlp(), TRAIN, batches)
    dropped = sorted(set(range(13)) - {i for batch in batches for i in batch})
    assert len(dropped) == 3
    influence = pp.TracIn().fit(traced.run, TRAIN).influence(TEST)
    assert_array_equal(influence.values[:, dropped], 0)
    assert (np.delete(influence.values, dropped, axis=1) != 0).all()
    # TracInCP asks what a step on them would have done.
    everyone = pp.TracInCP().fit(traced.run, TRAIN).influence(TEST)
    assert (everyone.values[:, dropped] != 0).all()
    assert error(everyone.values, influence_by_loops(traced, TEST, [1, 2])) < EXACT


def test_tracincp_is_n_times_tracin_for_full_batches(tmp_path):
    traced = trace(tmp_path, mlp(), TRAIN, [list(range(13))] * 3)
    tracin = pp.TracIn().fit(traced.run, TRAIN).influence(TEST).values
    tracincp = pp.TracInCP().fit(traced.run, TRAIN).influence(TEST).values
    assert error(13 * tracin, tracincp) < EXACT


def test_parameters_that_were_not_moved_have_no_influence(tmp_path):
    net = mlp()
    groups = [{"params": net[0].parameters(), "lr": 0.0}, {"params": net[2].parameters()}]
    optimizer = torch.optim.SGD(groups, lr=RATE)
    traced = trace(tmp_path, net, TRAIN, in_batches(13, 5), optimizer=optimizer)
    for kind in (pp.TracIn, pp.RenormalizedTracIn, pp.TracInCP, pp.GAS, pp.TracInRP):
        method = kind(parameters="0.*").fit(traced.run, TRAIN)
        influence = method.influence(TEST)
        assert influence.values.shape == (4, 13)
        assert_array_equal(influence.values, 0)
        assert_array_equal(method.influence(TEST, joint=True).values, 0)
        assert_array_equal(method.memorization().values, 0)
    whole = pp.TracIn().fit(traced.run, TRAIN).influence(TEST)
    expected = influence_by_loops(traced, TEST, per_batch(traced))
    assert error(whole.values, expected) < EXACT


@pytest.mark.parametrize("kind", [pp.TracIn, pp.RenormalizedTracIn])
def test_every_step_has_to_be_recorded(tmp_path, kind):
    traced = trace(tmp_path, mlp(), TRAIN, in_batches(13, 5, 2), every=2)
    message = rf"{kind.__name__} needs parameters at every step .*3 of 6.*every=1"
    with pytest.raises(RunError, match=message):
        kind().fit(traced.run, TRAIN)
    with pytest.raises(InvalidInputError, match="every=1"):
        kind().fit(mlp(), TRAIN)


# Renormalised


def test_renormalized_tracin_takes_directions(traced):
    method = pp.RenormalizedTracIn().fit(traced.run, TRAIN)
    expected = influence_by_loops(traced, TEST, per_batch(traced), unit=True)
    assert error(method.influence(TEST).values, expected) < EXACT
    assert error(method.influence(TEST, joint=True).values, expected.sum(axis=0)) < EXACT


def test_renormalized_tracin_of_oneself_is_the_rates_of_ones_steps(traced):
    expected = sum(RATE * weight for weight in per_batch(traced).values())
    memorization = pp.RenormalizedTracIn().fit(traced.run, TRAIN).memorization()
    assert error(memorization.values, expected) < EXACT
    values = pp.RenormalizedTracIn().fit(traced.run, TRAIN).influence(TEST).values
    assert (np.abs(values) <= expected * (1 + 1e-12)).all()
