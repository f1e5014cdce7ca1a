"""What a run stores of a module and of an optimizer: tensors, names, groups and settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from proponent.exceptions import InvalidInputError

# Settings of a parameter group that choose an implementation and not a number.
IMPLEMENTATION = frozenset({"foreach", "fused", "capturable", "differentiable"})
DIFFERENCES_SHOWN = 5


@dataclass(frozen=True)
class ParameterGroup:
    """A group of an optimizer's parameters at one step.

    Parameters
    ----------
    parameters : tuple of str
        The module's names of the group's parameters; of tied parameters the first.
    frozen : tuple of str
        Those of them that did not require a gradient.
    settings : mapping
        The group's settings other than the learning rate: weight decay, momentum, betas, ...,
        and ``decoupled_weight_decay`` (None where the optimizer's class does not tell).
    """

    parameters: tuple[str, ...]
    frozen: tuple[str, ...]
    settings: Mapping[str, Any]


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and persistent buffers under all of their names.

    Raises
    ------
    InvalidInputError
        If a parameter or buffer is not initialised yet.
    """
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for prefix, part in module.named_modules(remove_duplicate=False):
        for name, buffer in part._buffers.items():
            if buffer is not None and name not in part._non_persistent_buffers_set:
                tensors[f"{prefix}.{name}" if prefix else name] = buffer
    for name, tensor in tensors.items():
        if nn.parameter.is_lazy(tensor):
            raise InvalidInputError(
                f"module: {name} is not initialised yet; run one forward pass before recording."
            )
    return tensors


def find_aliases(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return, for each name of memory that has an earlier name, that first name.

    Tied parameters, and distinct parameters over the same memory, are stored once.
    """
    first: dict[Any, str] = {}
    aliases = {}
    for name, tensor in tensors.items():
        # The address alone would not do: a view of a part starts where the whole starts.
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        key: Any = memory if tensor.numel() and tensor.device.type != "meta" else id(tensor)
        if first.setdefault(key, name) != name:
            aliases[name] = first[key]
    return aliases


def describe_module(module: nn.Module) -> dict[str, Any]:
    """Return the names, shapes, dtypes and ties of a module's state, as JSON."""
    tensors = state_tensors(module)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    described = {
        name: {"shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}
        for name, tensor in tensors.items()
    }
    return {
        "class": _class_name(module),
        "parameters": {name: described[name] for name in tensors if name in parameters},
        "buffers": {name: described[name] for name in tensors if name not in parameters},
        "aliases": find_aliases(tensors),
    }


def differences(recorded: Mapping[str, Any], module: nn.Module) -> list[str]:
    """Return in words where a module differs from the recorded one; empty if it is the same.

    Names, shapes and ties count; dtypes do not, so that a run may be studied in float64.
    """
    present = describe_module(module)
    found = []
    for kind in ("parameters", "buffers"):
        here, there = present[kind], recorded[kind]
        for name in [*there, *(name for name in here if name not in there)]:
            what = f"{kind[:-1]} {name}"
            if name not in here:
                shape = _shape(there[name])
                found.append(f"{what} {shape} is in the run and not in the module")
            elif name not in there:
                found.append(f"{what} {_shape(here[name])} is in the module and not in the run")
            elif here[name]["shape"] != there[name]["shape"]:
                found.append(
                    f"{what} has shape {_shape(here[name])} in the module and "
                    f"{_shape(there[name])} in the run"
                )
    ties = recorded["aliases"]
    found += [
        f"{name} is tied to {first} in the module and not in the run"
        for name, first in present["aliases"].items()
        if ties.get(name, name) != ties.get(first, first)
    ]
    return found


def list_differences(found: list[str]) -> str:
    """Return the first differences as lines of a message."""
    lines = [f"\n  - {line}" for line in found[:DIFFERENCES_SHOWN]]
    rest = len(found) - DIFFERENCES_SHOWN
    return "".join(lines) + (f"\n  - and {rest} more" if rest > 0 else "")


def parameter_names(module: nn.Module) -> dict[int, str]:
    """Return the first name of each parameter, by identity."""
    parameters = {id(parameter) for parameter in module.parameters()}
    tensors = state_tensors(module)
    aliases = find_aliases(tensors)
    return {
        id(tensor): aliases.get(name, name)
        for name, tensor in tensors.items()
        if id(tensor) in parameters
    }


def parameter_groups(optimizer: Optimizer, names: Mapping[int, str]) -> tuple[ParameterGroup, ...]:
    """Return the optimizer's groups as they are now; parameters of other modules are left out."""
    groups = []
    for group in optimizer.param_groups:
        known = [(names[id(value)], value) for value in group["params"] if id(value) in names]
        groups.append(
            ParameterGroup(
                parameters=tuple(name for name, _ in known),
                frozen=tuple(name for name, value in known if not value.requires_grad),
                settings=_settings(optimizer, group),
            )
        )
    return tuple(groups)


def describe_groups(
    groups: Sequence[ParameterGroup], before: Sequence[ParameterGroup] | None = None
) -> dict[str, Any]:
    """Return the groups as JSON: their parameters and their settings, each only if changed."""
    described = {
        "groups": [[list(group.parameters), list(group.frozen)] for group in groups],
        "settings": [dict(group.settings) for group in groups],
    }
    if before is None:
        return described
    known = describe_groups(before)
    return {part: now for part, now in described.items() if now != known[part]}


def read_groups(
    described: Mapping[str, Any], before: Sequence[ParameterGroup] = ()
) -> tuple[ParameterGroup, ...]:
    """Return the groups that were described, unchanged parts from ``before``."""
    unchanged = describe_groups(before)
    return tuple(
        ParameterGroup(tuple(parameters), tuple(frozen), settings)
        for (parameters, frozen), settings in zip(
            described.get("groups", unchanged["groups"]),
            described.get("settings", unchanged["settings"]),
            strict=True,
        )
    )


def learning_rates(optimizer: Optimizer) -> list[float]:
    """Return the learning rate of each group."""
    return [float(group["lr"]) for group in optimizer.param_groups]


def optimizer_tensors(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named ``entry/parameter``, numbers as 0-d tensors."""
    tensors = {}
    for name, entry, value in _optimizer_state(optimizer, names):
        if isinstance(value, (bool, int, float)):
            value = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
        if isinstance(value, Tensor):
            tensors[f"{entry}/{name}"] = value
        elif value is not None:
            raise InvalidInputError(
                f"optimizer_state: {type(optimizer).__name__} keeps {entry} of {name} as "
                f"{type(value).__name__}, which cannot be stored; record without optimizer_state."
            )
    return tensors


def _optimizer_state(
    optimizer: Optimizer, names: Mapping[int, str]
) -> Iterator[tuple[str, str, Any]]:
    for parameter, state in optimizer.state.items():
        if id(parameter) in names:
            for entry, value in state.items():
                yield names[id(parameter)], entry, value


def describe_optimizer(optimizer: Optimizer, names: Mapping[int, str]) -> dict[str, Any]:
    """Return the optimizer's class and what it moves, as JSON."""
    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    unmoved = [names[identity] for identity in names if identity not in held]
    return {
        "class": _class_name(optimizer),
        "parameters_without_optimizer": list(dict.fromkeys(unmoved)),
        "parameters_of_other_modules": len(held - set(names)),
        # A state from before the run: of training that goes on. Some start with one of 0 steps.
        "has_state": any(
            float(state.get("step", 1)) > 0 for state in optimizer.state.values() if state
        ),
        "implementation": [
            {key: group[key] for key in sorted(IMPLEMENTATION) if key in group}
            for group in optimizer.param_groups
        ],
    }


def without_gradient(optimizer: Optimizer, names: Mapping[int, str]) -> tuple[str, ...]:
    """Return the module's parameters in the optimizer that have no gradient (``None``)."""
    return tuple(
        names[id(value)]
        for group in optimizer.param_groups
        for value in group["params"]
        if value.grad is None and id(value) in names
    )


def _settings(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    left_out = {"params", "param_names", "lr"} | IMPLEMENTATION
    settings = {key: _plain(value) for key, value in group.items() if key not in left_out}
    if "decoupled_weight_decay" not in settings:
        # Of torch's own optimizers only those with this setting can decouple; others may do both.
        own = type(optimizer).__module__.startswith("torch.optim")
        settings["decoupled_weight_decay"] = False if own else None
    return settings


def _plain(value: Any) -> Any:
    """Return a setting as JSON has it: numbers, strings, lists."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return repr(value)


def _class_name(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def _shape(described: Mapping[str, Any]) -> str:
    return str(tuple(described["shape"]))
