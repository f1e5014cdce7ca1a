"""Which checkpoints a method takes: all, every k-th, named ones, or where the risk moves."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from traced_runs import (
    copied,
    cross_entropies,
    error,
    in_batches,
    influence_by_loops,
    make_set,
    mlp,
    trace,
)

import proponent as pp
from proponent.exceptions import InvalidInputError, RunError

EXACT = 1e-12
TRAIN, TEST = make_set(), make_set(1, n=4)


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Nine steps of very different lengths, stored before every step."""
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    rates = [0.02, 0.9, 0.05, 0.01, 0.6, 0.3, 0.04, 0.7, 0.02, 0.0]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rates[step])
    path = tmp_path_factory.mktemp("runs") / "mlp"
    batches = in_batches(13, 5, epochs=3)
    return trace(path, net, TRAIN, batches, optimizer=optimizer, scheduler=scheduler)


def scores(traced, choice, test=TEST):
    return pp.TracInCP(checkpoints=choice).fit(traced.run, TRAIN).influence(test)


@pytest.mark.parametrize(
    ("choice", "steps"),
    [
        ("all", range(1, 10)),
        (pp.EveryKth(1), range(1, 10)),
        (pp.EveryKth(4), [1, 5, 9]),
        (pp.EveryKth(100), [1]),
        ([3], [3]),
        ((7, 2, 7), [2, 7]),
        (range(2, 10, 3), [2, 5, 8]),
        (np.array([4, 6]), [4, 6]),
    ],
    ids=str,
)
def test_the_chosen_steps_count(traced, choice, steps):
    influence = scores(traced, choice)
    assert influence.diagnostics["points"] == [f"step {t}" for t in steps]
    assert error(influence.values, influence_by_loops(traced, TEST, steps)) < EXACT


def largest_changes(traced, test, count):
    """Return the steps after which the mean test risk changes most, from the states."""
    means = [traced.risks(t, test).mean() for t in range(1, 11)]
    changes = [abs(after - before) for before, after in pairwise(means)]
    return sorted(sorted(range(9), key=lambda t: -changes[t])[:count]), changes


@pytest.mark.parametrize("count", [1, 2, 4, 9, 50])
def test_the_largest_changes_of_the_test_risk_are_found(traced, count):
    positions, changes = largest_changes(traced, TEST, count)
    steps = [position + 1 for position in positions]
    influence = scores(traced, pp.LargestRiskChange(count))
    assert influence.diagnostics["points"] == [f"step {t}" for t in steps]
    assert error(influence.values, influence_by_loops(traced, TEST, steps)) < EXACT
    if count == 2:
        assert steps != [1, 2] and steps != [8, 9]
        assert min(changes[position] for position in positions) > 0


def test_each_test_set_has_its_own_largest_changes(traced):
    found = set()
    for i in range(13):
        test = tuple(column[i : i + 1] for column in TRAIN)
        (position,), _ = largest_changes(traced, test, 1)
        influence = scores(traced, pp.LargestRiskChange(1), test)
        assert influence.diagnostics["points"] == [f"step {position + 1}"]
        found.add(position)
    assert len(found) > 1


def test_the_last_change_is_up_to_the_final_parameters(tmp_path):
    traced = trace(tmp_path, mlp(), TRAIN, in_batches(13, 5), every=[1, 3], rate=0.5)
    means = [traced.risks(t, TEST).mean() for t in (1, 3, 4)]
    assert abs(means[2] - means[1]) > abs(means[1] - means[0])
    influence = scores(traced, pp.LargestRiskChange(1))
    assert influence.diagnostics["points"] == ["step 3"]


def test_the_choice_counts_for_joint_strongest_and_self_influence(traced):
    method = pp.TracInCP(checkpoints=pp.LargestRiskChange(2)).fit(traced.run, TRAIN)
    steps = [position + 1 for position in largest_changes(traced, TEST, 2)[0]]
    expected = influence_by_loops(traced, TEST, steps)
    assert error(method.influence(TEST, joint=True).values, expected.sum(axis=0)) < EXACT
    top = method.influence(TEST, top_k=1).proponents()
    assert error(top.values[:, 0], expected.max(axis=1)) < EXACT
    # Memorization is the influence on the training set, whose risk moves elsewhere.
    steps = [position + 1 for position in largest_changes(traced, TRAIN, 2)[0]]
    diagonal = influence_by_loops(traced, TRAIN, steps).diagonal()
    assert error(method.memorization().values, diagonal) < EXACT


def test_the_choice_is_among_the_settings_and_in_the_repr(traced):
    influence = scores(traced, pp.LargestRiskChange(2))
    assert influence.settings["checkpoints"] == "LargestRiskChange(count=2)"
    assert repr(pp.TracInCP(checkpoints=pp.EveryKth(3))) == "TracInCP(checkpoints=EveryKth(k=3))"


def test_a_missing_step_is_refused_with_those_there_are(tmp_path):
    traced = trace(tmp_path, mlp(), TRAIN, in_batches(13, 5, 2), every=3)
    with pytest.raises(RunError, match=r"before step 2; it has those before steps 1, 4\."):
        scores(traced, [1, 2, 4])
    # The final parameters are those from which no step was taken.
    with pytest.raises(RunError, match="before step 7"):
        scores(traced, [7])


@pytest.mark.parametrize("choice", ["some", "last", 3, None, {}, [], ()], ids=repr)
def test_what_is_no_choice_is_refused(traced, choice):
    with pytest.raises(InvalidInputError, match="checkpoints"):
        scores(traced, choice)


def test_a_wrong_choice_is_refused_by_fit(traced):
    for choice in ("some", []):
        with pytest.raises(InvalidInputError, match="checkpoints"):
            pp.TracInCP(checkpoints=choice).fit(traced.run, TRAIN)
    with pytest.raises(RunError, match="before step 99"):
        pp.TracInCP(checkpoints=[99]).fit(traced.run, TRAIN)


@pytest.mark.parametrize("make", [lambda: pp.EveryKth(0), lambda: pp.LargestRiskChange(0)])
def test_a_count_is_at_least_1(make):
    with pytest.raises(InvalidInputError, match="must be at least 1; got 0"):
        make()


@pytest.mark.parametrize("kind", [pp.TracInCP, pp.TracInLast, pp.TracInRP, pp.GAS])
def test_a_run_with_only_its_final_parameters_is_refused(tmp_path, kind):
    traced = trace(tmp_path, mlp(), TRAIN, in_batches(13, 5), every=[10**6])
    assert [checkpoint.final for checkpoint in traced.run.checkpoints] == [True]
    with pytest.raises(RunError, match=r"no checkpoint from which a step was taken.*every='epoch'"):
        kind().fit(traced.run, TRAIN)


def interrupted(path, every, steps):
    """Record a run whose loop fails after some steps; return it and its states."""
    net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2)
    columns = [torch.as_tensor(column) for column in TRAIN]
    options = {"train": TRAIN, "every": every, "loss": "cross_entropy"}
    states = []
    with pytest.raises(KeyError), pp.Recorder(path, net, optimizer, **options) as recorder:
        for batch in in_batches(13, 5, epochs=2)[:steps]:
            optimizer.zero_grad()
            cross_entropies(net, tuple(column[batch] for column in columns)).mean().backward()
            states.append(copied(net))
            recorder.step(batch)
            optimizer.step()
        raise KeyError
    return pp.TrainingRun.load(path, mlp()), states


def test_an_interrupted_run_is_used_up_to_its_last_step(tmp_path):
    run, states = interrupted(tmp_path / "interrupted", every=1, steps=4)
    assert not run.complete
    whole = trace(tmp_path / "whole", mlp(), TRAIN, in_batches(13, 5, epochs=2))
    for name, tensor in states[3].items():
        assert torch.equal(tensor, whole.states[3][name])
    expected = influence_by_loops(whole, TEST, range(1, 5))
    assert error(pp.TracInCP().fit(run, TRAIN).influence(TEST).values, expected) < EXACT
    assert pp.TracIn().fit(run, TRAIN).influence(TEST).values.shape == (4, 13)
    # The change after the last checkpoint is not known.
    means = [whole.risks(t, TEST).mean() for t in range(1, 5)]
    largest = int(np.argmax(np.abs(np.diff(means))))
    influence = pp.TracInCP(checkpoints=pp.LargestRiskChange(1)).fit(run, TRAIN).influence(TEST)
    assert influence.diagnostics["points"] == [f"step {largest + 1}"]


def test_one_checkpoint_alone_shows_no_change_and_is_refused(tmp_path):
    run, _ = interrupted(tmp_path, every=100, steps=2)
    assert len(run.checkpoints) == 1
    with pytest.raises(RunError, match="change"):
        pp.TracInCP(checkpoints=pp.LargestRiskChange(1)).fit(run, TRAIN).influence(TEST)
    values = pp.TracInCP().fit(run, TRAIN).influence(TEST).values
    assert (values != 0).all()
