r"""Labels drawn from the model itself, so that squared gradients estimate the true Fisher.

With y ~ p(y | x) under the model, the second moment of the gradients of -log p(y | x) is the
Gauss-Newton matrix of the risk. Where the risk is the *mean* of m terms (the tokens of a
sequence, the outputs of a regression) its gradients have 1/m of that second moment; they are
multiplied by sqrt(m), so that for every risk here

.. math:: E[g_i g_i^T] = J_i^T \nabla^2_z \ell_i J_i .

Squared error has y ~ N(output, 1/2), whose -log p is the squared error itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.risk import IGNORED_LABEL, LABEL_NAMES, LOSSES, Loss, risk_of
from proponent.models.torch import TorchModel

FisherLabels = Tensor | NDArray[Any] | Literal["observed"] | None

# Marsaglia's and Steele's constants of SplitMix64, as signed integers.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FACTORS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def with_fisher_labels(
    model: TorchModel, data: Any, *, labels: FisherLabels = None, seed: int = 0
) -> tuple[TorchModel, Instances]:
    """Return a model and a data set whose per-instance gradients square to the true Fisher.

    The label of each instance depends on the seed and its position in the data set alone: not
    on batches, and not on which part of the set is looked at.

    Parameters
    ----------
    model : TorchModel
        The model; its risk must be known by name (or be torch's loss module of that name) for
        labels to be sampled.
    data : Instances, or what they are made of
        The training set.
    labels : array of shape (n, ...), "observed" or None
        None samples labels; an array gives samples drawn elsewhere; ``"observed"`` leaves the
        data set's own labels, which makes the *empirical* Fisher, another matrix.
    seed : int
        Seed of the sampling.

    Returns
    -------
    TorchModel, Instances
        To be used with each other.

    Raises
    ------
    InvalidInputError
        If labels cannot be sampled for the model's risk, or the given ones do not fit.

    Notes
    -----
    **Source**: Martens & Grosse (2015), section 2.2; Kunstner, Balles & Hennig (2019) on why the
    empirical Fisher is no substitute.
    """
    instances = Instances.of(data)
    if isinstance(labels, str):
        if labels != "observed":
            raise InvalidInputError(
                f"labels={labels!r}: expected None (sampled from the model), an array of n labels "
                f"or 'observed' (the empirical Fisher)."
            )
        return model, instances
    family = loss_family(model)
    companions: Tensor = torch.arange(len(instances))
    if labels is not None:
        companions = torch.as_tensor(labels)
        if companions.ndim == 0 or len(companions) != len(instances):
            raise InvalidInputError(
                f"labels: expected one entry for each of the {len(instances)} training "
                f"instances; got shape {tuple(companions.shape)}."
            )
    elif family is None:
        raise InvalidInputError(
            f"labels: they can be sampled for the losses {', '.join(LOSSES)} and torch's loss "
            "modules of these names (without weights or smoothing), not for this risk. Draw one "
            "label an instance from the model's predictive distribution and pass labels=array, or "
            "name the empirical Fisher with labels='observed'."
        )
    risk = _FisherRisk(model, family, None if labels is not None else seed)
    relabelled = TorchModel(model.module, risk=risk, parameters=model.parameters)
    return relabelled, _Accompanied(instances, companions)


class _Accompanied(Instances):
    """Instances whose batches come with one entry an instance of another tensor."""

    def __init__(self, instances: Instances, companions: Tensor) -> None:
        super().__init__((companions,), instances.ids)
        self._instances = instances
        self._companions = companions

    @override
    def batch(self, indices: slice | NDArray[np.integer[Any]]) -> Any:
        rows = indices if isinstance(indices, slice) else torch.as_tensor(indices)
        return self._instances.batch(indices), self._companions[rows]

    @override
    def select(self, indices: slice | NDArray[np.integer[Any]]) -> Instances:
        positions = np.arange(len(self))[indices]
        rows = torch.as_tensor(positions)
        return _Accompanied(self._instances.select(positions), self._companions[rows])

    @override
    def labels(self) -> NDArray[Any] | None:
        return self._instances.labels()

    @override
    def item(self, position: int) -> Any:
        return self._instances.item(position), self._companions[position]


@dataclass(frozen=True)
class LossFamily:
    """A risk that is -log of a distribution: its loss, and whether it is a mean of its terms.

    ``ignored`` stands for "left out" among the data set's labels.
    """

    name: str
    loss: Loss
    mean: bool
    ignored: int = IGNORED_LABEL


def loss_family(model: TorchModel) -> LossFamily | None:
    """Return the distribution that a model's risk belongs to, or None."""
    if model.loss_name is not None:
        return LossFamily(model.loss_name, LOSSES[model.loss_name], mean=True)
    reduced = getattr(model.risk, "_loss", None)  # what risk_of makes of a torch loss module
    module = getattr(reduced, "_loss", None)
    names: dict[type, str] = {
        nn.CrossEntropyLoss: "cross_entropy",
        nn.MSELoss: "mse",
        nn.BCEWithLogitsLoss: "bce_with_logits",
    }
    name = names.get(type(module))
    changed = any(getattr(module, entry, None) is not None for entry in ("weight", "pos_weight"))
    smoothed = bool(getattr(module, "label_smoothing", 0))
    if name is None or reduced is None or changed or smoothed:
        return None
    ignored: int = getattr(module, "ignore_index", IGNORED_LABEL)
    summed = bool(getattr(reduced, "_sums", 0))
    return LossFamily(name, reduced, mean=not summed, ignored=ignored)


class _FisherRisk:
    """The risk at other labels, scaled so that its gradients square to the Fisher."""

    def __init__(self, model: TorchModel, family: LossFamily | None, seed: int | None) -> None:
        self._risk = model.risk
        self._family = family
        # Mixed once; None where labels are given.
        self._stream = None if seed is None else _mix(torch.tensor(seed) + _GAMMA)

    def __call__(self, module: nn.Module, accompanied: Any) -> Tensor:
        batch, companions = accompanied
        if self._family is None:
            return self._risk(module, _with_target(batch, companions))
        family = self._family

        def loss(output: Tensor, target: Tensor) -> Tensor:
            if self._stream is None:
                terms = _terms(family, output, companions, family.ignored)
                return family.loss(output, companions) * (terms.sqrt() if family.mean else 1.0)
            if family.name in ("mse", "bce_with_logits"):
                drawn = _draw(family, output.detach(), companions, self._stream)
                terms = _terms(family, output, drawn, IGNORED_LABEL)
                risk = LOSSES[family.name](output, drawn)
                return risk * (terms.sqrt() if family.mean else terms)
            logits, kept = _places(family, output, target)
            risk = _drawn_cross_entropy(logits, kept, companions, self._stream)
            return risk / kept.sum(1).clamp(min=1).sqrt() if family.mean else risk

        return risk_of(loss, None)(module, batch)


def _with_target(batch: Any, labels: Tensor) -> Any:
    if isinstance(batch, Mapping):
        name = next((name for name in LABEL_NAMES if name in batch), None)
        if name is not None:
            return {**batch, name: labels}
    elif isinstance(batch, tuple) and len(batch) > 1:
        return (*batch[:-1], labels)
    raise InvalidInputError(
        f"labels: the batches have no column of labels to put them into; a batch is an (x, ..., "
        f"y) tuple or a dict with one of {', '.join(LABEL_NAMES)}. Use labels='observed' for a "
        f"risk without labels."
    )


def _draw(family: LossFamily, output: Tensor, positions: Tensor, stream: Tensor) -> Tensor:
    """Draw numbers from the distribution whose -log density is the family's loss."""
    uniform = _uniform(stream, positions, output[0].numel()).view(output.shape)
    if family.name == "mse":
        return output + torch.erfinv(2 * uniform - 1).to(output.dtype)
    return (uniform < output.sigmoid()).to(output.dtype)


def _places(family: LossFamily, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (n, places, classes), and which places count, (n, places)."""
    if family.name == "causal_lm":
        logits, kept = output[:, :-1], target[:, 1:] != family.ignored
    else:
        logits = _classes_last(output, target)
        if target.is_floating_point() and target.shape == output.shape:
            kept = torch.ones_like(logits[..., 0], dtype=torch.bool)
        else:
            kept = target.reshape(logits.shape[:-1]) != family.ignored
    n, classes = len(logits), logits.shape[-1]
    return logits.reshape(n, -1, classes), kept.reshape(n, -1)


def _drawn_cross_entropy(logits: Tensor, kept: Tensor, positions: Tensor, stream: Tensor) -> Tensor:
    """Return the cross-entropy at classes drawn from the logits themselves, (n,), summed.

    The probabilities that are drawn from are also its gradient, ``p - e_y``: they are computed
    once, and no log-softmax is differentiated.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    probabilities = logits.detach().softmax(-1)
    cumulative = probabilities.cumsum(-1).contiguous()
    uniform = _uniform(stream, positions, logits.shape[1]).to(logits.dtype).unsqueeze(-1)
    classes = torch.searchsorted(cumulative, uniform * cumulative[..., -1:])
    # Where a logit is not a number there is no class: the risk is to be not a number either.
    classes = classes.clamp(max=logits.shape[-1] - 1)
    losses = -probabilities.gather(-1, classes).log()[..., 0]
    slopes = probabilities.scatter_add_(-1, classes, -torch.ones_like(uniform))
    linear = (logits * slopes).sum(-1)
    return torch.where(kept, losses + (linear - linear.detach()), 0).sum(1)


def _classes_last(output: Tensor, target: Tensor) -> Tensor:
    """Move the classes to the last axis, reading the axes as the cross-entropy does."""
    behind = output.shape[:1] + output.shape[2:]
    if output.ndim > 2 and target.shape == output.shape[:-1] and target.shape != behind:
        return output
    return output.movedim(1, -1)


def _terms(family: LossFamily, output: Tensor, target: Tensor, ignored: int) -> Tensor:
    """Return the number of terms that an instance's risk is made of, (n,)."""
    if family.name in ("mse", "bce_with_logits"):
        return output.new_full((len(output),), float(output[0].numel()))
    if target.is_floating_point():
        classes = _classes_last(output, target)
        return output.new_full((len(output),), float(classes[0, ..., 0].numel()))
    target = target[:, 1:] if family.name == "causal_lm" else target
    kept = (target.reshape(len(target), -1) != ignored).sum(1)
    return kept.clamp(min=1).to(output.dtype)


def _uniform(stream: Tensor, positions: Tensor, count: int) -> Tensor:
    """Return numbers in (0, 1), ``(n, count)``, from one SplitMix64 stream an instance.

    **Source**: Steele, Lea & Flood (2014), "Fast splittable pseudorandom number generators".
    """
    start = _mix(stream + positions * _GAMMA)
    steps = torch.arange(1, count + 1, device=positions.device) * _GAMMA
    bits = _shifted(_mix(start[:, None] + steps), 12)
    return (bits.to(torch.float64) + 0.5) * 2.0**-52


def _mix(values: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        values = (values ^ _shifted(values, shift)) * factor
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right without carrying the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)
