"""Slow truths that the fast routines are held against: no cleverness, nothing from the library.

Per-instance gradients come from one backward pass for each instance alone, or from
``vmap(grad)``; everything else is dense linear algebra on them.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Risk = Callable[[nn.Module, Any], Tensor]
Dense = dict[str, Tensor]


def rows(batch: Any, where: Any) -> Any:
    """Copy some of the instances of a batch: a tensor, or a tuple or dict of tensors."""
    if isinstance(batch, Mapping):
        return {key: value[where].clone() for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(value[where].clone() for value in batch)
    return batch[where].clone()


def gradients_by_loop(module: nn.Module, risk: Risk, batch: Any, n: int) -> Dense:
    """Return ``(n, *shape)`` for each trainable parameter, one instance at a time, in eval mode.

    Tied parameters stand once, under their first name; a parameter that the risk does not
    depend on has gradient zero.
    """
    modes = {part: part.training for part in module.modules()}
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found: dict[str, list[Tensor]] = {name: [] for name in parameters}
    module.eval()
    for i in range(n):
        alone = risk(module, rows(batch, slice(i, i + 1)))
        parts = torch.autograd.grad(alone.sum(), list(parameters.values()), allow_unused=True)
        for (name, parameter), part in zip(parameters.items(), parts, strict=True):
            part = torch.zeros_like(parameter) if part is None else part
            found[name].append(part.to_dense() if part.is_sparse else part)
    for part_of, training in modes.items():
        part_of.training = training
    return {name: torch.stack(parts) for name, parts in found.items()}


def gradients_by_vmap(module: nn.Module, risk: Risk, batch: Any) -> Dense:
    """Return ``(n, *shape)`` for each trainable parameter by ``vmap(grad)``; in eval mode."""
    holder = _Holder(module, risk)
    values = {name: p.detach() for name, p in holder.named_parameters() if p.requires_grad}

    def instance_risk(values: Dense, instance: Any) -> Tensor:
        return functional_call(holder, values, (rows(instance, None),)).sum()

    found = vmap(grad(instance_risk), in_dims=(None, 0))(values, batch)
    return {name.removeprefix("module."): value for name, value in found.items()}


class _Holder(nn.Module):
    def __init__(self, module: nn.Module, risk: Risk) -> None:
        super().__init__()
        self.module = module
        self.risk = risk

    def forward(self, batch: Any) -> Tensor:
        return self.risk(self.module, batch)


def flat(gradients: Mapping[str, Tensor]) -> Tensor:
    """Return all parameters' gradients side by side in float64, ``(n, p)``."""
    return torch.cat([value.reshape(len(value), -1).double() for value in gradients.values()], 1)


def inner_products(
    train: Mapping[str, Tensor],
    test: Mapping[str, Tensor],
    scales: Mapping[str, float] | None = None,
) -> Tensor:
    """Return ``sum_p scale_p <g_i, g_j>_p``, (n, m), by dense matrix products."""
    scales = scales or {}
    parts = [
        scales.get(name, 1.0) * flat({name: train[name]}) @ flat({name: test[name]}).T
        for name in train
    ]
    return torch.stack(parts).sum(0)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return ``||found - expected|| / ||expected||``; infinite where only the latter is zero."""
    difference = float((found.double() - expected.double()).norm())
    size = float(expected.double().norm())
    return difference / size if size else (0.0 if difference == 0 else float("inf"))
