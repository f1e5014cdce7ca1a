"""What HyDRA and SGD-Influence share: influence by differentiating a recorded run."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from proponent.data import Instances
from proponent.dynamic.replay import Replay
from proponent.dynamic.unrolled.backward import ADJOINT, Scores, StepScores, Sums, backward_scores
from proponent.dynamic.unrolled.batches import ReplayedBatches
from proponent.dynamic.unrolled.final_gradients import FinalGradients, Tests
from proponent.dynamic.unrolled.forward import CHANGE, parameter_changes
from proponent.dynamic.unrolled.lean import Coefficients, coefficients, lean_scores
from proponent.dynamic.unrolled.linearised import VECTORS_AT_ONCE, differentiable
from proponent.dynamic.unrolled.removal import Divisor, check_divisor
from proponent.dynamic.unrolled.updates import Vectors, optimizer_kind
from proponent.dynamic.unrolled.watch import Watch
from proponent.exceptions import InvalidInputError, RunError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.products import GradientQuery, Products, VectorQuery
from proponent.models.run import TrainingRun
from proponent.models.torch import TorchModel
from proponent.stepwise import Contributions, StepwiseMethod

if TYPE_CHECKING:
    from typing_extensions import Self

MEMORY = 512 * 2**20
Trace = Callable[[Sums], None]  # replays the run, and adds what some tests are given


class Settings(TypedDict, total=False):
    """Hyperparameters of every unrolled method."""

    horizon: int | None
    divisor: Divisor
    memory: int
    progress: bool | None


class UnrolledMethod(StepwiseMethod):
    """Base of the methods that differentiate the steps of a recorded run.

    Parameters
    ----------
    horizon : int, optional
        Count only what instances do in the last so many steps; None counts all of them.
    divisor : "kept" or "reduced"
        What leaving an instance out does to its batch: the gradient loses its term and the
        divisor stays (``kept``, the survey's and the default), or becomes the mean over the
        others (``reduced``).
    memory : int
        Bytes that the replay may keep, and again that vectors in parameter space may take; it
        bounds how many test instances share a replay.
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal when the work lasts.
    """

    def __init__(
        self,
        *,
        horizon: int | None = None,
        divisor: Divisor = "kept",
        memory: int = MEMORY,
        progress: bool | None = None,
    ) -> None:
        self.horizon = horizon
        self.divisor = divisor
        self.memory = memory
        self.progress = progress

    @property
    @abstractmethod
    def _hessian(self) -> bool:
        """Whether the gradients' dependence on the parameters counts."""

    @property
    @abstractmethod
    def _without_hessian(self) -> str:
        """How the method is asked to leave that out, for messages."""

    # Fitting

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a recorded run and the training set it was recorded on.

        Parameters
        ----------
        model : TrainingRun
            The recorded run.
        train : (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model is of another kind, the set is empty, a setting cannot be used, or the
            run's parameters were restricted (``parameters=``).
        RunError
            If the run was recorded on another training set, is not complete, lacks something
            that the replay needs, or its optimizer is not covered.
        """
        if not isinstance(model, TrainingRun):
            raise self._wrong_kind(model)
        self._prepare(model, Instances.of(train, ids=ids, role="train"))
        return self

    def _prepare(self, run: TrainingRun, instances: Instances) -> None:
        name = self.card.name
        if self.horizon is not None and (
            not isinstance(self.horizon, Integral) or self.horizon < 1
        ):
            raise InvalidInputError(
                f"horizon: expected a positive number of steps or None; got {self.horizon!r}."
            )
        products = Products(memory=self.memory)
        if not len(instances):
            raise InvalidInputError("train: the set is empty; influence needs instances.")
        run.require(batches=True, clip_scale=True, complete=True, by=name)
        run.check_train(instances)
        self._kind = optimizer_kind(run, by=name)
        check_divisor(self.divisor, run, by=name)
        replay = Replay(run, instances, by=name, memory=self.memory, progress=self.progress)
        model = _following(run, replay.names, by=name)
        with run.at(run.checkpoints[-1]):
            capture = GradientCapture(model, instances)
        self._products = products
        self._finals = FinalGradients(run, model, capture, products, self.memory)
        remedy = f"{self._without_hessian} needs gradients alone."
        self._batches = ReplayedBatches(
            replay, model, instances, capture, products, self.memory, remedy
        )
        self.model_ = model
        self.run_ = run
        self.train_ = instances
        self._noticed: dict[str, Any] = {}

    @property
    def _first(self) -> int:
        """The first step that counts."""
        return 1 if self.horizon is None else max(1, len(self.run_.steps) - self.horizon + 1)

    # Scores

    def _query(self, instances: Instances) -> Tests:
        return Tests(instances, False)

    def _joint_query(self, instances: Instances) -> Tests:
        return Tests(instances, True)

    def _joint_scores(self, query: Tests, rows: range) -> NDArray[np.floating[Any]]:
        scores: NDArray[np.floating[Any]] = self._scores(query, rows)[0]
        return scores

    def _block_rows(self, n_test: int) -> int:
        return len(self.train_)  # a replay gives whole rows

    def _scores(self, query: Tests, rows: range) -> NDArray[np.floating[Any]]:
        found = [scores for _, scores in self._score_blocks(query, rows)]
        return np.concatenate(found)

    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        values = np.empty(len(rows))
        tests = self.train_.select(np.arange(rows.start, rows.stop))
        for where, scores in self._score_blocks(Tests(tests, False), rows):
            values[where] = scores[np.arange(len(scores)), np.arange(len(rows))[where]]
        return values

    def _score_blocks(
        self, query: Tests, rows: range
    ) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Go through the test set in blocks that share a replay."""
        for tests, where, trace in self._traced(query):
            scores = Scores(len(tests), rows, len(self.train_), self.divisor)
            trace(scores)
            yield where, scores.values()

    def _traced(self, query: Tests) -> Iterator[tuple[GradientQuery | VectorQuery, slice, Trace]]:
        """Go through the test set in blocks that share a replay.

        With each comes what replays the run, and adds the influence of each step's batch.
        """
        lean = not self._hessian and self._kind == "sgd" and self._is_captured()
        watch = self._watch(ADJOINT)
        trace: Callable[[GradientQuery | VectorQuery, Sums], None]
        if lean:
            names = list(self.model_.selected)
            trace = partial(self._trace_lean, coefficients(self.run_.steps, names, self._first))
        else:
            trace = partial(self._trace_back, watch)
        start = 0
        for tests in self._finals.of(query, None if lean else self._tests_at_once()):
            yield tests, slice(start, start + len(tests)), partial(trace, tests)
            start += len(tests)
        self._noticed = {} if lean else watch.report()

    def _trace_lean(
        self, by_step: Coefficients, tests: GradientQuery | VectorQuery, scores: Sums
    ) -> None:
        lean_scores(self._batches.replay.forward(), self._batches, tests, scores, by_step)

    def _trace_back(self, watch: Watch, tests: GradientQuery | VectorQuery, scores: Sums) -> None:
        backward_scores(
            self._batches.replay.backward(),
            self._batches,
            self._finals.vectors(tests),
            scores,
            kind=self._kind,
            hessian=self._hessian,
            first=self._first,
            watch=watch,
        )

    def _watch(self, what: str) -> Watch:
        remedy = f"use {self._without_hessian}" if self._hessian else ""
        return Watch(what, len(self.run_.steps), by=self.card.name, remedy=remedy)

    # When influence was made: step by step

    @override
    def _steps(self, query: Tests) -> range:
        return range(self._first, len(self.run_.steps) + 1)

    @override
    def _test_parts(self, query: Tests) -> Iterator[tuple[Trace, slice]]:
        for _, where, trace in self._traced(query):
            yield trace, where

    @override
    def _add_contributions(
        self, query: Trace, rows: range, at: Callable[[int], Contributions]
    ) -> None:
        query(StepScores(at, rows, self.divisor))

    def _is_captured(self) -> bool:
        """Whether gradients can be captured in the modes of the run (at its first step)."""
        moment = next(iter(self._batches.replay.forward()))
        return self._batches.captures(moment)

    def _tests_at_once(self) -> int:
        """Return how many test instances share a replay."""
        taken = sum(
            parameter.numel() * parameter.element_size()
            for parameter in self.model_.selected.values()
        )
        vectors = 3 if self._kind == "sgd" else 5
        return max(1, min(VECTORS_AT_ONCE, self.memory // (vectors * taken)))

    # Changes of the parameters

    def _changes(
        self, positions: NDArray[np.int64], *, deletion_corrected: bool = False
    ) -> Vectors:
        """Return ``theta_{-i} - theta`` to first order, (k, *shape) by parameter."""
        watch = self._watch(CHANGE)
        size = self._tests_at_once()
        blocks = [
            parameter_changes(
                self._batches.replay.forward(),
                self._batches,
                positions[start : start + size],
                kind=self._kind,
                hessian=self._hessian,
                divisor=self.divisor,
                deletion_corrected=deletion_corrected,
                first=self._first,
                watch=watch,
            )
            for start in range(0, len(positions), size)
        ]
        self._noticed = watch.report()
        return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}

    # What was noticed

    def _settings(self) -> dict[str, Any]:
        same = ("memory", "progress")
        return {name: value for name, value in super()._settings().items() if name not in same}

    def _diagnostics(self, query: Tests | None) -> dict[str, Any]:
        noticed = dict(self._noticed)
        replay = self._batches.replay
        noticed["replay"] = dict(replay.report)
        if replay.warning is not None:
            noticed["warnings"] = [*noticed.get("warnings", []), replay.warning]
        noticed["steps"] = [self._first, len(self.run_.steps)]
        return noticed


def _following(run: TrainingRun, names: Sequence[str], *, by: str) -> TorchModel:
    """Return the run's model with gradients of every parameter that the optimizer moved.

    Whether a parameter requires a gradient now does not matter: what counts is the training.

    Raises
    ------
    InvalidInputError
        If some of them are not among the chosen ones.
    """
    if not names:
        raise RunError(f"{by}: the optimizer moved no parameter in the run at {run.path}.")
    parameters = dict(run.model.module.named_parameters())
    with differentiable({name: parameters[name] for name in names}, ()):
        chosen = run.model.with_parameters(run.model.parameters).selected
        missing = [name for name in names if name not in chosen]
        if missing:
            raise InvalidInputError(
                f"parameters: {by} follows every parameter that the optimizer moved, since each "
                f"depends on all the others; the run was loaded without {', '.join(missing[:5])}"
                f"{', ...' if len(missing) > 5 else ''}. Load it with parameters='all'."
            )
        return run.model.with_parameters(names)
