"""What it takes to train one torch module: how it is made, stepped and measured."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.risk import Risk
from proponent.models.torch import TorchModel
from proponent.models.torch_batches import BatchPlan

ModuleFactory = Callable[[], nn.Module]
OptimizerFactory = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
State = dict[str, Tensor]

# The generators are the process's: threads that train side by side take turns.
_GENERATORS = threading.RLock()


@dataclass(frozen=True)
class TorchRecipe:
    """How one submodel is made and trained.

    Attributes
    ----------
    module_factory, optimizer_factory : callable
        What the user gave.
    risk : callable
        ``risk(module, batch) -> (batch,)``.
    plan : BatchPlan
        The batches.
    dtype, device : optional
        Where given, what the module is moved to.
    """

    module_factory: ModuleFactory
    optimizer_factory: OptimizerFactory
    risk: Risk
    plan: BatchPlan
    dtype: torch.dtype | None = None
    device: str | None = None

    def module(self, seed: int) -> nn.Module:
        """Return a new module, made from a seed, in training mode.

        Raises
        ------
        InvalidInputError
            If the factory returns something else, or a module without parameters.
        """
        with seeded(seed):
            return self.made()

    def made(self) -> nn.Module:
        """Return a new module, made from the generators as they stand."""
        module: Any = self.module_factory()
        module = getattr(module, "_orig_mod", module)  # of a compiled one, what it is made of
        if not isinstance(module, nn.Module):
            raise InvalidInputError(
                f"module_factory: expected it to return a new torch.nn.Module; it returned "
                f"{type(module).__name__}."
            )
        if not any(parameter.is_floating_point() for parameter in module.parameters()):
            raise InvalidInputError("module_factory: its module has no parameters to train.")
        return module.to(device=self.device, dtype=self.dtype).train()

    def model(self, module: nn.Module) -> TorchModel:
        """Return a module with the risk."""
        return TorchModel(module, risk=self.risk)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """Return the optimizer of a module.

        Raises
        ------
        InvalidInputError
            If the factory returns something else, or an optimizer of other parameters.
        """
        optimizer = self.optimizer_factory(list(module.parameters()))
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidInputError(
                f"optimizer_factory: expected it to return a torch optimizer of the parameters "
                f"that it is given, such as lambda p: torch.optim.SGD(p, lr=0.1); it returned "
                f"{type(optimizer).__name__}."
            )
        own = {id(parameter) for parameter in module.parameters()}
        if any(id(tensor) not in own for tensor in parameters_of(optimizer)):
            raise InvalidInputError(
                "optimizer_factory: its optimizer steps tensors that are not parameters of the "
                "module; it must be made of the parameters that it is given."
            )
        return optimizer


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return what an optimizer steps."""
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def state_of(module: nn.Module) -> State:
    """Return the parameters and buffers of a module by name; of tied ones the first name."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name: tensor.detach() for name, tensor in named}


def train_one(
    recipe: TorchRecipe, train: Instances, counts: NDArray[Any], seed: int
) -> dict[str, Tensor]:
    """Train one submodel step by step and return its parameters and buffers.

    Parameters
    ----------
    recipe : TorchRecipe
        How.
    train : Instances
        The training set, n.
    counts : ndarray of shape (n,)
        How often each instance is in.
    seed : int
        Fixes the initial parameters, the batches, and whatever else draws while it trains.
    """
    with seeded(seed):
        module = recipe.made()  # what draws while it trains goes on from there
        model, optimizer = recipe.model(module), recipe.optimizer(module)
        for epoch in recipe.plan.orders(counts, seed):
            for positions, weights in zip(epoch.positions, epoch.weights, strict=True):
                inside = weights > 0
                train_step(model, optimizer, train, positions[inside], weights[inside])
        return state_of(module)


def train_step(
    model: TorchModel,
    optimizer: torch.optim.Optimizer,
    train: Instances,
    positions: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> None:
    """Take one step on the weighted mean risk of the instances at some positions."""
    batch = model.prepare(train.batch(positions))
    weighted = torch.as_tensor(weights, dtype=model.dtype, device=model.device)

    def closure() -> Tensor:
        optimizer.zero_grad()
        risks = model.batch_risk(batch, len(positions))
        loss = (risks * weighted).sum() / weighted.sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw whatever is random from a seed for a while; the generators are restored after it."""
    # numpy's takes 32 bits; up to there the module is that of torch.manual_seed(seed).
    with _GENERATORS, fixed_randomness(seed % 2**32):
        yield


def draws(function: Callable[[], Any]) -> bool:
    """Return whether a function draws from a global generator."""
    with seeded(0):
        before = _generators()
        function()
        return _generators() != before


def _generators() -> tuple[Any, ...]:
    """Return where the generators stand."""
    legacy: Any = np.random.get_state(legacy=False)
    keys, position = legacy["state"]["key"], legacy["state"]["pos"]
    cuda = torch.cuda.get_rng_state().numpy().tobytes() if torch.cuda.is_initialized() else b""
    cpu = torch.get_rng_state().numpy().tobytes()
    return random.getstate(), keys.tobytes(), position, cpu, cuda
