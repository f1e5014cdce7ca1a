"""What recording a run costs: training epochs with a recorder, over the same ones without.

OMP_NUM_THREADS=1 python -m benchmarks.recording
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

import proponent as pp

N, BATCH, EPOCHS = 10_000, 100, 15
WIDTHS = (784, 512, 256, 10)
POLICIES: dict[str, Any] = {
    "no recorder": None,
    "every epoch": "epoch",
    "every 10 steps": 10,
    "every step": 1,
}


def make_net() -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(WIDTHS):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def epochs(X: torch.Tensor, y: torch.Tensor, every: Any, path: Path) -> Iterator[float]:
    """Train for ever; give the seconds of each epoch, recorded unless `every` is None."""
    net = make_net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    with ExitStack() as stack:
        recorder = None
        if every is not None:
            options: dict[str, Any] = {"loss": "cross_entropy", "train": (X, y), "every": every}
            recorder = stack.enter_context(pp.Recorder(path, net, optimizer, **options))
        while True:
            start = time.perf_counter()
            for indices in torch.randperm(N).split(BATCH):
                optimizer.zero_grad()
                functional.cross_entropy(net(X[indices]), y[indices]).backward()
                if recorder is not None:
                    recorder.step(indices)
                optimizer.step()
            yield time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    X, y = torch.randn(N, WIDTHS[0]), torch.randint(0, WIDTHS[-1], (N,))
    with tempfile.TemporaryDirectory() as folder:
        running = {
            name: epochs(X, y, every, Path(folder) / name.replace(" ", "-"))
            for name, every in POLICIES.items()
        }
        # In turns, so that whatever else the machine does meets all of them alike.
        rounds = [{name: next(times) for name, times in running.items()} for _ in range(EPOCHS)]
        for times in running.values():
            times.close()
    print(f"MLP {'-'.join(map(str, WIDTHS))}, n={N:,}, batch {BATCH}, one thread")
    print(f"{'parameters stored':18} {'s an epoch':>10} {'ratio':>6} {'of the best':>12}")
    base = min(found["no recorder"] for found in rounds[1:])
    for name in POLICIES:
        seconds = [found[name] for found in rounds[1:]]
        ratios = [found[name] / found["no recorder"] for found in rounds[1:]]
        median = statistics.median(seconds)
        print(
            f"{name:18} {median:10.3f} {statistics.median(ratios):6.2f} {min(seconds) / base:12.2f}"
        )


if __name__ == "__main__":
    main()
