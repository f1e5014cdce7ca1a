"""What is read back of a recorded run, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded_runs import (
    N,
    assert_same_state,
    copy_state,
    make_loader,
    make_net,
    make_set,
    plain_net,
    sgd,
    train,
)
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from proponent.exceptions import InvalidInputError, NonFiniteError, RunError
from proponent.models.recorder import Recorder
from proponent.models.run import TrainingRun


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Return the path of a run and the states of its training."""
    path = tmp_path_factory.mktemp("runs") / "run"
    net = make_net()
    data = make_set()
    optimizer = sgd(net, momentum=0.5)
    options = {"train": data, "test": make_set(1, n=4), "every": 2, "optimizer_state": True}
    with Recorder(path, net, optimizer, loss="cross_entropy", **options) as recorder:
        states, _ = train(recorder, net, optimizer, make_loader(data))
    return path, states


@pytest.fixture
def run_path(recorded, tmp_path):
    """Return the path of a copy of the run, to be damaged."""
    return shutil.copytree(recorded[0], tmp_path / "run")


def edit_json(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_the_users_module_is_left_alone(recorded):
    torch.manual_seed(9)
    net = nn.Sequential(*(type(part)(*arguments) for part, arguments in _parts())).double()
    before, modes = copy_state(net), [module.training for module in net.modules()]
    run = TrainingRun.load(recorded[0], net)
    assert_same_state(net.state_dict(), before)
    with run.at(run.checkpoints[2]):
        assert_same_state(net.state_dict(), recorded[1][4])
        with torch.no_grad():
            net[0].weight.zero_()
    assert_same_state(net.state_dict(), before)
    assert_same_state(run.checkpoints[2].load(), recorded[1][4])
    with pytest.raises(KeyError), run.at(run.checkpoints[0]):
        raise KeyError
    assert_same_state(net.state_dict(), before)
    assert [module.training for module in net.modules()] == modes


def _parts():
    return [
        (nn.Linear(1, 1), (4, 6)),
        (nn.BatchNorm1d(1), (6,)),
        (nn.ReLU(), ()),
        (nn.Dropout(), ()),
        (nn.Linear(1, 1), (6, 3)),
    ]


def test_the_final_state_loads_into_a_module(recorded):
    net = make_net()
    run = TrainingRun.load(recorded[0], net)
    net.load_state_dict(run.final_state())
    assert_same_state(net.state_dict(), recorded[1][-1])
    assert run.model.risks(make_set(1, n=4)).numpy() == pytest.approx(run.test_risks[-1], rel=1e-12)


def test_stored_tensors_are_mapped_from_disk_and_copied_on_write(recorded):
    run = TrainingRun.load(recorded[0], make_net())
    first = run.checkpoints[0].load()["0.weight"]
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(recorded[0]) in maps.read_text()
    first.zero_()
    assert_same_state(run.checkpoints[0].load(), recorded[1][0])


def test_a_run_may_be_studied_in_another_precision(recorded):
    net = make_net().float()
    run = TrainingRun.load(recorded[0], net)
    with run.at(run.checkpoints[1]):
        assert net[0].weight.dtype == torch.float32
        assert torch.equal(net[0].weight, recorded[1][2]["0.weight"].float())


def test_parameters_can_be_chosen_when_loading_and_later(recorded):
    run = TrainingRun.load(recorded[0], make_net(), parameters="last")
    assert list(run.model.selected) == ["4.weight", "4.bias"]
    other = run.with_parameters("0.*")
    assert list(other.model.selected) == ["0.weight", "0.bias"]
    assert list(run.model.selected) == ["4.weight", "4.bias"]
    assert other.checkpoints is run.checkpoints and other.model.loss_name == "cross_entropy"


def test_the_risk_has_to_be_given_where_it_was_no_name(tmp_path):
    net = plain_net()

    def risk(module, batch):
        return functional.cross_entropy(module(batch[0]), batch[1], reduction="none")

    with Recorder(tmp_path, net, sgd(net), risk=risk):
        pass
    with pytest.raises(RunError, match="without the name of a loss"):
        TrainingRun.load(tmp_path, net)
    risks = TrainingRun.load(tmp_path, net, risk=risk).model.risks(make_set())
    by_name = TrainingRun.load(tmp_path, net, loss="cross_entropy").model.risks(make_set())
    assert torch.equal(risks, by_name)


class Longer(nn.Sequential):
    def __init__(self):
        super().__init__(*make_net(), nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Longer(), r"5\.weight \(3, 3\) is in the module and not in the run"),
        (nn.Sequential(*make_net()[:4]), r"4\.weight \(3, 6\) is in the run and not in the module"),
        (
            nn.Sequential(nn.Linear(5, 6), *make_net()[1:]),
            r"0\.weight has shape \(6, 5\) in the module and \(6, 4\) in the run",
        ),
        (
            nn.Sequential(*make_net()[:1], nn.GroupNorm(2, 6), *make_net()[2:]),
            r"buffer 1\.running_mean \(6,\) is in the run and not in the module",
        ),
        (nn.ModuleDict({"net": Longer()}), r"and 15 more"),
    ],
)
def test_another_module_is_refused_with_the_first_differences(recorded, module, message):
    with pytest.raises(RunError, match=message) as caught:
        TrainingRun.load(recorded[0], module)
    assert str(caught.value).count("\n") <= 6
    with pytest.raises(InvalidInputError, match=r"torch\.nn\.Module"):
        TrainingRun.load(recorded[0], "net")


def test_a_module_with_other_ties_is_refused(tmp_path):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    with Recorder(tmp_path, net, sgd(net), loss="mse"):
        pass
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(RunError, match=r"1\.weight is tied to 0\.weight in the module"):
        TrainingRun.load(tmp_path, tied)


def test_a_training_set_that_is_not_the_recorded_one_is_refused(recorded):
    run = TrainingRun.load(recorded[0], make_net())
    X, y = make_set()
    run.check_train((X, y))
    run.check_train(TensorDataset(torch.as_tensor(X), torch.as_tensor(y)))
    with pytest.raises(RunError, match="it had 23 instances, and the set given has 22"):
        run.check_train((X[1:], y[1:]))
    with pytest.raises(RunError, match="the content is not"):
        run.check_train((X[::-1], y[::-1]))
    flipped = y.copy()
    flipped[7] = (flipped[7] + 1) % 3
    with pytest.raises(RunError, match="the content is not"):
        run.check_train((X, flipped))
    run.check_test(make_set(1, n=4))
    with pytest.raises(RunError, match="another test set"):
        run.check_test((X[:4], y[:4]))


def test_a_run_without_its_training_set_is_checked_for_its_indices(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    with Recorder(tmp_path, net, optimizer, loss="mse") as recorder:
        train(recorder, net, optimizer, make_loader(make_set()), epochs=1)
    run = TrainingRun.load(tmp_path, net)
    assert run.n_train is None and run.train_fingerprint is None
    run.check_train(make_set(1, n=N))
    with pytest.raises(RunError, match="it has used instance 22, and the set given has 22"):
        run.check_train(make_set(n=22))


class Augmented(Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, position):
        return torch.full((4,), float(position)) + torch.randn(4) + np.random.rand(), position % 3


def test_a_set_that_augments_its_items_is_recognised(tmp_path):
    net = plain_net()
    with Recorder(tmp_path, net, sgd(net), loss="mse", train=Augmented()):
        pass
    torch.manual_seed(77)
    TrainingRun.load(tmp_path, net).check_train(Augmented())


@pytest.mark.parametrize(
    ("options", "needs", "message"),
    [
        ({}, {"every_step": True}, r"TracIn needs parameters at every step .* 2 of 10.*every=1"),
        ({}, {"optimizer_state": True}, "optimizer_state=True"),
        ({}, {"test_risks": True}, "test=test"),
        ({"every": [50]}, {"checkpoints": True}, "parameters before a step"),
        ({"interrupted": True}, {"complete": True}, "final parameters"),
        ({"interrupted": True}, {"every_step": True}, "2 of 10"),
        ({"epochs": 0}, {"batches": True}, "steps"),
        ({"epochs": 0}, {"every_step": True}, "0 of 0"),
        ({"clip_scale": None}, {"clip_scale": True}, "clipped"),
    ],
)
def test_what_a_method_needs_and_the_run_lacks_is_named(tmp_path, options, needs, message):
    net = plain_net()
    optimizer = sgd(net)
    recorder = Recorder(tmp_path, net, optimizer, loss="mse", every=options.get("every", "epoch"))
    with recorder:
        train(recorder, net, optimizer, make_loader(make_set()), options.get("epochs", 2))
        if "clip_scale" in options:
            train(None, net, torch.optim.SGD(net.parameters(), lr=0.1), [], 0)
            recorder.step([0], clip_scale=None)
            optimizer.step()
        if "interrupted" in options:
            recorder.close(complete=False)
    run = TrainingRun.load(tmp_path, net)
    with pytest.raises(RunError, match=message):
        run.require(**needs, by="TracIn")
    run.require(by="TracIn")


def test_a_run_with_everything_passes_all_requirements(tmp_path):
    net = plain_net()
    optimizer = sgd(net)
    data = make_set()
    options = {"test": data, "every": 1, "optimizer_state": True}
    with Recorder(tmp_path, net, optimizer, loss="cross_entropy", **options) as recorder:
        train(recorder, net, optimizer, make_loader(data))
    names = ["batches", "checkpoints", "every_step", "optimizer_state", "test_risks"]
    run = TrainingRun.load(tmp_path, net)
    run.require(**dict.fromkeys([*names, "clip_scale", "complete"], True))
    telescoped = -np.diff(run.test_risks, axis=0).sum(0)
    np.testing.assert_allclose(telescoped, run.test_risks[0] - run.test_risks[-1], rtol=1e-10)


def test_recorded_risks_that_are_not_finite_are_named(run_path):
    risks = np.fromfile(run_path / "test_risks.f64")
    risks[4 * 3 + 2] = np.inf
    risks.tofile(run_path / "test_risks.f64")
    run = TrainingRun.load(run_path, make_net())
    with pytest.raises(NonFiniteError, match="test instance 2 after step 3"):
        run.require(test_risks=True)
    run.require(every_step=False, batches=True)


def test_the_final_state_of_an_interrupted_run_is_refused(tmp_path):
    net = plain_net()
    recorder = Recorder(tmp_path, net, sgd(net), loss="mse")
    recorder.open()
    recorder.close(complete=False)
    with pytest.raises(RunError, match="not complete: the recording was interrupted after step 0"):
        TrainingRun.load(tmp_path, net).final_state()


def test_a_journal_cut_anywhere_loads_up_to_its_last_whole_line(run_path):
    journal = run_path / "steps.jsonl"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    start = len(whole) - sum(map(len, lines[-2:]))
    for length in range(start, len(whole)):
        journal.write_bytes(whole[:length])
        run = TrainingRun.load(run_path, make_net())
        assert len(run.steps) == 10 - (length < start + len(lines[-2]))
        assert not run.complete
        assert run.test_risks.shape == (len(run.steps) + 1, 4)
        assert [checkpoint.t for checkpoint in run.checkpoints] == [1, 3, 5, 7, 9]
    journal.write_bytes(whole)
    assert TrainingRun.load(run_path, make_net()).complete


def test_risks_cut_anywhere_are_refused(run_path):
    risks = run_path / "test_risks.f64"
    whole = risks.read_bytes()
    assert len(whole) == 11 * 4 * 8
    for length in range(len(whole) - 32, len(whole)):
        risks.write_bytes(whole[:length])
        with pytest.raises(RunError, match=r"test_risks\.f64 is truncated"):
            TrainingRun.load(run_path, make_net())
    risks.write_bytes(whole + b"torn")
    assert TrainingRun.load(run_path, make_net()).test_risks.shape == (11, 4)


@pytest.mark.parametrize("name", ["step-00000003", "step-00000003.optimizer", "step-00000011"])
def test_checkpoints_that_are_damaged_are_refused(run_path, name):
    file = run_path / "checkpoints" / f"{name}.safetensors"
    whole = file.read_bytes()
    for length in [0, 7, 8, 100, len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(RunError, match=rf"{file.name} is truncated"):
            TrainingRun.load(run_path, make_net())
    file.unlink()
    with pytest.raises(RunError, match=rf"{file.name} is missing"):
        TrainingRun.load(run_path, make_net())
    for position in [3, 60, len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 1
        file.write_bytes(damaged)
        run = TrainingRun.load(run_path, make_net())
        (checkpoint,) = [one for one in run.checkpoints if one.t == int(name[5:13])]
        with pytest.raises(RunError, match=rf"{file.name} is damaged"):
            checkpoint.optimizer_state() if "optimizer" in name else checkpoint.load()


def test_a_file_that_is_hashed_right_and_no_safetensors_file_is_refused(run_path):
    from proponent.models import journal

    folder = run_path / "checkpoints"
    stored = journal._write(folder / "step-00000003.safetensors", [b"no safetensors file"])
    edit_json(folder / "step-00000003.json", tensors=vars(stored))
    run = TrainingRun.load(run_path, make_net())
    with pytest.raises(RunError, match=r"step-00000003\.safetensors is damaged"):
        run.checkpoints[1].load()


def test_sidecars_that_are_damaged_are_refused(run_path):
    sidecar = run_path / "checkpoints" / "step-00000003.json"
    whole = sidecar.read_text()
    for content, message in [
        (whole[: len(whole) // 2], "is damaged"),
        ("[]", "holds no JSON object"),
        ("{}", "does not describe the checkpoint before step 3"),
        (whole.replace('"step": 3', '"step": 5'), "does not describe"),
    ]:
        sidecar.write_text(content)
        with pytest.raises(RunError, match=message):
            TrainingRun.load(run_path, make_net())
    sidecar.unlink()
    with pytest.raises(RunError, match=r"step-00000003\.json is missing"):
        TrainingRun.load(run_path, make_net())


def test_journals_that_are_damaged_are_refused(run_path):
    journal = run_path / "steps.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    for damaged, message in [
        ([*lines[:3], b"{not json\n", *lines[4:]], "line 4"),
        ([*lines[:3], b"7\n", *lines[4:]], "line 4"),
        ([*lines[:3], *lines[4:]], "ended after step 10"),
        ([*lines[:3], *lines[4:-1]], "line 4, is damaged: step 5 stands where step 4 should"),
        ([*lines[:3], b'{"step":4}\n', *lines[4:]], "line 4"),
        ([lines[0].replace(b'"batch":[', b'"batch":[99,'), *lines[1:]], "instance 99"),
        ([lines[0].replace(b'"lr":[', b'"lr":[0.1,'), *lines[1:]], "one learning rate"),
    ]:
        journal.write_bytes(b"".join(damaged))
        with pytest.raises(RunError, match=message):
            TrainingRun.load(run_path, make_net())
    journal.unlink()
    with pytest.raises(RunError, match=r"steps\.jsonl cannot be read"):
        TrainingRun.load(run_path, make_net())


def test_headers_that_are_damaged_or_newer_are_refused(run_path, tmp_path):
    header = run_path / "run.json"
    whole = header.read_text()
    with pytest.raises(RunError, match="no recorded run at"):
        TrainingRun.load(tmp_path / "elsewhere", make_net())
    edit_json(header, format_version=2, library_version="9.1")
    with pytest.raises(RunError, match=r"written by proponent 9\.1.*Install a newer"):
        TrainingRun.load(run_path, make_net())
    edit_json(header, format="something")
    with pytest.raises(RunError, match="not the header of a recorded run"):
        TrainingRun.load(run_path, make_net())
    entries = json.loads(whole)
    del entries["groups"]
    header.write_text(json.dumps(entries))
    with pytest.raises(RunError, match="lacks groups"):
        TrainingRun.load(run_path, make_net())
    header.write_text(whole[:-10])
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        TrainingRun.load(run_path, make_net())


def test_nothing_of_a_run_can_be_changed(recorded):
    run = TrainingRun.load(recorded[0], make_net())
    with pytest.raises(ValueError, match="read-only"):
        run.steps[0].indices[0] = 3
    with pytest.raises(ValueError, match="read-only"):
        run.test_risks[0] = 3
    with pytest.raises(AttributeError):
        run.steps[0].divisor = 3
    assert repr(run).endswith("10 steps, 6 checkpoints, complete)")
