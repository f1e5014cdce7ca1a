"""Do the instances that a method ranks highest matter? Without them, the model trained again."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from benchmarks.trees_methods import Row, lightgbm, method, table

N, M = 1000, 25
SHARES = (0.005, 0.01, 0.02)

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "BoostIn": ("BoostIn", {}),
    "BoostIn, exact form": ("BoostIn", {"leaf_step": "theta"}),
    "LeafInfluence": ("LeafInfluence", {}),
    "LeafInfluence, single point": ("LeafInfluence", {"update": "single_point"}),
    "LeafRefit": ("LeafRefit", {}),
    "TREX": ("TREX", {}),
    "TREX, kernel lp": ("TREX", {"kernel": "lp"}),
    "TreeSim": ("TreeSim", {}),
}


def useful_for_classes(rounds: int) -> dict[str, Any]:
    """Two classes."""
    return _useful(True, rounds)


def useful_for_regression(rounds: int) -> dict[str, Any]:
    """A regression."""
    return _useful(False, rounds)


def _useful(classes: bool, rounds: int) -> dict[str, Any]:
    found: dict[str, list[np.ndarray]] = {}
    for seed in range(rounds):
        train, test = table(N, M, seed=seed, classes=classes)
        for name, scores in _scores(classes, train, test, seed).items():
            found.setdefault(name, []).append(_increases(classes, train, test, scores))
            print(f"seed {seed}: {name} {found[name][-1]}", file=sys.stderr, flush=True)
    rows: list[Row] = []
    for name, increases in found.items():
        means = np.mean(increases, axis=0)
        errors = np.std(increases, axis=0, ddof=1) / np.sqrt(len(increases)) if rounds > 1 else None
        cells = [
            f"{mean:.2f}" + ("" if errors is None else f" ± {errors[at]:.2f}")
            for at, mean in enumerate(means)
        ]
        rows.append([name, *cells])
    kind = "binary" if classes else "regression"
    return {
        "title": f"Usefulness of the methods for trees: {kind}",
        "counts": f"n = {N}, {M} tests, LightGBM, {rounds} seeds: the mean increase of a test "
        f"instance's risk ({'nats' if classes else 'half the squared error, unit variance'}) "
        f"after the instances that rank highest for it are removed and the model is trained "
        f"again, with the standard error over seeds.",
        "header": ["method", *(f"{share:.1%} removed" for share in SHARES)],
        "rows": rows,
    }


def _scores(classes: bool, train: Any, test: Any, seed: int) -> dict[str, np.ndarray]:
    """Return the influences ``(m, n)`` of every method."""
    import proponent as pp

    model = lightgbm(classes).fit(*train)
    found = {}
    for title, (name, settings) in METHODS.items():
        found[title] = method(name, **settings).fit(model, train).influence(test).values
    retrained = pp.LeaveOneOut(progress=False).fit(lightgbm(classes), train)
    found["leave-one-out, trained again"] = retrained.influence(test).values
    found["random"] = np.random.default_rng(seed).random((M, N))
    return found


def _increases(classes: bool, train: Any, test: Any, scores: np.ndarray) -> np.ndarray:
    """Return the mean increase for each share."""
    X, y = train
    before = _risks(classes, lightgbm(classes).fit(X, y), test)
    order = np.argsort(-scores, axis=1, kind="stable")
    total = np.zeros(len(SHARES))
    for at, share in enumerate(SHARES):
        count = round(share * N)
        for which in range(M):
            kept = np.delete(np.arange(N), order[which, :count])
            model = lightgbm(classes).fit(X[kept], y[kept])
            one = test[0][[which]], test[1][[which]]
            total[at] += (_risks(classes, model, one)[0] - before[which]) / M
    return total


def _risks(classes: bool, model: Any, data: Any) -> np.ndarray:
    raw = model.predict(data[0], raw_score=True)
    if classes:
        return np.asarray(np.logaddexp(0.0, raw) - data[1] * raw)
    return np.asarray(0.5 * (raw - data[1]) ** 2)
