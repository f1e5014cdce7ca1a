"""Peers and a plain prototype, each used as its documentation says.

Every function takes a workload and the number of training instances to score, and returns the
scores: ``(n_test, n)``, or ``(n,)`` for self-influence. Peers are imported when called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.workloads import Workload, criterion

# Memory for materialised gradients: the peers hold several copies of what they are given.
MEGABYTES = 512


def vmap_materialised(workload: Workload, n: int) -> Tensor:
    """Materialise per-instance gradients with ``vmap(grad)`` and multiply them, layer by layer."""
    module = workload.module

    def risk_of_one(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return criterion(functional_call(module, parameters, (x[None],)), y[None])[0]

    gradients = vmap(grad(risk_of_one), in_dims=(None, 0, 0))
    itself = workload.task == "memorization"
    scores = torch.zeros(n) if itself else torch.zeros(len(workload.test[0]), n)
    size = workload.micro_batch(2 * MEGABYTES)
    for state, rate in zip(workload.states, workload.rates, strict=True):
        module.load_state_dict(state)
        parameters = {key: value.detach() for key, value in module.named_parameters()}
        tests = {} if itself else _stacked(gradients, parameters, workload.test, size)
        for position, batch in enumerate(workload.batches(n, size)):
            rows = slice(position * size, position * size + len(batch[0]))
            for key, part in gradients(parameters, *batch).items():
                flat = part.flatten(1)
                products = flat.square().sum(1) if itself else tests[key] @ flat.T
                scores[..., rows] += rate * products
    return scores


def _stacked(gradients: Any, parameters: Any, pair: Any, size: int) -> dict[str, Tensor]:
    """Return the gradients of a whole set, one ``(n, p)`` matrix a parameter."""
    parts = [
        gradients(parameters, x, y) for x, y in zip(*(t.split(size) for t in pair), strict=True)
    ]
    return {key: torch.cat([part[key].flatten(1) for part in parts]) for key in parts[0]}


class _Loss(nn.Module):
    """The workload's loss in the form that captum checks: an attribute names its reduction."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        losses = criterion(output, target)
        return losses.sum() if self.reduction == "sum" else losses


def captum_hooks(workload: Workload, n: int) -> Tensor:
    """Score with captum's TracInCP and its per-sample trick (Linear and Conv2d layers only)."""
    return _captum(workload, n, "sum", workload.micro_batch(MEGABYTES))


def captum_loop(workload: Workload, n: int) -> Tensor:
    """Score with captum's TracInCP by default: a backward pass through the batch per instance."""
    # Its cost an instance grows with the batch size, so it is given small batches.
    return _captum(workload, n, "none", min(10, workload.micro_batch(MEGABYTES)))


def _captum(workload: Workload, n: int, reduction: str, size: int) -> Tensor:
    from captum.influence import TracInCP

    def load(module: nn.Module, checkpoint: tuple[float, dict[str, Tensor]]) -> float:
        module.load_state_dict(checkpoint[1])
        return checkpoint[0]

    tracin = TracInCP(
        workload.module,
        TensorDataset(*workload.head(n)),
        # Held in memory: kinder than paths, which are read again for every batch.
        checkpoints=list(zip(workload.rates, workload.states, strict=True)),
        checkpoints_load_func=load,
        loss_fn=_Loss(reduction),
        batch_size=size,
        sample_wise_grads_per_batch=reduction == "sum",
    )
    if workload.task == "memorization":
        return tracin.self_influence().detach()
    return tracin.influence(DataLoader(TensorDataset(*workload.test), size)).detach()


def dattri_tracin(workload: Workload, n: int) -> Tensor:
    """Score with dattri's TracInAttributor, without its default projection (exact)."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    module = workload.module

    def loss_of_one(parameters: Any, data: Any) -> Tensor:
        x, y = data
        return criterion(functional_call(module, parameters, (x[None],)), y[None])[0]

    attributor = TracInAttributor(
        AttributionTask(loss_of_one, module, list(workload.states)),
        weight_list=torch.tensor(workload.rates),
        normalized_grad=False,
        projector_kwargs={"proj_type": "identity"},
    )
    size = workload.micro_batch(MEGABYTES)
    train = DataLoader(TensorDataset(*workload.head(n)), size)
    if workload.task == "memorization":
        return attributor.self_attribute(train)
    return attributor.attribute(train, DataLoader(TensorDataset(*workload.test), size)).T
