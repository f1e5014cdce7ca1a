"""Calls of a module's linear layers, watched, so that their weights can be treated by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proponent.gradients.forms import Dense, Form, Outer, summed
from proponent.models.torch import TorchModel, check_finite


@dataclass
class Call:
    """A call of a linear layer, ``output = input weight^T + bias (+ offset)``.

    Parameters
    ----------
    weight : str
        Name of the weight.
    bias : str, optional
        Name of the bias, where it is one of the parameters.
    input, output : Tensor
        (..., in) and (..., out).
    offset : Tensor, optional
        Zeros that were added to the output, from which the graph goes on.
    """

    weight: str
    bias: str | None
    input: Tensor
    output: Tensor
    offset: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """The input as (positions, in), without a graph."""
        return self.input.detach().reshape(-1, self.input.shape[-1])


class LinearTaps:
    """The linear layers of a module whose parameters enter in no other way, as far as is seen.

    Parameters
    ----------
    module : torch.nn.Module
    parameters : mapping
        The parameters that count, by name.
    """

    def __init__(self, module: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = parameters
        names = {id(parameter): name for name, parameter in parameters.items()}
        uses = Counter(id(p) for part in module.modules() for p in part._parameters.values())
        self._layers: dict[nn.Linear, tuple[str, str | None]] = {}
        self.names: set[str] = set()
        for part in module.modules():
            if type(part) is not nn.Linear or part._forward_hooks or part._forward_pre_hooks:
                continue
            own = [part.weight] if part.bias is None else [part.weight, part.bias]
            if id(part.weight) not in names or any(uses[id(value)] > 1 for value in own):
                continue
            bias = None if part.bias is None else names.get(id(part.bias))
            self._layers[part] = names[id(part.weight)], bias
            self.names |= {name for name in self._layers[part] if name is not None}

    @contextmanager
    def watching(self, *, offsets: bool) -> Iterator[list[Call]]:
        """Give the list of the calls that are made meanwhile, in their order.

        With offsets the layers' parameters are constants to the graph, and zeros that it depends
        on in their place are added to each output.
        """
        calls: list[Call] = []

        def watch(layer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            call = Call(*self._layers[layer], inputs[0], output)
            calls.append(call)
            if not offsets:
                return None
            call.offset = torch.zeros_like(output).requires_grad_()
            return output + call.offset

        hooks = [layer.register_forward_hook(watch) for layer in self._layers]
        parameters = [p for layer in self._layers for p in layer.parameters()] if offsets else []
        flags = [(parameter, parameter.requires_grad) for parameter in parameters]
        try:
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield calls
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, flag in flags:
                parameter.requires_grad_(flag)


def watched_gradients(
    model: TorchModel, taps: LinearTaps, batch: Any, ids: Any, weights: Tensor
) -> tuple[dict[str, Form], dict[str, Tensor]]:
    """Return the gradient of each weighted risk, in factors, and that of their sum.

    From one backward pass, for modules all of whose parameters are those of tapped layers.

    Raises
    ------
    ValueError
        If a weight is 0, or a call's first axis is not the instances.
    """
    n = len(ids)
    if not bool((weights != 0).all()):
        raise ValueError("a risk has weight 0")
    with taps.watching(offsets=False) as calls:
        risks = check_finite(model.batch_risk(batch, n), ids, "risk")
    outputs = [call.output for call in calls]
    found = torch.autograd.grad(
        risks,
        [*outputs, *taps.parameters.values()],
        weights.to(risks),
        allow_unused=True,
        materialize_grads=True,
    )
    forms: dict[str, list[Form]] = {}
    for call, delta in zip(calls, found, strict=False):
        if len(delta) != n or call.input.shape[:-1] != delta.shape[:-1]:
            raise ValueError("a layer is not called with the instances on its first axis")
        left = delta.reshape(n, -1, delta.shape[-1])
        right = call.input.detach().reshape(n, -1, call.input.shape[-1])
        shape = taps.parameters[call.weight].shape
        forms.setdefault(call.weight, []).append(Outer(left, right, shape))
        if call.bias is not None:
            bias = left[:, 0] if left.shape[1] == 1 else left.sum(1)
            forms.setdefault(call.bias, []).append(Dense(bias))
    total = dict(zip(taps.parameters, found[len(outputs) :], strict=True))
    return {name: summed(parts) for name, parts in forms.items()}, total
