"""The rules of torch's optimizers: their second moments, and the step they make of a gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from proponent.models.history import Step

State = Mapping[str, Tensor]
Settings = Mapping[str, Any]


def count(state: State) -> int:
    """Return how many steps a parameter has taken; 0 where the optimizer has no state of it."""
    return int(state["step"]) if "step" in state else 0


class Rule(ABC):
    """What one kind of optimizer makes of a gradient, ``-eta factor diagonal g``."""

    moments: bool = True  # whether it has second moments

    def stateful(self, steps: Iterable[Step]) -> bool:
        """Whether the optimizer's state has to be known."""
        return True

    @abstractmethod
    def factor(self, settings: Settings, state: State, step: int) -> float:
        """Return the share of a gradient in the direction of its step, its momentum's ``step``-th.

        ``state`` is that before the step.
        """

    def advance(self, state: State, gradient: Tensor, settings: Settings) -> State:
        """Return the second moments after a step with a gradient, decay included."""
        return state

    @abstractmethod
    def diagonal(self, state: State, settings: Settings, step: int) -> Tensor:
        """Return what the direction is multiplied with, for the second moments after ``step``."""


class SGD(Rule):
    """With momentum a gradient enters the buffer by ``1 - dampening``, with Nesterov twice."""

    moments = False

    @override
    def stateful(self, steps: Iterable[Step]) -> bool:
        return any(s.get("momentum") and s.get("dampening") for t in steps for s in t.settings)

    @override
    def factor(self, settings: Settings, state: State, step: int) -> float:
        momentum = float(settings.get("momentum") or 0.0)
        if not momentum:
            return 1.0
        # The first gradient becomes the buffer as it is.
        first = "momentum_buffer" not in state
        entered = 1.0 if first else 1.0 - float(settings.get("dampening") or 0.0)
        return 1.0 + momentum * entered if settings.get("nesterov") else entered

    @override
    def diagonal(self, state: State, settings: Settings, step: int) -> Tensor:
        return torch.ones(())


class Adam(Rule):
    """Adam and AdamW: ``(1 - beta1) / (1 - beta1^t) / (sqrt(v_t / (1 - beta2^t)) + eps)``."""

    @override
    def factor(self, settings: Settings, state: State, step: int) -> float:
        beta = float(settings["betas"][0])
        return (1.0 - beta) / (1.0 - beta**step)

    @override
    def advance(self, state: State, gradient: Tensor, settings: Settings) -> State:
        beta = float(settings["betas"][1])
        squares = gradient.square()
        average = beta * _entry(state, "exp_avg_sq", squares) + (1.0 - beta) * squares
        largest = torch.maximum(_entry(state, "max_exp_avg_sq", squares), average)
        return {"exp_avg_sq": average, "max_exp_avg_sq": largest}

    @override
    def diagonal(self, state: State, settings: Settings, step: int) -> Tensor:
        average = state["max_exp_avg_sq" if settings.get("amsgrad") else "exp_avg_sq"]
        corrected = average / (1.0 - float(settings["betas"][1]) ** step)
        return 1.0 / (corrected.sqrt() + float(settings["eps"]))


class RMSprop(Rule):
    """``1 / (sqrt(v_t) + eps)``; centred, with the variance ``v_t - m_t^2`` for ``v_t``."""

    @override
    def factor(self, settings: Settings, state: State, step: int) -> float:
        return 1.0

    @override
    def advance(self, state: State, gradient: Tensor, settings: Settings) -> State:
        alpha = float(settings["alpha"])
        before = _entry(state, "square_avg", gradient), _entry(state, "grad_avg", gradient)
        return {
            "square_avg": alpha * before[0] + (1.0 - alpha) * gradient.square(),
            "grad_avg": alpha * before[1] + (1.0 - alpha) * gradient,
        }

    @override
    def diagonal(self, state: State, settings: Settings, step: int) -> Tensor:
        average = state["square_avg"]
        if settings.get("centered"):
            average = average - state["grad_avg"].square()
        return 1.0 / (average.sqrt() + float(settings["eps"]))


class Adagrad(Rule):
    """``1 / (1 + (t - 1) lr_decay) / (sqrt(sum_s g_s^2) + eps)``."""

    @override
    def factor(self, settings: Settings, state: State, step: int) -> float:
        return 1.0 / (1.0 + (step - 1) * float(settings["lr_decay"]))

    @override
    def advance(self, state: State, gradient: Tensor, settings: Settings) -> State:
        return {"sum": _entry(state, "sum", gradient) + gradient.square()}

    @override
    def diagonal(self, state: State, settings: Settings, step: int) -> Tensor:
        return 1.0 / (state["sum"].sqrt() + float(settings["eps"]))


KNOWN: dict[str, type[Rule]] = {
    "SGD": SGD,
    "Adam": Adam,
    "AdamW": Adam,
    "RMSprop": RMSprop,
    "Adagrad": Adagrad,
}


def rule_of(optimizer: str) -> Rule | None:
    """Return the rule of an optimizer of torch by its full class name; None: it is not known."""
    package, _, name = optimizer.rpartition(".")
    own = package == "torch.optim" or package.startswith("torch.optim.")
    return KNOWN[name]() if own and name in KNOWN else None


def _entry(state: State, name: str, like: Tensor) -> Tensor:
    return state[name].to(like) if name in state else torch.zeros_like(like)
