"""The floor that every ratio is taken to, and the truth that every score is compared with."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor

from benchmarks.workloads import Workload, risk


def floor(workload: Workload, n: int) -> None:
    """Run one plain mini-batched forward and backward pass over n instances per checkpoint."""
    module = workload.module
    for state in workload.states:
        module.load_state_dict(state)
        for batch in workload.batches(n):
            module.zero_grad()
            risk(module, batch).sum().backward()
    module.zero_grad()


def reference(workload: Workload, tests: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return exact scores in float64, one instance and one backward pass at a time.

    Parameters
    ----------
    workload : Workload
        What is scored.
    tests, rows : Tensor of shape (k,), (r,)
        Positions in the test and training sets; ``tests`` is not used by self-influence.

    Returns
    -------
    scores, scale : Tensor of shape (k, r), or (r,) for self-influence
        ``sum_c rate_c <g_i, g_j>`` and ``sum_c rate_c |g_i| |g_j|``, the unit of errors.
    """
    module = deepcopy(workload.module).double()
    parameters = list(module.parameters())

    def gradient(inputs: Tensor, targets: Tensor, row: int) -> Tensor:
        x = inputs[row : row + 1]
        x = x.double() if x.is_floating_point() else x
        loss = risk(module, (x, targets[row : row + 1])).sum()
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])

    scores, scale = torch.tensor(0.0), torch.tensor(0.0)
    for state, rate in zip(workload.states, workload.rates, strict=True):
        module.load_state_dict(state)
        train = torch.stack([gradient(*workload.train, int(row)) for row in rows])
        if workload.task == "memorization":
            norms = rate * train.square().sum(1)
            scores, scale = scores + norms, scale + norms
        else:
            test = torch.stack([gradient(*workload.test, int(row)) for row in tests])
            scores = scores + rate * test @ train.T
            scale = scale + rate * test.norm(dim=1)[:, None] * train.norm(dim=1)
    return scores, scale


def error(workload: Workload, scores: Tensor, points: int = 6) -> float:
    """Return the largest ``|score - truth| / scale`` over evenly spaced rows and columns."""
    rows = torch.linspace(0, scores.shape[-1] - 1, points).long().unique()
    tests = torch.linspace(0, len(workload.test[0]) - 1, points).long().unique()
    exact, scale = reference(workload, tests, rows)
    found = scores[rows] if workload.task == "memorization" else scores[tests][:, rows]
    return float(((found.double() - exact).abs() / scale).max())
