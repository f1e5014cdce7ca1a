"""The game of a network's units: what the network is worth with some of them switched off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.torch import TorchModel
from proponent.retraining.coalitions import Coalitions
from proponent.retraining.game import CooperativeGame

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
ROWS_AT_ONCE = 4096  # instances times coalitions in one forward pass


@dataclass(frozen=True)
class Layer:
    """A module whose units are players.

    Attributes
    ----------
    name : str
        Its name in the network.
    module : nn.Module
        The module.
    axis : int
        The axis of its output that counts units: 1, or -1 for a linear layer.
    means : Tensor of shape (units,)
        The mean output of each unit over the reference set.
    """

    name: str
    module: nn.Module
    axis: int
    means: Tensor

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.means)


def chosen_layers(network: nn.Module, names: Sequence[str] | None) -> list[tuple[str, nn.Module]]:
    """Return the named modules; by default all convolutions and linear layers but the last one.

    Raises
    ------
    InvalidInputError
        If there is no such module.
    """
    modules = dict(network.named_modules())
    if names is None:
        kinds = (*CONVOLUTIONS, nn.Linear)
        found = [(name, part) for name, part in modules.items() if isinstance(part, kinds)]
        if len(found) < 2:
            raise InvalidInputError(
                "layers: the network has no convolution or linear layer before its last one; name "
                f"the modules whose units are the players. It has {', '.join(modules)}."
            )
        return [(name, modules[name]) for name, _ in found[:-1]]
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in modules]
    if unknown or not names:
        raise InvalidInputError(
            f"layers: {', '.join(map(repr, unknown)) or 'none'} given; the network has "
            f"{', '.join(filter(None, modules))}."
        )
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InvalidInputError(f"layers: {', '.join(map(repr, twice))} named twice.")
    return [(name, modules[name]) for name in names]


def measured_layers(
    model: TorchModel, names: Sequence[str] | None, reference: Instances, batch_size: int
) -> list[Layer]:
    """Return the chosen layers with the mean output of each unit over a reference set."""
    chosen = chosen_layers(model.module, names)
    batch_size = as_count(batch_size, "batch_size")
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    axes = {name: -1 if isinstance(module, nn.Linear) else 1 for name, module in chosen}

    def hook(name: str) -> Any:
        def add(_: nn.Module, __: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim < 2:
                raise InvalidInputError(
                    f"layers: {name!r} does not return a tensor with an axis of units."
                )
            flat = output.detach().double().movedim(axes[name], -1).flatten(0, -2)
            sums[name] = sums.get(name, torch.zeros(())).to(flat.device) + flat.sum(0)
            counts[name] = counts.get(name, 0) + len(flat)

        return add

    with model.evaluating(), _hooks([(module, hook(name)) for name, module in chosen]):
        for start in range(0, len(reference), batch_size):
            rows = slice(start, min(start + batch_size, len(reference)))
            model.plain_risk(model.prepare(reference.batch(rows)), rows.stop - rows.start)
    unused = [name for name, _ in chosen if name not in sums]
    if unused:
        raise InvalidInputError(f"layers: {', '.join(map(repr, unused))} took no part in the risk.")
    return [
        Layer(name, module, axes[name], (sums[name] / counts[name]).to(model.dtype))
        for name, module in chosen
    ]


@contextmanager
def _hooks(hooks: list[tuple[nn.Module, Any]]) -> Iterator[None]:
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class NeuronGame(CooperativeGame):
    """Minus the risk of a network in which the units outside a coalition give their mean output.

    Parameters
    ----------
    model : TorchModel
        The network.
    layers : list of Layer
        Whose units play, in this order.
    test : Instances
        The test set, T.
    """

    def __init__(self, model: TorchModel, layers: list[Layer], test: Instances) -> None:
        self.model = model
        self.layers = layers
        self.test = test
        self.n = sum(layer.units for layer in layers)

    @override
    def utilities(self, coalitions: Coalitions) -> NDArray[np.float64]:
        """Return minus the risks, ``(K, T)``; many coalitions share a forward pass."""
        masks = torch.as_tensor(np.asarray(coalitions.masks, dtype=np.bool_))
        found = np.empty((len(masks), len(self.test)))
        width = min(len(self.test), ROWS_AT_ONCE)
        height = max(1, ROWS_AT_ONCE // width)
        with self.model.evaluating():
            for start in range(0, len(self.test), width):
                tests = slice(start, min(start + width, len(self.test)))
                batch = self.model.prepare(self.test.batch(tests))
                for first in range(0, len(masks), height):
                    some = masks[first : first + height].to(self.model.device)
                    risks = self._risks(batch, some, tests.stop - tests.start)
                    found[first : first + height, tests] = -risks.double().cpu().numpy()
        return found

    def _risks(self, batch: Any, masks: Tensor, n_test: int) -> Tensor:
        """Return the risks of n tests under k coalitions, ``(k, n)``."""
        k = len(masks)
        hooks, start = [], 0
        for layer in self.layers:
            inside = masks[:, start : start + layer.units].repeat_interleave(n_test, 0)
            hooks.append((layer.module, _ablation(layer, inside)))
            start += layer.units
        with _hooks(hooks):
            risks = self.model.plain_risk(_tiled(batch, k), k * n_test)
        return risks.reshape(k, n_test)


def _ablation(layer: Layer, inside: Tensor) -> Any:
    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        shape = [len(inside)] + [1] * (output.ndim - 1)
        shape[layer.axis] = layer.units
        means = layer.means.to(output).reshape([1, *shape[1:]])
        return torch.where(inside.reshape(shape), output, means)

    return replace


def _tiled(batch: Any, k: int) -> Any:
    """Return a batch k times over."""
    if isinstance(batch, Tensor):
        return batch.repeat(k, *[1] * (batch.ndim - 1))
    if isinstance(batch, dict):
        return {key: _tiled(value, k) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return tuple(_tiled(value, k) for value in batch)
    raise InvalidInputError(
        f"the batches of the set hold a {type(batch).__name__}; units are switched off for many "
        f"coalitions at once, so batches must be tensors, or tuples or dicts of them."
    )
