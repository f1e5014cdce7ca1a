"""What the methods share that compare gradients at a recorded run's checkpoints."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from proponent.data import Instances
from proponent.dynamic.checkpoints import LargestRiskChange, choose, path_point
from proponent.exceptions import InvalidInputError
from proponent.gradients.method import MEMORY, GradientMethod
from proponent.gradients.path import PathPoint
from proponent.gradients.products import Way
from proponent.models.run import TrainingRun
from proponent.models.torch import ParameterChoice

if TYPE_CHECKING:
    from typing_extensions import Self


class AlongRun(GradientMethod):
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
        first = path_point(model, choose(model, "all", instances)[0])
        if not isinstance(self.checkpoints, LargestRiskChange):
            choose(model, self.checkpoints, instances)  # a wrong choice is refused now
        self._prepare(model.model, instances, None, first)
        self.run_ = model
        return self

    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        chosen = choose(self.run_, self.checkpoints, instances)
        points = []
        for checkpoint in chosen:
            point = path_point(self.run_, checkpoint)
            divisor = (checkpoint.divisor or 1.0) if self.scale_by_batch else 1.0
            points.append(replace(point, weight=point.weight / divisor))
        return tuple(point for point in points if point.weight != 0.0)
