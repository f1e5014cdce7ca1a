"""Per-instance gradients of a batch in factored form, from one forward and one backward pass.

The forward pass is watched for the calls that use the chosen parameters; the backward pass goes
only as far as those calls' outputs, so that no weight gradient is ever computed.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import CheckpointError

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.coverage import (
    Coverage,
    check_instances_apart,
    check_last_layer,
    tolerance,
    uncovered_by_value,
)
from proponent.gradients.fallback import Probe, copied, vectorised_gradients
from proponent.gradients.forms import Dense, Form, summed
from proponent.gradients.plan import Plan, PlanMismatchError, Step, make_plan
from proponent.gradients.rules import RULES, Layout
from proponent.gradients.tap import Event, Key, Tap
from proponent.models.torch import TorchModel, check_finite

# Instances, spread over the set, that a model is tried on, and how many of them are compared
# with a pass of their own: a module that reorders its batch would have to leave them in place.
PROBE_INSTANCES = 5
COMPARED = (0, 2, 4)

# What the gradients of a batch are to take, and bounds of its size, where a size is chosen here:
# large batches spare overhead until they leave the caches.
BATCH_BYTES = {"cpu": 24 * 2**20, "cuda": 2**30}
BATCH_SIZES = (32, 512)


class GradientCapture:
    """Captures the per-instance gradients of a model.

    Before first use the model is tried on a few instances: their gradients are compared,
    parameter by parameter, with those of one backward pass an instance. What is not right is
    left to automatic differentiation, so that every chosen parameter is counted exactly once.

    Parameters
    ----------
    model : TorchModel
        The module, its risk and the chosen parameters.
    instances : Instances
        Where the few instances are taken from.
    dtype : torch.dtype, optional
        Type in which gradients are held; the default is the module's, at least float32.

    Raises
    ------
    InvalidInputError
        If the set is empty, or the risk of an instance depends on the other instances of its
        batch.
    """

    def __init__(
        self, model: TorchModel, instances: Instances, dtype: torch.dtype | None = None
    ) -> None:
        if not len(instances):
            raise InvalidInputError("train: the set is empty; influence needs instances.")
        self.model = model
        self.dtype = dtype or torch.float32
        for parameter in () if dtype else model.selected.values():
            self.dtype = torch.promote_types(self.dtype, parameter.dtype)
        n = PROBE_INSTANCES
        # Not in ascending order, so that sorting would be noticed.
        rows = np.roll(np.linspace(0, len(instances) - 1, n).astype(int), 2)
        with model.evaluating():
            probe = Probe(model.prepare(instances.batch(rows)), n)
            self._plan = make_plan(model, probe)
            relative = tolerance(model, self._plan.precisions)
            check_instances_apart(model, probe, COMPARED, relative)
            if isinstance(model.parameters, str) and model.parameters == "last":
                check_last_layer(model, probe)
            try:
                batch = probe.batch()
                versions = _versions(batch)
                captured, refused = self._captured(batch, instances.ids[rows])
            except PlanMismatchError:
                self._plan, captured, refused = Plan({}, (), frozenset()), {}, frozenset()
            self._writes = _versions(batch) != versions
            covered = self._plan.covered
            wrong = refused | uncovered_by_value(
                model, covered, captured, probe, COMPARED, relative
            )
            if wrong:
                self._plan = make_plan(model, probe, without=wrong)
        held_bytes = sum(form.nbytes for form in captured.values()) // n
        self._bytes = held_bytes + 4 * sum(model.selected[name].numel() for name in wrong)
        left = tuple(name for name in model.selected if name not in self._plan.covered)
        self.coverage = Coverage(captured=tuple(self._plan.covered), differentiated=left)

    @property
    def batch_size(self) -> int:
        """A batch size for which the gradients fit the caches."""
        room = BATCH_BYTES.get(self.model.device.type, BATCH_BYTES["cpu"])
        smallest, largest = BATCH_SIZES
        return max(smallest, min(largest, room // max(1, self._bytes)))

    def batch_size_within(self, memory: int) -> int:
        """Return a batch size for which the gradients fit the caches, and ``memory`` bytes."""
        return max(1, min(self.batch_size, memory // max(1, self._bytes)))

    def __call__(self, batch: Any, ids: Any) -> dict[str, Form]:
        """Return the per-instance gradients of a prepared batch, by parameter.

        To be called within ``model.evaluating()``. Parameters that the risk of no instance
        depends on are left out: their gradients are zero.

        Raises
        ------
        NonFiniteError
            If a risk is not finite; the message names the instances by ``ids``.
        """
        again = batch
        if self._writes or self.coverage.differentiated:
            again = copied(batch)  # a module may write to what it is given
        try:
            forms, refused = self._captured(batch, ids)
        except PlanMismatchError:
            forms, refused = {}, frozenset(self.model.selected)
        left = {
            name: parameter
            for name, parameter in self.model.selected.items()
            if name in refused or name not in self._plan.covered
        }
        if left:
            gradients = vectorised_gradients(self.model, left, again, len(ids))
            forms |= {
                name: Dense(value.detach().to(self.dtype)) for name, value in gradients.items()
            }
        return forms

    def _captured(self, batch: Any, ids: Any) -> tuple[dict[str, Form], frozenset[str]]:
        """Return the forms of the covered parameters, and the names that a rule refused."""
        tap = self._plan.tap()
        with tap:
            risk = self.model.batch_risk(batch, len(ids))
        check_finite(risk.detach(), ids, "risk")
        if len(tap.events) != len(self._plan.steps):
            raise PlanMismatchError
        try:
            return _Assembly(self._plan, tap, len(ids), self.dtype).gradients(risk)
        except CheckpointError as error:
            # Attention that was written out is not when a checkpoint computes it again.
            raise PlanMismatchError from error


def _versions(batch: Any) -> list[int]:
    """Return how often each tensor of a batch has been written to."""
    return [leaf._version for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]


class _Assembly:
    """Puts the gradients of one watched forward pass together."""

    def __init__(self, plan: Plan, tap: Tap, n: int, dtype: torch.dtype) -> None:
        self._plan = plan
        self._tap = tap
        self._n = n
        self._dtype = dtype
        self._forms: dict[Key, list[Form]] = defaultdict(list)
        self._refused: set[str] = set()

    @torch.no_grad()
    def gradients(self, risk: Tensor) -> tuple[dict[str, Form], frozenset[str]]:
        pairs = list(zip(self._plan.steps, self._tap.events, strict=True))
        met = [(step, event) for step, event in pairs if not step.derived]
        if met and risk.requires_grad:
            edges = [event.edges[0] for _, event in met]
            doubtful = [place for place, (_, event) in enumerate(met) if event.rearranged]
            weights = torch.linspace(1, 2, self._n, dtype=risk.dtype, device=risk.device)
            weighted = (
                torch.autograd.grad(
                    risk,
                    [edges[place] for place in doubtful],
                    weights,
                    allow_unused=True,
                    retain_graph=True,
                )
                if doubtful
                else ()
            )
            output_gradients = torch.autograd.grad(
                risk, edges, torch.ones_like(risk), allow_unused=True
            )
            for place, scaled in zip(doubtful, weighted, strict=True):
                self._check_rows(*met[place], output_gradients[place], scaled, weights)
            for (step, event), gradient in zip(met, output_gradients, strict=True):
                if gradient is not None:
                    self._meet(step, event, gradient.reshape(event.shapes[0]))
        for index in reversed(range(len(pairs))):
            if pairs[index][0].derived:
                self._pull_back(index, pairs[index][1])
        forms = {
            name: summed(self._forms[name])
            for name in self._plan.covered
            if self._forms[name] and name not in self._refused
        }
        return forms, frozenset(self._refused)

    def _check_rows(
        self,
        step: Step,
        event: Event,
        gradient: Tensor | None,
        weighted: Tensor | None,
        weights: Tensor,
    ) -> None:
        """Make sure that each row of an output belongs to the instance whose place it has.

        The gradient of ``sum_i w_i risk_i`` is ``w_i`` times that of ``sum_i risk_i`` in the rows
        of instance i, and in no others.
        """
        if gradient is None or weighted is None or step.output is None:
            return
        shape = event.shapes[0]
        rows = step.output.first(gradient.reshape(shape), self._n).flatten(1)
        found = step.output.first(weighted.reshape(shape), self._n).flatten(1)
        expected = rows * weights.to(rows.dtype)[:, None]
        norms = expected.norm(dim=1)
        # Neighbouring weights differ by 1/n; what is not a number counts as wrong.
        allowed = 0.1 / self._n * norms + 1e-6 * norms.max()
        if not ((found - expected).norm(dim=1) <= allowed).all():
            raise PlanMismatchError

    def _meet(self, step: Step, event: Event, gradient: Tensor) -> None:
        """Add the gradients of the followed arguments of a call that met the data."""
        rule = RULES[event.function]
        arguments = rule.bind(event.args, event.kwargs)
        wanted = self._wanted(arguments)
        if step.output is None:
            raise PlanMismatchError
        shape = event.shapes[0]
        for name, value in arguments.items():
            if not isinstance(value, Tensor) or name in wanted:
                continue
            value = value.detach()
            if rule.layout is Layout.BROADCAST:
                value = step.output.first(value.expand(shape), self._n)
            elif name == rule.data and step.data is not None:
                value = step.data.first(value, self._n)
            arguments[name] = self._held(value)
        gradient = step.output.first(self._held(gradient), self._n)
        for name, key in wanted.items():
            form = rule.gradient(arguments, gradient, name)
            if form is None:
                self._refused |= self._roots(key)
            else:
                self._forms[key].append(form)

    def _pull_back(self, index: int, event: Event) -> None:
        """Pass the gradients of a derived tensor on to the parameters it was made from."""
        for position, output in enumerate(event.outputs):
            forms = self._forms.pop((index, position), None)
            if forms is None:
                continue
            gradient = summed(forms).materialise()
            if event.function is functional.embedding:
                rule = RULES[event.function]
                arguments = rule.bind(event.args, event.kwargs)
                indices = arguments["input"]
                arguments["input"] = indices.expand(self._n, *indices.shape)
                for name, key in self._wanted(arguments).items():
                    form = rule.gradient(arguments, gradient, name)
                    if form is None:
                        self._refused |= self._roots(key)
                    else:
                        self._forms[key].append(form)
                continue
            names = sorted(self._roots((index, position)))
            rows = torch.autograd.grad(
                output,
                [self._plan.covered[name] for name in names],
                gradient.to(output.dtype),
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
            for name, row in zip(names, rows, strict=True):
                if row is not None:
                    self._forms[name].append(Dense(self._held(row)))

    def _wanted(self, arguments: dict[str, Any]) -> dict[str, Key]:
        keys = {name: self._tap.key(value) for name, value in arguments.items()}
        return {name: key for name, key in keys.items() if key is not None}

    def _roots(self, key: Key) -> frozenset[str]:
        """Return the parameters that a followed tensor was made from."""
        if isinstance(key, str):
            return frozenset([key])
        event = self._tap.events[key[0]]
        followed = (self._tap.key(value) for value in event.values())
        return frozenset().union(
            *(self._roots(source) for source in followed if source is not None)
        )

    def _held(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor
