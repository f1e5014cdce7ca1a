"""Differentiating twice: whether it can be done, and products with the second derivative."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from proponent.exceptions import InvalidInputError


def twice_differentiable() -> AbstractContextManager[None]:
    """Choose attention that can be differentiated twice; the fused kernels cannot."""
    context: AbstractContextManager[None] = sdpa_kernel(SDPBackend.MATH)
    return context


def check_twice(gradients: Iterable[Tensor], remedy: str, *, needed: str = "here") -> None:
    """Refuse gradients that cannot be differentiated again.

    Parameters
    ----------
    gradients : iterable of Tensor
        Made with ``create_graph=True``.
    remedy : str
        A sentence that the message ends with.
    needed : str
        Where the second derivative is needed.

    Raises
    ------
    InvalidInputError
        If they cannot.
    """
    if ends_the_graph(gradients):
        raise InvalidInputError(
            f"the module cannot be differentiated twice, which is needed {needed}: one of its "
            f"functions is once_differentiable. {remedy}"
        )


def ends_the_graph(gradients: Iterable[Tensor]) -> bool:
    """Whether a part of gradients says that it cannot be differentiated again.

    Autograd itself raises only where it comes by; what was marked ``once_differentiable`` ends
    the graph, and would count as a constant.
    """
    ahead = [gradient.grad_fn for gradient in gradients]
    seen = set(ahead)
    while ahead:
        node = ahead.pop()
        if node is None:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        following = {after for after, _ in node.next_functions} - seen
        seen |= following
        ahead += following
    return False


def grad(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], vectors: Sequence[Tensor], *, batched: bool
) -> tuple[Tensor | None, ...]:
    """Pull vectors back from outputs to inputs, k of them at once where ``batched``.

    The graph is kept; inputs that the outputs do not depend on have None.
    """
    return torch.autograd.grad(
        outputs, inputs, vectors, retain_graph=True, allow_unused=True, is_grads_batched=batched
    )


def zeros_for_none(
    found: Sequence[Tensor | None], inputs: Sequence[Tensor], k: int | None
) -> list[Tensor]:
    """Write out the zeros of inputs that the outputs do not depend on, (k, ...) or as they are."""
    first = () if k is None else (k,)
    return [
        value.new_zeros(*first, *value.shape) if part is None else part.detach()
        for part, value in zip(found, inputs, strict=True)
    ]
