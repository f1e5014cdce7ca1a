"""The mean risk of a batch as torch's own losses take it, where that is rounded in its own way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from proponent.models.risk import risk_of
from proponent.models.torch import TorchModel


def _binary_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    target = target.reshape(output.shape).to(output.dtype)
    return functional.binary_cross_entropy_with_logits(output, target)


# The slope of a mean binary cross-entropy is divided by the number of outputs; slopes of single
# risks are multiplied by its inverse, which is rounded before.
_MEANS = {"bce_with_logits": risk_of(_binary_cross_entropy, None)}


def batch_mean(model: TorchModel) -> Callable[[Any], Tensor] | None:
    """Return what takes the mean risk of a batch as torch does.

    None where the gradient of the mean of single risks is the same bit for bit, as far as is
    known: for the losses by another name. A risk of the user's own is taken as it is.
    """
    mean = _MEANS.get(model.loss_name or "")
    return None if mean is None else lambda batch: mean(model.module, batch)
