"""This library, through its public interface alone."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.workloads import Workload, risk


def record(workload: Workload, directory: Path) -> Workload:
    """Record the workload's checkpoints as a training run, as ``Recorder`` does while training."""
    import proponent as pp

    module = deepcopy(workload.module)
    optimizer = torch.optim.SGD(module.parameters(), lr=workload.rates[0])
    # A run knows its training set: without train= and of few instances, it takes any part of ours.
    indices = torch.arange(2)
    with pp.Recorder(directory, module, optimizer, loss="cross_entropy", every=1) as recorder:
        for state in workload.states:
            module.load_state_dict(state)
            optimizer.zero_grad()
            risk(module, tuple(part[indices] for part in workload.train)).mean().backward()
            recorder.step(indices)
            optimizer.step()
    return replace(workload, run=directory)


def proponent_scores(workload: Workload, n: int) -> Tensor:
    """Score with proponent: from the run on disk, or from the trained module."""
    import proponent as pp

    train = workload.head(n)
    if workload.task == "gradient_dot":
        model = pp.TorchModel(workload.module, risk=risk)
        influence = pp.GradientDot().fit(model, train).influence(workload.test)
    else:
        run = pp.TrainingRun.load(workload.run, workload.module)
        fitted = pp.TracInCP().fit(run, train)
        itself = workload.task == "memorization"
        influence = fitted.memorization() if itself else fitted.influence(workload.test)
    return torch.as_tensor(influence.values)
