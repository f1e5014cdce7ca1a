"""What a worker does: train a batch of submodels, evaluate one, or both."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import ProponentError
from proponent.models.learner import Fitted, Prepared, Trainer
from proponent.retraining.utility import Utility

Values = NDArray[np.float64]


@dataclass(frozen=True)
class ToTrain:
    """Submodels that are trained together.

    Attributes
    ----------
    counts : ndarray of shape (K, n)
        How often each training instance is in.
    seeds : ndarray of shape (K,)
        What decides everything random about each.
    keep : bool
        Whether the submodels are wanted.
    """

    counts: NDArray[Any]
    seeds: NDArray[np.int64]
    keep: bool

    def __len__(self) -> int:
        """Return the number of submodels, K."""
        return len(self.seeds)


@dataclass(frozen=True)
class Trained:
    """Submodels that were trained together, and are evaluated together."""

    fitted: Fitted

    def __len__(self) -> int:
        """Return the number of submodels, K."""
        return self.fitted.size


@dataclass(frozen=True)
class Done:
    """What became of a batch of K submodels.

    Attributes
    ----------
    fitted : Fitted or None
        The submodels, where they are wanted.
    nbytes : int
        Their size; 0 where they are not wanted.
    utilities : ndarray of shape (K, T), or None
        NaN for those that failed; None where there is no test set, or all failed.
    untrained : dict
        Positions of those that could not be trained, and why.
    unmeasured : dict
        Positions of those whose utility could not be measured, and why.
    seconds : float
        How long it took.
    died : bool
        Whether they failed because the worker process died.
    warned : mapping
        How many warned in each category while they were trained.
    """

    fitted: Fitted | None
    nbytes: int
    utilities: Values | None
    untrained: dict[int, str]
    unmeasured: dict[int, str]
    seconds: float
    died: bool = False
    warned: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """Train a batch that is not trained, and evaluate it on a test set where there is one.

    Attributes
    ----------
    trainer : Trainer
        Trains.
    utility : Utility or None
        What a submodel is worth.
    test : Prepared or None
        The test set.
    """

    trainer: Trainer
    utility: Utility | None = None
    test: Prepared | None = None

    def __call__(self, batch: ToTrain | Trained) -> Done:
        """Return what became of the batch."""
        start = time.perf_counter()
        fitted = batch.fitted if isinstance(batch, Trained) else self._fit(batch)
        untrained = dict(fitted.failures)
        utilities, unmeasured = None, dict[int, str]()
        if self.utility is not None and self.test is not None and len(untrained) < fitted.size:
            utilities, unmeasured = self._evaluate(fitted, self.utility, self.test)
        nbytes, warned = 0, dict[str, int]()
        if isinstance(batch, ToTrain) and len(untrained) < fitted.size:
            nbytes = self._nbytes(fitted) if batch.keep else 0
            warned = dict(self.trainer.warnings_of(fitted))
        return Done(
            fitted if nbytes else None,
            nbytes,
            utilities,
            untrained,
            unmeasured,
            time.perf_counter() - start,
            warned=warned,
        )

    def _fit(self, batch: ToTrain) -> Fitted:
        try:
            return self.trainer.fit(batch.counts, batch.seeds)
        except ProponentError:
            raise
        except Exception as error:
            return Fitted(None, len(batch), dict.fromkeys(range(len(batch)), _reason(error)))

    def _evaluate(
        self, fitted: Fitted, utility: Utility, test: Prepared
    ) -> tuple[Values | None, dict[int, str]]:
        """Return the utilities, ``(K, T)``, and why some that were trained have none."""
        try:
            utilities = utility.of(self.trainer, fitted, test)
        except ProponentError:
            raise
        except Exception as error:
            return self._one_by_one(fitted, utility, test, error)
        finite = np.asarray(np.isfinite(utilities).all(axis=1))
        if finite.all():
            return utilities, {}
        rows = [row for row in np.flatnonzero(~finite).tolist() if row not in fitted.failures]
        utilities = np.where(finite[:, None], utilities, np.nan)
        return utilities, dict.fromkeys(rows, f"its utility {utility.name!r} is not finite")

    def _one_by_one(
        self, fitted: Fitted, utility: Utility, test: Prepared, error: Exception
    ) -> tuple[Values | None, dict[int, str]]:
        """Evaluate each submodel by itself, as one of them failed."""
        trained = [row for row in range(fitted.size) if row not in fitted.failures]
        if len(trained) == 1 or not isinstance(fitted.models, list):
            return None, dict.fromkeys(trained, f"its utility was not measured: {_reason(error)}")
        rows: dict[int, Values] = {}
        failures: dict[int, str] = {}
        for row in trained:
            found, failed = self._evaluate(Fitted([fitted.models[row]], 1), utility, test)
            if failed or found is None:
                failures[row] = failed[0]
            else:
                rows[row] = found[0]
        if not rows:
            return None, failures
        missing = np.full_like(next(iter(rows.values())), np.nan)
        return np.stack([rows.get(row, missing) for row in range(fitted.size)]), failures

    def _nbytes(self, fitted: Fitted) -> int:
        """Return the size of the submodels; 0 where it cannot be measured, and nothing is kept."""
        try:
            return max(1, self.trainer.nbytes(fitted))
        except Exception:
            return 0


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
