"""The work of the retraining-based methods: neighbours, submodels, errors of sampled values.

    python -m benchmarks.retraining [workload ...] [--rounds N] [--write]

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
from pathlib import Path
from typing import Any

ONE_THREAD = {
    name: "1"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TQDM_DISABLE")
}


def main() -> None:
    """Measure the chosen workloads and print their tables."""
    from benchmarks.retraining_works import WORKS
    from benchmarks.table import write_section

    parser = argparse.ArgumentParser(prog="python -m benchmarks.retraining", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="workload", help=", ".join(WORKS))
    parser.add_argument("--rounds", type=int, default=3, help="turns (default: %(default)s)")
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(WORKS[options.worker], options.rounds)
        return
    typed = " ".join(["python -m benchmarks.retraining", *sys.argv[1:]])
    for name in options.workloads or list(WORKS):
        found = _ask(name, options.rounds)
        text = "\n".join(
            ["| what | measured | ratio | bar |", "|---|---|---|---|"]
            + [f"| {' | '.join(row)} |" for row in found["rows"]]
        )
        print(f"\n{found['title']}: {found['counts']}\n\n{text}", flush=True)
        if options.write:
            write_section(name, found["title"], found["counts"], text, typed)


def _work(work: Callable[[int], dict[str, Any]], rounds: int) -> None:
    warnings.simplefilter("ignore")
    json.dump(work(rounds), sys.stdout)


def _ask(name: str, rounds: int) -> Any:
    """Let a fresh single-threaded process, in an empty folder, carry out a workload."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.retraining"),
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
