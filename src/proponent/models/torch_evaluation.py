"""Many torch submodels evaluated on test instances."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import vmap

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.torch_outputs import Outputs
from proponent.models.torch_recipe import State, TorchRecipe, seeded
from proponent.models.torch_stack import Exchangeable

BLOCK = 256  # test instances at once, where each submodel is evaluated by itself
AT_ONCE = 64  # submodels
ACTIVATIONS = {"cpu": 2**24, "accelerator": 2**31}  # bytes, where they are evaluated together

Function = Callable[[nn.Module, Any], Tensor]
Arrays = Mapping[str, NDArray[Any]]
Values = NDArray[np.float64]


class OutputOf:
    """What a module puts out, read as its loss does."""

    def __init__(self, risk: Any, outputs: Outputs) -> None:
        self._risk = risk
        self._outputs = outputs

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the logits or values of a batch."""
        return self._outputs.read(self._risk.outputs(module, batch))


def evaluated_together(
    recipe: TorchRecipe, arrays: Arrays, test: Instances, function: Function, entry: int
) -> Values:
    """Return a function of each submodel and test instance, ``(K, T, ...)``, by ``vmap``.

    Parameters
    ----------
    recipe : TorchRecipe
        What the submodels were trained by.
    arrays : mapping from str to ndarray
        Parameters and buffers, ``(K, *shape)``.
    test : Instances
        The test instances, T.
    function : callable
        ``function(module, batch) -> (batch, ...)``.
    entry : int
        Bytes of the activations of one module for one instance.
    """
    skeleton = recipe.module(0).eval()
    model = recipe.model(skeleton)
    together = vmap(Exchangeable(skeleton, function).at, in_dims=(0, None))
    size = len(next(iter(arrays.values())))
    memory = ACTIVATIONS["cpu" if model.device.type == "cpu" else "accelerator"]
    block = max(1, min(len(test), memory // (min(size, AT_ONCE) * entry)))
    parts = []
    for start in range(0, len(test), block):
        batch = model.prepare(test.batch(np.arange(start, min(start + block, len(test)))))
        columns = []
        for first in range(0, size, AT_ONCE):
            some = {name: array[first : first + AT_ONCE] for name, array in arrays.items()}
            with torch.no_grad():
                columns.append(together(_tensors(some, skeleton), batch))
        parts.append(torch.cat(columns).cpu().double().numpy())
    return np.concatenate(parts, axis=1)


def evaluated_alone(
    recipe: TorchRecipe, arrays: Arrays, test: Instances, function: Function
) -> Values:
    """Return the same, one submodel after the other.

    A risk that draws random numbers draws the same ones for each submodel.
    """
    skeleton = recipe.module(0)
    model = recipe.model(skeleton)
    rows = []
    for row in range(len(next(iter(arrays.values())))):
        one = {name: array[row : row + 1] for name, array in arrays.items()}
        state = {name: tensor[0] for name, tensor in _tensors(one, skeleton).items()}
        blocks = []
        with seeded(0), model.at(state), model.evaluating():
            for start in range(0, len(test), BLOCK):
                batch = test.batch(np.arange(start, min(start + BLOCK, len(test))))
                blocks.append(_plain(function, skeleton, model.prepare(batch)))
        rows.append(torch.cat(blocks).cpu().double().numpy())
    return np.stack(rows)


def constant_risks(recipe: TorchRecipe, constants: Values, test: Instances) -> Values:
    """Return the risks of models with a constant output ``(K, ...)``, ``(K, T)``."""
    risk: Any = recipe.risk
    model = recipe.model(recipe.module(0))
    rows = []
    for constant in constants:
        output = torch.from_numpy(constant).to(model.device, model.dtype)
        blocks = []
        for start in range(0, len(test), BLOCK):
            positions = np.arange(start, min(start + BLOCK, len(test)))
            batch = model.prepare(test.batch(positions))
            blocks.append(risk.loss(output.expand(len(positions), *output.shape), batch))
        rows.append(torch.cat(blocks).cpu().double().numpy())
    return np.stack(rows)


def tried_output(recipe: TorchRecipe, train: Instances) -> Any:
    """Return what an untrained module makes of two instances, where its risk has outputs."""
    risk: Any = recipe.risk
    if not hasattr(risk, "outputs"):
        return None
    module = recipe.module(0)
    model = recipe.model(module)
    batch = model.prepare(train.batch(np.array([0, len(train) - 1])))
    with model.evaluating(), torch.no_grad():
        return risk.outputs(module, batch)


def _plain(function: Function, module: nn.Module, batch: Any) -> Tensor:
    """Return the function without a graph behind it."""
    try:
        with torch.no_grad():
            return function(module, batch)
    except InvalidInputError:
        raise
    except RuntimeError:
        return function(module, batch).detach()  # it differentiates itself


def _tensors(arrays: Arrays, module: nn.Module) -> State:
    """Return arrays as tensors of the types and on the device of a module's."""
    named = dict([*module.named_parameters(), *module.named_buffers()])
    return {
        name: torch.from_numpy(np.array(array)).to(named[name].device, named[name].dtype)
        for name, array in arrays.items()
    }
