"""What a kill leaves behind: the run up to its last complete step, whenever it comes."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from recorded_runs import assert_same_state, make_loader, make_set, plain_net, sgd, train
from torch.nn import functional

from proponent.exceptions import RunError
from proponent.models import journal, writer
from proponent.models.recorder import Recorder
from proponent.models.run import TrainingRun


class Killed(BaseException):
    pass


def run_until_killed(path, monkeypatch, operations):
    """Train with a recorder that dies in one of its writes; return whether it did."""
    count = 0

    def interrupt(action, torn):
        def operation(*arguments):
            nonlocal count
            count += 1
            if count == operations:
                torn(*arguments)
            if count >= operations:
                raise Killed  # nothing is written after a kill
            return action(*arguments)

        return operation

    replace, append = os.replace, writer.RunWriter.append
    append_risks = writer.RunWriter.append_risks

    def half_a_line(self, entry):
        line = journal.encode_line(entry)
        self._steps.write(line[: len(line) // 2])

    def half_a_row(self, risks, first=False):
        self._risks.write(risks.tobytes()[:-3])

    monkeypatch.setattr(journal.os, "replace", interrupt(replace, lambda *_: None))
    monkeypatch.setattr(writer.RunWriter, "append", interrupt(append, half_a_line))
    monkeypatch.setattr(
        writer.RunWriter,
        "append_risks",
        lambda self, risks, first=False: interrupt(append_risks, half_a_row)(self, risks),
    )
    data = make_set()
    net = plain_net()
    optimizer = sgd(net)
    try:
        recorder = Recorder(
            path,
            net,
            optimizer,
            loss="cross_entropy",
            train=data,
            test=data,
            every=2,
            optimizer_state=True,
        )
        with recorder:
            train(recorder, net, optimizer, make_loader(data), epochs=1)
    except Killed:
        return True
    finally:
        monkeypatch.undo()
    return False


def check_prefix(path, net, states, test):
    """Hold what survived against a training without a recorder."""
    run = TrainingRun.load(path, net)
    for checkpoint in run.checkpoints[: len(states)]:
        assert_same_state(checkpoint.load(), states[checkpoint.t - 1])
    assert run.test_risks.shape == (len(run.steps) + 1, len(test[1]))
    for state, risks in zip(states, run.test_risks, strict=False):
        output = torch.func.functional_call(net, state, torch.as_tensor(test[0]))
        expected = functional.cross_entropy(output, torch.as_tensor(test[1]), reduction="none")
        np.testing.assert_allclose(risks, expected.detach().numpy(), rtol=1e-10)
    return run


def test_a_kill_in_any_write_leaves_the_run_up_to_its_last_complete_step(tmp_path, monkeypatch):
    data = make_set()
    net = plain_net()
    states, batches = train(None, net, sgd(net), make_loader(data), epochs=1)
    counts = []
    for operations in range(1, 100):
        path = tmp_path / str(operations)
        if not run_until_killed(path, monkeypatch, operations):
            break
        if not (path / "run.json").exists():
            with pytest.raises(RunError, match="no recorded run"):
                TrainingRun.load(path, net)
            with Recorder(path, net, sgd(net), overwrite=True):
                pass
            continue
        run = check_prefix(path, net, states, data)
        assert [step.indices.tolist() for step in run.steps] == batches[: len(run.steps)]
        assert not run.complete
        counts.append(len(run.steps))
    assert counts == sorted(counts) and set(counts) == set(range(6))
    assert check_prefix(path, net, states, data).complete


TRAINING = """
    import sys
    import torch
    from torch.nn import functional
    from recorded_runs import make_loader, make_set, plain_net, sgd, train
    from proponent.models.recorder import Recorder

    torch.set_num_threads(1)
    net = plain_net()
    optimizer = sgd(net)
    data = make_set()
    with Recorder(
        sys.argv[1], net, optimizer, loss="cross_entropy", train=data, test=data, every=1
    ) as recorder:
        print("open", flush=True)
        train(recorder, net, optimizer, make_loader(data), epochs=10**9)
"""


def test_a_killed_process_leaves_a_run_that_loads(tmp_path):
    data = make_set()
    net = plain_net()
    states, _ = train(None, net, sgd(net), make_loader(data), epochs=40)
    folders = [str(Path(__file__).parents[1]), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(TRAINING), str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
    )
    assert process.stdout.readline() == b"open\n"
    time.sleep(random.Random(0).uniform(0.05, 0.3))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    run = check_prefix(tmp_path, net, states, data)
    assert not run.complete
