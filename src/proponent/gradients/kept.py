"""What may be kept between passes over the training set, and when it is out of date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def module_state(module: nn.Module) -> object:
    """Return something that changes when a parameter or a buffer of the module does.

    Where the tensors are and how often they were written to do not tell everything: an address
    is used again after it is freed. So their sums count too.
    """
    tensors = [*module.parameters(), *module.buffers()]
    sums = torch.stack([tensor.detach().sum().double().cpu() for tensor in tensors]).tolist()
    return [
        (tensor.data_ptr(), tensor._version, total)
        for tensor, total in zip(tensors, sums, strict=True)
    ]


def graph_bytes(make: Callable[[], Any], module: nn.Module) -> int:
    """Return the bytes that the graph of a computation holds beyond the module's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in module.parameters()}
    held: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    with saved_tensors_hooks(count, lambda tensor: tensor):
        alive = make()
    del alive
    return sum(held.values())
