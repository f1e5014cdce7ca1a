"""Projected gradients of sets of instances, at one set of parameters, kept or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.fingerprint import fingerprint
from proponent.gradients.products import Gradients
from proponent.gradients.row_store import Rows, RowStore
from proponent.models.torch import TorchModel, check_finite

# Stored instances that are projected once more, before the others are taken as they are.
COMPARED = 3


@dataclass(frozen=True)
class ProjectedGradients:
    """How the projected gradients of instances are had.

    Attributes
    ----------
    model : TorchModel
        The module.
    capture : callable
        ``capture(batch, ids)`` returns the gradients of a prepared batch, as a
        :class:`~proponent.gradients.capture.GradientCapture` does.
    project : callable
        ``project(gradients, n)`` returns the tables of n rows.
    batch_size : int
        Instances in a pass.
    enter : callable
        Returns a context in which the module has the parameters under study.
    """

    model: TorchModel
    capture: Callable[[Any, Any], Gradients]
    project: Callable[[Gradients, int], Rows]
    batch_size: int
    enter: Callable[[], AbstractContextManager[Any]] = nullcontext

    def of(self, instances: Instances, rows: range | None = None) -> Iterator[tuple[range, Rows]]:
        """Go through the instances at ``rows`` (all of them by default) in batches.

        Raises
        ------
        NonFiniteError
            If a risk or a gradient is not finite; the message names the instances.
        """
        rows = range(len(instances)) if rows is None else rows
        with self.enter(), self.model.evaluating():
            for start in range(rows.start, rows.stop, self.batch_size):
                part = range(start, min(start + self.batch_size, rows.stop))
                where = slice(part.start, part.stop)
                batch, ids = self.model.prepare(instances.batch(where)), instances.ids[where]
                projected = self.project(self.capture(batch, ids), len(part))
                for values in projected.values():
                    check_finite(values, ids, "gradient")
                yield part, projected

    def tables(self, instances: Instances) -> Rows:
        """Return the rows of all instances, each table ``(n, width)``."""
        return _joined([projected for _, projected in self.of(instances)])

    def sums(self, instances: Instances) -> Rows:
        """Return the sum over the instances of each table, ``(1, width)``."""
        totals: Rows = {}
        for _, projected in self.of(instances):
            for name, values in projected.items():
                total = values.sum(0, keepdim=True)
                totals[name] = totals[name] + total if name in totals else total
        return totals

    def fill(self, store: RowStore, instances: Instances, done: Callable[[int], Any]) -> None:
        """Write what a store is missing; ``done`` is told the number of instances written.

        Raises
        ------
        InvalidInputError
            If what it has are not these gradients.
        NonFiniteError
            If a risk or a gradient is not finite; the message names the instances.
        """
        for rows in store.written()[:1]:
            self._compare(store, instances, rows[:COMPARED])
        for rows in store.missing():
            store.write(rows, _joined([projected for _, projected in self.of(instances, rows)]))
            done(len(rows))

    def _compare(self, store: RowStore, instances: Instances, rows: range) -> None:
        """Refuse rows that another risk, or another output, has left."""
        stored = _joined([tables for _, tables in store.read(rows)])
        found = _joined([tables for _, tables in self.of(instances, rows)])
        for name, values in stored.items():
            allowed = torch.finfo(values.dtype).eps ** 0.5 * values.norm()
            if not (found[name] - values).norm() <= allowed:
                raise InvalidInputError(
                    "path: the projected gradients stored there are not those of this risk (or "
                    "model output) at the same parameters and instances; choose another directory."
                )

    def fingerprint(self) -> str:
        """Return a hash of the parameters and buffers under study."""
        with self.enter():
            return fingerprint(self.model.module.state_dict())


def _joined(parts: list[Rows]) -> Rows:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
