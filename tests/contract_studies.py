"""What the contract studies that is no plain classifier: a risk that draws, words, players.

The first two have the layers that the contract's tests handle by their place in the network.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from proponent.dynamic.gan.run import AdversarialRun
from proponent.dynamic.gan.training import AdversarialTraining
from proponent.models.recorder import Recorder
from proponent.models.run import TrainingRun
from proponent.models.sampled_risk import Draw, SampledRisk

LEVELS = 4


class NoisyCrossEntropy(SampledRisk):
    """Cross-entropy with noise on the logits, a mean over draws."""

    def with_draws(self, module: nn.Module, batch: Any, draw: Draw) -> Tensor:
        logits = module(batch[0])
        noisy = logits[:, None] + 0.05 * draw((logits.shape[1],))
        target = batch[1][:, None].expand(noisy.shape[:2])
        return functional.cross_entropy(noisy.mT, target, reduction="none").mean(1)


def noisy_run(task: Any) -> TrainingRun:
    """Return the task's run with a risk that draws."""
    run = task.run()
    return TrainingRun.load(run.path, run.model.module, risk=NoisyCrossEntropy())


class Words(nn.Embedding):
    """Each feature is a word, one of four for its level; the text is their mean."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(features * LEVELS, width)

    def forward(self, x: Tensor) -> Tensor:
        levels = torch.bucketize(x, torch.tensor([-0.5, 0.1, 0.6], dtype=x.dtype))
        words = levels + LEVELS * torch.arange(x.shape[1])
        return super().forward(words).mean(1)


def word_run(task: Any) -> TrainingRun:
    """Return a recorded run of a network that reads features as words; trained once a task."""
    path = task.folder / "words"
    if not hasattr(task, "words"):
        task.words = _train(task, path)
    return TrainingRun.load(path, copy.deepcopy(task.words), loss="cross_entropy")


def _train(task: Any, path: Any) -> nn.Module:
    torch.manual_seed(1)
    features = task.train[0].shape[1]
    net = nn.Sequential(
        Words(features, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 3)
    ).double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    inputs, labels = map(torch.as_tensor, task.train)
    n = len(labels)
    with Recorder(path, net, optimizer, train=task.train, every=1) as recorder:
        for epoch in range(task._epochs):
            order = np.random.default_rng(epoch).permutation(n)
            for batch in np.array_split(order, max(1, n // 5)):
                optimizer.zero_grad()
                functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
                recorder.step(batch)
                optimizer.step()
    optimizer.zero_grad()
    return net.train()


class Player(nn.Module):
    """A player that does not look at labels."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(widths[0], widths[1]), nn.Tanh(), nn.Linear(widths[1], widths[2])
        ).double()

    def forward(self, x: Tensor, labels: Any = None) -> Tensor:
        return self.layers(x)


class Spread(float):
    """A metric of a generator, shown as a number so that a method with it can be shown."""

    def __call__(self, generator: nn.Module) -> Tensor:
        return self * generator(torch.randn(20, 2, dtype=torch.float64)).var(0)


def adversarial_run(task: Any) -> AdversarialRun:
    """Return a recorded adversarial training on the task's features; trained once a task."""
    path = task.folder / "adversarial"
    features = task.train[0].shape[1]
    torch.manual_seed(3)
    players = Player(2, 4, features), Player(features, 4, 1)
    if not path.exists():
        trained = copy.deepcopy(players)
        optimizers = [torch.optim.Adam(player.parameters(), lr=0.02) for player in trained]
        with AdversarialTraining(
            path, *trained, *optimizers, train=task.train, noise=2, every=3
        ) as training:
            training.run(steps=4, batch_size=7)
    return AdversarialRun.load(path, *players)
