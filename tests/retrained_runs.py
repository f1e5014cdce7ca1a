"""Recorded runs for the tests of the unrolled methods, and the same training with other weights.

The training is written out once more, in float64, with a weight for each training instance: what
the methods differentiate is differentiated here by central differences.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from traced_runs import Data, as_batch, cross_entropies, in_batches, make_set, mlp

import proponent as pp

N = 13
Weigh = Callable[[int, Tensor, Any], Tensor]
TRAIN, TEST = make_set(), make_set(1, n=4)


@dataclass
class Setup:
    """How a small network is trained.

    Parameters
    ----------
    optimizer : callable
        Returns the optimizer of a module.
    module : callable
        Returns a fresh module.
    train, test : data
    batches : list of list of int
    clip : float, optional
        Bound of the gradient's norm.
    decay : float
        What a schedule multiplies the learning rates by at each step.
    record : dict
        Further options of the recorder.
    """

    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    module: Callable[[], nn.Module] = mlp
    train: Data = TRAIN
    test: Data = TEST
    batches: list[list[int]] = field(default_factory=lambda: in_batches(N, 5, 3))
    clip: float | None = None
    decay: float = 1.0
    record: dict[str, Any] = field(default_factory=dict)

    def steps(self, weigh: Weigh, path: Any = None) -> nn.Module:
        """Train, the loss of step t being ``weigh(t, risks, batch)``; record it at a path."""
        module = self.module().double().train()
        optimizer = self.optimizer(module)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, self.decay)
        columns = as_batch(module, self.train)
        options = {"loss": "cross_entropy", "train": self.train, "every": 4} | self.record
        recorder = None
        if path is not None:
            recorder = pp.Recorder(path, module, optimizer, overwrite=True, **options)
            recorder.open()
        for t, batch in enumerate(self.batches, 1):
            optimizer.zero_grad()
            risks = cross_entropies(module, tuple(column[batch] for column in columns))
            weigh(t, risks, batch).backward()
            scale = 1.0
            if self.clip is not None:
                norm = nn.utils.clip_grad_norm_(module.parameters(), self.clip)
                scale = min(1.0, self.clip / (float(norm) + 1e-6))
            if recorder is not None:
                recorder.step(batch, clip_scale=scale)
            optimizer.step()
            schedule.step()
        if recorder is not None:
            recorder.close()
        return module

    def recorded(self, path: Any) -> pp.TrainingRun:
        """Train and record; return the run, loaded into a fresh module."""
        self.steps(lambda t, risks, batch: risks.mean(), path)
        return pp.TrainingRun.load(path, self.module().double())

    def test_risks(self, module: nn.Module) -> NDArray[np.float64]:
        module = copy.deepcopy(module).eval()
        with torch.no_grad():
            return cross_entropies(module, as_batch(module, self.test)).numpy()

    def differences(
        self,
        instance: int,
        *,
        reduced: bool = False,
        first: int = 1,
        width: float = 1e-5,
        path: Any = None,
    ) -> tuple[NDArray[np.float64], dict[str, Tensor]]:
        """Return the slopes, towards the removal of an instance, of test risks and parameters.

        Central differences of fourth order in the share of the instance that is removed from
        step ``first`` on. With a path each training is recorded there, which seeds it.
        """
        weigh = partial(_reduced if reduced else _kept, instance, first)
        found = []
        for share in (2 * width, width, -width, -2 * width):
            module = self.steps(partial(weigh, share), path)
            parameters = {name: p.detach() for name, p in module.named_parameters()}
            found.append((self.test_risks(module), parameters))
        weights = np.array([-1, 8, -8, 1]) / (12 * width)
        risks = sum(weight * risk for weight, (risk, _) in zip(weights, found, strict=True))
        moved = {
            name: sum(w * p[name] for w, (_, p) in zip(weights, found, strict=True))
            for name in found[0][1]
        }
        return risks, moved


def _kept(instance: int, first: int, share: float, t: int, risks: Tensor, batch: Any) -> Tensor:
    """Return the mean risk with a share of an instance's risks taken out."""
    share = share if t >= first else 0.0
    left = [1.0 - share * (index == instance) for index in batch]
    return (torch.tensor(left, dtype=torch.float64) * risks).mean()


def _reduced(instance: int, first: int, share: float, t: int, risks: Tensor, batch: Any) -> Tensor:
    """Return the mean risk, that share of the way to the mean over the other instances."""
    share = share if t >= first else 0.0
    others = torch.tensor([index != instance for index in batch])
    return (1.0 - share) * risks.mean() + share * risks[others].mean()


def relative_error(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found), np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def two_groups(module: nn.Module, kind: Any, **settings: Any) -> torch.optim.Optimizer:
    """Return an optimizer with a group for the first layer and another for the rest."""
    first, *rest = list(module.children())
    others = [p for part in rest for p in part.parameters()]
    return kind(
        [
            {"params": list(first.parameters())},
            {"params": others, "lr": 0.07, "weight_decay": 0.0},
        ],
        **settings,
    )
