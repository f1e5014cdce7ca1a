"""Gradient Shapley: marginals along passes of stochastic gradient descent (section 4.3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent._randomness import fixed_randomness
from proponent._results.checks import as_count
from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import (
    InvalidInputError,
    MethodCapabilityError,
    NonFiniteError,
    ProponentError,
)
from proponent.influence import Influence
from proponent.method import InfluenceMethod
from proponent.models.learner import Fitted, Prepared
from proponent.progress import progress
from proponent.retraining.checks import check_seed
from proponent.retraining.passes import Marginals, online, pass_seed, steps_of
from proponent.retraining.players import Players
from proponent.retraining.repeats import expectation
from proponent.retraining.utility import Utility, utility_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from proponent.models.torch_trainer import TorchTrainer

Values = NDArray[np.float64]

GRID = tuple(10.0**-exponent for exponent in np.arange(1, 5, 0.5))  # of the released code
TRIALS = 10  # passes that it tries each rate by
MEMORY = 2**28  # bytes of the utilities of passes that are walked at once
BLOCK = 256  # training instances whose memorization is measured in one run of the passes


class GradientShapley(InfluenceMethod):
    r"""Gradient Shapley: what single steps of gradient descent do to the utility, on average.

    A pass takes the training instances in a random order :math:`\pi`, one step of gradient
    descent on each, from an untrained network; an instance is credited with the change of the
    utility that its step makes, and its value is the mean over passes:

    .. math::

        \theta_j = \theta_{j-1} - \alpha \nabla L(z_{\pi_j}; \theta_{j-1}), \qquad
        I(z_i, z_te) = E_\pi \bigl[ v(z_te; \theta_j) - v(z_te; \theta_{j-1}) \bigr],
        \qquad \pi_j = i

    The values of all instances sum to the mean of :math:`v(\theta_n) - v(\theta_0)`. The utility
    of a network depends on the order of its steps, so this is no Shapley value of a game: of the
    axioms only that sum holds.

    **Source** Ghorbani and Zou, ICML 2019, algorithm 2; survey eq. (17).

    **Differs from the paper in** the first instance of a pass, which the released code does not
    credit; it is here, against the untrained network. The utility is minus the risk unless told
    otherwise.

    Scores are ``(n_test, n_train)`` in units of the utility; positive means that a step on the
    training instance raises it. Standard errors are those of the mean over passes.

    **Cost** ``n_permutations * n`` steps on one instance and as many passes over the test set, by
    ``fit`` for its test set and by ``influence`` for any other: the passes are walked again, the
    same ones. Networks are not kept. With a learner that trains many at once many passes are
    walked at once.

    Parameters
    ----------
    n_permutations : int
        Passes, each in an order and from initial parameters of its own.
    learning_rate : "auto" or float
        The step size. ``"auto"`` takes, as the released code, of the rates
        :math:`10^{-1}, 10^{-1.5}, \dots, 10^{-4.5}` the one with the largest mean less standard
        deviation over 10 passes of the utility in the end; it needs the test set with ``fit``.
    utility : str, Utility or callable
        ``"risk"`` (minus the risk), ``"accuracy"``, ``"margin"``, or a function of outputs and
        targets with one number a test instance; larger is better.
    seed : int
        Decides the orders and the initial parameters.
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal when the work lasts.

    Examples
    --------
    >>> import torch
    >>> import proponent as pp
    >>> learner = pp.TorchLearner(
    ...     lambda: torch.nn.Linear(2, 3),
    ...     lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ...     loss="cross_entropy", epochs=1)
    >>> train = torch.randn(12, 2), torch.randint(3, (12,))
    >>> values = pp.GradientShapley(20, learning_rate=0.1).fit(learner, train).influence(train)
    >>> values.shape
    (12, 12)
    """

    card = MethodCard(
        name="GradientShapley",
        survey_name="G-Shapley",
        title="Gradient Shapley",
        family="retraining",
        section="4.3.3",
        equations="17",
        paper="Ghorbani and Zou, ICML 2019",
        needs="pp.TorchLearner, which says how a module is made and what its risk is",
        full_complexity="O(n^2)",
        incremental_complexity="O(n^2)",
        space_complexity="O(n + p)",
        storage_complexity="O(n^2 p)",
        assumes=("differentiable", "optimizer"),
        group=True,
        generative=True,
        original_sign="the same, in the utility of the model (accuracy)",
    )
    _trainer: TorchTrainer
    _players: Players
    _given: tuple[Instances, Marginals] | None
    _left_out: int  # passes that diverged on training instances, at most

    def __init__(
        self,
        n_permutations: int = 100,
        *,
        learning_rate: float | Literal["auto"] = "auto",
        utility: str | Utility | Callable[[Any, Any], Any] = "risk",
        seed: int = 0,
        progress: bool | None = None,
    ) -> None:
        self.n_permutations = n_permutations
        self.learning_rate = learning_rate
        self.utility = utility
        self.seed = seed
        self.progress = progress

    @override
    def fit(
        self, model: Any, train: Any, *, ids: Any = None, groups: Any = None, test: Any = None
    ) -> Self:
        """Take the learner and its training set; with a test set, walk the passes for it.

        Parameters
        ----------
        model : TorchLearner
            Its module and its risk count; its optimizer, batches and epochs do not.
        train : (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.
        groups : array-like of shape (n,), optional
            The name of the group of each instance: a pass then takes group after group, and
            credits each with the change of the utility by the steps on all of its instances.
        test : (X, y), dict, Dataset or Instances, optional
            What ``influence()`` answers for; ``learning_rate="auto"`` is chosen by it.

        Raises
        ------
        InvalidInputError
            If the model is of another kind, or a hyperparameter is out of range.
        ProponentError
            If every pass diverges.
        """
        from proponent.models.torch_learner import TorchLearner

        if not isinstance(model, TorchLearner):
            raise self._wrong_kind(model)
        self._utility = utility_of(self.utility)
        as_count(self.n_permutations, "n_permutations")
        check_seed(self.seed)
        rate = self._checked_rate()
        instances = Instances.of(train, ids=ids, role="train")
        self._players = Players(instances, groups)
        self.train_ = self._players.instances
        tests = None if test is None else super()._tests(test, None)
        self._given = None
        with fixed_randomness():  # data sets may draw when they are looked at
            self._trainer = online(model).bind(instances)
            self.learning_rate_ = self._chosen_rate(tests) if rate is None else rate
            if tests is not None:
                self._given = tests, self._marginals(tests)
        return self

    @override
    def expected(self, test: Any = None, *, repeats: int = 5, ids: Any = None) -> Influence:
        """Return the mean over ``repeats`` runs of the passes, each from other seeds.

        Every pass has an order and initial parameters of its own, so that :meth:`influence` is
        the same expectation from fewer passes; this one says how far whole runs differ.

        Parameters
        ----------
        test, ids
            As in :meth:`influence`.
        repeats : int
            How many runs, 2 or more.

        Returns
        -------
        Influence
            The mean, with its standard error over the runs; diagnostics have the deviation
            between them and how much two halves agree in rank.

        Raises
        ------
        InvalidInputError
            If ``repeats`` is less than 2.
        """
        rows, instances = self._rows(None), self._tests(test, ids)

        def values(repeat: int) -> Values:
            # The first run is that of `influence`; number 1 chose the learning rate.
            query = self._marginals(instances, repeat + 1) if repeat else self._query(instances)
            return self._scores(query, rows)

        with fixed_randomness():
            mean, errors, noticed = expectation(values, repeats)
        noticed["learning_rate"] = self.learning_rate_
        return self._answer(mean, rows, instances.ids, errors, noticed)

    # The frame's hooks

    @override
    def _tests(self, test: Any, ids: Any) -> Instances:
        if test is None and self._given is not None:
            return self._given[0]
        return super()._tests(test, ids)

    @override
    def _query(self, instances: Instances) -> Marginals:
        if self._given is not None and self._given[0] is instances:
            return self._given[1]
        with fixed_randomness():
            return self._marginals(instances)

    @override
    def _scores(self, query: Marginals, rows: range) -> Values:
        return query.mean[rows.start : rows.stop, :-1].T.copy()

    @override
    def _std_errors(self, query: Marginals, rows: range) -> Values | None:
        errors = query.errors
        return None if errors is None else errors[rows.start : rows.stop, :-1].T.copy()

    @override
    def _joint_scores(self, query: Marginals, rows: range) -> Values:
        return query.mean[rows.start : rows.stop, -1].copy()

    @override
    def _joint_errors(self, query: Marginals, rows: range) -> Values | None:
        errors = query.errors
        return None if errors is None else errors[rows.start : rows.stop, -1].copy()

    @override
    def _self_scores(self, rows: range) -> Values:
        if self._players.members is not None:
            raise MethodCapabilityError(
                "GradientShapley: memorization is the influence of a training instance on itself; "
                "the players here are groups."
            )
        scores, left_out = np.empty(len(rows)), 0
        for start in range(0, len(rows), BLOCK):
            positions = np.arange(rows.start, rows.stop)[start : start + BLOCK]
            found = self._marginals(self.train_.select(positions))
            scores[start : start + BLOCK] = found.mean[positions, np.arange(len(positions))]
            left_out = max(left_out, found.left_out)
        self._left_out = left_out
        return scores

    @override
    def _diagnostics(self, query: Marginals | None) -> dict[str, Any]:
        noticed: dict[str, Any] = {"learning_rate": self.learning_rate_}
        left_out = self._left_out if query is None else query.left_out
        used = as_count(self.n_permutations, "n_permutations") - left_out
        return noticed | {"permutations": used, "diverged": left_out}

    # The passes

    def _marginals(self, tests: Instances, purpose: int = 0) -> Marginals:
        """Walk the passes and average the changes that the steps make.

        Raises
        ------
        ProponentError
            If every pass diverges.
        """
        n, size = len(self.train_), as_count(self.n_permutations, "n_permutations")
        prepared = self._trainer.prepare(tests)
        marginals = Marginals.none(n, len(tests))
        at_once = max(1, MEMORY // (8 * (n + 1) * len(tests)))
        what = "passes of gradient descent"
        shown: Any = progress(total=size, description=what, enabled=self.progress)
        with shown as bar:
            for orders, seeds in self._passes(purpose, size, at_once):
                steps, ends = steps_of(orders, seeds, self._players.members)
                utilities = np.empty((len(orders), n + 1, len(tests)))

                def see(
                    step: int, models: Fitted, utilities: Values = utilities, ends: Any = ends
                ) -> None:
                    row, number = np.nonzero(ends == step)
                    if len(row):
                        utilities[row, number] = self._measured(step, models, prepared)[row]

                self._walk(steps, seeds, self.learning_rate_, see)
                for order, row in zip(orders, utilities, strict=True):
                    marginals = marginals.with_pass(order, row)
                bar.update(len(orders))
        if not marginals.used:
            raise ProponentError(
                f"All {size} passes diverged at learning_rate={self.learning_rate_:g}; lower it."
            )
        return marginals

    def _chosen_rate(self, tests: Instances | None) -> float:
        """Return the rate with the best utility in the end, as the released code chooses it."""
        if tests is None:
            raise InvalidInputError(
                "learning_rate='auto' is chosen by the utility on a test set: pass it to fit, "
                "fit(model, train, test=(X_test, y_test)), or give a number."
            )
        prepared, n = self._trainer.prepare(tests), self._trainer.n
        best, chosen = -np.inf, None
        for rate in GRID:
            ends: list[float] = []

            def see(step: int, models: Fitted, ends: list[float] = ends) -> None:
                if step == n:
                    ends.extend(self._measured(step, models, prepared).mean(axis=1))

            for orders, seeds in self._passes(1, TRIALS, TRIALS):
                self._walk(steps_of(orders, seeds, self._players.members)[0], seeds, rate, see)
            score = float(np.mean(ends) - np.std(ends))
            if score > best:  # not so where one diverged: NaN
                best, chosen = score, rate
        if chosen is None:
            raise ProponentError(
                "learning_rate='auto': passes diverged at every rate of the grid, from 0.1 down "
                "to 10^-4.5; give a lower one, or scale the features."
            )
        return float(chosen)

    def _passes(
        self, purpose: int, size: int, at_once: int
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int64]]]:
        """Return the orders and seeds of all passes, as many at a time as are walked at once."""
        random = np.random.default_rng(np.random.SeedSequence([self.seed, 0x65, purpose]))
        at_once = min(at_once, self._trainer.chunk or 1)
        for start in range(0, size, at_once):
            some = range(start, min(start + at_once, size))
            orders = np.stack([random.permutation(len(self.train_)) for _ in some])
            # Seeds of their own: the numbers do not depend on how many are walked at once.
            yield orders, np.array([pass_seed(self.seed, purpose, number) for number in some])

    def _walk(
        self,
        orders: NDArray[np.intp],
        seeds: NDArray[np.int64],
        rate: float,
        see: Callable[[int, Fitted], None],
    ) -> None:
        from proponent.models.torch_online import online_passes

        online_passes(self._trainer, orders, seeds, rate, see)

    def _measured(self, step: int, models: Fitted, prepared: Prepared) -> Values:
        """Return the utilities ``(P, T)``; NaN for a pass that has diverged."""
        try:
            found = self._utility.of(self._trainer, models, prepared)
        except NonFiniteError:
            if step == 0:
                raise  # the test set is to blame, not the steps
            # A risk overflows before the parameters do: look for the passes that it is of.
            found = np.full((models.size, len(prepared)), np.nan)
            for row in range(models.size):
                one = {name: array[row : row + 1] for name, array in models.models.items()}
                with suppress(NonFiniteError):
                    found[row] = self._utility.of(self._trainer, Fitted(one, 1), prepared)[0]
        if found.shape[1] != len(prepared):
            raise InvalidInputError(
                f"utility: GradientShapley needs a number for each of the {len(prepared)} test "
                f"instances; {self._utility.name} gives {found.shape[1]}."
            )
        return found

    def _checked_rate(self) -> float | None:
        rate = self.learning_rate
        if rate == "auto":
            return None
        number = isinstance(rate, (int, float, np.number)) and not isinstance(rate, bool)
        if not number or not 0 <= rate < np.inf:
            raise InvalidInputError(
                f"learning_rate: expected 'auto' or a number of at least 0; got {rate!r}."
            )
        return float(rate)
