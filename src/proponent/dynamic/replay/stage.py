"""The user's module, lent to a replay for a while and given back exactly as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from proponent.data import Instances
from proponent.dynamic.replay.batch_mean import batch_mean
from proponent.dynamic.replay.moment import BatchGradient, Moment
from proponent.exceptions import RunError
from proponent.models.history import Step
from proponent.models.layout import find_aliases, state_tensors
from proponent.models.step_seeds import (
    lent_generators,
    seed_generators,
    seed_of_forward,
    seed_of_step,
)
from proponent.models.torch import TorchModel


class Stage:
    """Puts recorded states, modes and seeds on a module, and takes them off again.

    Parameters
    ----------
    model : TorchModel
        The module with its risk.
    instances : Instances
        The training set.
    """

    def __init__(self, model: TorchModel, instances: Instances) -> None:
        self.model = model
        self.instances = instances
        self.batch_mean = batch_mean(model)
        module = model.module
        tensors = state_tensors(module)
        aliases = find_aliases(tensors)
        parameters = {id(parameter) for parameter in module.parameters()}
        self._tensors: dict[str, list[Tensor]] = {}
        for name, tensor in tensors.items():
            same = self._tensors.setdefault(aliases.get(name, name), [])
            if not any(tensor is other for other in same):
                same.append(tensor)
        self.parameters = {
            name: tensors[name] for name in self._tensors if id(tensors[name]) in parameters
        }
        self.buffers = {
            name: tensors[name] for name in self._tensors if name not in self.parameters
        }
        self.parts = dict(module.named_modules())
        self._owners = {
            f"{prefix}.{name}" if prefix else name: (part._buffers, name)
            for prefix, part in module.named_modules()
            for name in part._buffers
        }
        self._flagged = list(module.parameters())
        self._others = [
            buffer
            for name, (owner, key) in self._owners.items()
            if name not in self.buffers and (buffer := owner[key]) is not None
        ]
        self._held = [tensor for same in self._tensors.values() for tensor in same] + self._others
        self._moved: tuple[tuple[int, int], dict[str, None]] = ((0, 0), {})
        self._modes: Mapping[str, bool] | None = None
        self._forward_seed: int | None = None
        self._is_entered = False

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Take note of everything that a replay touches, and put it back afterwards."""
        data = [tensor.data for tensor in self._held]
        flags = [parameter.requires_grad for parameter in self._flagged]
        training = [part.training for part in self.parts.values()]
        buffers = [(owner, key, owner[key]) for owner, key in self._owners.values()]
        outer = (self._modes, self._forward_seed, self._is_entered)
        hook = self.model.module.register_forward_pre_hook(self._before_forward)
        try:
            self._modes = None
            for buffer in self._others:
                buffer.data = buffer.data.clone()
            with lent_generators(), torch.enable_grad():
                yield
        finally:
            hook.remove()
            self._modes, self._forward_seed, self._is_entered = outer
            for owner, key, buffer in buffers:
                owner[key] = buffer
            for tensor, content in zip(self._held, data, strict=True):
                tensor.data = content
            for parameter, flag in zip(self._flagged, flags, strict=True):
                if parameter.requires_grad != flag:
                    parameter.requires_grad_(flag)
            for part, mode in zip(self.parts.values(), training, strict=True):
                if part.training != mode:
                    part.training = mode

    def put_on(self, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]) -> None:
        """Give the lent module parameters, and copies of buffers."""
        for name, value in parameters.items():
            for tensor in self._tensors[name]:
                tensor.data = value
        for name, value in buffers.items():
            copied = value.clone()
            for tensor in self._tensors[name]:
                tensor.data = copied
            owner, key = self._owners[name]
            owner[key] = self.buffers[name]

    def start_step(self, step: Step) -> None:
        """Put the lent module into the modes, flags and random state of a step."""
        if step.modes is None:
            self.model.module.eval()
        elif step.modes is not self._modes:
            self._modes = step.modes
            for name, training in step.modes.items():
                part = self.parts[name]
                if part.training != training:
                    part.training = training
        moved = self._moved_by(step)
        for name, parameter in self.parameters.items():
            if parameter.requires_grad != (name in moved):
                parameter.requires_grad_(name in moved)
        self.seed(step)

    def seed(self, step: Step) -> None:
        """Seed the generators as the training loop had them before it fetched the batch."""
        seed = seed_of_step(0, step.index) if step.seed is None else step.seed
        seed_generators(seed)
        self._forward_seed = seed_of_forward(seed)
        self._is_entered = False

    def gradient_of(self, moment: Moment) -> BatchGradient:
        """Return the gradient of a moment's batch; the module comes back as it was."""
        with self.lent():
            self.show(moment)
            return self.gradient(moment.step)

    def show(self, moment: Moment) -> None:
        """Put a moment on the lent module."""
        self.put_on(moment.fixed, {})
        self.put_on(moment.parameters, moment.buffers)
        self.start_step(moment.step)

    def batch(self, step: Step) -> tuple[Any, int]:
        """Return the prepared batch of a step, in the recorded order, and its size."""
        return self.model.prepare(self.instances.batch(step.indices)), len(step.indices)

    def gradient(self, step: Step) -> BatchGradient:
        """Return the gradient of a step's batch at the state that is on the module."""
        batch, n = self.batch(step)
        if self.batch_mean is not None and isinstance(step.divisor, float) and step.divisor == n:
            risks = self.batch_mean(batch)
            weights = torch.ones_like(risks)
        else:
            risks = self.model.batch_risk(batch, n)
            if isinstance(step.divisor, float):
                weights = torch.full_like(risks, 1.0 / step.divisor)
            else:
                weights = torch.as_tensor(step.weights.copy()).to(risks)
        moved = {name: self.parameters[name] for name in self._moved_by(step)}
        if not risks.requires_grad:
            found: tuple[Tensor | None, ...] = (None,) * len(moved)
        else:
            found = torch.autograd.grad(
                risks, list(moved.values()), grad_outputs=weights, allow_unused=True
            )
        values = {}
        for (name, parameter), gradient in zip(moved.items(), found, strict=True):
            if gradient is not None:
                values[name] = gradient.detach()
            elif step.without_gradient is not None:
                # The training loop had zeros there: it does not set gradients to None.
                values[name] = torch.zeros_like(parameter.data)
        return BatchGradient(values, self.current_buffers())

    def _moved_by(self, step: Step) -> dict[str, None]:
        """Return :func:`moved_by`, computed where it changes from step to step."""
        key = (id(step.groups), id(step.without_gradient))
        if key != self._moved[0]:
            self._moved = (key, moved_by(step))
        return self._moved[1]

    def current_buffers(self) -> dict[str, Tensor]:
        """Return the buffers that are now on the module."""
        found = {}
        for name in self.buffers:
            owner, key = self._owners[name]
            buffer = owner[key]
            if buffer is None:
                raise RunError(f"the module's buffer {name} has become None; it is not replayed.")
            found[name] = buffer.detach().data
        return found

    def _before_forward(self, module: nn.Module, args: Any) -> None:
        if not self._is_entered and self._forward_seed is not None:
            self._is_entered = True
            if module.training:
                seed_generators(self._forward_seed)


def moved_by(step: Step) -> dict[str, None]:
    """Return the parameters that a step may move, in the optimizer's order.

    Without those that are frozen or that had no gradient.
    """
    still = set(step.without_gradient or ())
    return {
        name: None
        for group in step.groups
        for name in group.parameters
        if name not in still and name not in group.frozen
    }
