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
        # Copies: vmap may give up after the module has written to its input.
        single = tree_map_only(Tensor, lambda tensor: tensor.unsqueeze(0).clone(), instance)
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
        rows = instance_gradients(model, parameters, copied(instance_of(batch, i, n)))
        for name, row in rows.items():
            gradients[name][i] = row
    return gradients


def instance_gradients(
    model: TorchModel, parameters: Mapping[str, Tensor], single: Any
) -> dict[str, Tensor]:
    """Return the gradient of ``parameters`` for a batch of one instance by a backward pass."""
    risk = model.batch_risk(single, 1).sum()
    if not risk.requires_grad:  # it depends on none of them
        return {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    found = torch.autograd.grad(
        risk, list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    dense = (gradient.to_dense() if gradient.is_sparse else gradient for gradient in found)
    return dict(zip(parameters, dense, strict=True))


class Probe:
    """A few instances that a model is tried on, given anew each time.

    Parameters
    ----------
    batch : batch
        The prepared instances.
    n : int
        How many there are.
    """

    def __init__(self, batch: Any, n: int) -> None:
        self._batch = batch
        self.n = n

    def batch(self, size: int | None = None) -> Any:
        """Return a copy of the first ``size`` instances: a module may write to it."""
        return copied(rows_of(self._batch, slice(0, size), self.n))

    def single(self, i: int) -> Any:
        """Return a copy of one instance as a batch of one."""
        return copied(instance_of(self._batch, i, self.n))


def copied(batch: Any) -> Any:
    """Return a batch whose tensors are copies."""
    return tree_map_only(Tensor, torch.clone, batch)


def instance_of(batch: Any, i: int, n: int) -> Any:
    """Return instance ``i`` of a batch of n as a batch of one."""
    return rows_of(batch, slice(i, i + 1), n)


def rows_of(batch: Any, rows: slice, n: int) -> Any:
    """Return some instances of a batch of n.

    Raises
    ------
    InvalidInputError
        If the batch is not made of tensors with the instances on their first axis.
    """
    leaves, structure = tree_flatten(batch)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or len(leaf) != n:
            raise InvalidInputError(
                "a batch must be made of tensors with the instances on their first axis; found "
                f"{tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__} in a "
                f"batch of {n}."
            )
    return tree_unflatten([leaf[rows] for leaf in leaves], structure)


class _RiskModule(nn.Module):
    """A module whose forward is the risk, so that its parameters can be swapped in a call."""

    def __init__(self, module: nn.Module, risk: Callable[[nn.Module, Any], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.risk = risk

    def forward(self, batch: Any) -> Tensor:
        return self.risk(self.module, batch)
