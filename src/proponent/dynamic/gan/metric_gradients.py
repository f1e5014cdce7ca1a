"""A metric of the generator: its values and its gradients by the generator's parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.dynamic.gan.noise import moved_to
from proponent.dynamic.unrolled.updates import Vectors
from proponent.exceptions import InvalidInputError, NonFiniteError

Metric = Callable[..., Tensor]


class MetricGradients:
    """A metric at the generator's final parameters.

    Parameters
    ----------
    metric : callable
        ``metric(generator) -> () or (k,)``, or ``metric(generator, batch) -> (batch,)``.
    generator : torch.nn.Module
        With its final parameters; of a replay, so that it may be changed.
    trained : mapping
        Its parameters that move.
    training : bool
        The mode it is looked at in.
    seed : int
        Seed of what the metric draws; the same for every evaluation.
    """

    def __init__(
        self,
        metric: Metric,
        generator: nn.Module,
        trained: dict[str, nn.Parameter],
        *,
        training: bool,
        seed: int,
    ) -> None:
        self._metric = metric
        self._generator = generator
        self._trained = trained
        self._training = training
        self._seed = seed

    def values(self) -> NDArray[np.float64]:
        """Return the components of a metric that takes the generator alone, ``(k,)``."""
        with self._looking():
            return _array(self._components())

    def blocks(
        self, instances: Instances | None, at_once: int
    ) -> Iterator[tuple[NDArray[np.float64], Vectors]]:
        """Yield values, ``(some,)``, and gradients, ``(some, *shape)``, in the rows' order.

        Parameters
        ----------
        instances : Instances or None
            The test instances of a metric that has one value each.
        at_once : int
            Rows in a block at most.
        """
        if instances is not None:
            for start in range(0, len(instances), at_once):
                rows = range(len(instances))[start : start + at_once]
                with self._looking():
                    values = self._of_batch(instances, rows)
                    found = _array(values), self._gradients(values, range(len(rows)))
                yield found
            return
        count = len(self.values())
        for start in range(0, count, at_once):
            rows = range(count)[start : start + at_once]
            with self._looking():
                values = self._components()
                found = _array(values)[start : rows.stop], self._gradients(values, rows)
            yield found

    def total(
        self, instances: Instances | None, at_once: int
    ) -> tuple[NDArray[np.float64], Vectors]:
        """Return the sum of all rows, ``(1,)``, and its gradient, ``(1, *shape)``."""
        total = np.zeros(1)
        gradient: Vectors = {}
        n = 1 if instances is None else len(instances)
        for start in range(0, n, at_once):
            rows = range(n)[start : start + at_once]
            with self._looking():
                values = (
                    self._components() if instances is None else self._of_batch(instances, rows)
                ).sum()[None]
                total = total + _array(values)
                part = self._gradients(values, range(1))
            gradient = {name: gradient.get(name, 0.0) + part[name] for name in part}
        return total, gradient

    def _components(self) -> Tensor:
        values = self._asked(self._generator)
        if not isinstance(values, Tensor) or values.ndim > 1 or not values.numel():
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InvalidInputError(
                f"metric: metric(generator) must return a number or a vector as a tensor; got "
                f"{got}. For a value a test instance, take (generator, batch) and ask with "
                f"influence(test)."
            )
        return values.reshape(-1)

    def _of_batch(self, instances: Instances, rows: range) -> Tensor:
        batch = moved_to(instances.batch(slice(rows.start, rows.stop)), self._generator)
        values = self._asked(self._generator, batch)
        if not isinstance(values, Tensor) or values.shape != (len(rows),):
            got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise InvalidInputError(
                f"metric: metric(generator, batch) must return one value a test instance, shape "
                f"({len(rows)},); got {got}. A metric of the whole test set takes the generator "
                f"alone: ask with influence()."
            )
        return values

    def _asked(self, *arguments: Any) -> Any:
        try:
            inspect.signature(self._metric).bind(*arguments)
        except TypeError as error:
            asked = "influence(test)" if len(arguments) > 1 else "influence()"
            takes = "(generator, batch)" if len(arguments) > 1 else "the generator alone"
            raise InvalidInputError(
                f"metric: {asked} needs a metric that takes {takes}; this one does not ({error})."
            ) from None
        except ValueError:
            pass  # a callable without a signature
        return self._metric(*arguments)

    def _gradients(self, values: Tensor, rows: range) -> Vectors:
        if not values.requires_grad:
            raise InvalidInputError(
                "metric: its value does not depend on the generator's parameters, or was "
                "detached from them; compute it in torch, without no_grad."
            )
        if not torch.isfinite(values).all():
            raise NonFiniteError(
                f"metric: value {int((~torch.isfinite(values)).nonzero()[0])} is not finite at "
                f"the end of the training."
            )
        parameters = list(self._trained.values())
        found = [
            torch.autograd.grad(values[row], parameters, retain_graph=True, allow_unused=True)
            for row in rows
        ]
        return {
            name: torch.stack(
                [
                    torch.zeros_like(parameter) if part is None else part
                    for part in (parts[position] for parts in found)
                ]
            )
            for position, (name, parameter) in enumerate(self._trained.items())
        }

    @contextmanager
    def _looking(self) -> Iterator[None]:
        modes = [(part, part.training) for part in self._generator.modules()]
        buffers = [(value, value.clone()) for value in self._generator.buffers()]
        try:
            self._generator.train(self._training)
            with fixed_randomness(self._seed), torch.enable_grad():
                yield
        finally:
            for part, training in modes:
                part.training = training
            for buffer, content in buffers:
                buffer.copy_(content)


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.detach().double().cpu().numpy()
