"""What the methods share that compare gradients at points of the training path.

With weights ``eta_c`` and points ``theta_c``, each is

    I(z_i, z_te) = sum_c eta_c  <g_i, g_te> / (||g_i||^a ||g_te||^b),    g = grad of the risk

for a, b in {0, 1}: TracIn and the gradient dot product (0, 0), the renormalised forms (1, 0) and
the cosines (1, 1).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.path import Batch, PathPoint, TestSet, batches
from proponent.gradients.products import (
    GradientQuery,
    Gradients,
    Products,
    Query,
    Way,
    out_of_range,
    squared_norms,
    unit_scaled,
    weighted_sum,
)
from proponent.method import InfluenceMethod
from proponent.models.torch import ParameterChoice, TorchModel
from proponent.progress import progress

MEMORY = 512 * 2**20


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
        for point, captured in self._walk(query.points, rows):
            test, test_norms = self._test_side(query, point)
            for batch, gradients in captured:
                products, squares = test.meet(gradients, len(batch), norms=self.normalise_train)
                if squares is not None and out_of_range(squares):
                    gradients = unit_scaled(gradients)
                    products, squares = test.meet(gradients, len(batch), norms=True)
                if squares is not None:
                    products = divide(products, squares.sqrt()[:, None])
                if test_norms is not None:
                    products = divide(products, test_norms[None, :])
                self._refuse_non_finite(products, gradients, batch, query, point)
                batch.add(products.cpu(), point.weight, scores, rows.start)
        return scores.numpy()

    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        scores = torch.zeros(len(rows), dtype=self._capture.dtype)
        power = int(self.normalise_train) + int(self.normalise_test)
        for point, captured in self._walk(self._points(self.train_), rows):
            for batch, gradients in captured:
                n = len(batch)
                products = squared_norms(gradients, n, self._products, point.scales)
                if power:
                    squares = squared_norms(gradients, n, self._products, point.unmoved)
                    if out_of_range(squares):
                        gradients = unit_scaled(gradients)
                        products = squared_norms(gradients, n, self._products, point.scales)
                        squares = squared_norms(gradients, n, self._products, point.unmoved)
                    products = divide(products, squares.sqrt() ** power)
                if not torch.isfinite(products.sum()):
                    self._refuse_gradients(gradients, batch, point)
                batch.add(products.cpu(), point.weight, scores, rows.start)
        return scores.numpy()

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
        n = len(query.instances)
        cut = batches(n, self._batch_size)
        parts = [gradients for _, gradients in self._captured(query.instances, cut)]
        test = GradientQuery(parts, [len(batch) for batch in cut], self._products, point.scales)
        norms = test.norms() if self.normalise_test else None
        if norms is not None and out_of_range(norms.square()):
            test = replace(test, parts=[unit_scaled(part) for part in test.parts])
            norms = test.norms()
        if not query.joint:
            return test, norms
        weights = torch.ones(1, n, device=self.model_.device, dtype=self._capture.dtype)
        if norms is not None:
            weights = divide(weights, norms[None, :])
        return weighted_sum(test, weights), None

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


def divide(values: Tensor, norms: Tensor) -> Tensor:
    """Divide by norms; a zero gradient has similarity 0 with everything.

    What is divided by a norm that is not finite is NaN, and refused later.
    """
    quotients = torch.where(norms == 0, 0, values / torch.where(norms == 0, 1, norms))
    return torch.where(torch.isfinite(norms), quotients, torch.nan)


def _listed(ids: NDArray[Any]) -> str:
    return ", ".join(map(str, ids[:10])) + (", ..." if len(ids) > 10 else "")
