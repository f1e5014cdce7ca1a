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
SIZES = ((100_000, 100), (1_000_000, 1_000))  # n, T
WORKS = (("BoostIn", "scores"), ("BoostIn", "sum over tests"), ("LeafInfluence", "scores"))


def scale(rounds: int) -> dict[str, Any]:
    """Peak memory above the model and the data."""
    small = table(2000, 10)
    few = lightgbm(n_estimators=5).fit(*small[0])
    for name, what in WORKS:  # compiled and imported
        _ask(name, what, few, *small)
    rows: list[Row] = []
    for n, trees in SIZES:
        train, test = table(n, M)
        start = time.perf_counter()
        model = lightgbm(n_estimators=trees).fit(*train)
        _say(f"trained n = {n}, T = {trees} in {time.perf_counter() - start:.0f} s")
        for name, what in WORKS:
            gc.collect()
            before, cpu = _reset_peak(), time.process_time()
            answer = _ask(name, what, model, train, test)
            seconds = time.process_time() - cpu
            peak, size = (_peak() - before) / MEGABYTE, answer.nbytes / MEGABYTE
            del answer
            _say(f"{name}, {what}: {peak:.0f} MB, {seconds:.2f} s")
            rows.append([f"**{name}**, {what}", f"{n:,}", f"{trees:,}", f"{peak:.0f}",
                         f"{size:.0f}", f"{seconds:.0f}" if seconds > 10 else f"{seconds:.1f}",
                         "4096 MB" if n == SIZES[-1][0] else ""])  # fmt: skip
    return {
        "title": "Large training sets",
        "counts": f"m = {M}, 31 leaves, binary LightGBM. Memory is the peak above the model and "
        f"the data; the answer (n m numbers) and the leaves (n T bytes) are in it.",
        "header": ["what", "n", "trees", "peak MB", "of which the answer", "CPU s", "bar"],
        "rows": rows,
    }


def _ask(name: str, what: str, model: Any, train: Any, test: Any) -> np.ndarray:
    fitted = method(name).fit(model, train)
    return np.asarray(fitted.influence(test, joint=what == "sum over tests").values)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
