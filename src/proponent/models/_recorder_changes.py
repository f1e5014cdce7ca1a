"""What may change from step to step, of which the journal says only that it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from proponent.models.layout import (
    ParameterGroup,
    describe_groups,
    parameter_groups,
    read_groups,
    without_gradient,
)


class Changes:
    """The optimizer's groups, the modes of the parts, and the parameters without a gradient.

    Parameters
    ----------
    module : torch.nn.Module
        The module that is trained.
    optimizer : torch.optim.Optimizer
        The optimizer that trains it.
    names : mapping
        The first name of each parameter, by identity.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer, names: Mapping[int, str]) -> None:
        self._optimizer = optimizer
        self._names = names
        self._parts = dict(module.named_modules())
        self.groups: tuple[ParameterGroup, ...] = parameter_groups(optimizer, names)
        self._modes: dict[str, bool] | None = None
        self._passed_over: tuple[str, ...] | None = None

    def entry(self) -> dict[str, Any]:
        """Return, for a line of the journal, what differs from what it has last said."""
        entry: dict[str, Any] = {}
        groups = parameter_groups(self._optimizer, self._names)
        if groups != self.groups:
            entry |= describe_groups(groups, self.groups)
        modes = [part.training for part in self._parts.values()]
        if self._modes is None or modes != list(self._modes.values()):
            entry["modes"] = dict(zip(self._parts, modes, strict=True))
        passed_over = without_gradient(self._optimizer, self._names)
        if passed_over != self._passed_over:
            entry["without_gradient"] = passed_over
        return entry

    def commit(self, entry: Mapping[str, Any]) -> None:
        """Take note that the journal has said so."""
        if "groups" in entry or "settings" in entry:
            self.groups = read_groups(entry, self.groups)
        self._modes = entry.get("modes", self._modes)
        self._passed_over = entry.get("without_gradient", self._passed_over)
