"""HyDRA and SGD-Influence against one replay of the training that they differentiate.

    python -m benchmarks.unrolled [workload ...] [--rounds N] [--write]

Each workload runs in a process of its own, single-threaded. What is compared takes turns, and the
smallest CPU time of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retraining import ONE_THREAD

N_TRAIN, N_TEST, BATCH = 1600, 20, 32
RATE, MOMENTUM = 0.05, 0.9
WORKS = {
    "unrolled-small": ("An MLP on digits, unrolled", (64, 64, 10), 4),
    "unrolled-large": ("Half a million parameters, unrolled", (784, 512, 256, 10), 4),
}


def main() -> None:
    """Measure the chosen workloads and print their tables."""
    from benchmarks.table import write_section

    parser = argparse.ArgumentParser(prog="python -m benchmarks.unrolled", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="workload", help=", ".join(WORKS))
    parser.add_argument("--rounds", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        warnings.simplefilter("ignore")
        json.dump(work(options.worker, options.rounds), sys.stdout)
        return
    typed = " ".join(["python -m benchmarks.unrolled", *sys.argv[1:]])
    for name in options.workloads or list(WORKS):
        found = _ask(name, options.rounds)
        text = "\n".join(
            ["| what | measured | ratio | bar |", "|---|---|---|---|"]
            + [f"| {' | '.join(row)} |" for row in found["rows"]]
        )
        print(f"\n{found['title']}: {found['counts']}\n\n{text}", flush=True)
        if options.write:
            write_section(name, found["title"], found["counts"], text, typed)


def work(name: str, rounds: int) -> dict[str, Any]:
    """Return the rows of a workload's table."""
    from benchmarks.measure import Seconds
    from proponent.dynamic.hydra import HyDRA
    from proponent.dynamic.replay import Replay
    from proponent.dynamic.sgd_influence import SGDInfluence
    from proponent.models.run import TrainingRun

    title, widths, epochs = WORKS[name]
    train, test = _sets(widths[0])
    batches = _batches(epochs)
    path = Path("run")
    _train(widths, train, batches, path)
    run = TrainingRun.load(path, _module(widths))
    replay = Replay(run, train, by="the benchmark")
    fast = HyDRA("fast").fit(run, train)
    standard = SGDInfluence().fit(run, train)

    def replayed() -> None:
        for _ in replay.forward():
            pass

    works: dict[str, Callable[[], Any]] = {
        "training, a plain loop": lambda: _train(widths, train, batches, None),
        "one replay": replayed,
        "**HyDRA, fast**": lambda: fast.influence(test),
        "**SGD-Influence**": lambda: standard.influence(test),
    }
    bars = {"**HyDRA, fast**": "1.5", "**SGD-Influence**": "16"}
    seconds = {what: Seconds() for what in works}
    for _ in range(rounds):
        for what, piece in works.items():
            seconds[what].add(piece)
    floor = seconds["one replay"].cpu
    rows = [
        (
            what,
            f"{1e3 * spent.cpu / len(batches):.3g} ms a step",
            f"{spent.cpu / floor:.3g}",
            bars.get(what, ""),
        )
        for what, spent in seconds.items()
    ]
    shape = "-".join(map(str, widths))
    counts = (
        f"MLP {shape}, float32, SGD with momentum, {len(batches)} steps of {BATCH}, checkpoints "
        f"each epoch; {N_TRAIN} training and {N_TEST} test instances; ratios to one replay."
    )
    return {"title": title, "counts": counts, "rows": rows}


def _sets(features: int) -> tuple[Any, Any]:
    """Return handwritten digits, magnified to 28 by 28 where the module takes that many."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    if features == 784:
        x = np.kron(x.reshape(-1, 8, 8), np.ones((4, 4)))[:, 2:30, 2:30].reshape(-1, 784)
    x = np.ascontiguousarray(x / 16, dtype=np.float32)
    stop = N_TRAIN + N_TEST
    return (x[:N_TRAIN], y[:N_TRAIN]), (x[N_TRAIN:stop], y[N_TRAIN:stop])


def _batches(epochs: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    orders = [rng.permutation(N_TRAIN) for _ in range(epochs)]
    return [part for order in orders for part in np.split(order, N_TRAIN // BATCH)]


def _module(widths: tuple[int, ...]) -> Any:
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _train(widths: tuple[int, ...], train: Any, batches: list[Any], path: Path | None) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    from proponent.models.recorder import Recorder

    module = _module(widths)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=MOMENTUM)
    x, y = (torch.from_numpy(column) for column in train)
    recorder = None
    if path is not None:
        recorder = Recorder(path, module, optimizer, loss="cross_entropy", train=train)
        recorder.open()
    for batch in batches:
        indices = torch.from_numpy(batch)
        optimizer.zero_grad()
        cross_entropy(module(x[indices]), y[indices]).backward()
        if recorder is not None:
            recorder.step(batch)
        optimizer.step()
    if recorder is not None:
        recorder.close()


def _ask(name: str, rounds: int) -> Any:
    """Let a fresh single-threaded process, in an empty folder, carry out a workload."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.unrolled"),
                *("--worker", name, "--rounds", str(rounds)),
            ],
            env=os.environ | ONE_THREAD | {"PYTHONPATH": str(root)},
            cwd=folder,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return json.loads(finished.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
