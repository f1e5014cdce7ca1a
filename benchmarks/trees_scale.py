"""Memory and time of the methods for trees on large training sets."""

from __future__ import annotations

import gc
import sys
import time
from typing import Any

import numpy as np

from benchmarks.measure import MEGABYTE, _peak, _reset_peak
from benchmarks.trees_methods import Row, lightgbm, method, table

M = 100
SIZES = ((100_000, 100), (200_000, 100), (200_000, 200))  # n, T
TARGET = (1_000_000, 1_000)
NAMES = ("BoostIn", "LeafInfluence")


def scale(rounds: int) -> dict[str, Any]:
    """Peak memory above the model and the data, and what a million instances would take."""
    peaks: dict[str, list[float]] = {name: [] for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    small = table(2000, 10)
    few = lightgbm(n_estimators=5).fit(*small[0])
    for name in NAMES:  # compiled and imported
        method(name).fit(few, small[0]).influence(small[1])
    for n, trees in SIZES:
        train, test = table(n, M)
        start = time.perf_counter()
        model = lightgbm(n_estimators=trees).fit(*train)
        _say(f"trained n = {n}, T = {trees} in {time.perf_counter() - start:.0f} s")
        for name in NAMES:
            gc.collect()
            before, cpu = _reset_peak(), time.process_time()
            influence = method(name).fit(model, train).influence(test)
            seconds[name].append(time.process_time() - cpu)
            peaks[name].append((_peak() - before) / MEGABYTE)
            del influence
            _say(f"{name}: {peaks[name][-1]:.0f} MB, {seconds[name][-1]:.2f} s")
    rows: list[Row] = []
    for name in NAMES:
        for (n, trees), peak, taken in zip(SIZES, peaks[name], seconds[name], strict=True):
            answer = n * M * 8 / MEGABYTE
            rows.append([f"**{name}**", f"{n:,}", f"{trees:,}", f"{peak:.0f}", f"{answer:.0f}",
                         f"{taken:.1f}"])  # fmt: skip
        n, trees = TARGET
        answer = n * M * 8 / MEGABYTE
        rows.append([f"{name}, extrapolated", f"{n:,}", f"{trees:,}",
                     f"{_extrapolated(peaks[name]):.0f}", f"{answer:.0f}",
                     f"{seconds[name][-1] * n * trees / np.prod(SIZES[-1]):.0f}"])  # fmt: skip
    return {
        "title": "Large training sets",
        "counts": f"m = {M}, 31 leaves, binary LightGBM. Memory is the peak above the model and "
        f"the data, the answer (n m numbers) and the leaves (n T bytes) in it; extrapolated by "
        f"a + b n + c n T, and time by n T.",
        "header": ["what", "n", "trees", "peak MB", "of which the answer", "CPU s"],
        "rows": rows,
    }


def _extrapolated(peaks: list[float]) -> float:
    design = np.array([[1.0, n, n * trees] for n, trees in SIZES])
    constant, each, leaf = np.linalg.solve(design, peaks)
    n, trees = TARGET
    return float(constant + each * n + leaf * n * trees)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
