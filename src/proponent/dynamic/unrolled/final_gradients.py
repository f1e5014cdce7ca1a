"""Gradients of test risks at the final parameters: where going back over a run begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from proponent.data import Instances
from proponent.dynamic.unrolled.updates import Vectors
from proponent.gradients.capture import GradientCapture
from proponent.gradients.path import batches as in_batches
from proponent.gradients.products import (
    GradientQuery,
    Gradients,
    Products,
    VectorQuery,
    squared_norms,
    weighted_sum,
)
from proponent.models.run import TrainingRun
from proponent.models.torch import TorchModel, check_finite


@dataclass(frozen=True)
class Tests:
    """A test set, and whether the sum over it is asked for."""

    instances: Instances
    joint: bool


@dataclass(frozen=True)
class FinalGradients:
    """Gradients of test risks at the end of a run, in evaluation mode.

    Parameters
    ----------
    run : TrainingRun
        A complete run.
    model : TorchModel
        The module with the parameters to look at.
    capture : GradientCapture
        Of the model.
    products : Products
        How inner products are taken.
    memory : int
        Bytes that gradients held at once may take, about.
    """

    run: TrainingRun
    model: TorchModel
    capture: GradientCapture
    products: Products
    memory: int

    def of(self, query: Tests, limit: int | None) -> Iterator[GradientQuery | VectorQuery]:
        """Go through the gradients of a test set, ``limit`` at a time, or as the memory takes.

        Raises
        ------
        NonFiniteError
            If one is not finite; the message names the instances.
        """
        if not query.joint:
            yield from self._blocks(query.instances, limit)
            return
        total: Vectors | None = None
        for part in self._blocks(query.instances, None):
            ones = torch.ones(1, len(part), dtype=self.capture.dtype)
            found = weighted_sum(part, ones.to(self.model.device)).vectors
            total = (
                dict(found)
                if total is None
                else {name: total[name] + found[name] for name in total}
            )
        yield VectorQuery(total or {}, self.products)

    def _blocks(self, instances: Instances, limit: int | None) -> Iterator[GradientQuery]:
        size = self.capture.batch_size_within(self.memory)
        size = size if limit is None else min(size, limit)
        parts: list[Gradients] = []
        sizes: list[int] = []
        held = 0
        for cut in in_batches(len(instances), size):
            where = slice(int(cut.positions[0]), int(cut.positions[-1]) + 1)
            with self.run.at(self.run.checkpoints[-1]), self.model.evaluating():
                batch = self.model.prepare(instances.batch(where))
                forms = self.capture(batch, instances.ids[where])
            squares = squared_norms(forms, len(cut), self.products)
            check_finite(squares.sqrt(), instances.ids[where], "gradient at the end of training")
            taken = sum(form.nbytes for form in forms.values())
            full = limit is not None and sum(sizes) + len(cut) > limit
            if parts and (full or held + taken > self.memory // 2):
                yield GradientQuery(parts, sizes, self.products)
                parts, sizes, held = [], [], 0
            parts.append(forms)
            sizes.append(len(cut))
            held += taken
        yield GradientQuery(parts, sizes, self.products)

    def vectors(self, tests: GradientQuery | VectorQuery) -> Vectors:
        """Return test gradients as vectors, (k, *shape) for every parameter."""
        k = len(tests)
        found: Vectors = {}
        for name, parameter in self.model.selected.items():
            if isinstance(tests, VectorQuery):
                vector = tests.vectors.get(name)
            else:
                rows = [
                    part[name].materialise()
                    if name in part
                    else parameter.new_zeros(size, *parameter.shape)
                    for part, size in zip(tests.parts, tests.sizes, strict=True)
                ]
                vector = torch.cat(rows)
            if vector is None:
                vector = parameter.new_zeros(k, *parameter.shape)
            found[name] = vector.detach().to(parameter.dtype)
        return found
