"""Recorded runs for the tests of the dynamic methods, and their influence by plain loops.

The loops know of the library only where a run is recorded and loaded: the parameters at each
step, the batches and the learning rates are noted down beside it.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from references import Dense, flat, gradients_by_loop, inner_products
from torch import Tensor, nn
from torch.nn import functional

from proponent.models.recorder import Recorder
from proponent.models.run import TrainingRun

Data = tuple[Any, Any]
RATE = 0.2


def make_set(seed: int = 0, n: int = 13, features: int = 4, classes: int = 3) -> Data:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, features)), generator.integers(0, classes, size=n)


def mlp(features: int = 4, classes: int = 3) -> nn.Module:
    torch.manual_seed(1)
    hidden = nn.Linear(features, 5)
    return nn.Sequential(hidden, nn.Tanh(), nn.Linear(5, classes)).double()


def in_batches(n: int, size: int, epochs: int = 1, seed: int = 3) -> list[list[int]]:
    """Cut shuffled positions into batches, the last one of each epoch ragged."""
    generator = np.random.default_rng(seed)
    orders = [generator.permutation(n).tolist() for _ in range(epochs)]
    return [order[i : i + size] for order in orders for i in range(0, n, size)]


def cnn() -> nn.Module:
    """Return a network for images (1, 6, 6), with layers that have several positions."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 2, stride=1),
        nn.GroupNorm(2, 4),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()


def make_images(seed: int = 0, n: int = 11) -> Data:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, 1, 6, 6)), generator.integers(0, 3, size=n)


def cross_entropies(module: nn.Module, batch: Any) -> Tensor:
    return functional.cross_entropy(module(*batch[:-1]), batch[-1], reduction="none")


def as_batch(module: nn.Module, data: Any) -> tuple[Tensor, ...]:
    """Return a set as one batch, its floating columns in the module's dtype."""
    dtype = next(module.parameters()).dtype
    columns = [torch.as_tensor(column) for column in data]
    return tuple(c.to(dtype) if c.is_floating_point() else c for c in columns)


@dataclass
class Traced:
    """A recorded run, and what was noted down beside it."""

    path: Path
    run: TrainingRun
    module: nn.Module
    train: Data
    states: list[dict[str, Tensor]]
    batches: list[list[int]]
    rates: list[dict[str, float]]
    risk: Callable[[nn.Module, Any], Tensor]

    @property
    def steps(self) -> range:
        """The steps 1 .. T."""
        return range(1, len(self.batches) + 1)

    def at(self, t: int) -> nn.Module:
        """Return a copy of the module with the parameters before step t, in evaluation mode."""
        module = copy.deepcopy(self.module)
        module.load_state_dict(self.states[t - 1])
        return module.eval()

    def gradients(self, t: int, data: Any) -> Dense:
        """Return each instance's gradient before step t, one backward pass an instance."""
        module = self.at(t)
        return gradients_by_loop(module, self.risk, as_batch(module, data), len(data[-1]))

    def risks(self, t: int, data: Any) -> NDArray[np.float64]:
        module = self.at(t)
        with torch.no_grad():
            return self.risk(module, as_batch(module, data)).double().numpy()


def trace(
    path: Path,
    module: nn.Module,
    train: Data,
    batches: Sequence[Sequence[int]],
    *,
    optimizer: torch.optim.Optimizer | None = None,
    rate: float = RATE,
    scheduler: Any = None,
    every: Any = 1,
    loss: str = "cross_entropy",
    risk: Callable[[nn.Module, Any], Tensor] = cross_entropies,
    reduction: str = "mean",
    load: Mapping[str, Any] | None = None,
    **options: Any,
) -> Traced:
    """Train as users do and record it; the module comes back in another state."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    optimizer = optimizer or torch.optim.SGD(module.parameters(), lr=rate)
    columns = as_batch(module, train)
    states, rates = [], []
    divisor = None if reduction == "mean" else 1.0
    module.train()
    with Recorder(
        path, module, optimizer, loss=loss, train=train, every=every, **options
    ) as recorder:
        for batch in batches:
            optimizer.zero_grad()
            risks = risk(module, tuple(column[batch] for column in columns))
            getattr(risks, reduction)().backward()
            states.append(copied(module))
            rates.append(
                {
                    names[id(parameter)]: float(group["lr"]) if parameter.requires_grad else 0.0
                    for group in optimizer.param_groups
                    for parameter in group["params"]
                }
            )
            recorder.step(np.asarray(batch), divisor=divisor)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    states.append(copied(module))
    optimizer.zero_grad()
    study = copy.deepcopy(module)
    with torch.no_grad():  # what the module holds is no concern of a recorded run's methods
        for parameter in study.parameters():
            parameter.add_(1.0)
    run = TrainingRun.load(path, study, **(load or {}))
    return Traced(path, run, study, train, states, [list(b) for b in batches], rates, risk)


def copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def influence_by_loops(
    traced: Traced,
    test: Any,
    weights: Mapping[int, Any] | Iterable[int],
    *,
    names: Callable[[str], bool] = lambda name: True,
    unit: bool = False,
) -> NDArray[np.float64]:
    """Return ``sum_t w_ti sum_p eta_tp <g_i, g_te>_p``, (n_test, n_train), at ``theta^(t-1)``.

    Parameters
    ----------
    traced, test
        The run, and the test set.
    weights : mapping or iterable
        For each step a weight, or one for each training instance; an iterable of steps has
        weights 1.
    names : callable
        Whether a parameter counts.
    unit : bool
        Whether gradients are divided by their norms (over the parameters with a rate).
    """
    if not isinstance(weights, Mapping):
        weights = dict.fromkeys(weights, 1.0)
    total = np.zeros((len(test[-1]), len(traced.train[-1])))
    for t, weight in weights.items():
        rates = traced.rates[t - 1]
        moved = [name for name, rate in rates.items() if rate and names(name)]
        train, other = (
            {name: g[name].double() for name in moved}
            for g in (traced.gradients(t, traced.train), traced.gradients(t, test))
        )
        products = inner_products(train, other, rates).T
        if unit:
            norms = flat(other).norm(dim=1)[:, None] * flat(train).norm(dim=1)[None, :]
            products = torch.where(norms > 0, products / norms.clamp_min(1e-300), 0.0)
        total += products.numpy() * np.asarray(weight)
    return total


def per_batch(traced: Traced, scales: Mapping[int, float] | None = None) -> dict[int, Any]:
    """Return eq. (54)'s weights: for each step, how often an instance stands in it, over |B|."""
    n = len(traced.train[-1])
    return {
        t: np.bincount(batch, minlength=n) / len(batch) * (scales or {}).get(t, 1.0)
        for t, batch in zip(traced.steps, traced.batches, strict=True)
    }


def error(found: Any, expected: Any) -> float:
    """Return the norm-wise relative error; infinite where there is nothing to compare with."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    size = np.linalg.norm(expected)
    return float(np.linalg.norm(found - expected) / size) if size else float("inf")
