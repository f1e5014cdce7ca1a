"""The work of the methods for tree ensembles: speed, usefulness, memory.

    python -m benchmarks.trees [workload ...] [--rounds N] [--write]

Each workload runs in a process of its own, single-threaded. What is compared for speed takes
turns, and the smallest CPU time of each counts; for usefulness a round is a seed.
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
from pathlib import Path
from typing import Any

ONE_THREAD = {
    name: "1"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TQDM_DISABLE")
}


def main() -> None:
    """Measure the chosen workloads and print their tables."""
    from benchmarks.table import write_section

    works = _works()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trees", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="workload", help=", ".join(works))
    parser.add_argument("--rounds", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(works[options.worker], options.rounds)
        return
    if unknown := set(options.workloads) - set(works):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(works)}")
    typed = " ".join(["python -m benchmarks.trees", *sys.argv[1:]])
    for name in options.workloads or list(works):
        found = _ask(name, options.rounds)
        lines = [found["header"], ["---"] * len(found["header"]), *found["rows"]]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        print(f"\n{found['title']}: {found['counts']}\n\n{text}", flush=True)
        if options.write:
            write_section(name, found["title"], found["counts"], text, typed)


def _works() -> dict[str, Callable[[int], dict[str, Any]]]:
    from benchmarks.trees_scale import scale
    from benchmarks.trees_speed import against_catboost, speed
    from benchmarks.trees_useful import useful_for_classes, useful_for_regression

    return {
        "trees-speed": speed,
        "trees-catboost": against_catboost,
        "trees-useful-binary": useful_for_classes,
        "trees-useful-regression": useful_for_regression,
        "trees-scale": scale,
    }


def _work(work: Callable[[int], dict[str, Any]], rounds: int) -> None:
    warnings.simplefilter("ignore")
    found = work(rounds)
    print(json.dumps(found), flush=True)


def _ask(name: str, rounds: int) -> Any:
    """Let a fresh single-threaded process, in an empty folder, carry out a workload."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.trees"),
                *("--worker", name, "--rounds", str(rounds)),
            ],
            # Compiled anew, so that what that takes is seen.
            env=os.environ | ONE_THREAD | {"PYTHONPATH": str(root), "NUMBA_CACHE_DIR": folder},
            cwd=folder,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return json.loads(finished.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
