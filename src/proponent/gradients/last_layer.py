"""The last linear layer of a model, seen by forward passes alone: features in, outputs out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.capture import COMPARED, PROBE_INSTANCES
from proponent.gradients.coverage import check_instances_apart, tolerance
from proponent.gradients.fallback import Probe
from proponent.gradients.gauss_newton import SplitRisk, split_risk
from proponent.gradients.linear_calls import LinearCall, LinearCalls
from proponent.gradients.output_loss import OutputLoss
from proponent.models.torch import TorchModel, check_finite
from proponent.progress import progress as progress_bar

BATCH_SIZE = 512


@dataclass(frozen=True)
class Readout:
    """What the last layer took in and gave for n instances, and what that should have been.

    Attributes
    ----------
    features : Tensor of shape (n, d)
        What enters the layer.
    outputs : Tensor of shape (n, C)
        What leaves it: the pre-activations of the module.
    targets : Tensor of shape (n, ...)
        What the loss compares the outputs with.
    loss : OutputLoss
        The loss of outputs (k, C) against targets (k, ...): (k,).
    """

    features: Tensor
    outputs: Tensor
    targets: Tensor
    loss: OutputLoss

    def __len__(self) -> int:
        """Return the number of instances."""
        return len(self.features)

    def __getitem__(self, rows: slice) -> Readout:
        """Return the readout of some of the instances."""
        return Readout(self.features[rows], self.outputs[rows], self.targets[rows], self.loss)


@dataclass(frozen=True)
class _Pass:
    """A forward pass: the call of the last linear layer, and the module's outputs if known."""

    batch: Any
    ids: NDArray[Any]
    call: LinearCall
    outputs: Any

    def features(self) -> Tensor:
        return check_finite(_rows(self.call.input), self.ids, "last layer's input")


class LastLayer:
    """The linear layer that runs last, whose output is the module's output.

    It is found, and watched, by forward passes alone. The module is in evaluation mode meanwhile
    and comes back as it was.

    Parameters
    ----------
    model : TorchModel
        The module and its risk. Where that is a callable (``risk=``) the module's output is not
        known: features can then be had, but no readout.
    instances : Instances
        Where a few instances are taken from, on which the layer is looked for.
    batch_size : int
        Instances in a forward pass. It does not change the numbers.
    progress : bool, optional
        Whether to show a progress bar; None shows one on a terminal when the work lasts.

    Attributes
    ----------
    name : str
        What the layer is called in the module.
    weight : Tensor of shape (C, d)
        The layer's weight, a copy.
    bias : Tensor of shape (C,) or None
        The layer's bias, a copy.

    Raises
    ------
    InvalidInputError
        If the set is empty; no linear layer runs; the last one is used more than once, sees
        several positions of an instance, or its output is not the module's output; or the risk
        of an instance depends on the other instances of its batch.
    """

    def __init__(
        self,
        model: TorchModel,
        instances: Instances,
        *,
        batch_size: int = BATCH_SIZE,
        progress: bool | None = None,
    ) -> None:
        if not len(instances):
            raise InvalidInputError("train: the set is empty; influence needs instances.")
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise InvalidInputError(f"batch_size must be a positive integer; got {batch_size!r}.")
        self._model = model
        self._batch_size = int(batch_size)
        self._progress = progress
        rows = np.linspace(0, len(instances) - 1, PROBE_INSTANCES).astype(int)
        with model.evaluating():
            probe = Probe(model.prepare(instances.batch(rows)), PROBE_INSTANCES)
            call = self._forward(probe.batch(), instances.ids[rows]).call
            check_instances_apart(model, probe, COMPARED, tolerance(model, {call.output.dtype}))
        self.name = self._name_of(call.weight)
        self.weight = call.weight.detach().clone()
        self.bias = None if call.bias is None else call.bias.detach().clone()

    def features(self, data: Any) -> Tensor:
        """Return what enters the layer for every instance of a set, ``(n, d)``.

        Raises
        ------
        NonFiniteError
            If a feature is not finite; the message names the instances.
        """
        return torch.cat([seen.features() for seen in self._passes(Instances.of(data))])

    def read(self, data: Any) -> Readout:
        """Return features, outputs and targets of every instance of a set.

        Raises
        ------
        InvalidInputError
            If the model was given by ``risk=``, or its loss looks at more than the target.
        NonFiniteError
            If a feature or a risk is not finite; the message names the instances.
        """
        risk = split_risk(self._model, "last layer")
        parts = []
        for seen in self._passes(Instances.of(data)):
            features, outputs = seen.features(), _rows(seen.call.output)
            loss = OutputLoss.of(risk, seen.outputs, seen.batch)
            check_finite(loss.of_batch(outputs, seen.batch), seen.ids, "risk")
            parts.append((features, outputs, loss.target(seen.batch)))
        features, outputs, targets = (torch.cat(part) for part in zip(*parts, strict=True))
        return Readout(features, outputs, targets, loss)

    def _passes(self, instances: Instances) -> Iterator[_Pass]:
        """Go through a set in batches."""
        if not len(instances):
            raise InvalidInputError("the set is empty; pass at least one instance.")
        starts = range(0, len(instances), self._batch_size)
        with (
            self._model.evaluating(),
            progress_bar(starts, description="forward passes", enabled=self._progress) as bar,
        ):
            for start in bar:
                rows = slice(start, min(start + self._batch_size, len(instances)))
                batch = self._model.prepare(instances.batch(rows))
                yield self._forward(batch, instances.ids[rows])

    def _forward(self, batch: Any, ids: NDArray[Any]) -> _Pass:
        """Run the module on a batch, and make sure that its last linear layer is its head."""
        n, watch, outputs = len(ids), LinearCalls(), None
        with watch, torch.no_grad():
            if isinstance(self._model.risk, SplitRisk):
                outputs = self._model.risk.outputs(self._model.module, batch)
            else:
                self._model.batch_risk(batch, n)
        call = watch.last
        if call is None:
            raise InvalidInputError(
                "the module runs no linear layer, so it has no features before a last one; "
                "choose a method that takes gradients of other layers."
            )
        name = self._name_of(call.weight)
        uses = sum(weight is call.weight for weight in watch.weights)
        if uses > 1:
            raise InvalidInputError(
                f"the last linear layer, {name!r}, is used {uses} times in a forward pass; "
                "features are those before a layer that is used once. Give the last use a layer "
                "of its own."
            )
        width = call.weight.shape[1]
        if len(call.input) != n or call.input.numel() != n * width:
            raise InvalidInputError(
                f"the last linear layer, {name!r}, takes inputs of shape "
                f"{tuple(call.input.shape)} for {n} instances; it needs one position an instance, "
                f"({n}, {width}). Pool a sequence before the layer (its last token, or the mean)."
            )
        if outputs is not None and not _is_output(call, outputs):
            raise InvalidInputError(
                f"the output of the last linear layer, {name!r}, is not the module's output: "
                "something follows it. Let the module return the layer's output (logits) and "
                "choose the loss that takes it, such as 'cross_entropy' or 'bce_with_logits'."
            )
        return _Pass(batch, ids, call, outputs)

    def _name_of(self, weight: Tensor) -> str:
        names = (
            name or type(layer).__name__
            for name, layer in self._model.module.named_modules()
            if isinstance(layer, nn.Linear) and layer.weight is weight
        )
        return next(names, "linear")


def _rows(tensor: Tensor) -> Tensor:
    """Return a copy (n, ...), flat behind the instances: a view would hold what it is a part of."""
    return tensor.detach().reshape(len(tensor), -1).clone()


def _is_output(call: LinearCall, outputs: Any) -> bool:
    """Whether the module returns, at most reshaped, what a linear call gave."""
    if not isinstance(outputs, Tensor) or len(outputs) != len(call.output):
        return False
    given, returned = _rows(call.output), _rows(outputs)
    same = given.shape == returned.shape and torch.equal(given.nan_to_num(), returned.nan_to_num())
    return same and call.untouched
