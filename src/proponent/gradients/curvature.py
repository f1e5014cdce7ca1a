"""Curvature of the mean training risk as an operator: products with vectors, never the matrix.

Each operator C is an average over all training instances, ``C v = (1/n) sum_i C_i v``: sums over
batches, divided by n once, so that neither the batch size nor a ragged last batch can matter.
Neither weight decay nor damping is inside; the solvers add their sum once, as a shift.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.gradients.kept import graph_bytes, module_state
from proponent.gradients.space import ParameterSpace
from proponent.gradients.twice import check_twice, grad, twice_differentiable, zeros_for_none
from proponent.models.torch import TorchModel, check_finite

Positions = NDArray[np.integer[Any]]
Product = Callable[[Sequence[Tensor]], list[Tensor]]

BATCH_SIZE = 512
VECTORS_AT_ONCE = 64
MEMORY = 512 * 2**20


class Curvature(ABC):
    """A symmetric matrix of size p x p over the chosen parameters, known by its products.

    Attributes
    ----------
    name : str
        What the matrix is called in messages.
    positive : bool
        Whether it is positive semidefinite by construction.
    space : ParameterSpace
        The parameters.
    n : int
        Number of training instances that it is an average over.
    progress : bool, optional
        Whether solvers show a progress bar; None: on a terminal, when the work lasts.
    """

    name: ClassVar[str] = "curvature"
    positive: ClassVar[bool] = False
    space: ParameterSpace
    n: int
    progress: bool | None = None

    @property
    def size(self) -> int:
        """p, the number of rows of the matrix."""
        return self.space.size

    def matvec(self, vectors: Tensor) -> Tensor:
        """Return ``C v`` over all training instances, for vectors (k, p): (k, p)."""
        return self._average(self.space.check(vectors), None)

    def matvec_on(self, vectors: Tensor, positions: Positions) -> Tensor:
        """Return the average over some of the training instances alone, times vectors (k, p).

        Parameters
        ----------
        vectors : Tensor of shape (k, p)
        positions : integer array
            Which training instances, as often as they stand there.
        """
        return self._average(self.space.check(vectors), np.asarray(positions))

    @abstractmethod
    def _average(self, vectors: Tensor, positions: Positions | None) -> Tensor:
        """Return the average over the instances at ``positions`` (None: all), times vectors."""

    def dense(self) -> Tensor:
        """Return the matrix itself, ``(p, p)``: p products, and p^2 numbers to hold."""
        matrix = torch.empty(self.size, self.size, dtype=self.space.dtype, device=self.space.device)
        for start in range(0, self.size, VECTORS_AT_ONCE):
            rows = slice(start, min(start + VECTORS_AT_ONCE, self.size))
            block = torch.zeros_like(matrix[rows])
            block[:, rows].fill_diagonal_(1.0)
            matrix[rows] = self.matvec(block)
        return (matrix + matrix.T).div_(2)

    def diagonal(self) -> Tensor | None:
        """Return the diagonal, ``(p,)``, where it can be had without the matrix; else None."""
        return None


class InstanceCurvature(Curvature):
    """Curvature that is differentiated out of the risks of batches of instances.

    Parameters
    ----------
    model : TorchModel
        The module, its risk and the chosen parameters.
    instances : Instances
        The training set.
    batch_size : int
        Instances in a pass. It does not change the numbers.
    vectors_at_once : int, optional
        Vectors that are multiplied at once; None takes as many as the memory allows, up to 64.
    memory : int
        Bytes that the graphs of the passes may take (where they fit they are kept, and further
        products need no forward pass), and about twice what multiplying several vectors with a
        batch may.
    progress : bool, optional
        Whether solvers show a progress bar; None: on a terminal, when the work lasts.

    Raises
    ------
    InvalidInputError
        If the set is empty, a size is not positive, or the module is in half precision, which
        is too coarse for curvature.
    """

    remedy: ClassVar[str] = (
        "Use curvature='empirical_fisher' with a damping, which needs gradients alone, or leave "
        "the layer's parameters out (parameters=)."
    )

    def __init__(
        self,
        model: TorchModel,
        instances: Instances,
        *,
        batch_size: int = BATCH_SIZE,
        vectors_at_once: int | None = None,
        memory: int = MEMORY,
        progress: bool | None = None,
    ) -> None:
        if not len(instances):
            raise InvalidInputError("train: the set is empty; curvature needs instances.")
        for name, value in {"batch_size": batch_size, "vectors_at_once": vectors_at_once}.items():
            wanted = value is not None or name == "batch_size"
            if wanted and (not isinstance(value, int) or value < 1):
                raise InvalidInputError(f"{name} must be a positive integer; got {value!r}.")
        coarse = {p.dtype for p in model.selected.values()} - {torch.float32, torch.float64}
        if coarse:
            raise InvalidInputError(
                f"the module's parameters are {', '.join(map(str, coarse))}, too coarse for "
                "curvature: convert it first with module.float()."
            )
        self.model = model
        self.instances = instances
        self.batch_size = batch_size
        self.vectors_at_once = vectors_at_once
        self.progress = progress
        self.space = ParameterSpace.of(model)
        self.n = len(instances)
        self.memory = memory
        self._vectorised = True
        self._checked = False
        self._kept: list[tuple[Positions, Product]] | None = None
        self._state: object = None
        self._instance_bytes: float | None = None

    @override
    def _average(self, vectors: Tensor, positions: Positions | None) -> Tensor:
        n = self.n if positions is None else len(positions)
        total = torch.zeros_like(vectors)
        with self.model.evaluating(), twice_differentiable():
            for where, product in self._products(positions):
                at_once = self.vectors_at_once or self._room(len(where))
                for start in range(0, len(vectors), at_once):
                    rows = slice(start, start + at_once)
                    found = self._multiply(product, vectors[rows])
                    if not torch.isfinite(found.sum()):
                        self._refuse_non_finite(where, vectors[rows])
                    total[rows].add_(found)
        return total.div_(n)

    def _products(self, positions: Positions | None) -> Iterator[tuple[Positions, Product]]:
        """Go through the batches' products, kept from the last pass where they fit the memory."""
        state = module_state(self.model.module) if positions is None else None
        if positions is None and self._kept is not None and state == self._state:
            yield from self._kept
            return
        kept: list[tuple[Positions, Product]] = []
        for where, batch in self._batches(positions):
            make = partial(self._product, batch, self.instances.ids[where])
            if self._instance_bytes is None:  # the first batch tells for all
                self._instance_bytes = graph_bytes(make, self.model.module) / len(where)
            product = make()
            if positions is None and self._instance_bytes * self.n <= self.memory:
                kept.append((where, product))
            yield where, product
        if positions is None:
            self._kept, self._state = kept or None, state

    def _room(self, n: int) -> int:
        """Return how many vectors may be multiplied with a batch of n instances at once."""
        taken = (self._instance_bytes or 0.0) * n
        return max(1, min(VECTORS_AT_ONCE, int(2 * self.memory / max(taken, 1.0))))

    def _batches(self, positions: Positions | None) -> Iterator[tuple[Positions, Any]]:
        rows = np.arange(self.n) if positions is None else positions
        for start in range(0, len(rows), self.batch_size):
            where = rows[start : start + self.batch_size]
            consecutive = where[-1] - where[0] + 1 == len(where) and positions is None
            indices = slice(int(where[0]), int(where[-1]) + 1) if consecutive else where
            yield where, self.model.prepare(self.instances.batch(indices))

    @abstractmethod
    def _product(self, batch: Any, ids: Any) -> Product:
        """Return a function that multiplies the batch's summed matrix with k vectors.

        The vectors, and the products, are given parameter by parameter, each ``(k, *shape)``.
        """

    def _multiply(self, product: Product, vectors: Tensor) -> Tensor:
        parameters = self.model.selected
        parts = [
            part.to(parameters[name].dtype) for name, part in self.space.unflatten(vectors).items()
        ]
        return self.space.flatten(dict(zip(parameters, product(parts), strict=True)))

    def _twice(self, *gradients: Tensor) -> None:
        """Refuse gradients that cannot be differentiated again; the first batch tells for all."""
        if not self._checked:
            check_twice(gradients, self.remedy, needed=f"for the {self.name}")
        self._checked = True

    def _pull_back(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> list[Tensor]:
        """Return ``sum_o vectors_o . d outputs_o / d inputs``, for k vectors at once.

        ``vectors`` are ``(k, *output shape)``, what is returned ``(k, *input shape)``. Falls
        back to one vector at a time where an operation cannot be vectorised.
        """
        k = len(vectors[0])
        live = [pair for pair in zip(outputs, vectors, strict=True) if pair[0].requires_grad]
        if not live:  # the outputs are constant
            return [value.new_zeros(k, *value.shape) for value in inputs]
        ends, starts = [end for end, _ in live], [start for _, start in live]
        if self._vectorised and k > 1:
            try:
                return zeros_for_none(grad(ends, inputs, starts, batched=True), inputs, k)
            except RuntimeError:
                pass
        try:
            found = [
                grad(ends, inputs, [start[j] for start in starts], batched=False) for j in range(k)
            ]
        except RuntimeError as error:
            if "derivative for" not in str(error) and "double backward" not in str(error):
                raise
            raise InvalidInputError(
                f"the module cannot be differentiated twice, which the {self.name} needs: {error} "
                f"{self.remedy}"
            ) from error
        # Only now is it known that the failure was one of vectorising.
        self._vectorised = self._vectorised and k == 1
        columns = [zeros_for_none(row, inputs, None) for row in found]
        return [torch.stack(parts) for parts in zip(*columns, strict=True)]

    def _refuse_non_finite(self, where: Positions, vectors: Tensor) -> None:
        """Raise for the instances of a batch whose own product is not finite."""
        wrong = []
        for position in where:
            batch = self.model.prepare(self.instances.batch(np.array([position])))
            ids = self.instances.ids[[position]]
            if not torch.isfinite(self._multiply(self._product(batch, ids), vectors)).all():
                wrong.append(str(ids[0]))
        listed = ", ".join(wrong[:10]) + (", ..." if len(wrong) > 10 else "")
        raise NonFiniteError(
            f"the {self.name} of instances {listed or '(only of a whole batch: it overflows)'} is "
            "not finite: look at their features and labels, or leave them out of the set."
        )


class Hessian(InstanceCurvature):
    """Hessian of the mean training risk, ``H = (1/n) sum_i d^2 risk_i / d theta^2``.

    Products are had by differentiating the gradient once more (double backward). ``H`` may be
    indefinite where the training has not converged.

    **Source**: Koh and Liang (2017), section 3; Pearlmutter (1994) for the product.
    """

    name = "Hessian"

    @override
    def _product(self, batch: Any, ids: Any) -> Product:
        parameters = list(self.model.selected.values())
        risk = check_finite(self.model.batch_risk(batch, len(ids)), ids, "risk")
        gradients = torch.autograd.grad(
            risk.sum(), parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )
        self._twice(*gradients)
        return lambda vectors: self._pull_back(gradients, parameters, vectors)
