"""Fisher matrices, ``(1/n) sum_i g_i g_i^T``, from captured gradients in factored form."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.curvature import Curvature, Positions
from proponent.gradients.kept import module_state
from proponent.gradients.labels import FisherLabels, with_fisher_labels
from proponent.gradients.products import GradientQuery, Gradients, Products, VectorQuery
from proponent.gradients.space import ParameterSpace
from proponent.models.torch import TorchModel

MEMORY = 512 * 2**20


class GradientCovariance(Curvature):
    """Second moment of one gradient g_i an instance: ``C v = (1/n) sum_i g_i <g_i, v>``.

    The gradients are captured in factored form and kept while they fit ``memory``; otherwise
    they are captured again for each product.

    Parameters
    ----------
    model : TorchModel
        The module, its risk and the chosen parameters.
    instances : Instances
        The training set.
    batch_size : int, optional
        Instances in a pass; None chooses by what the gradients take. It does not change the
        numbers.
    progress : bool, optional
        Whether solvers show a progress bar; None: on a terminal, when the work lasts.
    memory : int
        Bytes that kept gradients may take, and bytes that those held for a product may.
    """

    positive = True

    def __init__(
        self,
        model: TorchModel,
        instances: Instances,
        *,
        batch_size: int | None = None,
        progress: bool | None = None,
        memory: int = MEMORY,
    ) -> None:
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise InvalidInputError(
                f"batch_size must be a positive integer or None; got {batch_size!r}."
            )
        self.model = model
        self.instances = instances
        self.progress = progress
        self.space = ParameterSpace.of(model)
        self.n = len(instances)
        self.products = Products(memory=memory)
        self._wanted_batch_size = batch_size
        self._capture: GradientCapture | None = None
        self._kept: list[tuple[Gradients, int]] | None = None
        self._state: object = None

    @abstractmethod
    def _gradient_source(self) -> tuple[TorchModel, Instances]:
        """Return the model and the instances whose risks' gradients are the g_i."""

    def parts(self) -> Iterator[tuple[Gradients, int]]:
        """Go through the gradients g_1 .. g_n in batches: their forms, and how many they are."""
        capture, instances = self._ready()
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[Gradients, int]] | None = []
        room = self.products.memory
        size = self._wanted_batch_size or capture.batch_size
        with capture.model.evaluating():
            for start in range(0, self.n, size):
                rows = slice(start, min(start + size, self.n))
                batch = capture.model.prepare(instances.batch(rows))
                part = capture(batch, instances.ids[rows]), rows.stop - rows.start
                room -= sum(form.nbytes for form in part[0].values())
                kept = None if kept is None or room < 0 else [*kept, part]
                yield part
        self._kept = kept

    def inner(self, vectors: Tensor) -> Tensor:
        """Return ``<g_i, v_k>``, (n, k), for vectors (k, p)."""
        query = self._query(self.space.check(vectors))
        return torch.cat([query.meet(part, size)[0] for part, size in self.parts()])

    def combine(self, weights: Tensor) -> Tensor:
        """Return ``sum_i weights_ki g_i``, (k, p), for weights (k, n)."""
        total = torch.zeros(
            len(weights), self.size, dtype=self.space.dtype, device=self.space.device
        )
        start = 0
        for part, size in self.parts():
            self._add(total, part, weights[:, start : start + size])
            start += size
        return total

    def gram(self) -> Tensor:
        """Return ``<g_i, g_j>`` of all pairs of instances, (n, n), without forming a gradient."""
        gram = torch.empty(self.n, self.n, dtype=self.space.dtype, device=self.space.device)
        column = 0
        for block in self._blocks():
            query = GradientQuery(
                [part for part, _ in block], [size for _, size in block], self.products
            )
            row = 0
            for part, size in self.parts():
                gram[row : row + size, column : column + len(query)] = query.meet(part, size)[0]
                row += size
            column += len(query)
        return (gram + gram.T).div_(2)

    @override
    def _average(self, vectors: Tensor, positions: Positions | None) -> Tensor:
        query, total = self._query(vectors), torch.zeros_like(vectors)
        n = self.n if positions is None else len(positions)
        found = self.parts() if positions is None else self._captured_at(positions)
        for part, size in found:
            self._add(total, part, query.meet(part, size)[0].T)
        return total.div_(n)

    @override
    def dense(self) -> Tensor:
        """Return the matrix itself, ``(p, p)``, from materialised gradients."""
        matrix = torch.zeros(self.size, self.size, dtype=self.space.dtype, device=self.space.device)
        rows = max(1, self.products.memory // (8 * self.size))
        for part, size in self.parts():
            for start in range(0, size, rows):
                some = {name: form[start : start + rows] for name, form in part.items()}
                gradients = self.space.gradients(some, min(rows, size - start))
                matrix.addmm_(gradients.T, gradients)
        return matrix.div_(self.n)

    @override
    def diagonal(self) -> Tensor:
        """Return the mean squares of the gradients' entries, ``(p,)``."""
        total = torch.zeros(self.size, dtype=self.space.dtype, device=self.space.device)
        for part, _ in self.parts():
            for name, form in part.items():
                column = self.space.unflatten(total[None])[name].view(-1)
                for block in self.products.blocks(form):
                    column += block.flat().square().sum(0)
        return total / self.n

    def _query(self, vectors: Tensor) -> VectorQuery:
        return VectorQuery(self.space.unflatten(vectors), self.products)

    def _add(self, total: Tensor, part: Gradients, weights: Tensor) -> None:
        views = self.space.unflatten(total)
        for name, form in part.items():
            start = 0
            for block in self.products.blocks(form):
                columns = weights[:, start : start + block.n].to(form.like.dtype)
                views[name] += block.weighted_sum(columns)
                start += block.n

    def _captured_at(self, positions: Positions) -> Iterator[tuple[Gradients, int]]:
        capture, instances = self._ready()
        with capture.model.evaluating():
            size = self._wanted_batch_size or capture.batch_size
            for start in range(0, len(positions), size):
                where = np.asarray(positions[start : start + size])
                batch = capture.model.prepare(instances.batch(where))
                yield capture(batch, instances.ids[where]), len(where)

    def _blocks(self) -> Iterator[list[tuple[Gradients, int]]]:
        """Gather the gradients into blocks of batches that fit the memory together."""
        block: list[tuple[Gradients, int]] = []
        held = 0
        for part, size in self.parts():
            taken = sum(form.nbytes for form in part.values())
            if block and held + taken > self.products.memory:
                yield block
                block, held = [], 0
            block.append((part, size))
            held += taken
        yield block

    def _ready(self) -> tuple[GradientCapture, Instances]:
        """Return the capture; what was kept at other values of the parameters is thrown away."""
        state = module_state(self.model.module)
        if self._capture is None or state != self._state:
            model, self._source = self._gradient_source()
            self._kept = None
            self._capture = GradientCapture(model, self._source, self.space.dtype)
            self._state = state
        return self._capture, self._source


class EmpiricalFisher(GradientCovariance):
    """Second moment of the risks' own gradients, ``(1/n) sum_i g_i g_i^T``.

    It is neither the Hessian nor the Fisher matrix, and may be far from both; it is here because
    some methods are defined by it.
    """

    name = "empirical Fisher matrix"

    @override
    def _gradient_source(self) -> tuple[TorchModel, Instances]:
        return self.model, self.instances


class TrueFisher(GradientCovariance):
    """Fisher matrix by one draw an instance: gradients for labels drawn from the model itself.

    ``E[C]`` is the Gauss-Newton matrix of the mean risk for the named losses, as
    :func:`~proponent.gradients.labels.with_fisher_labels` draws and scales them.

    Parameters
    ----------
    seed : int
        Fixes the labels, whatever the batch size.
    labels : array-like, optional
        Labels in place of drawn ones, one row an instance, in the shape of the targets (an
        array or a tensor).
    **settings
        As :class:`GradientCovariance` takes them.
    """

    name = "Fisher matrix"

    def __init__(
        self,
        model: TorchModel,
        instances: Instances,
        *,
        seed: int = 0,
        labels: FisherLabels = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, instances, **settings)
        if not isinstance(seed, int) or seed < 0:
            raise InvalidInputError(f"seed must be an integer of at least 0; got {seed!r}.")
        self._seed = seed
        self._labels = labels
        self._gradient_source()  # refuses a risk without a distribution, or labels that do not fit

    @override
    def _gradient_source(self) -> tuple[TorchModel, Instances]:
        return with_fisher_labels(self.model, self.instances, labels=self._labels, seed=self._seed)
