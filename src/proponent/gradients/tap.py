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

# Calls that choose rows by what is in a tensor: what they return may have the instances in
# another order, or not all of them.
_CHOOSING = [
    "index_select",
    "gather",
    "take",
    "take_along_dim",
    "masked_select",
    "sort",
    "topk",
    "msort",
    "repeat_interleave",
    "scatter",
    "scatter_add",
    "scatter_reduce",
    "index_add",
    "index_copy",
    "index_put",
    "masked_scatter",
]
CHOOSING = {getattr(holder, name) for holder in (torch, torch.Tensor) for name in _CHOOSING} | {
    getattr(torch.Tensor, f"{name}_") for name in _CHOOSING if hasattr(torch.Tensor, f"{name}_")
}
INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)

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
    rearranged: bool

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

    Attributes
    ----------
    events : list of Event
        The calls, in order.
    rearranged : bool
        Whether a call has chosen rows by what is in a tensor.
    """

    parameters: Mapping[str, Tensor]
    follow: Callable[[int, Event], bool]
    events: list[Event] = field(default_factory=list)
    followed: dict[int, tuple[Tensor, Key]] = field(default_factory=dict)
    rearranged: bool = False

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
            self.rearranged = self.rearranged or _chooses_rows(function, args)
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
            tuple(get_gradient_edge(_unviewed(function, output)) for output in outputs),
            tuple(output.shape for output in outputs),
            self.rearranged,
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


def _chooses_rows(function: Callable[..., Any], args: Sequence[Any]) -> bool:
    if function not in INDEXING:
        return function in CHOOSING
    index = args[1] if isinstance(args[1], (tuple, list)) else (args[1],)
    return any(isinstance(part, (Tensor, list)) for part in index)


def _carries_gradient(value: Any) -> bool:
    # Without a function behind it (a leaf, or within a custom function) no gradient goes on.
    return isinstance(value, Tensor) and value.requires_grad and value.grad_fn is not None


def _unviewed(function: Callable[..., Any], output: Tensor) -> Tensor:
    """Return the tensor that a linear layer's output is a reshaped view of, or the output itself.

    An operation in place on a view leaves the view's own node out of the graph. Only ``linear``
    makes a view of a tensor that nothing else can use.
    """
    base = output._base if function is functional.linear else None
    if base is None or not base.requires_grad or base.grad_fn is None:
        return output
    whole = base.numel() == output.numel() and base.is_contiguous() and output.is_contiguous()
    return base if whole else output
