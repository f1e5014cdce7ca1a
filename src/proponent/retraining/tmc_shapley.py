"""The Shapley value by permutations that stop early (survey section 4.3.3)."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, ProponentError
from proponent.retraining.asked import Asked
from proponent.retraining.checks import check_choice
from proponent.retraining.coalitions import (
    Coalitions,
    Design,
    Estimate,
    Estimated,
    Estimator,
    Table,
    join,
)
from proponent.retraining.designs import Permutations
from proponent.retraining.growth import more_than
from proponent.retraining.method import SubmodelMethod
from proponent.retraining.settings import NEEDS, Settings
from proponent.retraining.stopping import State
from proponent.retraining.utility import Accuracy

if TYPE_CHECKING:
    from typing_extensions import Unpack

Values = NDArray[np.float64]
Rule = Literal["paper", "released"]

TOGETHER = 16  # permutations that are walked side by side, so that trainings can be batched
DELTA = 0.05  # with which probability the largest error may exceed its bound
PATIENCE = 5  # steps within the tolerance that the released code lets pass


class TMCShapley(SubmodelMethod):
    r"""Truncated Monte Carlo Shapley: random orders, cut where the model no longer improves.

    Instances are added one by one in a random order :math:`\pi`; each is credited with the change
    in utility that it brings, and its value is the mean over orders:

    .. math::

        I(z_i, z_te) = E_\pi \bigl[ v(S_\pi^i \cup z_i) - v(S_\pi^i) \bigr]

    with :math:`S_\pi^i` those before it. Once the mean utility over the test set is within the
    tolerance of that of the whole training set, the rest of the order is not trained and gets 0.

    **Source** Ghorbani and Zou, ICML 2019, algorithm 1; survey eq. (17).

    **Differs from the paper in** that the zeros of the truncated can be shared out
    (``redistribute``): the paper's values fall short of :math:`v(D) - v(\emptyset)` by what the
    truncation saved, which the diagnostics report as ``efficiency_gap``. The last step of an order
    that was not cut before it costs nothing, and is credited also where it is within the tolerance.
    The whole training set is trained once, not bootstrapped.

    **Cost** ``n_permutations`` times up to n trainings. The test set decides where to cut, so it
    is needed by ``fit``; ``influence`` for another one measures the same subsets.

    Parameters
    ----------
    n_permutations : int
        Orders.
    tolerance : float
        How near to the utility of the whole set is near enough, in units of the utility by the
        paper's rule, relative to that of the whole set by the released code's. 0 never truncates,
        and needs no test set.
    rule : {"paper", "released"}
        The paper truncates at the first step within the tolerance, the released code after the
        sixth in a row.
    redistribute : bool
        Whether what is left of the utility is shared evenly among the truncated.
    **settings
        As in :class:`SubmodelMethod`. With ``stop`` the permutations end after the batch of 16 in
        which the rule is done, and fewer where they might take more than its ``MaxModels``.

    Examples
    --------
    >>> import numpy as np
    >>> import proponent as pp
    >>> from sklearn.linear_model import Ridge
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    >>> tmc = pp.TMCShapley(n_permutations=10).fit(Ridge(), (X, y), test=(X[:4], y[:4]))
    >>> tmc.influence().values.shape
    (4, 20)
    """

    card = MethodCard(
        name="TMCShapley",
        survey_name="TMC-Shapley",
        title="Truncated Monte Carlo Shapley",
        family="retraining",
        section="4.3.3",
        equations="17",
        paper="Ghorbani and Zou, ICML 2019",
        needs=NEEDS,
        full_complexity="O(n^2 T)",
        incremental_complexity="O(n^2)",
        space_complexity="O(n + p)",
        storage_complexity="O(n^2 p)",
        group=True,
        generative=True,
        any_model=True,
        original_sign="the same, in the utility of the model (accuracy)",
    )
    _walks: Walks

    def __init__(
        self,
        n_permutations: int = 100,
        *,
        tolerance: float = 0.01,
        rule: Rule = "paper",
        redistribute: bool = False,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        self.n_permutations = n_permutations
        self.tolerance = tolerance
        self.rule = rule
        self.redistribute = redistribute

    @override
    def _design(self, n: int) -> Design:
        return Permutations()

    @override
    def _size(self, n: int) -> int:
        return 2 + as_count(self.n_permutations, "n_permutations") * (n - 1)

    @override
    def _estimator(self, n: int) -> Estimator:
        return TruncatedMarginals(self._walks, redistribute=self.redistribute)

    @override
    def _train(self) -> None:
        check_choice("rule", self.rule, ("paper", "released"))
        if not isinstance(self.tolerance, (int, float)) or not 0 <= self.tolerance < np.inf:
            raise InvalidInputError(
                f"tolerance must be a number of at least 0; got {self.tolerance!r}."
            )
        no_test = self._game is None and self._given_test is None
        if no_test and self.stop is not None and self.stop.looks:
            raise InvalidInputError(
                "stop: this rule looks at the estimates, so fit needs the test set too: "
                "fit(model, train, test=test)."
            )
        if self.tolerance and no_test:
            raise InvalidInputError(
                "test: TMCShapley truncates by the utility on the test set, so fit needs it: "
                "fit(model, train, test=(X_test, y_test))."
            )
        n = len(self.train_)
        size = self._most(as_count(self.n_permutations, "n_permutations"), n)
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, 0x7AC]))
        orders = np.stack([rng.permutation(n) for _ in range(size)])
        # A stream of their own, so that more permutations begin with the same trainings.
        rng = np.random.default_rng(np.random.SeedSequence([self.seed, 0x7AC, 1]))
        seeds = rng.integers(0, 2**63 - 1, size=(size, n + 1), dtype=np.int64)
        ends = Coalitions(np.stack([np.zeros(n, np.bool_), np.ones(n, np.bool_)]), seeds[0, :2])
        utility = self._mean_utility(ends)
        if not np.isfinite(utility).all():
            reason = next(iter(self._failures(ends).values()), "its utility is not finite")
            raise ProponentError(f"The training on all instances, or on none, failed: {reason}.")
        parts, began, state, looked = [ends], time.monotonic(), State(), 0
        rows = np.full((size, n + 1), -1, dtype=np.intp)
        rows[:, 0], rows[:, n] = 0, 1
        count = 2
        if self.stop is not None and not self.tolerance:
            self._trained(ends)
        for start in range(0, size, TOGETHER):
            some = slice(start, min(start + TOGETHER, size))
            for part, at in self._walk(orders[some], seeds[some], utility):
                rows[start + at[:, 0], at[:, 1]] = count + np.arange(len(part))
                count += len(part)
                parts.append(part)
                if self.stop is not None and not self.tolerance:
                    self._trained(part)  # else the clock and the rule would not see it
            self._walks = Walks(orders[: some.stop], rows[: some.stop])
            state.n_models, state.seconds = count, time.monotonic() - began
            if self.stop is None:
                continue
            if self.stop.looks and (not looked or count - looked >= more_than(looked)):
                self._look(state, parts)
                looked = count
            if self.stop.done(state):
                break
        self._coalitions = join(parts)
        if not self.tolerance:
            self._trained(self._coalitions)

    def _most(self, permutations: int, n: int) -> int:
        """Return how many permutations the stopping rule allows, if none were truncated."""
        most = float("inf") if self.stop is None else self.stop.most
        if most == float("inf"):
            return permutations
        if most < n + 1:
            raise InvalidInputError(
                f"stop: one permutation takes {n + 1:,} submodels at most; allow as many."
            )
        return min(permutations, int((most - 2) // max(n - 1, 1)))

    def _look(self, state: State, parts: list[Coalitions]) -> None:
        """Add the estimate for the sum over the tests, once there is an order for one."""
        whole = self._measured(None, join(parts)).total()
        try:
            estimate = self._estimator(whole.n).on(whole).players(range(whole.n))
        except ProponentError:
            return  # every order so far has a training that failed
        errors = estimate.std_errors
        state.estimates.append(estimate.values[0])
        # Of a single order there is no error yet.
        state.std_errors.append(np.full(whole.n, np.inf) if errors is None else errors[0])

    def _walk(self, orders: NDArray[Any], seeds: NDArray[np.int64], ends: Values) -> Any:
        """Yield coalitions, and which order and step each is, ``(some, 2)``."""
        walkers, n = orders.shape
        masks = np.zeros((walkers, n), dtype=np.bool_)
        before = np.full(walkers, ends[0])
        near = np.zeros(walkers, dtype=np.int64)
        walking = np.ones(walkers, dtype=np.bool_)
        reach = self.tolerance * (abs(ends[1]) if self.rule == "released" else 1.0)
        patience = PATIENCE if self.rule == "released" else 0
        for step in range(1, n):
            # The paper looks at the utility before each step, the first one too; the released
            # code after each.
            if self.tolerance and (step > 1 or self.rule == "paper"):
                near = np.where(np.abs(ends[1] - before) <= reach, near + 1, 0)
                walking &= near <= patience
            if not walking.any():
                return
            masks[np.arange(walkers), orders[:, step - 1]] = True
            on = np.flatnonzero(walking)
            part = Coalitions(masks[on].copy(), seeds[on, step])
            before[on] = self._mean_utility(part)
            yield part, np.stack([on, np.full(len(on), step)], axis=1)

    def _mean_utility(self, coalitions: Coalitions) -> Values:
        """Return the mean utility over the tests, ``(K,)``; NaN where the training failed.

        The submodels are kept, so that another test set costs predictions only. Without a
        tolerance nothing depends on the utility, and all is trained at once in the end.
        """
        if not self.tolerance:
            return np.zeros(len(coalitions))
        with suppress(ProponentError):  # these few may all fail: their utilities are then NaN
            self._trained(coalitions)
        return np.asarray(self._utilities(None, coalitions).mean(axis=1))

    @override
    def _measured(self, instances: Instances | None, coalitions: Coalitions) -> Table:
        # With the rows of failed trainings: a step is found by its row.
        utilities = self._utilities(instances, coalitions)
        return Table(coalitions, utilities, failures=self._failures(coalitions))

    @override
    def _diagnostics(self, query: Asked | None) -> dict[str, Any]:
        steps = self._walks.steps
        noticed = super()._diagnostics(query) | {
            "permutations": len(steps),
            "mean_steps": float(steps.mean()),
        }
        accuracy = self._game is None and isinstance(self._utility, Accuracy)
        if not self.tolerance and accuracy and query is not None:
            bound = error_bound(len(self.train_), len(steps) - noticed["orders_left_out"], DELTA)
            noticed |= {"largest_error_bound": bound, "bound_holds_with": 1 - DELTA}
        return noticed


def error_bound(n: int, permutations: int, delta: float) -> float:
    r"""Return what no value's error exceeds, by Hoeffding, with probability ``1 - delta``.

    For utilities in [0, 1], whose marginals are in [-1, 1], and permutations that are not
    truncated: :math:`\sqrt{2 \log(2 n / \delta) / M}`.

    Parameters
    ----------
    n, permutations : int
        Players, and M.
    delta : float
        The probability of a larger error, for each test instance.

    **Source** Maleki, Tran-Thanh, Hines, Rahwan and Rogers, 2013.
    """
    return float(np.sqrt(2 * np.log(2 * n / delta) / permutations))


@dataclass(frozen=True)
class Walks:
    """Orders, and where the coalition of each step stands in the table.

    Attributes
    ----------
    orders : ndarray of shape (P, n)
        The players in the order in which they are added.
    rows : ndarray of shape (P, n + 1)
        The row after so many steps; -1: truncated before it.
    """

    orders: NDArray[np.intp]
    rows: NDArray[np.intp]

    @property
    def steps(self) -> NDArray[np.intp]:
        """After how many steps each order ends, ``(P,)``; n: it was not truncated."""
        # The whole set is always there; it is a step of an order if none is missing before.
        n = self.orders.shape[1]
        before = (self.rows[:, :n] >= 0).sum(axis=1) - 1
        return np.asarray(np.where(before == n - 1, n, before))


class TruncatedMarginals(Estimator):
    """Mean marginals over truncated orders; an order with a failed training is left out.

    Parameters
    ----------
    walks : Walks
        The orders and their rows.
    redistribute : bool
        Whether what is left of the utility is shared evenly among the truncated.
    """

    def __init__(self, walks: Walks, *, redistribute: bool) -> None:
        self.walks = walks
        self.redistribute = redistribute

    @override
    def on(self, table: Table) -> Estimated:
        """Average the marginals over the orders."""
        return _Marginals(table, self.walks, self.redistribute)


class _Marginals(Estimated):
    def __init__(self, table: Table, walks: Walks, redistribute: bool) -> None:
        n, utilities = table.n, table.utilities
        bad = np.asarray(np.isnan(utilities).any(axis=1))
        mean = np.zeros((n, table.n_tests))
        squares = np.zeros_like(mean)
        used = 0
        for order, rows, steps in zip(walks.orders, walks.rows, walks.steps.tolist(), strict=True):
            walked = rows[: steps + 1]
            if bad[walked].any():
                continue
            found = np.zeros_like(mean)
            found[order[:steps]] = np.diff(utilities[walked], axis=0)
            if redistribute and steps < n:
                found[order[steps:]] = (utilities[1] - utilities[walked[-1]]) / (n - steps)
            used += 1
            change = found - mean
            mean += change / used
            squares += change * (found - mean)
        if not used:
            first = next(iter(table.failures.values()), "a utility that is not finite")
            raise ProponentError(f"Every order has a training that failed, the first with: {first}")
        self._values = mean.T
        self._errors = np.sqrt(squares / (used * (used - 1))).T if used > 1 else None
        whole = utilities[1] - utilities[0]
        self._noticed = {
            "orders_left_out": len(walks.orders) - used,
            "efficiency_gap": float(np.abs(whole - mean.sum(axis=0)).max()),
        }

    @override
    def players(self, rows: range) -> Estimate:
        """Return the means of some players, ``(T, players)``."""
        some = slice(rows.start, rows.stop)
        errors = None if self._errors is None else self._errors[:, some].copy()
        return Estimate(self._values[:, some].copy(), errors)

    @override
    def noticed(self) -> dict[str, Any]:
        """Return the orders left out, and by how much the values miss the utility they share."""
        return self._noticed
