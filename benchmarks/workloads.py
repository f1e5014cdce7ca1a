"""The workloads: a trained module, its checkpoints and its data, made from fixed seeds."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import modules

Pair = tuple[Tensor, Tensor]
Task = Literal["tracincp", "memorization", "gradient_dot"]

RATE = 0.05
BATCH = 100


def criterion(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each instance, mean over its tokens where it is a sequence, ``(batch,)``."""
    if output.ndim == 2:
        return functional.cross_entropy(output, target, reduction="none")
    flat = functional.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none")
    return flat.view(target.shape).mean(1)


def risk(module: nn.Module, batch: Any) -> Tensor:
    """Return the risk of each instance of a batch ``(inputs, targets)``, ``(batch,)``."""
    inputs, targets = batch
    return criterion(module(inputs), targets)


@dataclass(frozen=True)
class Recipe:
    """What a workload is made of; ``quick_n`` and ``quick_m`` are for a fast trial."""

    title: str
    module: Callable[[], nn.Module]
    data: Callable[[int, int], tuple[Pair, Pair]]
    n: int
    m: int
    checkpoints: int = 1
    task: Task = "gradient_dot"
    steps: int = 5
    quick_n: int = 130
    quick_m: int = 5


@dataclass(frozen=True)
class Workload:
    """A recipe carried out: what every implementation is given.

    ``states[c]`` is the module's state before a step of learning rate ``rates[c]``; ``run`` is
    where ``benchmarks.ours.record`` put the same states, if it did.
    """

    name: str
    task: Task
    module: nn.Module
    states: tuple[dict[str, Tensor], ...]
    rates: tuple[float, ...]
    train: Pair
    test: Pair
    run: Path | None = None

    def fresh(self) -> Workload:
        """Return the same workload with its own copy of the module, untouched by others."""
        return replace(self, module=deepcopy(self.module))

    def head(self, n: int) -> Pair:
        """Return the first n training instances."""
        return self.train[0][:n], self.train[1][:n]

    def batches(self, n: int, size: int = BATCH) -> list[Pair]:
        """Return the first n training instances in batches (views, no copies)."""
        inputs, targets = self.head(n)
        return list(zip(inputs.split(size), targets.split(size), strict=True))

    def micro_batch(self, megabytes: int) -> int:
        """Return how many materialised gradients fit in so much memory, at most a batch."""
        count = sum(parameter.numel() for parameter in self.module.parameters())
        size = next(self.module.parameters()).element_size()
        return max(1, min(BATCH, megabytes * 2**20 // (size * count)))


def build(name: str, *, quick: bool = False) -> Workload:
    """Make the workload called ``name``.

    Parameters
    ----------
    name : str
        A key of ``RECIPES``.
    quick : bool
        Fewer instances.
    """
    recipe = RECIPES[name]
    n, m = (recipe.quick_n, recipe.quick_m) if quick else (recipe.n, recipe.m)
    torch.manual_seed(0)
    module = recipe.module()
    train, test = recipe.data(n, m)
    states = _train(module, train, recipe)
    rates = (1.0,) if recipe.task == "gradient_dot" else (RATE,) * len(states)
    return Workload(name, recipe.task, module.eval(), states, rates, train, test)


def _train(module: nn.Module, train: Pair, recipe: Recipe) -> tuple[dict[str, Tensor], ...]:
    """Take some steps, then as many more as there are checkpoints; return the states before these.

    The last state is that of the module when this returns.
    """
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE)
    states = []
    module.train()
    for step in range(recipe.steps + recipe.checkpoints):
        indices = torch.randperm(len(train[0]))[: BATCH // 2]
        optimizer.zero_grad()
        risk(module, (train[0][indices], train[1][indices])).mean().backward()
        if step >= recipe.steps:
            states.append({key: value.clone() for key, value in module.state_dict().items()})
        if len(states) < recipe.checkpoints:
            optimizer.step()
    optimizer.zero_grad()
    return tuple(states)


def _vectors(n: int, m: int) -> tuple[Pair, Pair]:
    return _classified(torch.randn(n + m, 784), n)


def _images(n: int, m: int) -> tuple[Pair, Pair]:
    return _classified(torch.randn(n + m, 3, 32, 32), n)


def _classified(inputs: Tensor, n: int) -> tuple[Pair, Pair]:
    """Label inputs by a random linear map into 10 classes; split after n."""
    flat = inputs.flatten(1)
    targets = (flat @ torch.randn(flat.shape[1], 10)).argmax(1)
    return (inputs[:n], targets[:n]), (inputs[n:], targets[n:])


def _sequences(n: int, m: int) -> tuple[Pair, Pair]:
    """Token sequences of length 64 with a Zipf law, and the same shifted by one as targets."""
    frequencies = 1 / torch.arange(1, 1001)
    drawn = torch.multinomial(frequencies, (n + m) * 65, replacement=True).view(n + m, 65)
    inputs, targets = drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()
    return (inputs[:n], targets[:n]), (inputs[n:], targets[n:])


RECIPES: dict[str, Recipe] = {
    "mlp": Recipe(
        "MLP 784-512-256-10, TracInCP",
        modules.mlp, _vectors, n=5000, m=50, checkpoints=3, task="tracincp", steps=20,
    ),
    "mlp-self": Recipe(
        "MLP 784-512-256-10, self-influence",
        modules.mlp, _vectors, n=5000, m=50, checkpoints=3, task="memorization", steps=20,
    ),
    "cnn": Recipe(
        "CNN (3 conv + fc, 34k parameters, 32x32), TracInCP",
        modules.cnn, _images, n=1000, m=20, checkpoints=2, task="tracincp", steps=20,
    ),
    "gpt": Recipe(
        "GPT (4 layers, d=128, length 64, vocabulary 1000, 1.06M parameters), gradient dot",
        modules.GPT, _sequences, n=500, m=10,
    ),
    "gpt-tied": Recipe(
        "GPT with tied embeddings (0.93M parameters), gradient dot",
        lambda: modules.GPT(tied=True), _sequences, n=500, m=10,
    ),
    "resnet": Recipe(
        "ResNet-18 with BatchNorm (11.2M parameters, 32x32), gradient dot",
        modules.resnet18, _images, n=500, m=20, steps=2, quick_n=12, quick_m=2,
    ),
}  # fmt: skip
