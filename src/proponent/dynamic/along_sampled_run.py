"""Gradient products where the risk is a mean over random draws, without the draws' bias.

A gradient from m draws is ``g + e`` with ``E e = 0``, so a product of two of them is right on
average where their draws are independent. With the same draws on both sides it is too large by
``tr Cov(e)``, which for one draw can be several times the product itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.data import Instances
from proponent.dynamic.along_run import AlongRun
from proponent.dynamic.checkpoints import choose
from proponent.dynamic.instance_noise import DrawnInstances, InstanceNoise
from proponent.exceptions import InvalidInputError
from proponent.gradients.path import PathPoint, TestSet
from proponent.gradients.products import Gradients, Products
from proponent.models.run import TrainingRun
from proponent.models.sampled_risk import GivenDraws, SampledRisk, checked_draws
from proponent.models.torch import TorchModel

if TYPE_CHECKING:
    from typing_extensions import Self


class AlongSampledRun(AlongRun):
    """Base of the methods that draw what a sampled risk needs, apart for either side.

    A risk that is no :class:`~proponent.models.sampled_risk.SampledRisk` is taken as it is. A
    subclass has the hyperparameters ``draws`` and ``seed``.
    """

    draws: int
    seed: int
    _noise: InstanceNoise | None = None

    @override
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
            If the model is of another kind, the set is empty, a setting is out of range, or the
            risk of an instance depends on the other instances of its batch.
        RunError
            If the run was recorded on another training set, or has no checkpoints.
        """
        if not isinstance(model, TrainingRun):
            raise self._wrong_kind(model)
        draws = checked_draws(self.draws)
        instances = Instances.of(train, ids=ids, role="train")
        self._noise = None
        risk = model.model.risk
        if isinstance(risk, SampledRisk) and len(instances):
            run = copy.copy(model)
            run.model = _with_given_draws(model.model, risk)
            shape = _noise_shape(model, risk, instances)
            self._noise = InstanceNoise(shape, draws, self.seed)
            model, instances = run, DrawnInstances(instances, self._noise, "train")
        return super().fit(model, instances)

    @override
    def _query(self, instances: Instances) -> TestSet:
        return super()._query(self._drawn(instances))

    @override
    def _joint_query(self, instances: Instances) -> TestSet:
        return super()._joint_query(self._drawn(instances))

    def _drawn(self, instances: Instances) -> Instances:
        """Return test instances with their draws."""
        return instances if self._noise is None else DrawnInstances(instances, self._noise, "test")

    @override
    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        points, noise = super()._points(instances), self._noise
        if noise is None:
            return points
        return tuple(replace(point, enter=_Entered(point, noise)) for point in points)

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        if self._noise is None:
            return super()._self_scores(rows)
        # Of each instance the training draws meet the test draws.
        others = DrawnInstances(self.train_, self._noise, "test")
        scores = torch.zeros(len(rows), dtype=self._capture.dtype)
        for point, captured in self._walk(self._points(self.train_), rows):
            for batch, gradients in captured:
                for _, again in self._captured(others, [batch]):
                    products = rowwise(gradients, again, len(batch), self._products, point)
                    if not torch.isfinite(products.sum()):
                        self._refuse_gradients(gradients, batch, point)
                    batch.add(products.cpu(), point.weight, scores, rows.start)
        return scores.numpy()

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        if self._noise is not None:
            drawn = "independent for training and test instances, checkpoints and instances"
            noticed["draws"] = f"{self._noise.draws} for each gradient, {drawn}"
        return noticed


class _Entered:
    """Enters a point of the path, and the draws that belong to it."""

    def __init__(self, point: PathPoint, noise: InstanceNoise) -> None:
        self._point = point
        self._noise = noise

    def __call__(self) -> AbstractContextManager[None]:
        return self._entered()

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with self._point.enter(), self._noise.at(self._point.label):
            yield


def rowwise(
    gradients: Gradients, others: Gradients, n: int, products: Products, point: PathPoint
) -> Tensor:
    """Return ``sum_p scale_p <g_i, g'_i>_p``, (n,), instance by instance."""
    total = torch.zeros(n)
    for name, form in gradients.items():
        scale, other = point.scales.get(name, 1.0), others.get(name)
        if scale == 0.0 or other is None:
            continue
        if products.pairs(form, 1, other.positions):
            tokens, other_tokens = form.tokens() or [], other.tokens() or []
            parts = [a.dot_rowwise(b) for a in tokens for b in other_tokens]
            product = torch.stack(parts).sum(0)
        else:
            blocks = zip(products.blocks(form), products.blocks(other), strict=True)
            product = torch.cat([(a.flat() * b.flat()).sum(1) for a, b in blocks])
        total = total.to(product) + scale * product
    return total


def _with_given_draws(model: TorchModel, risk: SampledRisk) -> TorchModel:
    return TorchModel(model.module, risk=GivenDraws(risk), parameters=model.parameters)


def _noise_shape(run: TrainingRun, risk: SampledRisk, instances: Instances) -> tuple[int, ...]:
    """Return the shape of one draw, from a pass over one training instance."""
    with run.at(choose(run, "all", instances)[0]), run.model.evaluating():
        single = run.model.prepare(instances.batch(slice(0, 1)))
        try:
            return risk.noise_shape(run.model.module, single)
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(
                f"the risk of the first training instance cannot be had: {error}"
            ) from error
