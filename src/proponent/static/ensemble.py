"""The models of an ensemble, and their outputs in the place of their risks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from proponent.exceptions import InvalidInputError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.fingerprint import fingerprint
from proponent.gradients.products import Gradients
from proponent.models.torch import TorchModel
from proponent.static.model_output import ModelOutput, Output, Residual, model_output


class RecordedOutput:
    """A model output that keeps its values on the batch whose gradients were captured last.

    Parameters
    ----------
    output : ModelOutput
        The output, to be differentiated as if it were a risk.
    """

    def __init__(self, output: ModelOutput) -> None:
        self._value = output.value
        self._seen = False
        self.values = torch.empty(0)

    def __call__(self, module: nn.Module, batch: Any) -> Tensor:
        """Return the outputs of a batch."""
        values = self._value(module, batch)
        if not self._seen:
            # The batch as a whole comes first; what is differentiated once more comes after it.
            self.values, self._seen = values.detach(), True
        return values

    def captured(self, capture: GradientCapture, batch: Any, ids: Any) -> Gradients:
        """Return the gradients of a prepared batch; its outputs are then in ``values``."""
        self._seen = False
        return capture(batch, ids)


@dataclass(frozen=True)
class Member:
    """One of the models.

    Attributes
    ----------
    model : TorchModel
        The module, with its output in the place of the risk.
    output : ModelOutput
        The output.
    recorded : RecordedOutput
        Keeps the output's values.
    enter : callable
        Returns a context in which the module has the member's parameters.
    """

    model: TorchModel
    output: ModelOutput
    recorded: RecordedOutput
    enter: Callable[[], AbstractContextManager[Any]]

    def fingerprint(self) -> str:
        """Return a hash of the member's parameters and buffers."""
        with self.enter():
            return fingerprint(self.model.module.state_dict())


def members_of(
    models: Sequence[TorchModel],
    states: Sequence[Mapping[str, Tensor]] | None,
    output: Output | None,
    residual: Residual | None,
) -> list[Member]:
    """Return the members of an ensemble: models, or states of the one model.

    Raises
    ------
    InvalidInputError
        If there are states of several models, two members are the same, or the output cannot
        be used.
    """
    if states is not None and (len(models) > 1 or not len(states)):
        raise InvalidInputError(
            "states: expected at least one state dict, of the one model that is given."
        )
    enter: list[Callable[[], AbstractContextManager[Any]]] = [nullcontext for _ in models]
    if states is not None:
        enter = [partial(models[0].at, state) for state in states]
        models = [models[0]] * len(states)
    members = []
    for model, entered in zip(models, enter, strict=True):
        chosen = model_output(model, output, residual)
        recorded = RecordedOutput(chosen)
        study = TorchModel(model.module, risk=recorded, parameters=model.parameters)
        members.append(Member(study, chosen, recorded, entered))
    if len({member.fingerprint() for member in members}) < len(members):
        raise InvalidInputError(
            "model: two of the models have the same parameters. state_dict(), and a module that is "
            "trained again, are live: copy.deepcopy each of them when it is trained."
        )
    return members
