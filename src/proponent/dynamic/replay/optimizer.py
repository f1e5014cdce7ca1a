"""The optimizer of a recorded run: torch's own class, set as each step had it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from proponent.dynamic.replay.moment import OptimizerState
from proponent.exceptions import RunError
from proponent.models.history import Step

# These keep numbers on the processor unless the implementation runs on the accelerator.
COUNTERS = frozenset({"step", "mu_product"})


def optimizer_class(recorded: str, by: str) -> type[Optimizer]:
    """Return torch's optimizer of a recorded name.

    Raises
    ------
    RunError
        If it is not one of torch's, or one whose steps cannot be replayed.
    """
    module, _, name = recorded.rpartition(".")
    if not module.startswith("torch.optim"):
        raise RunError(
            f"{by} replays the steps of torch's optimizers; this run was trained by {recorded}. "
            f"Train with an optimizer of torch.optim, or use a method of checkpoints (TracInCP)."
        )
    if name in ("LBFGS", "SparseAdam"):
        reason = "evaluates the loss within a step" if name == "LBFGS" else "has sparse gradients"
        raise RunError(
            f"{by}: the steps of {name} cannot be replayed, because it {reason}. Train with "
            f"another optimizer, such as SGD or AdamW."
        )
    found = getattr(torch.optim, name, None)
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise RunError(f"{by}: torch {torch.__version__} has no optimizer {recorded}.")
    return found


class RecordedOptimizer:
    """Takes the recorded steps on tensors of the replay's own.

    Parameters
    ----------
    kind : type
        The optimizer's class.
    parameters : dict of Tensor
        The trained parameters by name; steps change them in place.
    first : Step
        The first step of the run, whose settings the optimizer was made with.
    implementation : sequence of mapping
        For each group which implementation was asked for (``foreach``, ``fused``); may be empty.
    """

    def __init__(
        self,
        kind: type[Optimizer],
        parameters: Mapping[str, Tensor],
        first: Step,
        implementation: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._make: Callable[..., Optimizer] = kind
        self._parameters = parameters
        self._first = first
        self._implementation = implementation
        self.reset()

    def reset(self) -> None:
        """Go back to the state before the first step of all."""
        self._optimizer = self._make(self._groups(self._first), lr=1.0)  # each step has its own
        self._step: Step | None = None

    def step(self, step: Step, gradients: Mapping[str, Tensor]) -> None:
        """Take a step; parameters without a gradient are passed over, as torch does."""
        self._set(step)
        for name, gradient in gradients.items():
            self._parameters[name].grad = gradient
        self._optimizer.step()
        for name in gradients:
            self._parameters[name].grad = None

    def state(self) -> OptimizerState:
        """Return the state by parameter and entry; the tensors are the optimizer's own."""
        found = {}
        for name, parameter in self._parameters.items():
            if entries := self._optimizer.state.get(parameter):
                found[name] = {k: v for k, v in entries.items() if isinstance(v, Tensor)}
        return found

    def load(self, state: OptimizerState) -> None:
        """Replace the state by copies of ``state``."""
        self._optimizer.state.clear()
        for name, entries in state.items():
            if name in self._parameters:
                parameter = self._parameters[name]
                self._optimizer.state[parameter] = {
                    entry: self._placed(entry, value, parameter) for entry, value in entries.items()
                }

    def _placed(self, entry: str, value: Tensor, parameter: Tensor) -> Tensor:
        if entry in COUNTERS:
            on_device = any(
                chosen.get("fused") or chosen.get("capturable") for chosen in self._implementation
            )
            return value.to(parameter.device if on_device else "cpu", copy=True)
        dtype = parameter.dtype if value.is_floating_point() and value.ndim else value.dtype
        return value.to(device=parameter.device, dtype=dtype, copy=True)

    def _set(self, step: Step) -> None:
        if self._step is None or step.groups is not self._step.groups:
            defaults = self._optimizer.defaults
            self._optimizer.param_groups = [{**defaults, **group} for group in self._groups(step)]
        self._step = step
        for chosen, rate in zip(self._optimizer.param_groups, step.learning_rates, strict=True):
            chosen["lr"] = rate

    def _groups(self, step: Step) -> list[dict[str, Any]]:
        """Return the groups of a step with their settings, all but the learning rates."""
        groups = []
        for number, group in enumerate(step.groups):
            settings = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in group.settings.items()
            }
            if self._implementation:
                settings |= self._implementation[min(number, len(self._implementation) - 1)]
            known = [name for name in group.parameters if name in self._parameters]
            groups.append(settings | {"params": [self._parameters[name] for name in known]})
        return groups


def is_stateless(kind: type[Optimizer], steps: Sequence[Step]) -> bool:
    """Whether the steps start from the parameters alone: SGD without momentum."""
    if kind is not torch.optim.SGD:
        return False
    known = {id(step.groups): step.groups for step in steps}
    return all(not group.settings["momentum"] for groups in known.values() for group in groups)


def state_entries(kind: type[Optimizer], step: Step) -> int:
    """Return how many tensors of a parameter's size the optimizer keeps for it, at most."""
    sample = {name: torch.zeros(2, 3) for group in step.groups for name in group.parameters[:1]}
    shown = tuple(replace(group, parameters=group.parameters[:1]) for group in step.groups)
    step = replace(step, groups=shown)
    optimizer = RecordedOptimizer(kind, sample, step)
    optimizer.step(step, {name: torch.ones(2, 3) for name in sample})
    sizes = [
        sum(value.numel() for value in entries.values() if value.ndim)
        for entries in optimizer.state().values()
    ]
    return max((-(-size // 6) for size in sizes), default=0)
