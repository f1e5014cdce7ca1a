"""Runs that cannot be replayed are refused by name before any work, with what to do."""

import json

import pytest
import torch
from recorded_runs import make_loader
from replayed_runs import columns, normalised, plain, replay_of, train_and_record
from torch import nn
from torch.nn import functional

from proponent.dynamic.replay import Replay
from proponent.exceptions import RunError
from proponent.models.recorder import Recorder
from proponent.models.run import TrainingRun


class Mine(torch.optim.SGD):
    pass


class NeverCalled:
    def __call__(self, module, batch):
        raise AssertionError("work has started")


def sgd(net):
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


def refused(path, make=plain):
    run = TrainingRun.load(path, make(), risk=NeverCalled())
    with pytest.raises(RunError) as info:
        Replay(run, columns(), by="HyDRA")
    assert "HyDRA" in str(info.value)
    return str(info.value)


def edit_header(path, edit):
    header = json.loads((path / "run.json").read_text())
    edit(header)
    (path / "run.json").write_text(json.dumps(header))


def edit_steps(path, edit):
    lines = [json.loads(line) for line in (path / "steps.jsonl").read_text().splitlines()]
    for line in lines:
        edit(line)
    (path / "steps.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_optimizers_that_are_not_torchs(tmp_path):
    train_and_record(tmp_path, plain, lambda net: Mine(net.parameters(), lr=0.1))
    message = refused(tmp_path)
    assert "Mine" in message and "torch.optim" in message


@pytest.mark.parametrize("name", ["lbfgs.LBFGS", "sparse_adam.SparseAdam", "future.Newest"])
def test_optimizers_of_torch_that_are_not_replayed(tmp_path, name):
    train_and_record(tmp_path, plain, sgd)
    edit_header(
        tmp_path, lambda header: header["optimizer"].update({"class": f"torch.optim.{name}"})
    )
    assert name.partition(".")[2] in refused(tmp_path)


def test_an_unknown_clipping_factor(tmp_path):
    train_and_record(tmp_path, plain, sgd)
    edit_steps(
        tmp_path, lambda line: line.update(clip_scale=None) if line.get("step") == 3 else None
    )
    assert "clip_scale=" in refused(tmp_path)


def test_clipping_together_with_other_modules(tmp_path):
    other = nn.Linear(2, 2)

    def both(net):
        return torch.optim.SGD([*net.parameters(), *other.parameters()], lr=0.1)

    live = train_and_record(tmp_path, plain, both, limit=0.1)
    assert "2 parameters of other modules" in refused(tmp_path)
    edit_steps(tmp_path, lambda line: line.update(clip_scale=1.0))
    live.run = TrainingRun.load(tmp_path, plain())
    assert len(replay_of(live)) == 10


def test_no_state_before_the_first_step(tmp_path):
    train_and_record(tmp_path, plain, sgd, every=[2, 4])
    assert "every='epoch'" in refused(tmp_path)


def test_training_that_went_on_from_a_state_that_was_not_recorded(tmp_path):
    x, y = columns()
    net = plain()
    optimizer = sgd(net)
    functional.cross_entropy(net(x), y).backward()
    optimizer.step()
    for stored in (False, True):
        options = {"loss": "cross_entropy", "train": (x, y), "optimizer_state": stored}
        with Recorder(tmp_path, net, optimizer, overwrite=True, **options) as recorder:
            for indices, inputs, targets in make_loader((x, y)):
                optimizer.zero_grad()
                functional.cross_entropy(net(inputs), targets).backward()
                recorder.step(indices)
                optimizer.step()
        if not stored:
            assert "optimizer_state=True" in refused(tmp_path)
    replay = Replay(TrainingRun.load(tmp_path, plain()), (x, y), by="the test")
    for _ in replay.forward():
        pass
    assert replay.report["exact"]


def test_older_runs_that_do_not_tell_the_modes(tmp_path):
    for make, refuses in ((plain, False), (normalised, True)):
        live = train_and_record(tmp_path, make, sgd, overwrite=True)
        edit_steps(tmp_path, lambda line: [line.pop(k, 0) for k in ("modes", "without_gradient")])
        edit_header(tmp_path, lambda header: [header.pop(k) for k in ("seed", "environment")])
        edit_header(
            tmp_path,
            lambda header: [header["optimizer"].pop(k) for k in ("has_state", "implementation")],
        )
        live.run = TrainingRun.load(tmp_path, make())
        assert live.run.seed is None and live.run.steps[0].modes is None
        assert live.run.steps[0].without_gradient is None and live.run.steps[0].seed is None
        if refuses:
            message = refused(tmp_path, make)
            assert "1 (BatchNorm1d)" in message and "Record" in message
        else:
            replay = replay_of(live)
            for _ in replay.forward():
                pass
            assert replay.report["exact"]


def test_a_module_without_a_recorded_part(tmp_path):
    def longer(dtype=torch.float64):
        return nn.Sequential(*plain(dtype), nn.Dropout(0.5))

    train_and_record(tmp_path, longer, sgd)
    assert "part '3'" in refused(tmp_path)


def test_one_memory_under_two_parameters(tmp_path):
    def doubled(dtype=torch.float64):
        net = plain(dtype)
        net.again = nn.Linear(4, 6).to(dtype)
        net.again.weight = nn.Parameter(net[0].weight.data)
        return net

    class Twice(nn.Module):
        def __init__(self, dtype=torch.float64):
            super().__init__()
            self.net = doubled(dtype)

        def forward(self, x):
            return self.net[2](self.net[1](self.net[0](x) + self.net.again(x)))

    train_and_record(tmp_path, Twice, sgd)
    assert "same memory" in refused(tmp_path, Twice)


def test_another_training_set(tmp_path):
    live = train_and_record(tmp_path, plain, sgd)
    live.data = (live.data[0] + 1, live.data[1])
    with pytest.raises(RunError, match="another training set"):
        replay_of(live)


def test_an_empty_run(tmp_path):
    net = plain()
    with Recorder(tmp_path, net, sgd(net), loss="cross_entropy"):
        pass
    assert "steps" in refused(tmp_path)
