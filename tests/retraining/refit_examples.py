"""Leave-one-out the slow way: a scikit-learn estimator fitted again without each group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from proponent.data import Instances

Data = tuple[NDArray[Any], NDArray[Any]]


def regression(
    n: int, d: int, outputs: int = 0, seed: int = 0, tests: int = 7
) -> tuple[Data, Data]:
    """Return training and test instances that are not centred."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n + tests, d)) + 3
    noise = rng.normal(size=(n + tests, max(outputs, 1)))
    y = X @ rng.normal(size=(d, max(outputs, 1))) + noise
    y = y if outputs else y[:, 0]
    return (X[:n], y[:n]), (X[n:], y[n:])


def classification(
    n: int, d: int, classes: int, seed: int = 0, tests: int = 7
) -> tuple[Data, Data]:
    """Return training and test instances whose classes overlap."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n + tests, d))
    logits = X @ rng.normal(size=(d, classes))
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return (X[:n], y[:n]), (X[n:], y[n:])


def singles(n: int) -> list[NDArray[np.intp]]:
    """Return the groups of one."""
    return [np.array([row]) for row in range(n)]


@dataclass(frozen=True)
class Refits:
    """Models fitted without groups, and the one with all instances."""

    full: Any
    others: list[Any]

    @classmethod
    def of(
        cls, model: Any, data: Data, groups: Sequence[Any], weights: Any = None, **per_row: Any
    ) -> "Refits":
        """Fit; settings in ``per_row`` have an entry for each training instance."""
        X, y = data

        def fitted(left_out: Any) -> Any:
            kept = np.setdiff1d(np.arange(len(X)), left_out)
            rows = {name: value[kept] for name, value in per_row.items()}
            given = {} if weights is None else {"sample_weight": weights[kept]}
            return clone(model).set_params(**rows).fit(X[kept], y[kept], **given)

        return cls(fitted([]), [fitted(group) for group in groups])

    def risk_changes(self, risk: Any) -> NDArray[np.float64]:
        """Return the risk without each group less the risk with all, ``(T, G)``."""
        with_all = risk(self.full)
        return np.stack([risk(model) - with_all for model in self.others], axis=1)

    def dfbeta(self, center: bool = False) -> NDArray[np.float64]:
        """Return the coefficients and the intercepts with all, less those without."""

        def parameters(model: Any) -> NDArray[np.float64]:
            intercept = np.atleast_1d(model.intercept_)
            if center:  # a number added to all intercepts of a softmax changes nothing
                intercept = intercept - intercept.mean()
            return np.column_stack([np.atleast_2d(model.coef_), intercept]).ravel()

        full = parameters(self.full)
        return np.stack([full - parameters(model) for model in self.others])


def squared(test: Data) -> Any:
    """Return the squared error of a model on each test instance, summed over the outputs."""
    X, y = test
    y = y.reshape(len(y), -1)
    return lambda model: np.square(model.predict(X).reshape(y.shape) - y).sum(axis=1)


def instances(data: Data) -> Instances:
    return Instances.of(data)
