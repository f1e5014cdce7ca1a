"""Run benchmarks: ``python -m benchmarks [workload ...]``; see ``--help``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ONE_THREAD = {
    name: "1"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TQDM_DISABLE")
}


def main(arguments: list[str] | None = None) -> None:
    """Measure the chosen workloads, each in processes of its own, and print their tables."""
    from benchmarks.implementations import IMPLEMENTATIONS
    from benchmarks.table import markdown, write
    from benchmarks.workloads import RECIPES

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="workload", help=", ".join(RECIPES))
    parser.add_argument(
        "--only",
        default=",".join(IMPLEMENTATIONS),
        help="implementations, separated by commas (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=60.0, help="seconds an implementation (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="small sets, to see that it runs")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    options = parser.parse_args(arguments)
    chosen, names = options.workloads or list(RECIPES), options.only.split(",")
    for given, known in ((chosen, RECIPES), (names, IMPLEMENTATIONS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")

    typed = " ".join(["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    for name in chosen:
        request = {"workload": name, "quick": options.quick, "names": names}
        found = _ask(request | {"what": "time", "rounds": options.rounds, "limit": options.limit})
        found["checkpoints"] = RECIPES[name].checkpoints
        found["titles"] = {key: value.title for key, value in IMPLEMENTATIONS.items()}
        found["megabytes"] = {} if options.no_memory else _peaks(request, found)
        print(f"\n{found['title']}: n = {found['n']}, m = {found['m']}\n")
        print(markdown(found), flush=True)
        if options.write:
            write(name, found, typed)


def _peaks(request: dict[str, Any], found: dict[str, Any]) -> dict[str, list[float]]:
    """Return the peak memory of the floor and of each implementation that ran, in MB."""
    sizes = {"floor": found["n"]}
    sizes |= {each["name"]: each["n"] for each in found["candidates"] if not each["note"]}
    peaks = {}
    for name, n in sizes.items():
        # That memory does not grow with n is a promise of this library alone.
        counts = [n, n // 5] if name == "proponent" else [n]
        peaks[name] = [
            _ask(request | {"what": "memory", "names": [name], "n": count})["megabytes"]
            for count in counts
        ]
    return peaks


def _ask(request: dict[str, Any]) -> dict[str, Any]:
    """Let a fresh single-threaded process carry out a request."""
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", json.dumps(request)],
        env=os.environ | ONE_THREAD,
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


if __name__ == "__main__":
    main()
