"""A batch's weighted risk, linearised once, with the weights of linear layers by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from proponent.dynamic.unrolled.linear_taps import Call, LinearTaps
from proponent.dynamic.unrolled.linearised import ONCE, pull_back
from proponent.dynamic.unrolled.updates import Vectors
from proponent.models.torch import TorchModel, check_finite


class Layered:
    r"""The same as :class:`Linearised`, without tensors of k vectors beyond those given.

    A linear layer's weight enters the loss through the outputs :math:`z = a W^\top`, and the
    loss' gradient through the inputs' gradients :math:`\delta W` too. So with offsets e on the
    outputs and f on the inputs' gradients (the loss is given :math:`\langle f, a \rangle` beside),

    .. math::
        S_k = \sum \langle V_k, \delta^\top a \rangle, \qquad
        (H V_k)_W = (\partial S_k / \partial e)^\top a + \delta^\top (\partial S_k / \partial f),

    summed over the layer's calls: the graph is differentiated with respect to activations alone,
    and the outer products are added to where they are wanted, in place.

    To be made and used as :class:`Linearised`.

    Parameters
    ----------
    model : TorchModel
        The module with its risk.
    parameters : mapping
        The parameters by name.
    taps : LinearTaps
        The layers that are treated by hand.
    batch : batch
        The prepared batch.
    weights : Tensor of shape (n,)
        The weight of each risk in the loss.
    ids : array of shape (n,)
        Of the instances, for messages.
    remedy : str
        A sentence: what to do where the module cannot be differentiated twice.
    """

    def __init__(
        self,
        model: TorchModel,
        parameters: Mapping[str, nn.Parameter],
        taps: LinearTaps,
        batch: Any,
        weights: Tensor,
        ids: Any,
        *,
        remedy: str = ONCE,
    ) -> None:
        self._remedy = remedy
        with taps.watching(offsets=True) as calls:
            risks = model.batch_risk(batch, len(weights))
            self._calls: list[Call] = calls
            self._others = {n: p for n, p in parameters.items() if n not in taps.names}
            check_finite(risks.detach(), ids, "risk")
            self._weights = weights.to(risks).requires_grad_()
            loss = self._weights @ risks
            self._inner = [call for call in calls if call.input.requires_grad]
            self._shifts = [torch.zeros_like(call.input).requires_grad_() for call in self._inner]
            for call, shift in zip(self._inner, self._shifts, strict=True):
                loss = loss + (shift * call.input).sum()
            offsets = [call.offset for call in calls if call.offset is not None]
            found = torch.autograd.grad(
                loss,
                [*offsets, *self._others.values()],
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        self._offsets = offsets
        self._deltas = found[: len(offsets)]
        self._gradients = dict(zip(self._others, found[len(offsets) :], strict=True))
        self._parameters = parameters

    @property
    def gradient(self) -> dict[str, Tensor]:
        """The gradient of the weighted risk, by parameter."""
        found = {name: torch.zeros_like(value.data) for name, value in self._parameters.items()}
        for call, delta in zip(self._calls, self._deltas, strict=True):
            rows = _rows(delta)
            found[call.weight].addmm_(rows.T, call.rows)
            if call.bias is not None:
                found[call.bias].add_(rows.sum(0))
        return found | {name: part.detach() for name, part in self._gradients.items()}

    def multiply(self, vectors: Vectors, factors: Mapping[str, float]) -> LayeredProducts:
        """Multiply ``v_k = factor * vector_k`` with the Hessian, and with every gradient.

        Parameters that are not named have entries zero. The vectors are not needed afterwards.
        """
        outputs: list[Tensor] = []
        starts: list[Tensor] = []
        k = len(next(iter(vectors.values())))
        place = {id(call): index for index, call in enumerate(self._inner)}
        for call, delta in zip(self._calls, self._deltas, strict=True):
            along: Tensor | None = None
            weight = vectors.get(call.weight)
            if weight is not None:
                factor = factors.get(call.weight, 1.0)
                flat = weight.reshape(-1, weight.shape[-1])  # (k out, in)
                along = (flat @ (call.rows * factor).T).view(k, weight.shape[1], -1)
                # What autograd goes on with has this layout, and transposed it is slow.
                along = along.transpose(1, 2).contiguous()
                if id(call) in place:
                    back = (_rows(delta) * factor).expand(k, -1, -1) @ weight
                    outputs.append(call.input)
                    starts.append(back.view(k, *call.input.shape))
            if call.bias is not None and call.bias in vectors:
                bias = (vectors[call.bias] * factors.get(call.bias, 1.0)).unsqueeze(1)
                along = bias.expand(k, _rows(delta).shape[0], -1) if along is None else along + bias
            if along is not None and delta.requires_grad:
                outputs.append(delta)
                starts.append(along.reshape(k, *delta.shape))
        for name, gradient in self._gradients.items():
            if name in vectors and gradient.requires_grad:
                outputs.append(gradient)
                starts.append(vectors[name] * factors.get(name, 1.0))
        inputs = [*self._offsets, *self._shifts, *self._others.values(), self._weights]
        if outputs:
            found = pull_back(outputs, starts, inputs, remedy=self._remedy)
        else:
            found = [value.new_zeros(k, *value.shape) for value in inputs]
        return LayeredProducts(
            self._calls,
            [_rows(delta) for delta in self._deltas],
            found[: len(self._calls)],
            {index: found[len(self._calls) + at] for index, at in self._places(place).items()},
            dict(zip(self._others, found[len(self._calls) + len(self._shifts) : -1], strict=True)),
            found[-1],
        )

    def _places(self, place: Mapping[int, int]) -> dict[int, int]:
        return {
            index: place[id(call)] for index, call in enumerate(self._calls) if id(call) in place
        }


class LayeredProducts:
    """Products of vectors with a batch's Hessian, whose weights' parts are still factors.

    Attributes
    ----------
    inner : Tensor of shape (k, n)
        The vectors' products with the gradient of each instance.
    """

    def __init__(
        self,
        calls: list[Call],
        deltas: list[Tensor],
        outputs: list[Tensor],
        inputs: Mapping[int, Tensor],
        others: Vectors,
        inner: Tensor,
    ) -> None:
        self._calls = calls
        self._deltas = deltas
        self._outputs = outputs
        self._inputs = inputs
        self._others = others
        self.inner = inner

    def add_to(self, vectors: Vectors) -> None:
        """Add ``H v_k`` to vectors, in place."""
        for index, (call, delta, outer) in enumerate(
            zip(self._calls, self._deltas, self._outputs, strict=True)
        ):
            k = len(outer)
            outer = outer.reshape(k, len(delta), -1)
            total, rows = vectors[call.weight], call.rows
            # One product of matrices for all vectors.
            stacked = outer.transpose(1, 2).reshape(-1, len(delta))
            total.view(-1, total.shape[-1]).addmm_(stacked, rows)
            back = self._inputs.get(index)
            if back is not None:
                total.baddbmm_(delta.T.expand(k, -1, -1), back.reshape(k, len(delta), -1))
            if call.bias is not None:
                vectors[call.bias].add_(outer.sum(1))
        for name, part in self._others.items():
            vectors[name].add_(part)


def _rows(delta: Tensor) -> Tensor:
    return delta.detach().reshape(-1, delta.shape[-1])
