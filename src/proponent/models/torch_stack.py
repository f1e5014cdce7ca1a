"""Many small torch modules in stacked tensors: stepped by one backward pass for all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._pytree import tree_map_only

from proponent.models.torch_recipe import State, TorchRecipe, parameters_of, state_of
from proponent.models.torch_rows import HeldRows

# They step each entry of a parameter by itself, so that parameters may be stacked.
ELEMENTWISE = (
    torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam,
    torch.optim.Adamax, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adadelta,
    torch.optim.Rprop,
)  # fmt: skip


class Exchangeable(nn.Module):
    """A function of a module and more, called with the module's tensors exchanged."""

    def __init__(self, module: nn.Module, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = module
        self._function = function

    def forward(self, *inputs: Any) -> Tensor:
        """Return the function of the module and the inputs."""
        return self._function(self.module, *inputs)

    def at(self, tensors: State, *inputs: Any) -> Tensor:
        """Return the same with other parameters and buffers, by their names in the module."""
        exchanged = {f"module.{name}": tensor for name, tensor in tensors.items()}
        result: Tensor = functional_call(self, exchanged, inputs)
        return result


def not_elementwise(optimizer: torch.optim.Optimizer) -> str | None:
    """Return why stacked parameters cannot be stepped at once by an optimizer; None: they can."""
    kind = type(optimizer)
    if kind not in ELEMENTWISE:
        return f"{kind.__name__} is not known to step each entry of a parameter by itself"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer has hooks, which may mix parameters"
    return None


class Together:
    """Submodels that are trained in step.

    Parameters
    ----------
    recipe : TorchRecipe
        How; its optimizer must step entries one by one.
    train : HeldRows
        The training set.
    seeds : list of int
        One for each submodel, K.
    """

    def __init__(self, recipe: TorchRecipe, train: HeldRows, seeds: list[int]) -> None:
        skeleton = recipe.module(seeds[0])
        self._model = recipe.model(skeleton)
        self._data = self._model.prepare(train.tensors())
        self._stack = _Stack(recipe, skeleton, seeds)

        def loss(module: nn.Module, batch: Any, weights: Tensor) -> Tensor:
            risks: Tensor = recipe.risk(module, batch)
            return (risks * weights).sum() / weights.sum()

        at = Exchangeable(skeleton, loss).at
        self._losses = vmap(at, in_dims=(0, 0, 0)), vmap(at, in_dims=(0, None, 0))

    @property
    def state(self) -> State:
        """Parameters and buffers by name, ``(K, *shape)``: as they stand, not copies."""
        return self._stack.full

    def step(self, positions: NDArray[Any], weights: NDArray[Any], shared: bool = False) -> None:
        """Take one step of the first submodels; the others stay as they are from now on.

        Parameters
        ----------
        positions, weights : ndarray of shape (active, width)
            The batch of each: positions of training instances, and how often each counts.
        shared : bool
            Whether the positions are the same for all.
        """
        self._stack.keep_first(len(positions))
        device, dtype = self._model.device, self._model.dtype
        rows = torch.from_numpy(positions[0] if shared else positions).to(device)
        batch = tree_map_only(Tensor, lambda tensor: tensor[rows], self._data)
        weighted = torch.from_numpy(weights).to(device, dtype)
        losses: Tensor = self._losses[shared](self._stack.tensors, batch, weighted)
        self._stack.step(losses.sum())


class _Stack:
    """The parameters and buffers of several modules in one tensor each, and their optimizer."""

    def __init__(self, recipe: TorchRecipe, skeleton: nn.Module, seeds: list[int]) -> None:
        states: dict[int, State] = {}
        for seed in seeds:
            if seed not in states:
                states[seed] = state_of(recipe.module(seed))
        first = states[seeds[0]]
        self.full = {name: torch.stack([states[seed][name] for seed in seeds]) for name in first}
        self._optimizer = recipe.optimizer(skeleton)
        self._own = dict(skeleton.named_parameters())
        self._active = len(seeds)
        self.tensors: State = {}
        for parameter in parameters_of(self._optimizer):
            for key, value in self._optimizer.state.get(parameter, {}).items():
                # What an optimizer holds from the beginning is the same for all.
                if key != "step" and isinstance(value, Tensor):
                    stacked = value.expand(len(seeds), *value.shape).clone()
                    self._optimizer.state[parameter][key] = stacked
        self._leaves = dict(self._own)
        self._exchange(len(seeds))

    def keep_first(self, active: int) -> None:
        """Leave the others as they are from now on."""
        if active < self._active:
            self._exchange(active)

    def step(self, loss: Tensor) -> None:
        """Take one step of every module."""
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def _exchange(self, active: int) -> None:
        """Give the optimizer the first rows of the stacked tensors, and of what it remembers."""
        # Rows of the full tensors, not copies: the steps are written there.
        rows = {name: tensor[:active] for name, tensor in self.full.items()}
        leaves = {
            name: nn.Parameter(rows[name], requires_grad=parameter.requires_grad)
            for name, parameter in self._own.items()
        }
        new = {id(old): leaves[name] for name, old in self._leaves.items()}
        state = self._optimizer.state
        for old in parameters_of(self._optimizer):
            if old in state:
                remembered = state.pop(old)
                state[new[id(old)]] = {
                    key: value[:active] if isinstance(value, Tensor) and value.ndim else value
                    for key, value in remembered.items()
                }
        for group in self._optimizer.param_groups:
            group["params"] = [new[id(old)] for old in group["params"]]
        self._leaves, self._active = leaves, active
        self.tensors = rows | leaves
