"""What the methods share that compare gradients at points of the training path.

With weights ``eta_c`` and points ``theta_c``, each is

    I(z_i, z_te) = sum_c eta_c  <g_i, g_te> / (||g_i||^a ||g_te||^b),    g = grad of the risk

for a, b in {0, 1}: TracIn and the gradient dot product (0, 0), the renormalised forms (1, 0) and
the cosines (1, 1); or, layer by layer, the mean of the layers' cosines.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.layerwise import Layer, LayerwiseCosines, by_layer, layers_of, restricted
from proponent.gradients.path import EUCLIDEAN, Batch, Metric, PathPoint, TestSet, batches
from proponent.gradients.products import (
    GradientQuery,
    Gradients,
    Products,
    Query,
    Way,
    divide,
    out_of_range,
    squared_norms,
    unit_scaled,
    weighted_sum,
)
from proponent.method import InfluenceMethod
from proponent.models.torch import ParameterChoice, TorchModel
from proponent.progress import progress

__all__ = ["MEMORY", "GradientMethod", "Settings", "divide"]

MEMORY = 512 * 2**20


class Settings(TypedDict, total=False):
    """What all these methods take; :class:`GradientMethod` says what each does."""

    parameters: ParameterChoice | None
    batch_size: int | None
    products: Way
    memory: int
    dtype: str | None
    progress: bool | None


class GradientMethod(InfluenceMethod):
    """Base of the methods that compare gradients at points of the training path.

    Parameters
    ----------
    parameters : str, module or list, optional
        Which parameters' gradients are compared, as :class:`TorchModel` takes them; None, the
        default, takes those of the model or run that the method is fitted to.
    batch_size : int, optional
        Instances in a forward-backward pass; None, the default, chooses by what the gradients of
        an instance take. It does not change the numbers.
    products : "auto", "pair" or "materialise"
        How inner products are taken; ``auto`` chooses for each layer by a cost rule.
    memory : int
        Bytes that gradients held for products may take; it bounds batches that are chosen here,
        and blocks of test instances.
    dtype : str, optional
        ``"float32"`` or ``"float64"``: precision of the products. None: the module's, at least
        float32.
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal when the work lasts.
    """

    normalise_train: ClassVar[bool] = False
    normalise_test: ClassVar[bool] = False
    layerwise: bool = False  # whether cosines are those of each layer, averaged over the layers

    def __init__(
        self,
        *,
        parameters: ParameterChoice | None = None,
        batch_size: int | None = None,
        products: Way = "auto",
        memory: int = MEMORY,
        dtype: str | None = None,
        progress: bool | None = None,
    ) -> None:
        self.parameters = parameters
        self.batch_size = batch_size
        self.products = products
        self.memory = memory
        self.dtype = dtype
        self.progress = progress

    # What a subclass says

    @abstractmethod
    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        """Return the points of the path at which a test set is compared."""

    # Fitting

    def _prepare(
        self, model: TorchModel, train: Any, ids: Any, first: PathPoint | None = None
    ) -> None:
        """Check the settings, and prove on a few instances that all gradients are counted."""
        size = self.batch_size
        if size is not None and (not isinstance(size, Integral) or size < 1):
            raise InvalidInputError(f"batch_size must be a positive integer or None; got {size!r}.")
        if self.dtype not in (None, "float32", "float64"):
            raise InvalidInputError(
                f"dtype must be 'float32', 'float64' or None; got {self.dtype!r}."
            )
        if not isinstance(self.layerwise, bool):
            raise InvalidInputError(f"layerwise must be True or False; got {self.layerwise!r}.")
        products = Products(self.products, self.memory)
        if self.parameters is not None:
            model = model.with_parameters(self.parameters)
        instances = Instances.of(train, ids=ids, role="train")
        held = None if self.dtype is None else getattr(torch, self.dtype)
        with ExitStack() as stack:
            if first is not None:
                stack.enter_context(first.enter())
            capture = GradientCapture(model, instances, held)
        self._products = products
        self._capture = capture
        within = capture.batch_size_within(self.memory)
        self._batch_size = within if size is None else int(size)
        self.model_ = model
        self.train_ = instances

    # Scores

    def _query(self, instances: Instances) -> TestSet:
        return TestSet(instances, False, self._points(instances))

    def _joint_query(self, instances: Instances) -> TestSet:
        return TestSet(instances, True, self._points(instances))

    def _joint_scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        scores: NDArray[np.floating[Any]] = self._scores(query, rows)[0]
        return scores

    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        n_test = 1 if query.joint else len(query.instances)
        scores = torch.zeros(n_test, len(rows), dtype=self._capture.dtype)
        self._accumulate(query, rows, lambda point: scores)
        return scores.numpy()

    def _accumulate(
        self, query: TestSet, rows: range, scores_at: Callable[[PathPoint], Tensor]
    ) -> None:
        """Add each point's part of the scores to ``scores_at(point)``, (n_test, rows)."""
        for point, captured in self._walk(query.points, rows):
            test, test_norms = self._test_side(query, point)
            norms = self.normalise_train and not isinstance(test, LayerwiseCosines)
            scores = scores_at(point)
            for batch, gradients in captured:
                products, squares = test.meet(gradients, len(batch), norms=norms)
                if squares is not None and out_of_range(squares):
                    gradients = unit_scaled(gradients)
                    products, squares = test.meet(gradients, len(batch), norms=True)
                if squares is not None:
                    products = divide(products, squares.sqrt()[:, None])
                if test_norms is not None:
                    products = divide(products, test_norms[None, :])
                self._refuse_non_finite(products, gradients, batch, query, point)
                batch.add(products.cpu(), point.weight, scores, rows.start)

    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        scores = torch.zeros(len(rows), dtype=self._capture.dtype)
        for point, captured in self._walk(self._points(self.train_), rows):
            metric = self._metric(point)
            layers = layers_of(self.model_.selected, point.scales) if self.layerwise else None
            for batch, gradients in captured:
                if layers is None:
                    products = self._self_products(gradients, len(batch), point, metric)
                else:
                    products = self._mean_self_products(gradients, layers, len(batch), point)
                if not torch.isfinite(products.sum()):
                    self._refuse_gradients(gradients, batch, point)
                batch.add(products.cpu(), point.weight, scores, rows.start)
        return scores.numpy()

    def _mean_self_products(
        self, gradients: Gradients, layers: list[Layer], n: int, point: PathPoint
    ) -> Tensor:
        products = torch.zeros(n, device=self.model_.device, dtype=self._capture.dtype)
        for part in by_layer(gradients, layers):
            if part:  # else the risk of none of these depends on the layer
                products += self._self_products(part, n, point, EUCLIDEAN) / len(layers)
        return products

    def _self_products(
        self, gradients: Gradients, n: int, point: PathPoint, metric: Metric
    ) -> Tensor:
        """Return the products of n gradients with themselves, normalised as the method does."""
        power = int(self.normalise_train) + int(self.normalise_test)
        scales = _together(point.scales, metric.factors)
        products = squared_norms(gradients, n, self._products, scales, metric.diagonals)
        if not power:
            return products
        squares = squared_norms(gradients, n, self._products, point.unmoved)
        if out_of_range(squares):
            gradients = unit_scaled(gradients)
            products = squared_norms(gradients, n, self._products, scales, metric.diagonals)
            squares = squared_norms(gradients, n, self._products, point.unmoved)
        return divide(products, squares.sqrt() ** power)

    def _block_rows(self, n_test: int) -> int:
        # The test gradients are had again for each block of training instances.
        return max(super()._block_rows(n_test), 8 * n_test)

    def _walk(
        self, points: tuple[PathPoint, ...], rows: range
    ) -> Iterator[tuple[PathPoint, Iterator[tuple[Batch, Gradients]]]]:
        """Go along the path; at each point through its training instances in batches."""
        with progress(points, description=self.card.name, enabled=self.progress) as bar:
            for point in bar:
                cut = point.batches(rows, self._batch_size)
                if cut:
                    with point.enter(), self.model_.evaluating():
                        yield point, self._captured(self.train_, cut)

    def _captured(
        self, instances: Instances, cut: list[Batch]
    ) -> Iterator[tuple[Batch, Gradients]]:
        for batch in cut:
            first, last = int(batch.positions[0]), int(batch.positions[-1])
            whole = last - first + 1 == len(batch)
            where = slice(first, last + 1) if whole else batch.positions
            prepared = self.model_.prepare(instances.batch(where))
            yield batch, self._capture(prepared, instances.ids[where])

    def _test_side(self, query: TestSet, point: PathPoint) -> tuple[Query, Tensor | None]:
        """Return the test gradients at the current point and, if asked for, their norms."""
        cut = batches(len(query.instances), self._batch_size)
        sizes = [len(batch) for batch in cut]
        parts = [gradients for _, gradients in self._captured(query.instances, cut)]
        metric = self._metric(point)
        if not self.layerwise:
            return self._meeting(parts, sizes, query.joint, point, metric)
        sides = {
            layer: self._meeting(
                [restricted(part, layer) for part in parts], sizes, query.joint, point, metric
            )
            for layer in layers_of(self.model_.selected, point.scales)
        }
        return LayerwiseCosines(sides), None

    def _meeting(
        self,
        parts: list[Gradients],
        sizes: list[int],
        joint: bool,
        point: PathPoint,
        metric: Metric,
    ) -> tuple[Query, Tensor | None]:
        scales = _together(point.scales, metric.factors)
        test = GradientQuery(parts, sizes, self._products, scales, metric.diagonals)
        norms = test.norms() if self.normalise_test else None
        if norms is not None and out_of_range(norms.square()):
            test = replace(test, parts=[unit_scaled(part) for part in test.parts])
            norms = test.norms()
        if not joint:
            return test, norms
        weights = torch.ones(1, sum(sizes), device=self.model_.device, dtype=self._capture.dtype)
        if norms is not None:
            weights = divide(weights, norms[None, :])
        return weighted_sum(test, weights), None

    def _metric(self, point: PathPoint) -> Metric:
        """Return the metric of the inner products at the current point."""
        if point.metric is None:
            return EUCLIDEAN
        metric = point.metric()
        as_held = {
            name: diagonal.to(device=self.model_.device, dtype=self._capture.dtype)
            for name, diagonal in metric.diagonals.items()
        }
        return Metric(metric.factors, as_held)

    # What was noticed

    def _settings(self) -> dict[str, Any]:
        """Return what the numbers depend on: shards scored with other batches still join."""
        same = ("batch_size", "products", "memory", "progress")
        return {name: value for name, value in super()._settings().items() if name not in same}

    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        points = self._points(self.train_) if query is None else query.points
        noticed: dict[str, Any] = {
            "points": [point.label for point in points],
            "weights": [point.weight for point in points],
            "captured": list(self._capture.coverage.captured),
            "differentiated": list(self._capture.coverage.differentiated),
        }
        return noticed

    def _refuse_non_finite(
        self, block: Tensor, gradients: Gradients, batch: Batch, query: TestSet, point: PathPoint
    ) -> None:
        # One sum is quicker than a look at each entry, and is not finite where an entry is not.
        if torch.isfinite(block.sum()) or torch.isfinite(block).all():
            return
        self._refuse_gradients(gradients, batch, point)
        wrong = ~torch.isfinite(block).all(0).cpu().numpy()
        which = (
            "the test set"
            if query.joint
            else f"test instances {_listed(query.instances.ids[wrong])}"
        )
        raise NonFiniteError(
            f"the gradient of {which} at {point.label} is not finite (or its products overflow): "
            f"look at their features and labels, or use dtype='float64'."
        )

    def _refuse_gradients(self, gradients: Gradients, batch: Batch, point: PathPoint) -> None:
        """Raise for the training instances of a batch whose gradient is not finite, if any."""
        squares = squared_norms(gradients, len(batch), self._products)
        wrong = ~torch.isfinite(squares).cpu().numpy()
        if wrong.any():
            ids = self.train_.ids[batch.positions][wrong]
            raise NonFiniteError(
                f"the gradient of training instances {_listed(ids)} at {point.label} is not "
                f"finite: look at their features and labels, or leave them out."
            )


def _together(scales: Mapping[str, float], factors: Mapping[str, float]) -> Mapping[str, float]:
    """Multiply scales and factors by name; both are 1 where none is named."""
    if not factors:
        return scales
    return {name: scales.get(name, 1.0) * factors.get(name, 1.0) for name in {*scales, *factors}}


def _listed(ids: NDArray[Any]) -> str:
    return ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")
