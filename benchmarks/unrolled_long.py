"""HyDRA and SGD-Influence along a long run of a large network that was recorded sparsely.

    python -m benchmarks.unrolled_long [--steps N] [--tests M] [--write]

An MLP with half a million parameters; the states of every thousandth step are stored. What is on
disk, what memory is taken beyond that of the training, and how long each takes; every method in a
process of its own, single-threaded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retraining import ONE_THREAD
from benchmarks.unrolled import BATCH, MOMENTUM, N_TRAIN, RATE, _module, _sets

WIDTHS = (784, 512, 256, 10)
EVERY = 1000
MEMORY = 256 * 2**20
METHODS = {"fast": "HyDRA, fast", "sgd": "SGD-Influence"}
MEGABYTE = 2**20


def main() -> None:
    """Record the run, let each method go along it, and print the table."""
    from benchmarks.table import write_section

    parser = argparse.ArgumentParser(prog="python -m benchmarks.unrolled_long", description=__doc__)
    parser.add_argument("--steps", type=int, default=10_000, help="default: %(default)s")
    parser.add_argument("--tests", type=int, default=5, help="of SGD-Influence; HyDRA has 20")
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    parser.add_argument("--worker", choices=["record", *METHODS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        warnings.simplefilter("ignore")
        json.dump(_work(options.worker, options.steps, options.tests), sys.stdout)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for worker in ("record", *METHODS):
            found = _ask(worker, options.steps, options.tests, folder)
            print(worker, found, flush=True)
            if worker == "record":
                disk = sum(file.stat().st_size for file in Path(folder).rglob("*"))
                one = found["parameters"] * 2 * 4  # the parameters and their momentum, float32
                rows.append(
                    f"| recording | | {found['cpu']:.0f} | | {disk / MEGABYTE:.0f} MB on disk, of "
                    f"which {found['states']} states of {one / MEGABYTE:.1f} MB; each step's would "
                    f"take {options.steps * one / MEGABYTE:,.0f} MB |"
                )
                rows.append(f"| a replay | | {found['replay']:.0f} | 1 | |")
                floor = found["replay"]
            else:
                rows.append(
                    f"| **{METHODS[worker]}** | {found['tests']} | {found['cpu']:.0f} | "
                    f"{found['cpu'] / floor:.3g} | {found['megabytes']:.0f} MB of memory |"
                )
    header = "| what | tests | CPU s | replays | takes |\n|---|---|---|---|---|\n"
    shape = "-".join(map(str, WIDTHS))
    counts = (
        f"MLP {shape}, float32, SGD with momentum, {options.steps:,} steps of {BATCH}, recorded "
        f"with `every={EVERY}, optimizer_state=True`; {N_TRAIN} training instances; "
        f"`memory={MEMORY // MEGABYTE} * 2**20`. Memory is resident, above that of the process "
        f"before `fit`."
    )
    text = header + "\n".join(rows)
    print(f"\n{counts}\n\n{text}")
    if options.write:
        typed = " ".join(["python -m benchmarks.unrolled_long", *sys.argv[1:]])
        write_section("unrolled-long", "A long run, unrolled", counts, text, typed)


def _work(worker: str, steps: int, tests: int) -> dict[str, float]:
    """Return what was seen; in the folder of the run, single-threaded."""
    import torch

    import proponent as pp

    train, test = _sets(WIDTHS[0])
    module = _module(WIDTHS)
    if worker == "record":
        start = time.process_time()
        _record(module, train, steps)
        spent = time.process_time() - start
        from proponent.dynamic.replay import Replay

        run = pp.TrainingRun.load("run", module)
        start = time.process_time()
        for _ in Replay(run, train, by="the benchmark").forward():
            pass
        replay = time.process_time() - start
        count = sum(value.numel() for value in module.parameters())
        return {"cpu": spent, "replay": replay, "parameters": count, "states": len(run.checkpoints)}
    run = pp.TrainingRun.load("run", module)
    m = tests if worker == "sgd" else len(test[1])
    chosen = tuple(column[:m] for column in test)
    # What the first forward and backward pass takes belongs to no method.
    torch.nn.functional.cross_entropy(
        module(torch.from_numpy(train[0][:BATCH])), torch.from_numpy(train[1][:BATCH])
    ).backward()
    module.zero_grad()
    before, start = _peak(), time.process_time()
    method = pp.HyDRA("fast", memory=MEMORY) if worker == "fast" else pp.SGDInfluence(memory=MEMORY)
    influence = method.fit(run, train).influence(chosen)
    spent = time.process_time() - start
    if not np.isfinite(influence.values).all():
        raise RuntimeError(f"{METHODS[worker]}: influence is not finite.")
    return {"tests": m, "cpu": spent, "megabytes": _peak() - before}


def _record(module: Any, train: Any, steps: int) -> None:
    import torch
    from torch.nn.functional import cross_entropy

    import proponent as pp

    optimizer = torch.optim.SGD(module.parameters(), lr=RATE / 10, momentum=MOMENTUM)
    x, y = (torch.from_numpy(column) for column in train)
    rng = np.random.default_rng(0)
    recorder = pp.Recorder(
        "run",
        module,
        optimizer,
        loss="cross_entropy",
        train=train,
        every=EVERY,
        optimizer_state=True,
    )
    with recorder:
        taken = 0
        while taken < steps:
            for batch in np.split(rng.permutation(N_TRAIN), N_TRAIN // BATCH)[: steps - taken]:
                indices = torch.from_numpy(batch)
                optimizer.zero_grad()
                cross_entropy(module(x[indices]), y[indices]).backward()
                recorder.step(batch)
                optimizer.step()
                taken += 1


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MEGABYTE


def _ask(worker: str, steps: int, tests: int, folder: str) -> Any:
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.unrolled_long", "--worker", worker),
            *("--steps", str(steps), "--tests", str(tests)),
        ],
        env=os.environ | ONE_THREAD | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        cwd=folder,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
