"""Outputs as the loss reads them: where the true class lies, and a network's own targets."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from proponent.exceptions import InvalidInputError
from proponent.gradients.labels import LossFamily
from proponent.gradients.last_layer import Readout
from proponent.gradients.linear_head import RowLoss, Rows
from proponent.models.risk import LOSSES

Signed = Literal["logit", "loss"]
CLASSIFICATION = ("cross_entropy", "bce_with_logits")


def chosen_sign(signed: Signed | None, family: LossFamily | None) -> Signed:
    """Return how contributions to the outputs are signed; None leaves it to the loss.

    Raises
    ------
    InvalidInputError
        If the word is unknown, or the logit of the true class is asked for where there is none.
    """
    classes = family is not None and family.name in CLASSIFICATION
    if signed is None:
        return "logit" if classes else "loss"
    if signed not in get_args(Signed):
        raise InvalidInputError(f"signed={signed!r}: expected 'logit', 'loss' or None.")
    if signed == "logit" and not classes:
        raise InvalidInputError(
            "signed='logit' is the contribution to the logit of the true class, which only "
            f"{' and '.join(CLASSIFICATION)} (and torch's loss modules of these names, without "
            "weights) have: a larger output of a regression helps some instances and harms "
            "others. Use signed='loss'."
        )
    return signed


def label_directions(family: LossFamily, readout: Readout, dtype: torch.dtype) -> Tensor:
    """Return the directions v (m, C) in which the logits of the true classes grow.

    For ``cross_entropy`` the unit vector of the class, or the class probabilities; for
    ``bce_with_logits`` the sign ``2 y - 1`` of each output. ``<v, outputs>`` is then the logit of
    the true class, or the margin.

    Raises
    ------
    InvalidInputError
        If the loss leaves out an instance's class.
    """
    outputs, targets = readout.outputs, readout.targets
    if family.name == "bce_with_logits":
        return 2 * targets.reshape(outputs.shape).to(dtype) - 1
    if targets.is_floating_point() and targets.numel() == outputs.numel():
        return targets.reshape(outputs.shape).to(dtype)
    classes = targets.reshape(-1).long()
    if (classes == family.ignored).any():
        raise InvalidInputError(
            f"a label is {family.ignored}, which the loss leaves out: the instance has no class "
            "whose logit could be looked at. Leave it out of the set, or use signed='loss'."
        )
    return functional.one_hot(classes, outputs.shape[1]).to(dtype)


def own_loss(family: LossFamily | None, readout: Readout, dtype: torch.dtype) -> RowLoss:
    """Return the loss against what the network itself predicts.

    Raises
    ------
    InvalidInputError
        If it is not known what target a prediction amounts to.
    """
    outputs = readout.outputs.to(dtype)
    if family is None:
        raise InvalidInputError(
            "targets='outputs' takes the network's predictions for targets, which is known how to "
            "do for the losses cross_entropy, bce_with_logits and mse (and torch's loss modules of "
            "these names, without weights). Use targets='labels'."
        )
    loss, predictions = family.loss, outputs
    if family.name == "cross_entropy":
        loss, predictions = LOSSES["cross_entropy"], outputs.softmax(1)
    elif family.name == "bce_with_logits":
        predictions = outputs.sigmoid()
    shaped = readout.loss.shaped

    def risk(outputs: Tensor, rows: Rows) -> Tensor:
        return loss(shaped(outputs), shaped(predictions[rows]))

    return risk
