"""The optimizers of the two players, as a run describes them and a replay makes them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from proponent.exceptions import InvalidInputError, RunError

OPTIMIZERS: dict[str, type[Optimizer]] = {
    kind.__name__: kind for kind in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
}
NOT_NUMBERS = ("params", "param_names")

GroupSettings = tuple[dict[str, Any], ...]


def checked_optimizer(optimizer: Any, name: str) -> Optimizer:
    """Return an optimizer whose steps can be replayed and differentiated.

    Raises
    ------
    InvalidInputError
        If it is of another kind than SGD, Adam and AdamW, or uses AMSGrad.
    """
    if type(optimizer) not in OPTIMIZERS.values():
        raise InvalidInputError(
            f"{name}: expected torch's {', '.join(OPTIMIZERS)}, whose steps can be "
            f"differentiated; got {type(optimizer).__name__}."
        )
    for group in optimizer.param_groups:
        for setting in ("amsgrad", "differentiable"):
            if group.get(setting):
                raise InvalidInputError(
                    f"{name}: {setting}=True is not supported; train without it."
                )
    return optimizer  # type: ignore[no-any-return]


def settings_of(optimizer: Optimizer) -> GroupSettings:
    """Return the settings of each group, the learning rate included, as JSON has them."""
    decoupled = {"decoupled_weight_decay": isinstance(optimizer, torch.optim.AdamW)}
    return tuple(
        decoupled
        | {name: _plain(value) for name, value in group.items() if name not in NOT_NUMBERS}
        for group in optimizer.param_groups
    )


def give_settings(optimizer: Optimizer, settings: Sequence[Mapping[str, Any]]) -> None:
    """Give each group the settings that were recorded."""
    for group, recorded in zip(optimizer.param_groups, settings, strict=True):
        group.update(recorded)


def made_again(
    kind: str, settings: GroupSettings, groups: Sequence[Sequence[str]], module: nn.Module
) -> Optimizer:
    """Return an optimizer of the recorded kind over a module's parameters.

    Raises
    ------
    RunError
        If the kind is unknown.
    """
    if kind not in OPTIMIZERS:
        raise RunError(f"the run was recorded with the optimizer {kind}, which is not known.")
    parameters = dict(module.named_parameters())
    described = [
        {"params": [parameters[name] for name in names]} | recorded
        for names, recorded in zip(groups, settings, strict=True)
    ]
    return OPTIMIZERS[kind](described, lr=float(settings[0]["lr"]))  # type: ignore[call-arg]


def state_of(optimizer: Optimizer, trained: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the optimizer's state, tensors named ``entry/parameter``; no copies."""
    return {
        f"{entry}/{name}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in trained.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def give_state(
    optimizer: Optimizer, trained: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]
) -> None:
    """Replace the optimizer's state by copies of the tensors named ``entry/parameter``."""
    optimizer.state.clear()
    for key, value in state.items():
        entry, _, name = key.partition("/")
        parameter = trained[name]
        # A count of steps keeps its own dtype and place, as torch has them.
        like = value if entry == "step" else parameter
        optimizer.state[parameter][entry] = value.to(like, copy=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.item()
    return [_plain(part) for part in value] if isinstance(value, (tuple, list)) else value
