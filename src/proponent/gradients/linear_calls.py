"""Watch a forward pass for its linear layers: what goes into the last of them and comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class LinearCall:
    """One call of ``linear``, and how often its tensors had been written to by then.

    Attributes
    ----------
    input, weight, output : Tensor
        Of the call.
    bias : Tensor, optional
        None where the layer has none.
    versions : tuple of int
        Of input and output, when the call was made.
    """

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    output: Tensor
    versions: tuple[int, int]

    @property
    def untouched(self) -> bool:
        """Whether input and output still hold what they held then: nothing wrote to them."""
        return (self.input._version, self.output._version) == self.versions


@dataclass
class LinearCalls(TorchFunctionMode):
    """Notes the linear calls of a forward pass, by layers or by hand. No hook is placed.

    Attributes
    ----------
    weights : list of Tensor
        The weights of all calls, in their order.
    last : LinearCall, optional
        The last call; earlier ones are let go of, so that no activation is held for long.
    """

    weights: list[Tensor] = field(default_factory=list)
    last: LinearCall | None = None

    def __post_init__(self) -> None:
        """Begin as a mode."""
        super().__init__()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Make the call, and note it if it is a linear one."""
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function is functional.linear:
            self._note(*args, output=result, **kwargs)
        return result

    def _note(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, *, output: Tensor
    ) -> None:
        self.weights.append(weight)
        versions = (input._version, output._version)
        self.last = LinearCall(input, weight, bias, output, versions)
