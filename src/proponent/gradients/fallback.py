"""Per-instance gradients of any parameter by automatic differentiation: slow, never wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from proponent.exceptions import InvalidInputError
from proponent.models.torch import TorchModel


def vectorised_gradients(
    model: TorchModel, parameters: Mapping[str, Tensor], batch: Any, n: int
) -> dict[str, Tensor]:
    """Return each instance's gradient of ``parameters`` by ``vmap(grad)``, ``(n, *shape)``.

    Falls back to one backward pass an instance where the module or its risk cannot be
    vectorised (control flow that depends on the data, functions without a batching rule).
    """
    names = {f"module.{name}": tensor.detach() for name, tensor in parameters.items()}
    risky = _RiskModule(model.module, model.risk)

    def instance_risk(values: dict[str, Tensor], instance: Any) -> Tensor:
        single = tree_map_only(Tensor, lambda tensor: tensor.unsqueeze(0), instance)
        risk: Tensor = functional_call(risky, values, (single,))
        return risk.sum()

    try:
        gradients: dict[str, Tensor] = vmap(
            grad(instance_risk), in_dims=(None, 0), randomness="different"
        )(names, batch)
    except (RuntimeError, ValueError):
        return separate_gradients(model, parameters, batch, n)
    return {name.removeprefix("module."): value for name, value in gradients.items()}


def separate_gradients(
    model: TorchModel, parameters: Mapping[str, Tensor], batch: Any, n: int
) -> dict[str, Tensor]:
    """Return each instance's gradient of ``parameters``, ``(n, *shape)``, one pass an instance."""
    gradients = {
        name: torch.empty((n, *tensor.shape), dtype=tensor.dtype, device=tensor.device)
        for name, tensor in parameters.items()
    }
    for i in range(n):
        rows = instance_gradients(model, parameters, instance_of(batch, i, n))
        for name, row in rows.items():
            gradients[name][i] = row
    return gradients


def instance_gradients(
    model: TorchModel, parameters: Mapping[str, Tensor], single: Any
) -> dict[str, Tensor]:
    """Return the gradient of ``parameters`` for a batch of one instance by a backward pass."""
    risk = model.batch_risk(single, 1)
    gradients = torch.autograd.grad(
        risk.sum(), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(parameters, gradients, strict=True))


def instance_of(batch: Any, i: int, n: int) -> Any:
    """Return instance ``i`` of a batch of n as a batch of one."""
    leaves, structure = tree_flatten(batch)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != n:
            raise InvalidInputError(
                "a batch must be made of tensors with the instances on their first axis; found "
                f"{tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__} in a "
                f"batch of {n}."
            )
    return tree_unflatten([leaf[i : i + 1] for leaf in leaves], structure)


class _RiskModule(nn.Module):
    """A module whose forward is the risk, so that its parameters can be swapped in a call."""

    def __init__(self, module: nn.Module, risk: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.risk = risk

    def forward(self, batch: Any) -> Tensor:
        return self.risk(self.module, batch)
