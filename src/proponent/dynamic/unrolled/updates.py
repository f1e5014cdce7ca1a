"""One optimizer step of a recorded run as a linear map, and its transpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from proponent.dynamic.unrolled.adam import AdamStep
from proponent.dynamic.unrolled.clipping import Clipping
from proponent.dynamic.unrolled.sgd import SGDStep
from proponent.exceptions import RunError
from proponent.models.history import Step

if TYPE_CHECKING:
    from proponent.dynamic.replay import Moment
    from proponent.models.run import TrainingRun

Vectors = dict[str, Tensor]  # by parameter, (k, *shape)
States = dict[str, tuple[Tensor, ...]]
Adjoints = dict[str, Any]  # what each parameter's step begins with, of the optimizer's states

KINDS = {
    "torch.optim.sgd.SGD": "sgd",
    "torch.optim.adam.Adam": "adam",
    "torch.optim.adamw.AdamW": "adam",
}
COVERED = "torch.optim.SGD, Adam and AdamW (without amsgrad)"


def optimizer_kind(run: TrainingRun, *, by: str) -> str:
    """Return ``"sgd"`` or ``"adam"``, whichever the run was trained with.

    Raises
    ------
    RunError
        If the run was trained with another optimizer, or under a setting that is not covered.
    """
    name = run.optimizer["class"]
    kind = KINDS.get(name)
    if kind is None:
        raise RunError(
            f"{by} differentiates the steps of {COVERED}; the run at {run.path} was trained with "
            f"{name}. TracInCP and GAS take runs of any optimizer."
        )
    for step in run.steps:
        for group in step.groups:
            if group.settings.get("amsgrad"):
                raise RunError(
                    f"{by} differentiates the steps of {COVERED}; at step {step.index} of the run "
                    f"at {run.path} amsgrad is set, whose maximum has no derivative to speak of."
                )
    return kind


@dataclass(frozen=True)
class Update:
    """An optimizer step on all parameters, as a linear map of small changes.

    Parameters
    ----------
    steps : mapping
        For each parameter that the step moves, its own map.
    clipping : Clipping, optional
        Where the gradient was clipped.
    """

    steps: Mapping[str, SGDStep | AdamStep]
    clipping: Clipping | None = None

    @classmethod
    def of(cls, moment: Moment, kind: str) -> Update:
        """Return the step that was taken at a moment of a replay.

        The moment's gradient is asked for only where the map depends on it.
        """
        states = moment.state
        steps: dict[str, SGDStep | AdamStep] = {}
        for name, (rate, settings) in moved_at(moment).items():
            state = states.get(name) or {}
            if kind == "sgd":
                first = state.get("momentum_buffer") is None
                steps[name] = SGDStep.of(rate, settings, first=first)
            else:
                values = moment.parameters[name], moment.gradient[name]
                steps[name] = AdamStep.of(rate, settings, *values, state)
        return cls(steps, clipping_at(moment, steps))

    def forward(
        self, changes: Vectors, states: States, gradients: Vectors
    ) -> tuple[Vectors, States]:
        """Return the changes of parameters and states after the step.

        Parameters
        ----------
        changes, states : mapping
            Those before the step.
        gradients : mapping
            The change of the gradient before clipping, at least for what the step moves.
        """
        gradients = {name: gradients[name] for name in self.steps}
        if self.clipping is not None:
            gradients = self.clipping(gradients)
        changes, states = dict(changes), dict(states)
        for name, step in self.steps.items():
            before = states.get(name) or no_states(step, changes[name])
            changes[name], states[name] = step.forward(changes[name], before, gradients[name])
        return changes, states

    def pull(self, adjoints: Vectors, states: Adjoints) -> Pulled:
        """Return the adjoints of the unclipped gradient; writes to the states.

        Given for what the step moves; those of all else are zero. The vectors may be the
        adjoints or states themselves: use them before :meth:`settle`.
        """
        vectors: Vectors = {}
        factors: dict[str, float] = {}
        for name, step in self.steps.items():
            if name not in states:
                states[name] = step.begin(adjoints[name])
            vectors[name], factors[name] = step.pull(adjoints[name], states[name])
        if self.clipping is None:
            return Pulled(vectors, factors, vectors, factors)
        scaled = {name: vector * factors[name] for name, vector in vectors.items()}
        return Pulled(self.clipping(scaled), dict.fromkeys(scaled, 1.0), vectors, factors)

    def settle(self, adjoints: Vectors, states: Adjoints, pulled: Pulled) -> None:
        """Make the adjoints of the parameters and the states those before the step, in place.

        The parameters' still lack what comes through the gradient.
        """
        for name, step in self.steps.items():
            own = pulled.unclipped[name], pulled.unclipped_factors[name]
            step.settle(adjoints[name], states[name], *own)


@dataclass(frozen=True)
class Pulled:
    """Adjoints of a step's gradient, each a vector times a factor.

    Parameters
    ----------
    vectors, factors : mapping
        Of the gradient before clipping, (k, *shape) and a number by parameter.
    unclipped, unclipped_factors : mapping
        Of the gradient that the optimizer was given.
    """

    vectors: Vectors
    factors: dict[str, float]
    unclipped: Vectors
    unclipped_factors: dict[str, float]


def no_states(step: SGDStep | AdamStep, like: Tensor) -> tuple[Tensor, ...]:
    """Return states of zero."""
    return tuple(torch.zeros_like(like) for _ in range(step.states))


def clipping_at(moment: Moment, moved: Iterable[str]) -> Clipping | None:
    """Return the clipping of a moment's gradient; None where it was not clipped."""
    scale = moment.step.clip_scale
    if scale is None or scale >= 1.0:
        return None
    return Clipping.of(scale, moment.gradient, moved)


def moved_at(moment: Moment) -> dict[str, tuple[float, Mapping[str, Any]]]:
    """Return learning rate and settings of the parameters that a moment's step moves."""
    found = moved_by(moment.step)
    if moment.step.without_gradient is None:
        # Recorded before runs told of it: those without a gradient now had none then.
        found = {name: found[name] for name in found if name in moment.gradient}
    return found


def moved_by(step: Step) -> dict[str, tuple[float, Mapping[str, Any]]]:
    """Return learning rate and settings of the parameters that a step moves.

    Without those that were frozen or that had no gradient, as far as is known.
    """
    still = set(step.without_gradient or ())
    return {
        name: (rate, group.settings)
        for group, rate in zip(step.groups, step.learning_rates, strict=True)
        for name in group.parameters
        if name not in still and name not in group.frozen
    }
