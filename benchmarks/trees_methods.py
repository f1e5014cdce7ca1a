"""The methods for tree ensembles as the benchmarks ask for them, and a table to train on."""

from __future__ import annotations

from typing import Any

import numpy as np

Table = tuple[np.ndarray, np.ndarray]
Row = list[str]


def method(name: str, **settings: Any) -> Any:
    """Return a method for trees, not fitted."""
    import proponent as pp

    return getattr(pp, name)(**settings)


def table(n: int, m: int, *, seed: int = 0, classes: bool = True, d: int = 10) -> tuple[Any, Any]:
    """Return (train, test): an interaction, a bend and noise; labels where ``classes``."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n + m, d))
    score = X[:, 0] + X[:, 1] * X[:, 2] + np.sin(2 * X[:, 3]) + 0.5 * rng.normal(size=n + m)
    y = (score > 0).astype(int) if classes else score / score.std()
    return (X[:n], y[:n]), (X[n:], y[n:])


def lightgbm(classes: bool = True, **settings: Any) -> Any:
    """Return a LightGBM estimator, not trained, of 100 trees of 31 leaves."""
    import lightgbm

    kind = lightgbm.LGBMClassifier if classes else lightgbm.LGBMRegressor
    return kind(**{"n_estimators": 100, "num_leaves": 31, "n_jobs": 1, "verbose": -1} | settings)
