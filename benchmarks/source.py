"""How well SOURCE predicts retraining: digits, an MLP that has or has not converged.

    python -m benchmarks.source [--quick] [--write]

Leave-one-out is measured with the recorded initialisation and batches, the instance's weight set
to 0: all n models at once, in float64.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import proponent as pp
from proponent.datasets import digits
from proponent.dynamic.source import SOURCE
from proponent.evaluation import loo_correlation

BATCH = 20
WRONG = 0.1  # part of the training labels that are drawn anew
STATES = 6  # stored before a step; the end is stored too


@dataclass(frozen=True)
class Training:
    """How the network is trained."""

    name: str
    epochs: int
    rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        settings = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return torch.optim.SGD(parameters, lr=self.rate, **settings)


TRAININGS = (
    Training("20 epochs at 0.1", 20, 0.1),
    Training("50 epochs at 0.2", 50, 0.2),
    Training("40 epochs at 0.05, momentum 0.9, weight decay 0.001", 40, 0.05, 0.9, 0.001),
)


@dataclass(frozen=True)
class Trained:
    """A recorded run, its sets, and what leaving each instance out does."""

    run: pp.TrainingRun
    model: pp.TorchModel
    train: tuple[NDArray[Any], NDArray[Any]]
    test: tuple[NDArray[Any], NDArray[Any]]
    loo: NDArray[np.float64]


def trained(training: Training, folder: Path, *, n: int, n_test: int, hidden: int) -> Trained:
    """Train and record a network of one hidden layer, and all those that lack an instance."""
    images, labels = digits()
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))[: n + n_test]
    x, y = images[order].reshape(-1, 64).astype(float), labels[order].copy()
    wrong = rng.permutation(n)[: int(WRONG * n)]
    y[wrong] = rng.integers(0, 10, len(wrong))
    train, test = (x[:n], y[:n]), (x[n:], y[n:])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, hidden), nn.Tanh(), nn.Linear(hidden, 10)).double()
    orders = (rng.permutation(n) for _ in range(training.epochs))
    batches = [order[i : i + BATCH] for order in orders for i in range(0, n, BATCH)]
    weights = torch.ones(n + 1, n, dtype=torch.float64)
    weights[range(n), range(n)] = 0.0
    risks = many(net, training, train, test, batches, weights)
    optimizer = training.optimizer(net.parameters())
    every = -(-len(batches) // STATES)
    with pp.Recorder(
        folder, net, optimizer, loss="cross_entropy", train=train, every=every
    ) as recorder:
        for batch in batches:
            optimizer.zero_grad()
            outputs = net(torch.from_numpy(x[batch]))
            functional.cross_entropy(outputs, torch.from_numpy(y[batch])).backward()
            recorder.step(batch)
            optimizer.step()
    run = pp.TrainingRun.load(folder, net)
    model = pp.TorchModel(net, loss="cross_entropy")
    return Trained(run, model, train, test, (risks[:-1] - risks[-1]).T.numpy())


def many(
    net: nn.Sequential,
    training: Training,
    train: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]],
    batches: list[NDArray[np.int64]],
    weights: Tensor,
) -> Tensor:
    """Return the test risks, (K, n_test), of K networks trained with weights (K, n)."""
    k = len(weights)
    copies = [value.detach().expand(k, *value.shape).clone() for value in net.parameters()]
    first, shift, second, offset = (value.requires_grad_() for value in copies)
    optimizer = training.optimizer([first, shift, second, offset])
    x, y = map(torch.from_numpy, train)

    def risks(inputs: Tensor, targets: Tensor) -> Tensor:
        inside = torch.tanh(inputs @ first.mT + shift[:, None])
        outputs = inside @ second.mT + offset[:, None]
        flat = functional.cross_entropy(outputs.flatten(0, 1), targets.repeat(k), reduction="none")
        return flat.view(k, -1)

    for batch in batches:
        optimizer.zero_grad()
        ((risks(x[batch], y[batch]) * weights[:, batch]).sum() / len(batch)).backward()
        optimizer.step()
    with torch.no_grad():
        return risks(*map(torch.from_numpy, test))


def methods(decay: float) -> Mapping[str, Callable[[Trained], Any]]:
    """Return what is compared, by name."""

    def source(**settings: Any) -> Callable[[Trained], Any]:
        return lambda it: SOURCE(**settings).fit(it.run, it.train)

    def influence(solver: str) -> Callable[[Trained], Any]:
        return lambda it: pp.InfluenceFunctions(solver, weight_decay=decay).fit(it.model, it.train)

    return {
        "SOURCE, EK-FAC": source(),
        "SOURCE, EK-FAC, one segment": source(segments=1),
        "SOURCE, explicit": source(solver="explicit"),
        "InfluenceFunctions, EK-FAC": influence("ekfac"),
        "InfluenceFunctions, explicit": influence("explicit"),
        "TracInCP": lambda it: pp.TracInCP().fit(it.run, it.train),
        "GradientDot": lambda it: pp.GradientDot().fit(it.model, it.train),
    }


def estimates(it: Trained, decay: float) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """Go through the methods: name, and influence ``(n_test, n)``."""
    for name, fitted in methods(decay).items():
        yield name, np.asarray(fitted(it).influence(it.test).values, dtype=float)


def main() -> None:
    """Print the table."""
    from benchmarks.table import write_section

    parser = argparse.ArgumentParser(prog="python -m benchmarks.source", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small set, to see that it runs")
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    n, n_test, hidden = (60, 10, 6) if options.quick else (200, 40, 16)
    lines = [
        "| training | method | Pearson, mean over tests | Spearman | best factor |",
        "|---|---|---|---|---|",
    ]
    for training in TRAININGS:
        with tempfile.TemporaryDirectory() as folder:
            it = trained(training, Path(folder) / "run", n=n, n_test=n_test, hidden=hidden)
            risk = float(it.model.risks(it.train).mean())
            for name, values in estimates(it, training.weight_decay):
                found = loo_correlation(values, it.loo)
                scale = float((values * it.loo).sum() / np.square(values).sum())
                lines.append(
                    f"| {training.name} (risk {risk:.2f}) | {name} | {found.mean_pearson} | "
                    f"{found.mean_spearman} | {scale:.2g} |"
                )
    text = "\n".join(lines)
    counts = (
        f"n = {n}, {WRONG:.0%} of the labels wrong, m = {n_test}, {hidden} hidden units, "
        f"{STATES + 1} stored states; leave-one-out with the recorded batches."
    )
    print(f"\n{counts}\n\n{text}")
    if options.write:
        typed = " ".join(["python -m benchmarks.source", *sys.argv[1:]])
        write_section("source", "SOURCE against retraining", counts, text, typed)


if __name__ == "__main__":
    main()
