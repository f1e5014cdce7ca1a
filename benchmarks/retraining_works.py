"""What the benchmarks of the retraining-based methods measure, a function a table."""

from __future__ import annotations

import resource
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.measure import Seconds

Row = list[str]


def _row(what: str, measured: str, ratio: float | None = None, bar: str = "") -> Row:
    return [what, measured, "" if ratio is None else f"{ratio:.3g}", bar]


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def neighbours(rounds: int) -> dict[str, Any]:
    """kNN-Shapley against the distances and a sort, and against a plain blocked version."""
    import proponent as pp

    n, m, d, k = 20_000, 500, 64, 5
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    y, y_test = rng.integers(0, 2, n), rng.integers(0, 2, m)

    def distances(rows: slice) -> np.ndarray:
        return (X**2).sum(1) - 2 * X_test[rows] @ X.T

    def floor() -> int:
        return sum(int(np.argsort(distances(slice(s, s + 50)))[0, 0]) for s in range(0, m, 50))

    def plain() -> np.ndarray:
        values = np.empty((m, n))
        steps = np.minimum(k, np.arange(1, n + 1)) / np.arange(1, n + 1) / k
        for start in range(0, m, 50):
            rows = slice(start, start + 50)
            order = np.argsort(distances(rows), kind="stable")
            right = (y[order] == y_test[rows, None]).astype(np.float64)
            change = right * steps
            change[:, :-1] -= right[:, 1:] * steps[:-1]
            sums = np.cumsum(change[:, ::-1], axis=1)[:, ::-1]
            np.put_along_axis(values[rows], order, sums, axis=1)
        return values

    def ours() -> np.ndarray:
        return pp.KNNShapley(k=k).fit((X, y)).influence((X_test, y_test)).values

    taken = {name: Seconds() for name in ("floor", "plain", "ours")}
    found: dict[str, Any] = {}
    before = _megabytes()
    found["ours"] = taken["ours"].add(ours)
    extra = _megabytes() - before - m * n * 8 / 2**20
    for _ in range(rounds):
        for name, work in (("floor", floor), ("plain", plain), ("ours", ours)):
            found[name] = taken[name].add(work)
    assert np.allclose(found["plain"], found["ours"], atol=1e-12)
    base = taken["floor"].cpu
    return {
        "title": "kNN-Shapley",
        "counts": f"n = {n}, m = {m}, d = {d}, k = {k}; the answer itself is 76 MB.",
        "rows": [
            _row("float64 BLAS distances and argsort", f"{base:.3g} s", 1),
            _row("plain blocked numpy", f"{taken['plain'].cpu:.3g} s", taken["plain"].cpu / base),
            _row(
                "**proponent**",
                f"{taken['ours'].cpu:.3g} s, {max(extra, 0):.0f} MB beside the answer",
                taken["ours"].cpu / base,
                "1.2, under 100 MB",
            ),
        ],
    }


class ZeroCost:
    """A model that costs nothing, so that what remains is the library's own."""

    def fit(self, X: Any, y: Any) -> ZeroCost:
        return self

    def risk(self, X: Any, y: Any) -> Any:
        return RISK


RISK = np.zeros(1)


def overhead(rounds: int) -> dict[str, Any]:
    """Seconds of the library for one evaluation of a model that costs nothing."""
    import proponent as pp

    rows, models = [], 20_000
    for n, bar in ((100, "10 us"), (1000, "30 us")):
        X, y = np.zeros((n, 5)), np.zeros(n)
        test = (X[:1], y[:1])

        def ours(n: int = n, X: Any = X, y: Any = y, test: Any = test) -> Any:
            method = pp.Banzhaf(models, estimator="means", progress=False)
            return method.fit(ZeroCost(), (X, y), test=test).influence().values

        def naive(n: int = n, X: Any = X, y: Any = y) -> Any:
            rng = np.random.default_rng(0)
            masks, values = rng.random((models, n)) < 0.5, np.empty(models)
            for at, mask in enumerate(masks):
                values[at] = -ZeroCost().fit(X[mask], y[mask]).risk(X[:1], y[:1])[0]
            inside = masks.sum(0)
            total = masks.T @ values
            return total / inside - (values.sum() - total) / (models - inside)

        taken = {"ours": Seconds(), "naive": Seconds()}
        for _ in range(rounds):
            taken["naive"].add(naive)
            taken["ours"].add(ours)
        each = {name: seconds.cpu / models * 1e6 for name, seconds in taken.items()}
        rows += [
            _row(f"n = {n}: a plain loop", f"{each['naive']:.1f} us", 1),
            _row(
                f"n = {n}: **proponent**",
                f"{each['ours']:.1f} us",
                each["ours"] / each["naive"],
                bar,
            ),
        ]
    return {
        "title": "Overhead of an evaluation",
        "counts": "Banzhaf, 20,000 subsets, a model of no cost.",
        "rows": rows,
    }


def logistic(rounds: int) -> dict[str, Any]:
    """Logistic regressions on subsets, against a loop over scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    from proponent.data import Instances
    from proponent.models.logistic_learner import LogisticLearner

    rows, few = [], 64
    for classes in (2, 3):
        rng = np.random.default_rng(0)
        n, d, subsets = 100, 20, 512
        X = rng.normal(size=(n, d))
        y = np.argmax(X[:, :classes] + rng.normal(size=(n, classes)), axis=1)
        masks = rng.random((subsets, n)) < 0.5
        trainer = LogisticLearner().bind(Instances.of((X, y)))

        def loop(X: Any = X, y: Any = y, masks: Any = masks) -> Any:
            fits = [LogisticRegression().fit(X[mask], y[mask]) for mask in masks[:few]]
            return np.stack([fit.predict_proba(X) for fit in fits])

        def ours(trainer: Any = trainer, masks: Any = masks) -> Any:
            return trainer.fit(masks, np.zeros(len(masks), np.int64))

        taken = {"loop": Seconds(), "ours": Seconds()}
        for _ in range(rounds):
            taken["loop"].add(loop)
            fitted = taken["ours"].add(ours)
        found = trainer.to_arrays(fitted)["coefficients"][:few]
        tight = LogisticRegression(solver="newton-cholesky", tol=1e-12, max_iter=1000)
        same = np.stack([tight.fit(X[mask], y[mask]).coef_ for mask in masks[:few]])
        error = float(np.abs(found - same).max())
        speed = {"loop": few / taken["loop"].cpu, "ours": subsets / taken["ours"].cpu}
        rows += [
            _row(f"{classes} classes: scikit-learn", f"{speed['loop']:.0f} fits/s", 1),
            _row(
                f"{classes} classes: **proponent**",
                f"{speed['ours']:.0f} fits/s, coefficients equal to {error:.0e}",
                speed["ours"] / speed["loop"],
                "30",
            ),
        ]
    return {
        "title": "Logistic regressions on subsets",
        "counts": "n = 100, d = 20, 512 subsets of about half. Speeds are against scikit-learn as "
        "it comes; coefficients, against its `newton-cholesky` with `tol=1e-12`, of 64 subsets.",
        "rows": rows,
    }


def networks(rounds: int) -> dict[str, Any]:
    """Small networks trained side by side, against one after the other."""
    import torch
    from torch import nn

    import proponent as pp
    from proponent.data import Instances

    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    n, count = 1437, 64
    X, y = rng.normal(size=(n, 64)), rng.integers(0, 10, n)
    masks = rng.permuted(np.tile(np.arange(n) < 1006, (count, 1)), axis=1)
    seeds = np.arange(count)

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).double()

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)

    def trainer(how: bool) -> Any:
        learner = pp.TorchLearner(
            network, optimizer, loss="cross_entropy", epochs=2, batch_size=32, vectorized=how
        )
        return learner.bind(Instances.of((X, y)))

    ours, serial = trainer(True), trainer(False)
    taken = {"ours": Seconds(), "serial": Seconds()}
    for _ in range(rounds):
        one = taken["serial"].add(partial(serial.fit, masks, seeds))
        many = taken["ours"].add(partial(ours.fit, masks, seeds))
    arrays = [which.to_arrays(fitted) for which, fitted in ((serial, one), (ours, many))]
    error = max(float(np.abs(arrays[0][name] - arrays[1][name]).max()) for name in arrays[0])
    return {
        "title": "Small networks on subsets",
        "counts": f"{count} MLPs 64-64-10, float64, batches of 32, 1006 instances, 2 epochs.",
        "rows": [
            _row("one after the other", f"{taken['serial'].cpu:.3g} s", 1),
            _row(
                "**proponent**",
                f"{taken['ours'].cpu:.3g} s, parameters equal to {error:.0e}",
                taken["serial"].cpu / taken["ours"].cpu,
                "3",
            ),
        ],
    }


def errors(rounds: int) -> dict[str, Any]:
    """The error of the Shapley value at 6,000 utilities, against plain permutations."""
    rows = []
    for title, game, reference, noise in (_knn_game(), _logistic_game(), _boosting_game()):
        found = {
            name: _relative_error(game, reference, noise, name, range(max(2, rounds)))
            for name in ("permutations", "antithetic", "means", "regression")
        }
        if noise:
            own = np.sqrt(noise / ((reference**2).mean() - noise))
            rows.append(
                _row(f"{title}: the reference itself, by its standard errors", f"{own:.3f}")
            )
        for name, error in found.items():
            ours = name == "regression"
            rows.append(
                _row(
                    f"{title}: {'**' if ours else ''}{name}{'**' if ours else ''}",
                    f"{error:.3f}",
                    error / found["permutations"],
                    ("0.5" if "boosting" not in title else "reported") if ours else "",
                )
            )
    return {
        "title": "Error of the Shapley value",
        "counts": "Root mean square error at 6,000 utilities, relative to the values; "
        f"{max(2, rounds)} seeds. References: the closed form for neighbours; for the other games "
        "plain permutations written for this benchmark, 10,000 and 2,000 of them, of another seed; "
        "the variance of their mean is subtracted.",
        "rows": rows,
    }


def _relative_error(
    game: Any, reference: np.ndarray, noise: float, estimator: str, seeds: range
) -> float:
    """Return the error beside that of the reference, whose mean variance is the noise."""
    import proponent as pp

    squares = []
    for seed in seeds:
        method = pp.Shapley(6000, estimator=estimator, seed=seed).fit(game)
        squares.append(((method.influence().values - reference) ** 2).mean())
    size = (reference**2).mean() - noise
    return float(np.sqrt(max(np.mean(squares) - noise, 0.0) / size))


def _knn_game() -> tuple[str, Any, np.ndarray, float]:
    import proponent as pp

    rng = np.random.default_rng(0)
    n, k = 60, 5
    X, y = rng.normal(size=(n, 4)), rng.integers(0, 2, n)
    X_test, y_test = rng.normal(size=(8, 4)), rng.integers(0, 2, 8)
    order = np.argsort(((X_test[:, None] - X) ** 2).sum(-1), axis=1, kind="stable")
    right = np.take_along_axis(y[None].repeat(8, 0), order, 1) == y_test[:, None]

    def value(masks: Any) -> Any:
        inside = masks[:, order]
        nearest = inside & (np.cumsum(inside, axis=2) <= k)
        return (nearest & right).sum(axis=2) / k

    exact = np.empty((8, n))
    for row, matches, nearest in zip(exact, right.astype(float), order, strict=True):
        row[nearest[-1]] = matches[-1] / n
        for i in range(n - 1, 0, -1):  # Jia et al., VLDB 2019, theorem 1
            step = (matches[i - 1] - matches[i]) / k * min(k, i) / i
            row[nearest[i - 1]] = row[nearest[i]] + step
    return "kNN game, n = 60", pp.Game(n, value, vectorized=True), exact, 0.0


def _logistic_game() -> tuple[str, Any, np.ndarray, float]:
    import proponent as pp
    from proponent.models.logistic_learner import LogisticLearner

    rng = np.random.default_rng(1)
    X, X_test = rng.normal(size=(40, 8)), rng.normal(size=(200, 8))
    direction = rng.normal(size=8)
    y, y_test = (X @ direction > 0).astype(int), (X_test @ direction > 0).astype(int)
    y[rng.permutation(40)[:4]] ^= 1
    trainer = LogisticLearner().bind(pp.Instances.of((X, y)))
    test = trainer.prepare(pp.Instances.of((X_test, y_test)))
    prior = -trainer.risks(trainer.constant("prior"), test).mean()

    def value(masks: Any) -> Any:
        some, found = masks.any(axis=1), np.full(len(masks), prior)
        if some.any():
            fitted = trainer.fit(masks[some], np.zeros(some.sum(), np.int64))
            found[some] = -trainer.risks(fitted, test).mean(axis=1)
        return found

    game = pp.Game(40, value, vectorized=True)
    return "logistic regression, n = 40", game, *_by_permutations(value, 40, 10_000)


def _boosting_game() -> tuple[str, Any, np.ndarray, float]:
    from sklearn.ensemble import GradientBoostingRegressor

    import proponent as pp

    rng = np.random.default_rng(2)
    X, X_test = rng.normal(size=(40, 4)), rng.normal(size=(50, 4))
    y, y_test = (np.sin(2 * z[:, 0]) + z[:, 1] for z in (X, X_test))
    y += rng.normal(scale=0.3, size=40)
    cache: dict[bytes, float] = {}

    def value(mask: Any) -> float:
        key = mask.tobytes()
        if key not in cache:
            if mask.any():
                model = GradientBoostingRegressor(n_estimators=5, max_depth=2, random_state=0)
                predicted = model.fit(X[mask], y[mask]).predict(X_test)
            else:
                predicted = np.full(50, y.mean())
            cache[key] = -float(((predicted - y_test) ** 2).mean())
        return cache[key]

    def values(masks: Any) -> Any:
        return np.array([value(mask) for mask in masks])

    return "gradient boosting, n = 40", pp.Game(40, value), *_by_permutations(values, 40, 2000)


def _by_permutations(value: Callable[[Any], Any], n: int, orders: int) -> tuple[np.ndarray, float]:
    """Return the Shapley values by plain permutations, and the mean variance of these means."""
    rng = np.random.default_rng(10**6)
    marginals = np.empty((orders, n))
    for start in range(0, orders, 100):
        some = np.stack([rng.permutation(n) for _ in range(min(100, orders - start))])
        rank = np.argsort(some, axis=1)
        masks = rank[:, None, :] < np.arange(n + 1)[:, None]
        worth = value(masks.reshape(-1, n)).reshape(len(some), n + 1)
        gained = np.diff(worth, axis=1)
        marginals[start : start + len(some)] = np.take_along_axis(gained, rank, axis=1)
    return marginals.mean(axis=0), float((marginals.var(axis=0, ddof=1) / orders).mean())


def exact(rounds: int) -> dict[str, Any]:
    """How often exact values evaluate each subset."""
    from sklearn.linear_model import Ridge

    import proponent as pp

    fits = [0]

    class Counted(Ridge):  # type: ignore[misc]
        def fit(self, X: Any, y: Any) -> Counted:
            fits[0] += 1
            return super().fit(X, y)  # type: ignore[no-any-return]

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 3)), rng.normal(size=12)
    rows, subsets = [], 2**12 - 1
    for title, model, turns in (("", Ridge(), rounds), (", a subclass that counts", Counted(), 1)):
        seconds = Seconds()
        for _ in range(turns):
            fits[0] = 0
            fit = pp.Shapley(estimator="exact", progress=False).fit
            method = seconds.add(partial(fit, model, (X, y)))
        trained = fits[0] or int(method.influence((X[:3], y[:3])).diagnostics["trained"])
        measured = f"{trained} trainings of {subsets} subsets, {seconds.cpu:.3g} s"
        rows.append(_row(f"**proponent**{title}", measured, trained / subsets, "1"))
    return {
        "title": "Exact Shapley values",
        "counts": "n = 12, ridge regression. The subclass is trained one by one.",
        "rows": rows,
    }


WORKS: dict[str, Callable[[int], dict[str, Any]]] = {
    "knn-shapley": neighbours,
    "overhead": overhead,
    "logistic-subsets": logistic,
    "network-subsets": networks,
    "shapley-error": errors,
    "shapley-exact": exact,
}
