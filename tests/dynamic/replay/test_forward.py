"""A replay equals the live training bit for bit."""

import pytest
import torch
from recorded_runs import make_loader
from replayed_runs import (
    Augmented,
    assert_is_live,
    columns,
    normalised,
    plain,
    replay_of,
    train_and_record,
)
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

import proponent as pp
from proponent.dynamic.replay import Replay
from proponent.models.recorder import Recorder, indexed
from proponent.models.run import TrainingRun

sgd = torch.optim.SGD


def two_groups(net):
    groups = [
        {"params": net[0].parameters(), "weight_decay": 0.02, "momentum": 0.5},
        {"params": net[-1].parameters(), "lr": 0.05, "nesterov": True},
    ]
    return sgd(groups, lr=0.2, momentum=0.8)


OPTIMIZERS = {
    "sgd": lambda net: sgd(net.parameters(), lr=0.1),
    "decay": lambda net: sgd(net.parameters(), lr=0.1, weight_decay=0.05),
    "momentum": lambda net: sgd(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda net: sgd(net.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "dampening": lambda net: sgd(net.parameters(), lr=0.1, momentum=0.9, dampening=0.3),
    "groups": two_groups,
    "adam": lambda net: torch.optim.Adam(net.parameters(), lr=0.02, weight_decay=0.1),
    "adamw": lambda net: torch.optim.AdamW(net.parameters(), lr=0.02, betas=(0.8, 0.9)),
    "amsgrad": lambda net: torch.optim.Adam(net.parameters(), lr=0.02, amsgrad=True),
    "rmsprop": lambda net: torch.optim.RMSprop(net.parameters(), 0.02, momentum=0.5, centered=True),
    "adagrad": lambda net: torch.optim.Adagrad(net.parameters(), lr=0.1, lr_decay=0.1),
    "nadam": lambda net: torch.optim.NAdam(net.parameters(), lr=0.02),
    "foreach": lambda net: torch.optim.Adam(net.parameters(), lr=0.02, foreach=True),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_moment_is_that_of_the_live_training(tmp_path, optimizer, dtype):
    live = train_and_record(tmp_path, plain, OPTIMIZERS[optimizer], dtype=dtype)
    replay = replay_of(live)
    steps = []
    for moment in replay.forward():
        assert_is_live(moment, live)
        steps.append(moment.step.index)
    assert steps == list(range(1, 11))
    assert replay.report == {
        "exact": True,
        "states_compared": 3,
        "states_diverged": 0,
        "steps_recomputed": 0,
        "first_divergence": None,
    }
    assert replay.warning is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("limit", [0.05, 0.7])
def test_clipping_and_a_schedule_are_replayed(tmp_path, dtype, limit):
    live = train_and_record(
        tmp_path,
        plain,
        lambda net: torch.optim.AdamW(net.parameters(), lr=0.05),
        dtype=dtype,
        schedule=lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
        limit=limit,
    )
    replay = replay_of(live)
    scales = []
    for moment in replay.forward():
        assert_is_live(moment, live)
        scales.append(moment.step.clip_scale)
        if moment.step.clip_scale < 1.0:
            total = torch.stack([v.norm() for v in moment.gradient.values()]).norm()
            assert float(total) == pytest.approx(limit, rel=1e-4)
        assert moment.norm * moment.step.clip_scale == pytest.approx(min(moment.norm, limit), 1e-4)
    assert min(scales) < 1.0
    assert replay.report["exact"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("augmented", [False, True])
@pytest.mark.parametrize("generator", [False, True])
def test_dropout_batchnorm_and_augmentation_are_replayed_with_a_seed(
    tmp_path, dtype, augmented, generator
):
    data = Augmented(columns(dtype)) if augmented else columns(dtype)
    # Without a generator of its own the loader draws from the global one at every epoch.
    loader = make_loader(data) if generator else DataLoader(indexed(data), 5, shuffle=True)
    live = train_and_record(
        tmp_path,
        normalised,
        lambda net: sgd(net.parameters(), lr=0.1, momentum=0.9),
        dtype=dtype,
        data=data,
        loader=loader,
        seed=7,
        epochs=3,
        every=6,
    )
    replay = replay_of(live)
    for moment in replay.forward():
        assert_is_live(moment, live)
        if moment.step.index in (2, 9):  # the state before the forward pass is that after the last
            for name, value in moment.buffers.items():
                assert torch.equal(value, live.states[moment.step.index - 2][name])
    assert replay.report["exact"]


def test_modes_that_change_are_replayed(tmp_path):
    def freeze_late(net, optimizer, step):
        net[1].train(step <= 3)
        net[3].train(step % 2 == 0)

    live = train_and_record(
        tmp_path,
        normalised,
        lambda net: sgd(net.parameters(), lr=0.1),
        seed=1,
        before_step=freeze_late,
    )
    replay = replay_of(live)
    for moment in replay.forward():
        assert_is_live(moment, live)
        with replay.entering(moment):
            module = live.run.model.module
            assert module[1].training == (moment.step.index <= 3)
            assert module[3].training == (moment.step.index % 2 == 0)
    assert replay.report["exact"]


def test_parameters_frozen_for_a_while_are_passed_over(tmp_path):
    def freeze(net, optimizer, step):
        net[0].requires_grad_(step % 3 == 0)

    live = train_and_record(
        tmp_path,
        plain,
        lambda net: sgd(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
        before_step=freeze,
    )
    replay = replay_of(live)
    for moment in replay.forward():
        assert_is_live(moment, live)
        assert ("0.weight" in moment.gradient) == (moment.step.index % 3 == 0)
    assert replay.report["exact"]
    assert replay.names == ("0.weight", "0.bias", "2.weight", "2.bias")


def test_groups_added_on_the_way_are_replayed(tmp_path):
    def add(net, optimizer, step):
        if step == 4:
            optimizer.add_param_group({"params": net[0].parameters(), "lr": 0.3, "momentum": 0.2})
        if step == 6:
            optimizer.param_groups[0]["weight_decay"] = 0.3

    live = train_and_record(
        tmp_path,
        plain,
        lambda net: sgd(net[2].parameters(), lr=0.1, momentum=0.9),
        before_step=add,
        every=100,
    )
    replay = replay_of(live)
    for moment in replay.forward():
        assert_is_live(moment, live)
    assert replay.report["exact"]


class Heads(nn.Module):
    """Two heads of which a step uses one, a tied matrix and a part that is never trained."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(4, 4)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.stem.weight
        self.heads = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)])
        self.scale = nn.Parameter(torch.tensor(2.0), requires_grad=False)
        self.use = 0

    def forward(self, x):
        return self.heads[self.use](self.tied(torch.tanh(self.stem(x)))) * self.scale


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_of_none_and_of_zero_are_told_apart(tmp_path, to_none):
    x, y = columns()
    net = Heads().double()
    optimizer = sgd(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    states = []
    with Recorder(
        tmp_path, net, optimizer, loss="cross_entropy", train=(x, y), every=1
    ) as recorder:
        for step in range(6):
            net.use = step // 3  # the second head is used from step 4 on, the first no longer
            optimizer.zero_grad(set_to_none=to_none)
            functional.cross_entropy(net(x), y).backward()
            states.append({k: v.clone() for k, v in net.state_dict().items()})
            recorder.step(range(len(x)))
            optimizer.step()
    # Without decay and momentum the unused head stands still; with zeros it moves.
    assert torch.equal(states[5]["heads.0.weight"], states[3]["heads.0.weight"]) == to_none
    again = Heads().double()

    def risk(module, batch):
        module.use = 0 if replaying.step.index <= 3 else 1
        return functional.cross_entropy(module(batch[0]), batch[1], reduction="none")

    run = TrainingRun.load(tmp_path, again, risk=risk)
    replay = Replay(run, (x, y), by="the test")
    assert set(replay.names) == {
        "stem.weight", "stem.bias", "tied.bias",
        "heads.0.weight", "heads.0.bias", "heads.1.weight", "heads.1.bias",
    }  # fmt: skip
    for replaying in replay.forward():
        for name, value in replaying.parameters.items():
            assert torch.equal(value, states[replaying.step.index - 1][name])
        assert ("heads.1.weight" in replaying.gradient) == (replaying.step.index > 3)
        later = replaying.step.index > 3
        assert ("heads.0.weight" in replaying.gradient) == (not later or not to_none)
        assert float(replaying.fixed["scale"]) == 2.0
    assert replay.report["exact"]
    assert again.heads[0].weight.requires_grad and not again.scale.requires_grad


def test_accumulated_batches_are_replayed_as_one(tmp_path):
    x, y = columns()
    net = plain()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    with Recorder(
        tmp_path, net, optimizer, loss="cross_entropy", train=(x, y), every=1
    ) as recorder:
        for step in range(4):
            optimizer.zero_grad()
            first, second = torch.arange(step, step + 5), torch.arange(step + 7, step + 10)
            (functional.cross_entropy(net(x[first]), y[first]) / 2).backward()
            (functional.cross_entropy(net(x[second]), y[second]) / 2).backward()
            divisors = [10.0] * 5 + [6.0] * 3
            recorder.step(torch.cat([first, second]), divisor=divisors)
            optimizer.step()
    replay = Replay(TrainingRun.load(tmp_path, plain()), (x, y), by="the test")
    for _ in replay.forward():
        pass
    first = replay.report["first_divergence"]
    assert first is None or first["relative_difference"] < 1e-13


def test_a_sum_of_risks_and_inputs_as_arrays(tmp_path):
    x, y = (column.numpy() for column in columns(torch.float32))
    net = plain(torch.float32)
    optimizer = sgd(net.parameters(), lr=0.01)
    with Recorder(
        tmp_path, net, optimizer, loss="cross_entropy", train=(x, y), every=2
    ) as recorder:
        for indices, inputs, targets in make_loader((x, y)):
            optimizer.zero_grad()
            functional.cross_entropy(net(inputs), targets, reduction="sum").backward()
            recorder.step(indices, divisor=1)
            optimizer.step()
    replay = Replay(TrainingRun.load(tmp_path, plain(torch.float32)), (x, y), by="the test")
    assert [moment.step.index for moment in replay.forward()] == [1, 2, 3, 4, 5]
    assert replay.report["exact"] and replay.report["states_compared"] == 3


def test_the_final_parameters_are_the_stored_ones(tmp_path):
    live = train_and_record(tmp_path, plain, OPTIMIZERS["adam"])
    found = replay_of(live).final_parameters()
    assert set(found) == set(live.states[-1])
    for name, value in found.items():
        assert torch.equal(value, live.states[-1][name])


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_binary_cross_entropy_is_divided_as_torch_divides_it(tmp_path, outputs, dtype):
    """Its slope times 1/5, rounded, is not its slope over 5."""
    x, _ = columns(dtype)
    targets = torch.rand(len(x), outputs, generator=torch.Generator().manual_seed(2))
    data = x, (targets < 0.4).double()
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, outputs)).to(dtype)
    optimizer = sgd(net.parameters(), lr=0.3, momentum=0.5)
    options = {"loss": "bce_with_logits", "train": data, "every": 1, "optimizer_state": True}
    with Recorder(tmp_path, net, optimizer, **options) as recorder:
        for indices, inputs, wanted in list(make_loader(data)) * 3:
            optimizer.zero_grad()
            logits = net(inputs)
            functional.binary_cross_entropy_with_logits(logits, wanted.to(dtype)).backward()
            recorder.step(indices)
            optimizer.step()
    run = TrainingRun.load(tmp_path, net)
    steps = len(run.steps)
    replay = Replay(run, data, by="the test")
    for _ in replay.forward():
        pass
    assert replay.report["exact"] and replay.report["states_compared"] == steps
    for method in (pp.SGDInfluence(), pp.HyDRA("fast"), pp.HyDRA(track=[0])):
        diagnostics = method.fit(run, data).influence(data).diagnostics
        assert diagnostics["replay"]["exact"] and diagnostics["replay"]["states_compared"]
        assert not diagnostics.get("warnings")
