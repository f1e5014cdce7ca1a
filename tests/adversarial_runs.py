"""Small adversarial trainings, and the same in plain loops with weights on the instances."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from proponent.dynamic.gan.run import AdversarialRun
from proponent.dynamic.gan.training import AdversarialTraining

N = 6
LATENT = 2


def make_data(n: int = N, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal([2.0, -1.0], size=(n, 2)))


def make_players(seed: int = 0, *, normalised: bool = False, conditions: int = 0):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(4)] if normalised else []
    generator = nn.Sequential(
        nn.Linear(LATENT + conditions, 4), *middle, nn.Tanh(), nn.Linear(4, 2)
    )
    discriminator = nn.Sequential(nn.Linear(2 + conditions, 4), nn.Tanh(), nn.Linear(4, 1))
    return generator.double(), discriminator.double()


def sgd(**options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda module: torch.optim.SGD(module.parameters(), **{"lr": 0.2, **options})


def adam(**options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda module: torch.optim.Adam(module.parameters(), **{"lr": 0.02, **options})


def adamw(**options: Any) -> Callable[[nn.Module], torch.optim.Optimizer]:
    return lambda module: torch.optim.AdamW(module.parameters(), **{"lr": 0.02, **options})


def alternating(steps: int = 5, discriminator_steps: int = 1) -> list[tuple[str, list[int]]]:
    """Return a plan in which the last batch has an instance twice."""
    order = np.random.default_rng(3)
    plan: list[tuple[str, list[int]]] = []
    for _ in range(steps):
        for _ in range(discriminator_steps):
            plan.append(("discriminator", order.permutation(N)[:4].tolist()))
        plan.append(("generator", []))
    plan[-2] = ("discriminator", [1, 1, 4])
    return plan


def simultaneous(steps: int = 6) -> list[tuple[str, list[int]]]:
    order = np.random.default_rng(3)
    return [("both", order.permutation(N)[:4].tolist()) for _ in range(steps)]


class Drawn:
    """Standard normal noise that keeps what it drew."""

    def __init__(self) -> None:
        self.draws: list[Tensor] = []

    def __call__(self, n: int) -> Tensor:
        self.draws.append(torch.randn(n, LATENT, dtype=torch.float64))
        return self.draws[-1]


@dataclass
class Recorded:
    """A recorded training with what a plain loop needs to take it again."""

    run: AdversarialRun
    train: tuple[Tensor, ...]
    start: tuple[nn.Module, nn.Module]
    trained: tuple[nn.Module, nn.Module]
    plan: Sequence[tuple[str, list[int]]]
    noises: list[Tensor]
    optimizers: tuple[Any, Any]


def record(
    path: Path,
    plan: Sequence[tuple[str, list[int]]],
    optimizer: Any,
    *,
    train: Tensor | None = None,
    players: tuple[nn.Module, nn.Module] | None = None,
    **options: Any,
) -> Recorded:
    """Train by a plan and record it."""
    data = (make_data() if train is None else train,)
    start = make_players() if players is None else players
    generator, discriminator = copy.deepcopy(start)
    noise = Drawn()
    with AdversarialTraining(
        path,
        generator,
        discriminator,
        optimizer(generator),
        optimizer(discriminator),
        train=data,
        noise=noise,
        **{"loss": "bce", "every": 4, **options},
    ) as training:
        for kind, indices in plan:
            if kind == "generator":
                training.generator_step(3)
            elif kind == "discriminator":
                training.discriminator_step(indices)
            else:
                training.joint_step(indices)
    draws = list(noise.draws)
    given = {"loss": options["loss"]} if not isinstance(options.get("loss", ""), str) else {}
    run = AdversarialRun.load(path, generator, discriminator, noise=noise, **given)
    trained = (generator, discriminator)
    return Recorded(run, data, start, trained, plan, draws, (optimizer, optimizer))


def retrain(recorded: Recorded, weights: NDArray[np.float64], max_norm: float | None = None):
    """Take the training again in a plain loop, with weights (n,) on the instances' terms."""
    generator, discriminator = copy.deepcopy(recorded.start)
    optimizers = {
        "generator": recorded.optimizers[0](generator),
        "discriminator": recorded.optimizers[1](discriminator),
    }
    given = torch.from_numpy(weights)
    for (kind, indices), noise in zip(recorded.plan, recorded.noises, strict=True):
        losses = {}
        fake = generator(noise)
        if kind != "generator":
            real = discriminator(recorded.train[0][indices])[:, 0]
            judged = discriminator(fake)[:, 0]
            zeros, ones = torch.zeros_like(judged), torch.ones_like(real)
            terms = functional.binary_cross_entropy_with_logits(real, ones, reduction="none")
            losses["discriminator"] = (given[indices] * terms).sum() / len(indices)
            losses["discriminator"] += functional.binary_cross_entropy_with_logits(judged, zeros)
        if kind != "discriminator":
            judged = discriminator(fake)[:, 0]
            losses["generator"] = functional.binary_cross_entropy_with_logits(
                judged, torch.ones_like(judged)
            )
        modules = {"generator": generator, "discriminator": discriminator}
        found = {
            player: torch.autograd.grad(loss, list(modules[player].parameters()), retain_graph=True)
            for player, loss in losses.items()
        }
        for player, gradients in found.items():
            for parameter, gradient in zip(modules[player].parameters(), gradients, strict=True):
                parameter.grad = gradient.clone()
            if max_norm is not None:
                torch.nn.utils.clip_grad_norm_(modules[player].parameters(), max_norm)
            optimizers[player].step()
    return generator, discriminator


def by_differences(
    recorded: Recorded,
    metric: Callable[[nn.Module], Tensor],
    *,
    step: float = 3e-4,
    retrain: Callable[..., Any] = retrain,
    **options: Any,
) -> NDArray[np.float64]:
    """Return the derivatives of the metric by the instances' weights, ``(k, n)``."""
    n = len(recorded.train[0])

    def at(instance: int, change: float) -> NDArray[np.float64]:
        weights = np.ones(n)
        weights[instance] += change
        generator = retrain(recorded, weights, **options)[0].eval()
        return np.atleast_1d(metric(generator).detach().numpy())

    columns = []
    for i in range(n):
        near = at(i, step) - at(i, -step)
        far = at(i, 2 * step) - at(i, -2 * step)
        columns.append((8 * near - far) / (12 * step))
    return np.stack(columns, axis=1)


PROBE = torch.from_numpy(np.random.default_rng(9).normal(size=(7, LATENT)))


def moments(generator: nn.Module) -> Tensor:
    """Return a mean and a spread of what the generator makes, (2,)."""
    made = generator(PROBE)
    return torch.stack([made[:, 0].mean() - made[:, 1].square().mean(), made.var(0).sum()])


class Judge(nn.Sequential):
    """A discriminator that looks at the features alone, where instances have labels too."""

    def forward(self, features: Tensor, label: Tensor | None = None) -> Tensor:
        return super().forward(features)


def adversarial_run(task: Any) -> AdversarialRun:
    """Return a recorded adversarial training on a task of the contract."""
    torch.manual_seed(1)
    features = task.train[0].shape[1]
    players = nn.Linear(LATENT, features), Judge(nn.Linear(features, 5), nn.Tanh(), nn.Linear(5, 1))
    for player in players:
        player.double()
    optimizers = [torch.optim.Adam(player.parameters(), lr=0.02) for player in players]
    path = task.folder / "adversarial"
    options = {"train": task.train, "noise": LATENT, "overwrite": True}
    with AdversarialTraining(path, *players, *optimizers, **options) as training:
        training.run(12, batch_size=5)
    return AdversarialRun.load(path, *players)
