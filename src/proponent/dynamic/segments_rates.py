"""How fast each step of stochastic gradient descent moved each parameter, momentum included."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from proponent.exceptions import RunError
from proponent.models.history import Step
from proponent.models.layout import ParameterGroup
from proponent.models.run import TrainingRun

# What torch's SGD has among its settings, and no adaptive optimizer has all of.
SGD_SETTINGS = frozenset({"momentum", "dampening", "nesterov", "weight_decay"})


@dataclass(frozen=True)
class Pace:
    """What one or several steps do to the parameters, as gradient descent without momentum.

    Attributes
    ----------
    rates : dict
        By parameter, the sum over the steps of the effective learning rate: what the gradient of
        the mean risk is multiplied with. 0 for parameters that no step could move.
    decays : dict
        By parameter, the weight decay that goes with it, the mean over the steps by their rates.
    """

    rates: dict[str, float]
    decays: dict[str, float]

    @property
    def largest(self) -> float:
        """The largest of the rates."""
        return max(self.rates.values(), default=0.0)


def check_optimizer(run: TrainingRun, by: str) -> list[str]:
    """Refuse runs of other optimizers than stochastic gradient descent.

    Returns
    -------
    list of str
        What the user should know of the optimizer.

    Raises
    ------
    RunError
        If the optimizer is adaptive, or ascends.
    """
    notes: list[str] = []
    checked: set[int] = set()
    for step in run.steps:
        for group in step.groups:
            if id(group) in checked:
                continue
            checked.add(id(group))
            known = set(group.settings)
            if not known >= SGD_SETTINGS or "betas" in known:
                raise RunError(
                    f"{by} takes the steps for those of stochastic gradient descent, with or "
                    f"without momentum; the run at {run.path} was trained by another optimizer, "
                    f"{run.optimizer['class']}. Record a training with "
                    f"torch.optim.SGD, or use TracInCP or InfluenceFunctions."
                )
            if group.settings.get("maximize"):
                raise RunError(
                    f"{by}: the run at {run.path} was trained with maximize=True; it needs "
                    f"a training that lowers the risk."
                )
            if not 0 <= group.settings["momentum"] < 1:
                raise RunError(
                    f"{by}: the run at {run.path} has momentum "
                    f"{group.settings['momentum']:g}, with which steps never come to rest; it "
                    f"must be below 1."
                )
            if group.settings.get("decoupled_weight_decay") is None:
                notes.append(
                    "the optimizer is none of torch's own: its steps were taken for those of SGD, "
                    "and its weight decay for a part of the gradient"
                )
    return list(dict.fromkeys(notes))


def group_rate(step: Step, position: int) -> float:
    """Return the effective learning rate of a step for one of its groups.

    ``eta c w (1 - dampening) / (1 - momentum)``, with c the scale of clipping and w the sum of the
    weights of the batch's risks, which is 1 for their mean.
    """
    scale = 1.0 if step.clip_scale is None else step.clip_scale
    return _plain_rate(step, position) * scale * float(step.weights.sum())


def step_rate(step: Step) -> float:
    """Return the largest effective learning rate of a step."""
    moving = [
        group_rate(step, position)
        for position, group in enumerate(step.groups)
        if set(group.parameters) - set(group.frozen)
    ]
    return max(moving, default=0.0)


def pace(steps: Iterable[Step], names: Iterable[str]) -> Pace:
    """Return what steps do to the named parameters."""
    rates = dict.fromkeys(names, 0.0)
    decayed = dict.fromkeys(rates, 0.0)
    sums: dict[int, tuple[ParameterGroup, float, float]] = {}
    for step in steps:
        for position, group in enumerate(step.groups):
            _, rate, decay = sums.get(id(group), (group, 0.0, 0.0))
            plain = _plain_rate(step, position)
            sums[id(group)] = (
                group,
                rate + group_rate(step, position),
                decay + plain * float(group.settings["weight_decay"]),
            )
    for group, rate, decay in sums.values():
        for name in set(group.parameters) - set(group.frozen):
            if name in rates:
                rates[name] += rate
                decayed[name] += decay
    decays = {name: decayed[name] / rate if rate else 0.0 for name, rate in rates.items()}
    return Pace(rates, decays)


def _plain_rate(step: Step, position: int) -> float:
    """Return the learning rate of a step for a group, with momentum."""
    settings = step.groups[position].settings
    momentum, dampening = float(settings["momentum"]), float(settings["dampening"])
    # A buffer begins at 0 only where there is momentum: without it dampening has no effect.
    gain = (1.0 - dampening) / (1.0 - momentum) if momentum else 1.0
    return step.learning_rates[position] * gain
