"""Seconds of the methods for tree ensembles, reading the model included."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import Seconds
from benchmarks.trees_methods import Row, lightgbm, method, table

N, M = 5000, 100
HEADER = ["what", "CPU ms", "ratio", "bar"]


def speed(rounds: int) -> dict[str, Any]:
    """Every method against leaf indices and one pass of gradients."""
    train, test = table(N, M)
    model = lightgbm().fit(*train)
    values = _leaf_values(model)

    def floor() -> float:
        return _gradient_pass(model, values, train) + _gradient_pass(model, values, test)

    works: list[tuple[str, str, Callable[[], Any]]] = [
        ("BoostIn", "2", partial(_ask, model, train, test, "BoostIn")),
        (
            "BoostIn, exact form",
            "2",
            partial(_ask, model, train, test, "BoostIn", leaf_step="theta"),
        ),
        ("LeafInfluence, all points", "2.5", partial(_ask, model, train, test, "LeafInfluence")),
        (
            "LeafInfluence, single point",
            "",
            partial(_ask, model, train, test, "LeafInfluence", update="single_point"),
        ),
        ("LeafRefit, all removals", "100", partial(_ask, model, train, test, "LeafRefit")),
        ("TREX", "", partial(_ask, model, train, test, "TREX")),
        ("TREX, kernel lp", "", partial(_ask, model, train, test, "TREX", kernel="lp")),
        ("TreeSim", "", partial(_ask, model, train, test, "TreeSim")),
        ("BoostIn, sum over tests", "1.5", lambda: _joint(model, train, test, "BoostIn")),
        ("BoostIn, memorization", "1.5", lambda: _memorization(model, train, "BoostIn")),
        ("TreeSim, sum over tests", "", lambda: _joint(model, train, test, "TreeSim")),
        ("LeafInfluence, sum over tests", "", lambda: _joint(model, train, test, "LeafInfluence")),
        ("the same reading of the model alone", "", partial(_read, model, train)),
    ]
    compiling = _compile(model, train, test)
    taken = _turns(rounds, ("floor", floor), works)
    base = taken["floor"].cpu
    rows: list[Row] = [["leaf indices and a pass of gradients", f"{base * 1e3:.1f}", "1", ""]]
    for name, bar, _ in works:
        cpu = taken[name].cpu
        rows.append([f"**{name}**", f"{cpu * 1e3:.1f}", f"{cpu / base:.2f}", bar])
    rows.append(["compiling, once on a machine", f"{compiling * 1e3:.0f}", "", ""])
    return {
        "title": "Speed of the methods for trees",
        "counts": f"n = {N}, m = {M}, 100 trees of 31 leaves, binary LightGBM.",
        "header": HEADER,
        "rows": rows,
    }


def _leaf_values(model: Any) -> list[np.ndarray]:
    found, text = [], model.booster_.model_to_string()
    for line in text.splitlines():
        if line.startswith("leaf_value="):
            found.append(np.fromstring(line[11:], sep=" "))
    return found


def _gradient_pass(model: Any, values: list[np.ndarray], data: Any) -> float:
    """Let the library place rows in leaves, and have the gradients and Hessians of each tree."""
    X, y = data
    leaves = model.booster_.predict(X, pred_leaf=True)
    scores, total = np.zeros(len(X)), 0.0
    for tree, value in enumerate(values):
        scores += value[leaves[:, tree]]
        p = 1.0 / (1.0 + np.exp(-scores))
        gradient, hessian = p - y, p * (1.0 - p)
        total += gradient[0] + hessian[0]
    return float(total)


def _fitted(model: Any, train: Any, name: str, **settings: Any) -> Any:
    return method(name, **settings).fit(model, train)


def _ask(model: Any, train: Any, test: Any, name: str, **settings: Any) -> Any:
    return _fitted(model, train, name, **settings).influence(test).values


def _joint(model: Any, train: Any, test: Any, name: str) -> Any:
    return _fitted(model, train, name).influence(test, joint=True).values


def _memorization(model: Any, train: Any, name: str) -> Any:
    return _fitted(model, train, name).memorization().values


def _read(model: Any, train: Any) -> Any:
    from proponent.trees.read import read

    return read(model, train)


def _compile(model: Any, train: Any, test: Any) -> float:
    """Return the seconds by which BoostIn and LeafInfluence take longer the first time."""
    _read_libraries()
    total = 0.0
    for name in ("BoostIn", "LeafInfluence"):
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            _ask(model, train, test, name)
            seconds.append(time.perf_counter() - start)
        total += seconds[0] - seconds[1]
    return total


def _read_libraries() -> None:
    import numba  # noqa: F401
    import scipy.sparse  # noqa: F401

    import proponent  # noqa: F401


def _turns(
    rounds: int,
    base: tuple[str, Callable[[], Any]],
    works: list[tuple[str, str, Callable[[], Any]]],
) -> dict[str, Seconds]:
    taken = {base[0]: Seconds()}
    for name, _, work in works:  # warm
        start = time.perf_counter()
        work()
        taken[name] = Seconds()
        print(f"{name}: {time.perf_counter() - start:.2f} s", file=sys.stderr, flush=True)
    for _ in range(rounds):
        for _ in range(3):
            taken[base[0]].add(base[1])
        for name, _, work in works:
            # What takes a second is not disturbed by much, and runs once.
            for _ in range(3 if taken[name].wall < 0.5 else 1):
                if taken[name].wall < 2 or taken[name].wall == float("inf"):
                    taken[name].add(work)
    return taken


def against_catboost(rounds: int) -> dict[str, Any]:
    """LeafInfluence against CatBoost's own, which is C++."""
    import catboost

    train, test = table(N, M)
    model = catboost.CatBoostClassifier(
        iterations=100,
        depth=5,
        leaf_estimation_iterations=1,
        thread_count=1,
        verbose=False,
        allow_writing_files=False,
        random_seed=0,
    ).fit(*train)
    rows: list[Row] = []
    for update, mode, bar in (
        ("AllPoints", "all_points", "37 times faster"),
        ("SinglePoint", "single_point", "1.9 times faster"),
    ):

        def theirs(update: str = update) -> Any:
            return model.get_object_importance(
                catboost.Pool(*test),
                catboost.Pool(*train),
                type="PerObject",
                update_method=update,
                thread_count=1,
            )

        def ours(mode: str = mode) -> Any:
            return _ask(model, train, test, "LeafInfluence", update=mode)

        taken = {"theirs": Seconds(), "ours": Seconds()}
        ours()
        for turn in range(rounds):
            for _ in range(3):
                values = taken["ours"].add(ours)
            if turn == 0 or taken["theirs"].wall < 2:
                indices, scores = taken["theirs"].add(theirs)
        # Each test's scores come in the order of the training instances named beside them.
        expected = np.zeros_like(values)
        for row, which, found in zip(expected, indices, scores, strict=True):
            row[np.asarray(which, dtype=int)] = found
        error = float(np.abs(values + expected).max() / np.abs(expected).max())
        base = taken["ours"].cpu
        rows += [
            [
                f"{update}: CatBoost",
                f"{taken['theirs'].cpu * 1e3:.0f}",
                f"{taken['theirs'].cpu / base:.1f}",
                "",
            ],
            [f"{update}: **proponent**, equal to {error:.0e}", f"{base * 1e3:.0f}", "1", bar],
        ]
    return {
        "title": "LeafInfluence against CatBoost",
        "counts": f"n = {N}, m = {M}, 100 trees of 32 leaves, binary CatBoost, reading the model "
        "included.",
        "header": HEADER,
        "rows": rows,
    }
