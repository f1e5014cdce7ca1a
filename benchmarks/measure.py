"""Seconds, peak memory and error of each implementation on a workload.

Time: implementations and the floor take turns in one process, and the smallest CPU time of each
counts, so that a busy machine disturbs both alike. Memory: one implementation a process.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from benchmarks.floor import error, floor
from benchmarks.implementations import IMPLEMENTATIONS
from benchmarks.workloads import BATCH, Workload

Result = TypeVar("Result")

MEGABYTE = 2**20


@dataclass
class Seconds:
    """The smallest times seen of a piece of work; ``user`` leaves the kernel's share out."""

    cpu: float = float("inf")
    user: float = float("inf")
    wall: float = float("inf")

    def add(self, work: Callable[[], Result]) -> Result:
        """Run the work once more and return what it returns."""
        gc.collect()
        wall, cpu, user = time.perf_counter(), time.process_time(), _user_time()
        result = work()
        self.wall = min(self.wall, time.perf_counter() - wall)
        self.cpu = min(self.cpu, time.process_time() - cpu)
        self.user = min(self.user, _user_time() - user)
        return result


@dataclass
class Candidate:
    """An implementation on trial: how many instances it is given, and what was seen."""

    name: str
    n: int = 0
    rounds: int = 0
    seconds: Seconds = field(default_factory=Seconds)
    error: float | None = None
    note: str = ""


def measure_time(
    workload: Workload, names: list[str], *, rounds: int, limit: float
) -> dict[str, object]:
    """Time the named implementations on a workload.

    Parameters
    ----------
    workload : Workload
        What is scored.
    names : list of str
        Keys of ``IMPLEMENTATIONS``.
    rounds : int
        How many times the fast ones run; slow ones run as often as ``limit`` allows, once at
        least.
    limit : float
        Seconds. Where all n instances would take longer, fewer are scored, and the ratio is to
        the floor on as many.

    Returns
    -------
    dict
        ``{"floors": {n: seconds}, "candidates": [...]}``, fit for JSON.
    """
    pristine = workload
    candidates = [_probed(pristine, name, rounds, limit) for name in names]
    floors: dict[int, Seconds] = {len(workload.train[0]): Seconds()}
    floors |= {candidate.n: Seconds() for candidate in candidates if candidate.rounds}
    for turn in range(rounds):
        waiting = [candidate for candidate in candidates if turn < candidate.rounds]
        for n, seconds in floors.items():
            fresh = pristine.fresh()
            for _ in range(_repeats(seconds)):
                seconds.add(partial(floor, fresh, n))
        for candidate in waiting:
            _say(f"{workload.name}: {candidate.name}, n={candidate.n}, round {turn + 1}")
            run = IMPLEMENTATIONS[candidate.name].run
            scores = candidate.seconds.add(partial(run, pristine.fresh(), candidate.n))
            if candidate.error is None:
                candidate.error = error(pristine, scores)
    return {
        "floors": {n: vars(seconds) for n, seconds in floors.items()},
        "candidates": [
            {**vars(candidate), "seconds": vars(candidate.seconds)} for candidate in candidates
        ],
    }


def _probed(pristine: Workload, name: str, rounds: int, limit: float) -> Candidate:
    """Warm up on ever more instances, and choose their number and the rounds by the times."""
    run, total = IMPLEMENTATIONS[name].run, len(pristine.train[0])
    seen: list[tuple[int, float]] = []
    for n in (4, 20, 100):
        _say(f"{pristine.name}: {name}, warming up with n={n}")
        seconds = Seconds()
        try:
            seconds.add(partial(run, pristine.fresh(), min(n, total)))
        except ImportError:
            return Candidate(name, note=f"not installed: `{IMPLEMENTATIONS[name].install}`")
        except Exception as failure:
            _say(f"{pristine.name}: {name} failed: {failure!r}")
            return Candidate(name, note=f"fails: {type(failure).__name__}: {failure}"[:160])
        seen.append((min(n, total), seconds.wall))
        if seconds.wall > limit / 10 or n >= total:
            break
    slope, fixed = _line(seen)
    n = int((limit - fixed) / slope)
    # Whole batches where one fits.
    n = min(total, max(4, n // BATCH * BATCH or n))
    return Candidate(name, n, max(1, min(rounds, int(limit / (fixed + slope * n)))))


def _line(seen: list[tuple[int, float]]) -> tuple[float, float]:
    """Return seconds an instance and fixed seconds (those of the test set) from the last trials."""
    n, wall = seen[-1]
    n_before, before = seen[-2] if len(seen) > 1 else (0, 0.0)
    slope = (wall - before) / (n - n_before) if n > n_before and wall > before else wall / n
    return slope, max(0.0, wall - slope * n)


def _user_time() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def _repeats(seconds: Seconds) -> int:
    """Short floors run several times a round: their ratio divides everything."""
    return max(1, min(10, int(0.5 / seconds.wall))) if seconds.wall < float("inf") else 3


def measure_memory(workload: Workload, name: str, n: int) -> float:
    """Return the peak memory in MB above the module, the data and the loaded libraries."""
    run = floor if name == "floor" else IMPLEMENTATIONS[name].run
    warm = workload.fresh()
    run(warm, min(n, 4))
    del warm
    fresh = workload.fresh()
    gc.collect()
    before = _reset_peak()
    kept = run(fresh, n)
    peak = _peak() - before
    del kept
    return peak / MEGABYTE


def _reset_peak() -> int:
    """Give freed memory back, start a new peak where Linux can, and return it in bytes."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            _say("cannot reset the peak: memory is counted from the peak before")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
