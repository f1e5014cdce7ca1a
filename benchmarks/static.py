"""The work of the static methods: curvature, solves, projections, representers.

    python -m benchmarks.static [workload ...] [--rounds N] [--write]

Each workload has pieces, this library's and its peers'; what a piece needs is made beforehand and
not timed. Pieces and the floor, one plain forward and backward pass over the same instances, take
turns in one process, single-threaded, and the smallest CPU time of each counts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ONE_THREAD = {
    name: "1"
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TQDM_DISABLE")
}
HEADER = "| piece | n | CPU s | ratio | bar | peak MB | how near |\n|---|---|---|---|---|---|---|"


@dataclass(frozen=True)
class Piece:
    """Something to be timed.

    Parameters
    ----------
    title : str
        What it is.
    work : callable
        Takes a workload's bench; does the work and returns its result.
    bar : str
        The ratio that was promised, if one was.
    near : callable, optional
        Takes the bench and the result; says how near the truth it is.
    n : int, optional
        Instances, where the piece cannot be given all of them; its floor is over as many.
    rounds : int, optional
        At most so many turns, for slow peers.
    prepare : callable, optional
        Takes the bench; makes what the piece needs, once and not timed.
    """

    title: str
    work: Callable[[Any], Any]
    bar: str = ""
    near: Callable[[Any, Any], str] | None = None
    n: int | None = None
    rounds: int | None = None
    prepare: Callable[[Any], Any] | None = None


@dataclass
class Times:
    """Smallest times of a workload's pieces and floors, and what was noted of each piece."""

    floors: dict[int, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def measure(name: str, *, rounds: int, only: str | None) -> dict[str, Any]:
    """Time the pieces of a workload in this process."""
    from benchmarks.floor import floor
    from benchmarks.measure import Seconds
    from benchmarks.static_pieces import BENCHES

    make, pieces = BENCHES[name]
    bench = make()
    pieces = [piece for piece in pieces if only is None or only in piece.title]
    total = len(bench.workload.train[0])
    floors = {piece.n or total: Seconds() for piece in pieces} | {total: Seconds()}
    taken = {piece.title: Seconds() for piece in pieces}
    times = Times()
    for turn in range(rounds):
        for n, seconds in floors.items():
            fresh = bench.workload.fresh()
            for _ in range(3):
                seconds.add(partial(floor, fresh, n))
        for piece in pieces:
            if turn >= (piece.rounds or rounds) or (piece.title in times.notes and turn == 0):
                continue
            print(f"{name}: {piece.title}, round {turn + 1}", file=sys.stderr, flush=True)
            try:
                if piece.prepare is not None and turn == 0:
                    piece.prepare(bench)
                result = taken[piece.title].add(partial(piece.work, bench))
            except ImportError as missing:
                times.notes[piece.title] = f"not installed: {missing.name}"
                continue
            if piece.near is not None and turn == 0:
                times.notes[piece.title] = piece.near(bench, result)
            del result
            gc.collect()
    return {
        "title": bench.title,
        "n": total,
        "m": len(bench.workload.test[0]),
        "floors": {n: seconds.cpu for n, seconds in floors.items()},
        "pieces": [
            {
                "title": piece.title,
                "n": piece.n or total,
                "seconds": taken[piece.title].cpu,
                "bar": piece.bar,
                "note": times.notes.get(piece.title, ""),
            }
            for piece in pieces
        ],
    }


def peak(name: str, title: str) -> float:
    """Return the peak memory of a piece in MB, above what was there before it."""
    from benchmarks.measure import MEGABYTE, _peak, _reset_peak
    from benchmarks.static_pieces import BENCHES

    make, pieces = BENCHES[name]
    bench, piece = make(), next(piece for piece in pieces if piece.title == title)
    bench.warm_up()
    if piece.prepare is not None:
        piece.prepare(bench)
    before = _reset_peak()
    kept = piece.work(bench)
    found = (_peak() - before) / MEGABYTE
    del kept
    return found


def table(found: dict[str, Any], peaks: dict[str, float]) -> str:
    """Return a workload's results as markdown."""
    whole = found["floors"][str(found["n"])]
    lines = [HEADER, f"| floor | {found['n']} | {whole:.3g} | 1 | | | |"]
    for piece in found["pieces"]:
        floor, seconds = found["floors"][str(piece["n"])], piece["seconds"]
        missing = seconds == float("inf")
        ratio = "" if missing else f"{seconds / floor:.3g}"
        memory = f"{peaks[piece['title']]:.0f}" if piece["title"] in peaks else ""
        lines.append(
            f"| {piece['title']} | {piece['n']} | {'' if missing else f'{seconds:.3g}'} | {ratio} "
            f"| {piece['bar']} | {memory} | {piece['note']} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the chosen workloads, each in a process of its own, and print their tables."""
    from benchmarks.static_pieces import BENCHES
    from benchmarks.table import write_section

    parser = argparse.ArgumentParser(prog="python -m benchmarks.static", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="workload", help=", ".join(BENCHES))
    parser.add_argument("--rounds", type=int, default=5, help="turns (default: %(default)s)")
    parser.add_argument("--only", help="pieces whose title has this in it")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--write", action="store_true", help="update benchmarks/RESULTS.md")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(json.loads(options.worker))
        return
    typed = " ".join(["python -m benchmarks.static", *sys.argv[1:]])
    for name in options.workloads or list(BENCHES):
        found = _ask({"name": name, "rounds": options.rounds, "only": options.only})
        peaks = {}
        for piece in found["pieces"]:
            if not options.no_memory and piece["seconds"] < float("inf"):
                peaks[piece["title"]] = _ask({"name": name, "peak": piece["title"]})
        text = table(found, peaks)
        heading = f"n = {found['n']}, m = {found['m']}."
        print(f"\n{found['title']}: {heading}\n\n{text}", flush=True)
        if options.write:
            write_section(name, found["title"], heading, text, typed)


def _work(request: dict[str, Any]) -> None:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if "peak" in request:
        json.dump(peak(request["name"], request["peak"]), sys.stdout)
    else:
        found = measure(request["name"], rounds=request["rounds"], only=request["only"])
        json.dump(found, sys.stdout)


def _ask(request: dict[str, Any]) -> Any:
    """Let a fresh single-threaded process, in an empty folder, carry out a request."""
    root = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as folder:
        finished = subprocess.run(
            [sys.executable, "-m", "benchmarks.static", "--worker", json.dumps(request)],
            env=os.environ | ONE_THREAD | {"PYTHONPATH": str(root)},
            cwd=folder,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    return json.loads(finished.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
