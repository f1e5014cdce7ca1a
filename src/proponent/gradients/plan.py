"""Which calls of a forward pass use which parameters, and where the instances stand in them.

A forward pass over a few instances is compared with one over one fewer: an axis that shrinks is the
axis of the instances, and a tensor that stays as it is was made from parameters alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proponent.gradients.fallback import Probe
from proponent.gradients.rules import RULES, Layout, Rule
from proponent.gradients.tap import Event, Key, Tap
from proponent.models.torch import TorchModel


class PlanMismatchError(Exception):
    """A forward pass did not use its parameters as it did when the plan was made."""


@dataclass(frozen=True)
class InstanceAxis:
    """Where the instances stand in a tensor: on ``axis``, each ``repeat`` times in a row."""

    axis: int
    repeat: int

    def first(self, tensor: Tensor, n: int) -> Tensor:
        """Move the instances to the first axis, and their repetitions to the second."""
        if tensor.shape[self.axis] != n * self.repeat:
            raise PlanMismatchError
        if self.repeat == 1:
            return tensor.movedim(self.axis, 0)
        before, after = tensor.shape[: self.axis], tensor.shape[self.axis + 1 :]
        split = tensor.reshape(*before, n, self.repeat, *after)
        return split.movedim((self.axis, self.axis + 1), (0, 1))


@dataclass(frozen=True)
class Step:
    """A planned call: derived from parameters alone (``output`` None), or meeting the data."""

    function: Callable[..., Any]
    output: InstanceAxis | None
    data: InstanceAxis | None

    @property
    def derived(self) -> bool:
        """Whether the call makes a tensor from parameters alone."""
        return self.output is None


@dataclass(frozen=True)
class Plan:
    """The calls that use the covered parameters, in order.

    A covered parameter without a call is one that the risk does not depend on. ``precisions`` are
    the dtypes that the calls gave.
    """

    covered: Mapping[str, Tensor]
    steps: tuple[Step, ...]
    precisions: frozenset[torch.dtype]

    def tap(self) -> Tap:
        """Return a tap for one forward pass."""
        return Tap(self.covered, lambda index, event: self._step(index, event).derived)

    def _step(self, index: int, event: Event) -> Step:
        if index >= len(self.steps) or self.steps[index].function != event.function:
            raise PlanMismatchError
        return self.steps[index]


def make_plan(model: TorchModel, probe: Probe, without: frozenset[str] = frozenset()) -> Plan:
    """Plan the capture of the model's chosen parameters.

    Parameters
    ----------
    model : TorchModel
        The module, its risk and the chosen parameters.
    probe : Probe
        A few instances.
    without : set of str
        Parameters not to cover.
    """
    parameters = {name: p for name, p in model.selected.items() if name not in without}
    n, taps = probe.n, []
    for size in (n, n - 1):
        tap = Tap(parameters, lambda index, event: True)
        with tap:
            model.batch_risk(probe.batch(size), size)
        taps.append(tap)
    many, few = (tap.events for tap in taps)
    precisions = frozenset(output.dtype for event in many for output in event.outputs)
    if [event.function for event in many] != [event.function for event in few]:
        return Plan({}, (), precisions)
    roots: dict[Key, frozenset[str]] = {name: frozenset([name]) for name in parameters}
    steps: list[tuple[Step, frozenset[str]]] = []
    uncovered: set[str] = set()
    for index, (event, smaller) in enumerate(zip(many, few, strict=True)):
        keys = {key for value in event.values() if (key := taps[0].key(value)) in roots}
        sources = frozenset().union(*(roots[key] for key in keys))
        if not sources:
            continue
        if event.shapes == smaller.shapes:
            steps.append((Step(event.function, None, None), sources))
            for position in range(len(event.outputs)):
                roots[index, position] = sources
            continue
        step = _batched_step(event, smaller, n)
        if step is None:
            uncovered |= sources
        else:
            steps.append((step, sources))
    # A derived tensor whose one root is not covered leaves its other roots uncovered too.
    for sources in [*roots.values()] * len(roots):
        if sources & uncovered:
            uncovered |= sources
    covered = {name: p for name, p in parameters.items() if name not in uncovered}
    kept = tuple(step for step, sources in steps if sources & covered.keys())
    return Plan(covered, kept, precisions)


def _batched_step(event: Event, smaller: Event, n: int) -> Step | None:
    """Plan a call that meets the data; None where no rule covers it."""
    rule = RULES.get(event.function)
    if rule is None or len(event.outputs) != 1:
        return None
    output = _instance_axis(event.shapes[0], smaller.shapes[0], n)
    if output is None:
        return None
    data = None
    if rule.data is not None:
        large = rule.bind(event.args, event.kwargs).get(rule.data)
        small = rule.bind(smaller.args, smaller.kwargs).get(rule.data)
        if not isinstance(large, Tensor) or not isinstance(small, Tensor):
            return None
        data = _instance_axis(large.shape, small.shape, n)
        if data is None:
            return None
    if rule.layout is Layout.CHANNELS and not (output == data == InstanceAxis(0, 1)):
        return None
    if rule.layout is Layout.BROADCAST and not _trailing(rule, event, output):
        return None
    return Step(event.function, output, data)


def _trailing(rule: Rule, event: Event, output: InstanceAxis) -> bool:
    """Whether every followed argument of an elementwise call stands behind the instances' axis."""
    if output == InstanceAxis(0, 1):
        return True
    behind = len(event.shapes[0]) - 1 - output.axis
    shapes = [v.shape for v in event.values() if isinstance(v, Tensor)]
    return any(len(shape) <= behind for shape in shapes)


def _instance_axis(large: torch.Size, small: torch.Size, n: int) -> InstanceAxis | None:
    """Find the one axis whose length is a multiple of n in one shape and of n - 1 in the other."""
    if len(large) != len(small):
        return None
    axes = [axis for axis in range(len(large)) if large[axis] != small[axis]]
    if len(axes) != 1:
        return None
    repeat, rest = divmod(large[axes[0]], n)
    if rest or small[axes[0]] != repeat * (n - 1):
        return None
    return InstanceAxis(axes[0], repeat)
