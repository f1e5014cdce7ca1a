"""A batch's weighted risk, linearised once and multiplied with many vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from proponent.dynamic.unrolled.updates import Vectors
from proponent.exceptions import InvalidInputError
from proponent.gradients.twice import check_twice, ends_the_graph, grad, zeros_for_none
from proponent.models.torch import TorchModel, check_finite

VECTORS_AT_ONCE = 64
ONCE = "Use activations and losses that can be."


@contextmanager
def differentiable(
    parameters: Mapping[str, nn.Parameter], others: Sequence[Tensor]
) -> Iterator[None]:
    """Let gradients be taken of the given parameters, not of the others, for a while."""
    wanted: list[tuple[Tensor, bool]] = [(value, True) for value in parameters.values()]
    wanted += [(parameter, False) for parameter in others]
    changed = [parameter for parameter, flag in wanted if parameter.requires_grad != flag]
    try:
        for parameter in changed:
            parameter.requires_grad_(not parameter.requires_grad)
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not parameter.requires_grad)


class Linearised:
    r"""The gradient of :math:`w \cdot \ell(\theta)` over a batch, with the graph behind it.

    Differentiating :math:`\langle v, \nabla_\theta (w \cdot \ell)\rangle` once more, with respect
    to the parameters and to the weights w, gives both :math:`H_w v = \sum_j w_j \nabla^2 \ell_j v`
    and every :math:`\langle v, \nabla \ell_j \rangle`. That holds for any module, also for one
    whose instances meet in the batch (batch normalisation while training): the gradient is then
    that of the loss with respect to the instance's weight.

    To be made and used where the module is in the state and the mode of the step, its attention
    is one that can be differentiated twice, and within :func:`differentiable`.

    Parameters
    ----------
    model : TorchModel
        The module with its risk.
    parameters : mapping
        The parameters by name.
    batch : batch
        The prepared batch.
    weights : Tensor of shape (n,)
        The weight of each risk in the loss.
    ids : array of shape (n,)
        Of the instances, for messages.
    at_once : int
        How many vectors are multiplied together.
    remedy : str
        A sentence: what to do where the module cannot be differentiated twice.
    """

    def __init__(
        self,
        model: TorchModel,
        parameters: Mapping[str, nn.Parameter],
        batch: Any,
        weights: Tensor,
        ids: Any,
        *,
        at_once: int = VECTORS_AT_ONCE,
        remedy: str = ONCE,
    ) -> None:
        self._remedy = remedy
        self._names = list(parameters)
        self._parameters = list(parameters.values())
        self._at_once = at_once
        risks = model.batch_risk(batch, len(weights))
        self.risks = check_finite(risks, ids, "risk")
        self._weights = weights.to(self.risks).requires_grad_()
        self._gradients = self._gradient(self._weights @ self.risks)

    def _gradient(self, loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            loss, self._parameters, create_graph=True, allow_unused=True, materialize_grads=True
        )

    @property
    def gradient(self) -> dict[str, Tensor]:
        """The gradient of the weighted risk, by parameter."""
        found = (gradient.detach() for gradient in self._gradients)
        return dict(zip(self._names, found, strict=True))

    def check_twice(self) -> None:
        """Refuse a module that cannot be differentiated twice; see :func:`check_twice`."""
        check_twice(self._gradients, self._remedy)

    def products(self, vectors: Vectors) -> tuple[Vectors, Tensor]:
        """Return ``H_w v_k``, (k, *shape) by parameter, and ``<v_k, g_j>``, (k, n).

        Parameters that are not named have entries zero in the vectors.
        """
        inputs = [*self._parameters, self._weights]
        *found, inner = self._differentiate(self._gradients, vectors, inputs)
        return dict(zip(self._names, found, strict=True)), inner

    def multiply(self, vectors: Vectors, factors: Mapping[str, float]) -> FullProducts:
        """Multiply ``v_k = factor * vector_k`` with the Hessian, and with every gradient."""
        scaled = {name: part * factors.get(name, 1.0) for name, part in vectors.items()}
        return FullProducts(*self.products(scaled))

    def inner(self, vectors: Vectors) -> Tensor:
        """Return ``<v_k, g_j>``, (k, n)."""
        if not ends_the_graph(self._gradients):
            return self._differentiate(self._gradients, vectors, [self._weights])[0]
        parts = []  # without second derivatives, from the gradient of each instance
        for rows in torch.eye(len(self.risks)).split(self._at_once):
            found = self.gradients(rows)
            products = [part.flatten(1) @ found[n].flatten(1).T for n, part in vectors.items()]
            parts.append(torch.stack(products).sum(0))
        return torch.cat(parts, 1)

    def hessian(self, vectors: Vectors, weights: Tensor | None = None) -> Vectors:
        """Return ``H_w v_k``, (k, *shape) by parameter; for other weights (n,) where given."""
        gradients = self._gradients
        if weights is not None:
            gradients = self._gradient(weights.to(self.risks) @ self.risks)
        found = self._differentiate(gradients, vectors, self._parameters)
        return dict(zip(self._names, found, strict=True))

    def gradients(self, weights: Tensor) -> Vectors:
        """Return ``sum_j weights_kj g_j``, (k, *shape) by parameter, for weights (k, n)."""
        rows = weights.to(self.risks)
        found = self._pull_back([self.risks], [rows], self._parameters)
        return dict(zip(self._names, found, strict=True))

    def _differentiate(
        self, gradients: Sequence[Tensor], vectors: Vectors, inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        pairs = [
            (gradient, vectors[name])
            for name, gradient in zip(self._names, gradients, strict=True)
            if name in vectors and gradient.requires_grad
        ]
        ends, starts = [end for end, _ in pairs], [start for _, start in pairs]
        if not ends:  # the risk depends on none of these parameters
            k = len(next(iter(vectors.values())))
            return [value.new_zeros(k, *value.shape) for value in inputs]
        return self._pull_back(ends, starts, inputs)

    def _pull_back(
        self, outputs: Sequence[Tensor], vectors: Sequence[Tensor], inputs: Sequence[Tensor]
    ) -> list[Tensor]:
        return pull_back(outputs, vectors, inputs, at_once=self._at_once, remedy=self._remedy)


class FullProducts:
    """Products of vectors with a batch's Hessian.

    Attributes
    ----------
    inner : Tensor of shape (k, n)
        The vectors' products with the gradient of each instance.
    """

    def __init__(self, products: Vectors, inner: Tensor) -> None:
        self._products = products
        self.inner = inner

    def add_to(self, vectors: Vectors) -> None:
        """Add ``H v_k`` to vectors, in place."""
        for name, part in self._products.items():
            vectors[name].add_(part)


def pull_back(
    outputs: Sequence[Tensor],
    vectors: Sequence[Tensor],
    inputs: Sequence[Tensor],
    *,
    at_once: int | None = None,
    remedy: str = ONCE,
) -> list[Tensor]:
    """Return ``sum_o vectors_ko . d output_o / d input``, (k, *shape) for each input.

    ``at_once`` vectors together; one at a time where an operation cannot be vectorised.

    Raises
    ------
    InvalidInputError
        If an operation has no second derivative; the message ends with the ``remedy``.
    """
    k = len(vectors[0])
    parts = []
    for start in range(0, k, at_once or k):
        rows = [vector[start : start + (at_once or k)] for vector in vectors]
        parts.append(_pull_back(outputs, rows, inputs, remedy))
    if len(parts) == 1:
        return parts[0]
    return [torch.cat(columns) for columns in zip(*parts, strict=True)]


def _pull_back(
    outputs: Sequence[Tensor], vectors: Sequence[Tensor], inputs: Sequence[Tensor], remedy: str
) -> list[Tensor]:
    k = len(vectors[0])
    if k > 1:
        try:
            return zeros_for_none(grad(outputs, inputs, vectors, batched=True), inputs, k)
        except RuntimeError:
            pass  # an operation has no batching rule
    try:
        rows = [
            grad(outputs, inputs, [vector[j] for vector in vectors], batched=False)
            for j in range(k)
        ]
    except RuntimeError as error:
        if "derivative for" not in str(error) and "double backward" not in str(error):
            raise
        raise InvalidInputError(
            f"the module cannot be differentiated twice, which is needed here: {error} {remedy}"
        ) from error
    columns = [zeros_for_none(row, inputs, None) for row in rows]
    return [torch.stack(parts) for parts in zip(*columns, strict=True)]
