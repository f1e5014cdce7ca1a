"""The work of pyDVL, in an environment of its own: it needs an older numpy.

    python -m venv ELSEWHERE && ELSEWHERE/bin/pip install pydvl==0.10.0
    python -m benchmarks.retraining WORKLOAD ... --peer ELSEWHERE/bin/python

The latter runs this file, which imports nothing of proponent, in turn with its own measurements:
``python retraining_peer.py WORKLOAD ROUNDS`` prints rows as JSON. Every ratio is to the floor that
is measured here, by the same lines as there, with the numpy of that environment.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

Row = list[Any]


def smallest(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """Return the smallest CPU time of some runs, and what the last returned."""
    seconds, found = [], None
    for _ in range(rounds):
        start = time.process_time()
        found = work()
        seconds.append(time.process_time() - start)
    return min(seconds), found


def neighbours(rounds: int) -> list[Row]:
    """kNN-Shapley against the distances and a sort."""
    from pydvl.valuation import Dataset, KNNShapleyValuation
    from sklearn.neighbors import KNeighborsClassifier

    n, m, d, k = 20_000, 500, 64, 5
    rng = np.random.default_rng(0)
    X, X_test = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    y, y_test = rng.integers(0, 2, n), rng.integers(0, 2, m)

    def floor() -> int:
        total = 0
        for start in range(0, m, 50):
            distances = (X**2).sum(1) - 2 * X_test[start : start + 50] @ X.T
            total += int(np.argsort(distances)[0, 0])
        return total

    def peer() -> Any:
        valuation = KNNShapleyValuation(
            KNeighborsClassifier(n_neighbors=k), Dataset(X_test, y_test), progress=False
        )
        return valuation.fit(Dataset(X, y)).result.values

    base, _ = smallest(floor, max(rounds, 3))
    taken, _ = smallest(peer, 1)
    return [["pyDVL 0.10.0 (the mean over the tests only)", f"{taken:.3g} s", taken / base]]


class ZeroCost:
    """A model that costs nothing."""

    trained = 0

    def fit(self, X: Any, y: Any) -> ZeroCost:
        ZeroCost.trained += 1
        return self

    def predict(self, X: Any) -> Any:
        return np.zeros(len(X))

    def score(self, X: Any, y: Any) -> float:
        return 0.0

    def get_params(self, deep: bool = False) -> dict[str, Any]:
        return {}

    def set_params(self) -> ZeroCost:
        return self


def banzhaf(model: Any, X: Any, y: Any, test: Any, count: int) -> Any:
    """Let pyDVL evaluate some subsets for the Banzhaf value, each used for all players."""
    from pydvl.valuation import (
        BanzhafValuation,
        Dataset,
        MaxSamples,
        ModelUtility,
        MSRSampler,
        SupervisedScorer,
    )

    scorer = SupervisedScorer(lambda model, X, y: model.score(X, y), Dataset(*test), default=0.0)
    sampler = MSRSampler(seed=0)
    utility = ModelUtility(model, scorer, show_warnings=False)
    return BanzhafValuation(utility, sampler, MaxSamples(sampler, count)).fit(Dataset(X, y)).result


def overhead(rounds: int) -> list[Row]:
    """Seconds of the library for one evaluation of a model that costs nothing."""
    rows = []
    for n, count, loop_count in ((100, 400, 20_000), (1000, 30, 20_000)):
        X, y = np.zeros((n, 5)), np.zeros(n)

        def naive(X: Any = X, y: Any = y, n: int = n, count: int = loop_count) -> Any:
            rng = np.random.default_rng(0)
            masks, values = rng.random((count, n)) < 0.5, np.empty(count)
            for at, mask in enumerate(masks):
                values[at] = ZeroCost().fit(X[mask], y[mask]).score(X[:1], y[:1])
            inside = masks.sum(0)
            total = masks.T @ values
            return total / inside - (values.sum() - total) / (count - inside)

        def peer(X: Any = X, y: Any = y, count: int = count) -> Any:
            return banzhaf(ZeroCost(), X, y, (X[:1], y[:1]), count)

        base, _ = smallest(naive, rounds)
        peer()
        ZeroCost.trained = 0
        taken, _ = smallest(peer, 1)
        evaluations = ZeroCost.trained
        base, taken = base / loop_count, taken / evaluations
        rows.append(
            [f"n = {n}: pyDVL 0.10.0, {evaluations} subsets", f"{taken * 1e6:.0f} us", taken / base]
        )
    return rows


def logistic(rounds: int) -> list[Row]:
    """Logistic regressions on subsets for the Banzhaf value, against a loop over scikit-learn."""
    from sklearn.linear_model import LogisticRegression

    trained = [0]

    class Counted(LogisticRegression):
        def fit(self, X: Any, y: Any) -> Any:
            trained[0] += 1
            return super().fit(X, y)

    rng = np.random.default_rng(0)
    n, d, count = 100, 20, 200
    X = rng.normal(size=(n, d))
    y = np.argmax(X[:, :2] + rng.normal(size=(n, 2)), axis=1)
    masks = rng.random((count, n)) < 0.5

    def loop() -> Any:
        return [LogisticRegression().fit(X[mask], y[mask]).score(X, y) for mask in masks]

    def peer() -> Any:
        trained[0] = 0
        return banzhaf(Counted(), X, y, (X, y), count)

    base, _ = smallest(loop, rounds)
    taken, _ = smallest(peer, min(rounds, 2))
    speeds = count / base, trained[0] / taken
    return [
        [
            "2 classes: pyDVL 0.10.0, with scores, to a loop with scores",
            f"{speeds[1]:.0f} fits/s",
            speeds[1] / speeds[0],
        ]
    ]


def exact(rounds: int) -> list[Row]:
    """How often exact values evaluate each subset."""
    from pydvl.valuation import (
        Dataset,
        DeterministicUniformSampler,
        ModelUtility,
        NoStopping,
        ShapleyValuation,
        SupervisedScorer,
    )
    from sklearn.linear_model import Ridge

    trained = [0]

    class Counted(Ridge):
        def fit(self, X: Any, y: Any) -> Any:
            trained[0] += 1
            return super().fit(X, y)

    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(12, 3)), rng.normal(size=12)
    scorer = SupervisedScorer("neg_mean_squared_error", Dataset(X[:3], y[:3]), default=0.0)

    def peer() -> Any:
        sampler = DeterministicUniformSampler()
        utility = ModelUtility(Counted(), scorer, show_warnings=False)
        return ShapleyValuation(utility, sampler, NoStopping(sampler)).fit(Dataset(X, y)).result

    seconds, _ = smallest(peer, 1)
    ratio = trained[0] / (2**12 - 1)
    return [["pyDVL 0.10.0", f"{trained[0]} trainings, {seconds:.3g} s", ratio]]


WORKS: dict[str, Callable[[int], list[Row]]] = {
    "knn-shapley": neighbours,
    "overhead": overhead,
    "logistic-subsets": logistic,
    "shapley-exact": exact,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    work = WORKS.get(sys.argv[1])
    rows = [] if work is None else work(int(sys.argv[2]))
    print(json.dumps([[what, measured, f"{ratio:.3g}", ""] for what, measured, ratio in rows]))
