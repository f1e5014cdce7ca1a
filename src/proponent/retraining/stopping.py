"""When enough submodels have been trained: rules that can be combined by ``&`` and ``|``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.exceptions import InvalidInputError

Values = NDArray[np.float64]


@dataclass
class State:
    """How far the training has come.

    Attributes
    ----------
    n_models : int
        Submodels so far.
    seconds : float
        Since the first.
    estimates : list of ndarray
        The values of all players for the sum over the test set, ``(n,)``, after each look; NaN:
        nothing is known of a player yet.
    std_errors : list of ndarray or None
        Their standard errors; None where the estimator has none.
    """

    n_models: int = 0
    seconds: float = 0.0
    estimates: list[Values] = field(default_factory=list)
    std_errors: list[Values | None] = field(default_factory=list)


class StoppingRule(ABC):
    """A rule that says when to stop."""

    @property
    def looks(self) -> bool:
        """Whether it looks at estimates, so that there has to be a test set."""
        return True

    @property
    def most(self) -> float:
        """After how many submodels it is done for certain; infinity where that is not known."""
        return float("inf")

    @abstractmethod
    def done(self, state: State) -> bool:
        """Return whether enough submodels have been trained."""

    def __and__(self, other: StoppingRule) -> StoppingRule:
        """Return the rule that stops when both do."""
        return Both(self, other)

    def __or__(self, other: StoppingRule) -> StoppingRule:
        """Return the rule that stops when either does."""
        return Either(self, other)


@dataclass(frozen=True)
class Both(StoppingRule):
    """Stops when both rules do."""

    one: StoppingRule
    other: StoppingRule

    @property
    @override
    def looks(self) -> bool:
        """Whether either looks at estimates."""
        return self.one.looks or self.other.looks

    @property
    @override
    def most(self) -> float:
        """The larger of the two numbers."""
        return max(self.one.most, self.other.most)

    @override
    def done(self, state: State) -> bool:
        """Return whether both are done."""
        return self.one.done(state) and self.other.done(state)


@dataclass(frozen=True)
class Either(StoppingRule):
    """Stops when one of two rules does."""

    one: StoppingRule
    other: StoppingRule

    @property
    @override
    def looks(self) -> bool:
        """Whether either looks at estimates."""
        return self.one.looks or self.other.looks

    @property
    @override
    def most(self) -> float:
        """The smaller of the two numbers."""
        return min(self.one.most, self.other.most)

    @override
    def done(self, state: State) -> bool:
        """Return whether one is done."""
        return self.one.done(state) or self.other.done(state)


@dataclass(frozen=True)
class MaxModels(StoppingRule):
    """Stops after so many submodels.

    Parameters
    ----------
    n_models : int
        1 or more.
    """

    n_models: int

    def __post_init__(self) -> None:
        """Check the number."""
        as_count(self.n_models, "n_models")

    @property
    @override
    def looks(self) -> bool:
        """False: it counts."""
        return False

    @property
    @override
    def most(self) -> float:
        """The number."""
        return self.n_models

    @override
    def done(self, state: State) -> bool:
        """Return whether there are so many."""
        return state.n_models >= self.n_models


@dataclass(frozen=True)
class MaxSeconds(StoppingRule):
    """Stops after the batch of submodels in which the time runs out.

    How many there are depends on the machine; with a ``store`` the rest can be added later.

    Parameters
    ----------
    seconds : float
        Positive.
    """

    seconds: float

    def __post_init__(self) -> None:
        """Check the number."""
        _positive("seconds", self.seconds)

    @property
    @override
    def looks(self) -> bool:
        """False: it counts."""
        return False

    @override
    def done(self, state: State) -> bool:
        """Return whether the time is up."""
        return state.seconds >= self.seconds


@dataclass(frozen=True)
class TargetStdError(StoppingRule):
    """Stops when the standard errors are small enough.

    Parameters
    ----------
    target : float
        Positive; in units of the joint influence, summed over the test set, unless ``relative``.
    portion : float
        Of the players whose standard error has to be at the target; 1: all.
    relative : bool
        Whether the target is a multiple of the standard deviation of the values over the players.
    """

    target: float
    portion: float = 1.0
    relative: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        _positive("target", self.target)
        if not 0 < self.portion <= 1:
            raise InvalidInputError(
                f"portion must be above 0, and 1 at most; got {self.portion!r}."
            )

    @override
    def done(self, state: State) -> bool:
        """Return whether so many errors are known and small enough."""
        if not state.std_errors:
            return False
        errors, values = state.std_errors[-1], state.estimates[-1]
        if errors is None:
            raise InvalidInputError(
                "stop: this method has no standard errors; use RankStability or MaxModels."
            )
        scale = float(np.nanstd(values)) if self.relative else 1.0
        small = np.nan_to_num(errors, nan=np.inf) <= self.target * scale
        return bool(small.mean() >= self.portion)


@dataclass(frozen=True)
class RankStability(StoppingRule):
    """Stops when the ranking of the players hardly changes any more.

    It compares each estimate with the one before by Spearman's rank correlation, which does not
    mind the signs of the values. Estimates share their submodels, so that this is stability, not
    accuracy: prefer :class:`TargetStdError` where there are standard errors.

    Parameters
    ----------
    threshold : float
        The least rank correlation that counts as stable, below 1.
    checks : int
        How many times in a row.
    """

    threshold: float = 0.99
    checks: int = 3

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not -1 < self.threshold < 1:
            raise InvalidInputError(
                f"threshold must be a rank correlation below 1; got {self.threshold!r}."
            )
        as_count(self.checks, "checks")

    @override
    def done(self, state: State) -> bool:
        """Return whether the last estimates agree in rank."""
        last = state.estimates[-self.checks - 1 :]
        if len(last) <= self.checks:
            return False
        return all(rank_correlation(*pair) >= self.threshold for pair in pairwise(last))


def rank_correlation(one: Values, other: Values) -> float:
    """Return Spearman's correlation of two estimates; NaN where a player is unknown to either."""
    from scipy.stats import rankdata

    if np.isnan(one).any() or np.isnan(other).any():
        return float("nan")
    ranks = [rankdata(values) for values in (one, other)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def _positive(name: str, value: float) -> None:
    if not isinstance(value, (int, float, np.number)) or not 0 < value < np.inf:
        raise InvalidInputError(f"{name} must be a positive number; got {value!r}.")
