r"""The model output f that TRAK linearises, and the risk as a function of it.

Where the risk is ``log(1 + exp(-f))`` of the log-odds f of being right, ``f = log(p / (1 - p))``,
its slope is ``-(1 - p)`` and its curvature ``p (1 - p)``, p being the probability of the label.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from proponent.exceptions import InvalidInputError
from proponent.gradients.gauss_newton import SplitRisk
from proponent.models.risk import LABEL_NAMES
from proponent.models.torch import TorchModel

Output = Callable[[nn.Module, Any], Tensor]
Residual = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ModelOutput:
    """A function of a module and a batch, one number an instance, and the risk's slope in it.

    Attributes
    ----------
    name : str
        What it is.
    value : callable
        ``value(module, batch) -> (batch,)``, f: larger is better.
    residual : callable
        ``residual(f) -> (batch,)``, minus the derivative of the risk by f.
    """

    name: str
    value: Output
    residual: Residual

    def slopes(self, outputs: Tensor) -> Tensor:
        """Return minus the first derivative of the risk by f, ``(n,)``.

        Raises
        ------
        InvalidInputError
            If the residual is not one number an instance.
        """
        slopes = self.residual(outputs.detach()).detach()
        if slopes.shape != outputs.shape:
            raise InvalidInputError(
                f"residual: expected {tuple(outputs.shape)}, one number an instance; it returned "
                f"{tuple(slopes.shape)}."
            )
        return slopes

    def curvatures(self, outputs: Tensor) -> Tensor:
        """Return the second derivative of the risk by f, ``(n,)``.

        Raises
        ------
        InvalidInputError
            If the residual does not depend on f, or grows with it.
        """
        free = outputs.detach().requires_grad_()
        with torch.enable_grad():
            residuals = self.residual(free)
        curvatures = torch.zeros_like(outputs)
        if residuals.requires_grad:
            curvatures -= torch.autograd.grad(residuals.sum(), free)[0]
        if not (curvatures >= 0).all() or not (curvatures > 0).any():
            raise InvalidInputError(
                f"curvature_weights: the risk has no positive curvature in the model output "
                f"({self.name}); leave curvature_weights out, or give an output= whose residual= "
                f"falls with it."
            )
        return curvatures


def model_output(
    model: TorchModel, output: Output | None, residual: Residual | None
) -> ModelOutput:
    """Return the output of a model that is asked for, or that its loss suggests.

    Raises
    ------
    InvalidInputError
        If they cannot be used.
    """
    for name, value in (("output", output), ("residual", residual)):
        if value is not None and not callable(value):
            raise InvalidInputError(f"{name}: expected a callable or None; got {value!r}.")
    if output is not None:
        return ModelOutput("as given", output, residual or _one_minus_probability)
    if residual is not None:
        raise InvalidInputError("residual= belongs to an output=; give both, or neither.")
    margin = _margin_of(model)
    if margin is None or not isinstance(model.risk, SplitRisk):
        risk = model.risk
        return ModelOutput("minus the risk", lambda *given: -risk(*given), torch.ones_like)
    split = model.risk

    def log_odds(module: nn.Module, batch: Any) -> Tensor:
        logits = split.outputs(module, batch)
        return margin(logits.to(torch.promote_types(logits.dtype, torch.float32)), _target(batch))

    return ModelOutput("log-odds of the label", log_odds, _one_minus_probability)


def class_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Return ``log(p / (1 - p))`` of each label's probability p, ``(batch,)``.

    Parameters
    ----------
    logits : Tensor of shape (batch, classes)
        At least two classes.
    target : Tensor of shape (batch,)
        Classes.

    Raises
    ------
    InvalidInputError
        If the shapes are others, or a label is not in ``0 .. classes-1``.
    """
    target = target[:, 0] if target.shape == (len(logits), 1) else target
    if logits.ndim != 2 or logits.shape[1] < 2 or target.shape != logits.shape[:1]:
        raise InvalidInputError(
            f"output: the log-odds of the label need logits (batch, classes) of at least two "
            f"classes and labels (batch,); got {tuple(logits.shape)} and {tuple(target.shape)}. "
            f"For sequences or soft labels give output=callable(module, batch) -> (batch,)."
        )
    chosen = target.long()[:, None]
    if _any((chosen < 0) | (chosen >= logits.shape[1])):
        raise InvalidInputError(
            f"output: labels must be in 0 .. {logits.shape[1] - 1}; an instance without a label "
            f"has no log-odds: leave it out."
        )
    others = logits.scatter(1, chosen, -math.inf).logsumexp(1)
    return logits.gather(1, chosen)[:, 0] - others


def binary_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Return the logit, with the sign of the label: ``(2 y - 1) logit``, ``(batch,)``.

    Raises
    ------
    InvalidInputError
        If there is more than one logit an instance, or a label is neither 0 nor 1.
    """
    if logits.numel() != len(logits) or target.numel() != len(logits):
        raise InvalidInputError(
            f"output: the log-odds of the label need one logit and one label an instance; got "
            f"{tuple(logits.shape)} and {tuple(target.shape)}. For several labels an instance "
            f"give output=callable(module, batch) -> (batch,)."
        )
    if _any((target != 0) & (target != 1)):
        raise InvalidInputError(
            "output: binary labels must be 0 or 1; for probabilities give output=."
        )
    return logits.reshape(len(logits)) * (2 * target.reshape(len(logits)).to(logits.dtype) - 1)


def _margin_of(model: TorchModel) -> Callable[[Tensor, Tensor], Tensor] | None:
    """Return the margin that goes with a model's loss, if its loss is the logistic one."""
    margins = {"cross_entropy": class_margin, "bce_with_logits": binary_margin}
    if model.loss_name is not None:
        return margins.get(model.loss_name)
    reduced = getattr(model.risk, "_loss", None)  # what a torch loss module is wrapped in
    module = getattr(reduced, "_loss", None)
    changed = any(getattr(module, name, None) is not None for name in ("weight", "pos_weight"))
    if changed or getattr(module, "label_smoothing", None):
        return None
    if isinstance(module, nn.CrossEntropyLoss):
        return class_margin
    return binary_margin if isinstance(module, nn.BCEWithLogitsLoss) else None


def _target(batch: Any) -> Tensor:
    label: Any = (
        next((name for name in LABEL_NAMES if name in batch), -1) if isinstance(batch, dict) else -1
    )
    target: Tensor = batch[label]
    return target


def _one_minus_probability(outputs: Tensor) -> Tensor:
    return torch.sigmoid(-outputs)


def _any(wrong: Tensor) -> bool:
    try:
        return bool(wrong.any())
    except RuntimeError:
        return False  # within vmap values cannot be looked at; the batch was, before
