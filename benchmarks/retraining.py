"""The work of the retraining-based methods: neighbours, submodels, errors of sampled values.

    python -m benchmarks.retraining [workload ...] [--rounds N] [--write] [--peer PYTHON]

Each workload runs in a process of its own, single-threaded. What is compared takes turns, and the
smallest CPU time of each counts. With ``--peer``, the interpreter of an environment that has
pyDVL, its rows follow each workload's own, with ratios to the floor in that environment.
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
    parser.add_argument("--peer", metavar="PYTHON", help="of an environment with pyDVL")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(WORKS[options.worker], options.rounds)
        return
    given = ["PYTHON" if word == options.peer else word for word in sys.argv[1:]]
    typed = " ".join(["python -m benchmarks.retraining", *given])
    for name in options.workloads or list(WORKS):
        root = Path(__file__).parent
        ours = ["-m", "benchmarks.retraining", "--worker", name, "--rounds", str(options.rounds)]
        found = _ask([sys.executable, *ours], root.parent)
        if options.peer:
            theirs = [str(root / "retraining_peer.py"), name, str(options.rounds)]
            found["rows"] += _ask([options.peer, *theirs], None)
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


def _ask(command: list[str], root: Path | None) -> Any:
    """Let a fresh single-threaded process, in an empty folder, carry out a workload."""
    path = {} if root is None else {"PYTHONPATH": str(root)}
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            command,
            env=os.environ | ONE_THREAD | path,
            cwd=folder,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return json.loads(finished.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
