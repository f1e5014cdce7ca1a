"""Ideal TracIn: every step's change of the risk is somebody's, exactly."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from traced_runs import (
    copied,
    cross_entropies,
    error,
    in_batches,
    make_set,
    mlp,
    trace,
)

import proponent as pp
from proponent.exceptions import InvalidInputError, NonFiniteError, RunError

EXACT = 1e-12
TRAIN, TEST = make_set(), make_set(1, n=4)
SINGLETONS = in_batches(13, 1, epochs=2)


def falls(traced):
    """Return the fall of each test risk in each step, (T, n_test), from the states."""
    risks = [traced.risks(t, TEST) for t in range(1, len(traced.batches) + 2)]
    return -np.diff(risks, axis=0)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "singletons"
    return trace(path, mlp(), TRAIN, SINGLETONS, test=TEST)


def test_each_step_belongs_to_its_instance(traced):
    expected = np.zeros((4, 13))
    for batch, fall in zip(traced.batches, falls(traced), strict=True):
        expected[:, batch[0]] += fall
    method = pp.IdealTracIn().fit(traced.run, TRAIN)
    influence = method.influence(TEST)
    assert error(influence.values, expected) < EXACT
    assert influence.diagnostics["steps"] == 26
    assert "warnings" not in influence.diagnostics


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.3),
        lambda parameters: torch.optim.Adam(parameters, lr=0.05, weight_decay=0.1),
    ],
    ids=["SGD", "Adam"],
)
def test_it_telescopes_whatever_the_optimizer(tmp_path, optimizer):
    net = mlp()
    traced = trace(
        tmp_path, net, TRAIN, SINGLETONS, test=TEST, optimizer=optimizer(net.parameters())
    )
    expected = traced.risks(1, TEST) - traced.risks(27, TEST)
    influence = pp.IdealTracIn().fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values.sum(axis=1), expected) < EXACT


def gap(path, rate):
    """Return how far eq. (54) is from the ideal, relatively."""
    traced = trace(path / str(rate), mlp(), TRAIN, SINGLETONS, test=TEST, rate=rate)
    ideal = pp.IdealTracIn().fit(traced.run, TRAIN).influence(TEST).values
    return error(pp.TracIn().fit(traced.run, TRAIN).influence(TEST).values, ideal)


def test_equation_54_approaches_it_linearly_as_the_rate_shrinks(tmp_path):
    gaps = [gap(tmp_path, rate) for rate in (0.3, 0.03, 0.003)]
    assert gaps[0] > 0.05
    assert gaps[2] < 0.01
    assert 5 < gaps[0] / gaps[1] < 20
    assert gaps[1] / gaps[2] == pytest.approx(10, rel=0.1)


def test_larger_batches_are_refused_unless_their_instances_share(tmp_path):
    batches = in_batches(13, 5, epochs=2)
    traced = trace(tmp_path, mlp(), TRAIN, batches, test=TEST)
    with pytest.raises(InvalidInputError, match=r"up to 5 instances.*share_batches=True"):
        pp.IdealTracIn().fit(traced.run, TRAIN)
    expected = np.zeros((4, 13))
    for batch, fall in zip(batches, falls(traced), strict=True):
        expected[:, batch] += fall[:, None] / len(batch)
    influence = pp.IdealTracIn(share_batches=True).fit(traced.run, TRAIN).influence(TEST)
    assert error(influence.values, expected) < EXACT
    assert "batches of up to 5" in influence.diagnostics["warnings"][0]
    telescoped = traced.risks(1, TEST) - traced.risks(7, TEST)
    assert error(influence.values.sum(axis=1), telescoped) < EXACT


def test_an_instance_that_stands_twice_in_a_batch_has_two_shares(tmp_path):
    traced = trace(tmp_path, mlp(), TRAIN, [[3, 3, 8]], test=TEST)
    influence = pp.IdealTracIn(share_batches=True).fit(traced.run, TRAIN).influence(TEST)
    (fall,) = falls(traced)
    assert error(influence.values[:, [3, 8]], np.outer(fall, [2 / 3, 1 / 3])) < EXACT
    assert_array_equal(np.delete(influence.values, [3, 8], axis=1), 0)


def test_a_run_without_the_test_set_is_refused(tmp_path):
    traced = trace(tmp_path, mlp(), TRAIN, SINGLETONS)
    with pytest.raises(RunError, match=r"IdealTracIn needs the risks of a test set.*test=test"):
        pp.IdealTracIn().fit(traced.run, TRAIN)


def test_another_test_set_is_refused(traced):
    method = pp.IdealTracIn().fit(traced.run, TRAIN)
    X, y = TEST
    for other in (make_set(2, n=4), (X[::-1], y[::-1]), (X, (y + 1) % 3), (X[:3], y[:3])):
        with pytest.raises(RunError, match="another test set"):
            method.influence(other)


def test_another_training_set_is_refused(traced):
    for other in (make_set(5), make_set(0, n=12)):
        with pytest.raises(RunError, match="another training set"):
            pp.IdealTracIn().fit(traced.run, other)


def test_no_parameters_need_to_be_stored(traced, tmp_path):
    bare = trace(tmp_path, mlp(), TRAIN, SINGLETONS, test=TEST, every=[10**6])
    assert [checkpoint.final for checkpoint in bare.run.checkpoints] == [True]
    influence = pp.IdealTracIn().fit(bare.run, TRAIN).influence(TEST)
    expected = pp.IdealTracIn().fit(traced.run, TRAIN).influence(TEST)
    assert_array_equal(influence.values, expected.values)


def test_an_interrupted_run_counts_up_to_its_last_step(tmp_path):
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    columns = [torch.as_tensor(column) for column in TRAIN]
    options = {"train": TRAIN, "test": TEST, "loss": "cross_entropy"}
    first = copied(net)
    with pytest.raises(KeyError), pp.Recorder(tmp_path, net, optimizer, **options) as recorder:
        for batch in SINGLETONS[:9]:
            optimizer.zero_grad()
            cross_entropies(net, tuple(column[batch] for column in columns)).mean().backward()
            recorder.step(batch)
            optimizer.step()
        raise KeyError
    run = pp.TrainingRun.load(tmp_path, net)
    assert not run.complete
    last = copied(net)
    fall = 0
    for sign, state in ((1, first), (-1, last)):
        net.load_state_dict(state)
        with torch.no_grad():
            fall = fall + sign * cross_entropies(net, tuple(map(torch.as_tensor, TEST)))
    influence = pp.IdealTracIn().fit(run, TRAIN).influence(TEST)
    assert error(influence.values.sum(axis=1), fall.numpy()) < EXACT
    assert_array_equal(influence.values[:, [i for (i,) in SINGLETONS[9:13]]], 0)


def test_a_recorded_risk_that_is_not_finite_is_named(tmp_path):
    X, y = TEST[0].copy(), TEST[1]
    X[2, 0] = np.nan
    traced = trace(
        tmp_path, mlp(), TRAIN, SINGLETONS, test=pp.Instances.of((X, y), ids=list("abcd"))
    )
    with pytest.raises(NonFiniteError, match="test instance c"):
        pp.IdealTracIn().fit(traced.run, TRAIN)
