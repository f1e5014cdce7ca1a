"""Per-instance risks by name: the loss of each instance of a batch, never reduced.

The mean of each over a batch is torch's loss of the same name (for sequences of equal length),
so that a risk given here is the objective that an ordinary training loop minimises.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from proponent.exceptions import InvalidInputError

Risk = Callable[[nn.Module, Any], Tensor]
Loss = Callable[[Any, Any], Tensor]

LABEL_NAMES = ("labels", "label", "target", "targets", "y")
IGNORED_LABEL = -100


def risk_of(loss: str | nn.Module | Loss | None, risk: Risk | None) -> Risk:
    """Return the per-instance risk that a user asked for by ``loss`` or ``risk``.

    Parameters
    ----------
    loss : str, loss module, or callable, optional
        A name of :data:`LOSSES`; a torch loss module, whose reduction is undone; or a callable
        ``loss(output, target) -> (batch,)``.
    risk : callable, optional
        ``risk(module, batch) -> (batch,)``.

    Raises
    ------
    InvalidInputError
        If not exactly one of the two is given, or the name is unknown.
    """
    if (loss is None) == (risk is None):
        raise InvalidInputError(
            "give exactly one of loss= (a name such as 'cross_entropy', a torch loss module or a "
            "callable of output and target) and risk= (a callable of module and batch)."
        )
    if risk is not None:
        return risk
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise InvalidInputError(
                f"loss: unknown name {loss!r}; known names: {', '.join(LOSSES)}."
            )
        return _SupervisedRisk(LOSSES[loss])
    if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
        return _SupervisedRisk(_Unreduced(loss))
    if not callable(loss):
        raise InvalidInputError(
            f"loss: expected a name, a loss module or a callable; got {loss!r}."
        )
    return _SupervisedRisk(loss)


class _SupervisedRisk:
    """Risk of a module on batches of inputs and targets: ``loss(module(inputs), target)``."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        return self.loss(self.outputs(module, batch), batch)

    def outputs(self, module: nn.Module, batch: Any) -> Any:
        """Return what the module makes of the inputs: what the loss compares with the target."""
        if isinstance(batch, Mapping):
            name = _label_name(batch)
            output = module(**{key: value for key, value in batch.items() if key != name})
        elif isinstance(batch, tuple) and len(batch) > 1:
            output = module(*batch[:-1])
        else:
            raise InvalidInputError(
                "a loss needs batches of inputs and targets, (x, ..., y); this data set has one "
                "column. For a risk without targets give risk=callable(module, batch)."
            )
        return getattr(output, "logits", output)

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """Return the loss of given outputs against the batch's target, ``(batch,)``."""
        name = _label_name(batch) if isinstance(batch, Mapping) else -1
        return self._loss(outputs, batch[name])


class _Unreduced:
    """A torch loss module, reduced over each instance alone.

    Its reduction (a mean or a sum) is applied to the outputs of each instance. Class weights
    multiply the losses; torch's mean would divide by the sum of a batch's weights, which mixes
    its instances.
    """

    def __init__(self, loss: nn.Module) -> None:
        self._sums = loss.reduction in ("sum", "batchmean")
        self._ignored = getattr(loss, "ignore_index", None)
        self._loss = copy.copy(loss)
        self._loss.__dict__["reduction"] = "none"

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        losses: Tensor = self._loss(output, target)
        if losses.ndim < 2:
            return losses
        losses = losses.flatten(1)
        if self._sums:
            return losses.sum(1)
        if self._ignored is None or target.is_floating_point():
            return losses.mean(1)
        counted = (target.flatten(1) != self._ignored).sum(1)
        means: Tensor = losses.sum(1) / counted.clamp(min=1)
        return means


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each instance, ``(batch,)``, in nats.

    Parameters
    ----------
    logits : Tensor of shape (batch, classes), (batch, classes, ...) or (batch, ..., classes)
        Where both readings fit the target, the classes are on axis 1 as in torch.
    target : Tensor of shape (batch,) or (batch, ...)
        Classes (-100 is left out, and the mean is over the others), or class probabilities of
        the logits' shape.

    Raises
    ------
    InvalidInputError
        If a label is not in ``0 .. classes-1``.
    """
    if target.is_floating_point() and target.shape == logits.shape:
        return _per_instance(functional.cross_entropy(logits, target, reduction="none"))
    if target.shape == (len(logits), 1) and logits.ndim == 2:
        target = target[:, 0]
    if logits.ndim > 2 and target.shape == logits.shape[:-1] != _without_axis_1(logits):
        logits = logits.movedim(-1, 1)
    if logits.ndim < 2 or target.shape != _without_axis_1(logits):
        raise InvalidInputError(
            f"cross_entropy: logits of shape {tuple(logits.shape)} do not fit targets of shape "
            f"{tuple(target.shape)}; expected (batch, classes) and (batch,)."
        )
    target = target.long()
    kept = target != IGNORED_LABEL
    _check_labels(target, kept, logits.shape[1])
    losses = functional.cross_entropy(logits, target, reduction="none", ignore_index=IGNORED_LABEL)
    if losses.ndim == 1:
        return losses
    return losses.flatten(1).sum(1) / kept.flatten(1).sum(1).clamp(min=1)


def causal_lm(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each token given those before it, mean over an instance's tokens.

    Parameters
    ----------
    logits : Tensor of shape (batch, tokens, vocabulary)
        Logits at each position; position t predicts token t + 1.
    labels : Tensor of shape (batch, tokens)
        The tokens themselves; -100 is left out.
    """
    return cross_entropy(logits[:, :-1].movedim(-1, 1), labels[:, 1:])


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Squared error of each instance, mean over its outputs, ``(batch,)``."""
    return _per_instance((output - _like(target, output, "mse")).square())


def bce_with_logits(output: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each instance from logits, mean over its outputs, ``(batch,)``."""
    target = _like(target, output, "bce_with_logits").to(output.dtype)
    if _any((target < 0) | (target > 1)):
        raise InvalidInputError("bce_with_logits: targets must lie between 0 and 1.")
    return _per_instance(
        functional.binary_cross_entropy_with_logits(output, target, reduction="none")
    )


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "bce_with_logits": bce_with_logits,
    "causal_lm": causal_lm,
}


def _label_name(batch: Mapping[str, Any]) -> str:
    name = next((name for name in LABEL_NAMES if name in batch), None)
    if name is None:
        raise InvalidInputError(
            f"a dict batch needs its target under one of {', '.join(LABEL_NAMES)}; it has "
            f"{', '.join(map(str, batch))}. Give risk=callable(module, batch) instead."
        )
    return name


def _any(wrong: Tensor) -> bool:
    try:
        return bool(wrong.any())
    except RuntimeError:
        return False  # within vmap values cannot be looked at; the batch was, before


def _per_instance(losses: Tensor) -> Tensor:
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def _without_axis_1(logits: Tensor) -> torch.Size:
    return torch.Size((*logits.shape[:1], *logits.shape[2:]))


def _check_labels(target: Tensor, kept: Tensor, classes: int) -> None:
    wrong = kept & ((target < 0) | (target >= classes))
    if _any(wrong):
        raise InvalidInputError(
            f"cross_entropy: label {int(target[wrong][0])} is out of range for {classes} classes; "
            f"labels must be in 0 .. {classes - 1} (or {IGNORED_LABEL}, left out)."
        )


def _like(target: Tensor, output: Tensor, name: str) -> Tensor:
    """Give the target the output's shape; refuse what torch would silently broadcast."""
    if [size for size in target.shape if size != 1] != [size for size in output.shape if size != 1]:
        raise InvalidInputError(
            f"{name}: outputs of shape {tuple(output.shape)} do not fit targets of shape "
            f"{tuple(target.shape)}; they need one target an output."
        )
    return target.reshape(output.shape)
