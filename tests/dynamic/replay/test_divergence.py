"""A replay that is not the recorded training says where it departs, and goes on from there."""

import pytest
import torch
from recorded_runs import make_loader
from replayed_runs import columns, normalised, plain, replay_of, train_and_record
from torch.nn import functional
from torch.utils.data import DataLoader

from proponent.dynamic.replay import Replay
from proponent.models.recorder import Recorder, indexed
from proponent.models.run import TrainingRun


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def test_dropout_without_a_seed_is_reported_at_the_first_stored_state(tmp_path):
    live = train_and_record(tmp_path, normalised, sgd, every=4)
    replay = replay_of(live)
    at = {}
    for moment in replay.forward():
        at[moment.step.index] = {name: value.clone() for name, value in moment.parameters.items()}
    report = replay.report
    assert not report["exact"]
    # The states before steps 5, 9 and 11, the final one; the buffers of step 5 and 9 differ too.
    assert report["states_compared"] == report["states_diverged"] == 3
    assert report["first_divergence"]["step"] == 5
    assert "before step 5" in replay.warning and "seed=0" in replay.warning
    # Between the stored states it is another training; at each it is the recorded one again.
    for t, same in {1: True, 4: False, 5: True, 8: False, 9: True, 10: False}.items():
        agrees = all(torch.equal(value, live.states[t - 1][name]) for name, value in at[t].items())
        assert agrees == same, t


def test_the_largest_difference_and_its_parameter_are_named(tmp_path):
    x, y = columns()
    net = plain()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with Recorder(
        tmp_path, net, optimizer, loss="cross_entropy", train=(x, y), every=3
    ) as recorder:
        for step, (indices, inputs, targets) in enumerate(make_loader((x, y)), 1):
            optimizer.zero_grad()
            functional.cross_entropy(net(inputs), targets).backward()
            recorder.step(indices)
            optimizer.step()
            if step == 2:
                with torch.no_grad():
                    net[0].weight[1, 2] += 0.25
                    net[2].bias[0] -= 0.125
    replay = Replay(TrainingRun.load(tmp_path, plain()), (x, y), by="the test")
    for _ in replay.forward():
        pass
    found = replay.report["first_divergence"]
    assert found["step"] == 3 + 1 and found["parameter"] == "0.weight"
    # One step after the change the gradients differ a little too.
    assert found["largest_difference"] == pytest.approx(0.25, rel=0.2)
    assert replay.report["states_diverged"] == 1 and replay.report["states_compared"] == 2


def test_another_loss_is_reported_backwards_too(tmp_path):
    live = train_and_record(tmp_path, plain, sgd, every=5)
    live.run = TrainingRun.load(
        tmp_path,
        plain(),
        risk=lambda module, batch: (
            1.1 * functional.cross_entropy(module(batch[0]), batch[1], reduction="none")
        ),
    )
    replay = replay_of(live)
    at = {moment.step.index: moment.kept() for moment in replay.backward()}
    assert replay.report["first_divergence"]["step"] == 6
    assert replay.report["states_diverged"] == 2
    for name, value in at[6].parameters.items():
        assert torch.equal(value, live.states[5][name])
        assert not torch.equal(at[5].parameters[name], live.states[4][name])


def test_a_divergence_met_twice_counts_once(tmp_path):
    live = train_and_record(tmp_path, normalised, sgd, every=5)
    replay = replay_of(live)
    for _ in range(2):
        for _ in replay.forward():
            pass
        for _ in replay.backward():
            pass
    assert replay.report["states_compared"] == 2 and replay.report["states_diverged"] == 2


def test_loaders_with_workers_are_said_to_diverge(tmp_path):
    data = columns()

    class Noisy(torch.utils.data.Dataset):
        def __len__(self):
            return len(data[0])

        def __getitem__(self, position):
            return data[0][position] + torch.randn(4, dtype=data[0].dtype), data[1][position]

    loader = DataLoader(indexed(Noisy()), 5, num_workers=1)
    live = train_and_record(tmp_path, plain, sgd, data=Noisy(), loader=loader, seed=1, epochs=1)
    replay = replay_of(live)
    for _ in replay.forward():
        pass
    assert replay.report["first_divergence"]["step"] == 5


def test_training_that_ends_in_undefined_numbers_is_exact_all_the_same(tmp_path):
    def spoil(net, optimizer, step):
        if step == 1:
            net[2].bias.data[0] = float("nan")

    live = train_and_record(tmp_path, plain, sgd, every=3, before_step=spoil)
    assert any(value.isnan().any() for value in live.states[-1].values())
    replay = replay_of(live)
    for _ in replay.forward():
        pass
    assert replay.report["exact"]


def test_a_run_studied_in_another_precision_differs_by_rounding(tmp_path):
    live = train_and_record(tmp_path, plain, sgd, dtype=torch.float32)
    live.run = TrainingRun.load(tmp_path, plain(torch.float64))
    replay = replay_of(live)
    for moment in replay.forward():
        assert all(value.dtype == torch.float64 for value in moment.parameters.values())
    assert 0 < replay.report["first_divergence"]["relative_difference"] < 1e-5
