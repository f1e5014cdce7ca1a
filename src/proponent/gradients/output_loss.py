"""The loss of a model as a function of its outputs alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.gradients.gauss_newton import SplitRisk
from proponent.models.risk import LABEL_NAMES


@dataclass(frozen=True)
class OutputLoss:
    """The loss of outputs (k, C) against targets (k, ...), in any precision.

    Attributes
    ----------
    risk : SplitRisk
        Whose loss it is.
    shape : torch.Size
        Shape of one instance's outputs, as the module gives them.
    dtype : torch.dtype
        Precision of the module's outputs.
    label : str, optional
        The name of the target in batches that are dicts; None for tuples.
    """

    risk: SplitRisk
    shape: torch.Size
    dtype: torch.dtype
    label: str | None

    @classmethod
    def of(cls, risk: SplitRisk, outputs: Tensor, batch: Any) -> OutputLoss:
        """Return the loss of a risk that gave these outputs for this batch."""
        label = None
        if isinstance(batch, Mapping):
            label = next((name for name in LABEL_NAMES if name in batch), None)
        return cls(risk, outputs.shape[1:], outputs.dtype, label)

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each instance, ``(k,)``.

        Raises
        ------
        InvalidInputError
            If the loss cannot be had in the precision of the outputs.
        """
        targets = targets.to(outputs.dtype) if targets.is_floating_point() else targets
        batch = (targets,) if self.label is None else {self.label: targets}
        try:
            return self.risk.loss(self.shaped(outputs), batch)
        except RuntimeError as error:
            if outputs.dtype == self.dtype:
                raise
            raise InvalidInputError(
                f"dtype: the loss cannot be had of {outputs.dtype} outputs ({error}). Choose "
                f"dtype={str(self.dtype).removeprefix('torch.')!r}."
            ) from error

    def shaped(self, outputs: Tensor) -> Tensor:
        """Return outputs (k, C) in the shape that the module gives."""
        return outputs.reshape(len(outputs), *self.shape)

    def target(self, batch: Any) -> Tensor:
        """Return what the loss compares the outputs of a batch with.

        Raises
        ------
        InvalidInputError
            If the batch has no tensor of targets.
        """
        target = batch[-1 if self.label is None else self.label]
        if not isinstance(target, Tensor):
            raise InvalidInputError(
                f"the targets of a batch must be a tensor, (batch, ...); got "
                f"{type(target).__name__}."
            )
        return target

    def of_batch(self, outputs: Tensor, batch: Any) -> Tensor:
        """Return the loss of outputs against a batch as the risk has it, ``(k,)``.

        Raises
        ------
        InvalidInputError
            If that is not the loss of the outputs and the target alone.
        """
        losses = self.risk.loss(self.shaped(outputs), batch)
        try:
            found = self(outputs, self.target(batch))
        except (LookupError, TypeError):
            found = losses.new_empty(0)
        if not torch.equal(found.nan_to_num(), losses.nan_to_num()):
            raise InvalidInputError(
                "the loss looks at more of a batch than its target (the last column, or the one "
                f"called {', '.join(LABEL_NAMES)}): put all that it needs into the target."
            )
        return losses
