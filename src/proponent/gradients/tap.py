"""Watch a forward pass for every use of the chosen parameters.

A torch function mode sees each call that receives a parameter, wherever it is made: in a layer's
forward, twice in a shared layer, or by hand (``F.linear(x, layer.weight)``). No hook is placed
on the module. What the parameters are merely turned into before they meet the data (a
transposed view, a normalised weight, a table of positions) is followed as a *derived* tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from proponent.gradients.attention import attention_forward

Key = str | tuple[int, int]  # a parameter's name, or the (event, output) that made a derived tensor


@dataclass
class Event:
    """One call that received a parameter, or a tensor derived from parameters."""

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]
    edges: tuple[GradientEdge, ...]
    shapes: tuple[torch.Size, ...]

    def values(self) -> Iterator[Any]:
        """Go through the arguments and, one level deep, the lists and tuples among them."""
        return _flat(self.args, self.kwargs)


@dataclass
class Tap(TorchFunctionMode):
    """Records the calls that receive a followed tensor.

    Parameters
    ----------
    parameters : mapping
        The parameters to follow, by name.
    follow : callable
        ``follow(index, event) -> bool``: whether the outputs of the event are to be followed
        too.
    """

    parameters: Mapping[str, Tensor]
    follow: Callable[[int, Event], bool]
    events: list[Event] = field(default_factory=list)
    followed: dict[int, tuple[Tensor, Key]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with the parameters."""
        super().__init__()
        self.followed = {id(tensor): (tensor, name) for name, tensor in self.parameters.items()}

    def key(self, value: Any) -> Key | None:
        """Return what is followed as ``value``, or None."""
        entry = self.followed.get(id(value))
        return entry[1] if entry is not None and entry[0] is value else None

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Make the call, and record it if it received a followed tensor."""
        kwargs = kwargs or {}
        if not any(id(value) in self.followed for value in _flat(args, kwargs)):
            return function(*args, **kwargs)
        if function is functional.multi_head_attention_forward:
            with self:
                result = attention_forward(*args, **kwargs)
            if result is not None:
                return result
        result = function(*args, **kwargs)
        outputs = tuple(value for value in _flat((result,), {}) if _carries_gradient(value))
        # A parameter returned as it is (``weight.to(dtype)``) has not been used yet.
        if outputs and not all(id(value) in self.followed for value in outputs):
            self._record(function, args, kwargs, outputs)
        return result

    def _record(
        self,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        outputs: tuple[Tensor, ...],
    ) -> None:
        # The edges are taken now: a later operation in place must not move them.
        event = Event(
            function,
            args,
            kwargs,
            outputs,
            tuple(get_gradient_edge(_unviewed(output)) for output in outputs),
            tuple(output.shape for output in outputs),
        )
        index = len(self.events)
        self.events.append(event)
        if self.follow(index, event):
            for position, output in enumerate(outputs):
                self.followed[id(output)] = (output, (index, position))


def _flat(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Any]:
    for value in (*args, *kwargs.values()):
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def _carries_gradient(value: Any) -> bool:
    # Without a function behind it (a leaf, or within a custom function) no gradient goes on.
    return isinstance(value, Tensor) and value.requires_grad and value.grad_fn is not None


def _unviewed(output: Tensor) -> Tensor:
    """Return the tensor that an output is merely a reshaped view of, or the output itself.

    An operation in place on a view leaves the view's own node out of the graph.
    """
    base = output._base
    if base is None or not base.requires_grad or base.grad_fn is None:
        return output
    whole = base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    return base if whole else output
