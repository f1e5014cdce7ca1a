"""What the methods share that compare gradients at a recorded run's checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from typing_extensions import override

from proponent.data import Instances
from proponent.dynamic.checkpoints import LargestRiskChange, choose, path_point
from proponent.dynamic.optimizer_update import OptimizerUpdate, Update, check_update
from proponent.exceptions import InvalidInputError
from proponent.gradients.method import MEMORY, GradientMethod, Settings
from proponent.gradients.path import PathPoint, TestSet
from proponent.gradients.products import Way
from proponent.models.history import Checkpoint
from proponent.models.run import TrainingRun
from proponent.models.torch import ParameterChoice
from proponent.stepwise import Contributions, StepwiseMethod

if TYPE_CHECKING:
    from typing_extensions import Self


class RunSettings(Settings, total=False):
    """What the methods of chosen checkpoints take; :class:`AlongRun` says what each does."""

    checkpoints: Any
    scale_by_batch: bool


class AlongRun(StepwiseMethod, GradientMethod):
    """Base of the methods that compare gradients at a recorded run's checkpoints.

    Parameters
    ----------
    checkpoints : "all", EveryKth, LargestRiskChange or sequence of int
        Which of the recorded checkpoints, or the steps before which they were recorded.
    scale_by_batch : bool
        Divide each checkpoint's weight by the batch size of its step, as eq. (54) has it and
        eq. (55) has not.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.
    """

    update: Update = "gradient"
    _updates: OptimizerUpdate | None = None

    def __init__(
        self,
        *,
        checkpoints: Any = "all",
        scale_by_batch: bool = False,
        parameters: ParameterChoice | None = None,
        batch_size: int | None = None,
        products: Way = "auto",
        memory: int = MEMORY,
        dtype: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            parameters=parameters,
            batch_size=batch_size,
            products=products,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
        self.checkpoints = checkpoints
        self.scale_by_batch = scale_by_batch

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
            If the model is of another kind, the set is empty, or the risk of an instance
            depends on the other instances of its batch.
        RunError
            If the run was recorded on another training set, or has no checkpoints.
        """
        if not isinstance(model, TrainingRun):
            raise self._wrong_kind(model)
        instances = Instances.of(train, ids=ids, role="train")
        if not len(instances):
            raise InvalidInputError("train: the set is empty; influence needs instances.")
        model.check_train(instances)
        check_update(self.update)
        updates = None
        if self.update == "optimizer":
            updates = OptimizerUpdate(model, model.model, instances, self.card.name)
        first = path_point(model, choose(model, "all", instances)[0])
        if not isinstance(self.checkpoints, LargestRiskChange):
            choose(model, self.checkpoints, instances)  # a wrong choice is refused now
        self._prepare(model.model, instances, None, first)
        self._updates = None if updates is None else replace(updates, model=self.model_)
        self.run_ = model
        return self

    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        chosen = choose(self.run_, self.checkpoints, instances)
        points = []
        for checkpoint in chosen:
            point = self._point(checkpoint)
            divisor = (checkpoint.divisor or 1.0) if self.scale_by_batch else 1.0
            points.append(replace(point, weight=point.weight / divisor))
        return tuple(point for point in points if point.weight != 0.0)

    def _point(self, checkpoint: Checkpoint) -> PathPoint:
        """Return the point of the path at a checkpoint, in the metric that was asked for."""
        point = path_point(self.run_, checkpoint)
        if self._updates is None:
            return point
        return replace(point, metric=self._updates.metric_at(checkpoint))

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        if self._updates is not None:
            points = self._points(self.train_) if query is None else query.points
            noticed |= self._updates.diagnostics([point.step for point in points])
        return noticed

    @override
    def _steps(self, query: TestSet) -> list[int]:
        return [point.step for point in query.points]

    @override
    def _add_contributions(
        self, query: TestSet, rows: range, at: Callable[[int], Contributions]
    ) -> None:
        self._accumulate(query, rows, lambda point: torch.from_numpy(at(point.step)))

    @override
    def _contribution_dtype(self) -> np.dtype[Any]:
        return np.dtype(str(self._capture.dtype).removeprefix("torch."))
