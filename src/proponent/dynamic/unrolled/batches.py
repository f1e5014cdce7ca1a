"""The batches of a replayed run, and products with the gradients of their instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from proponent.data import Instances
from proponent.dynamic.unrolled.layered import Layered
from proponent.dynamic.unrolled.linear_taps import LinearTaps, watched_gradients
from proponent.dynamic.unrolled.linearised import (
    ONCE,
    VECTORS_AT_ONCE,
    Linearised,
    differentiable,
)
from proponent.dynamic.unrolled.updates import Pulled, Vectors, moved_by
from proponent.exceptions import NonFiniteError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.kept import graph_bytes
from proponent.gradients.products import GradientQuery, Gradients, Products, VectorQuery
from proponent.gradients.twice import twice_differentiable
from proponent.models.history import Step
from proponent.models.torch import TorchModel

if TYPE_CHECKING:
    from proponent.dynamic.replay import Moment, Replay


Way = Callable[["Moment"], tuple[Gradients, Tensor | None, int]]


class ReplayedBatches:
    """The batches of a replay, in the recorded mode and with the recorded random numbers.

    Parameters
    ----------
    replay : Replay
        The run, replayed.
    model : TorchModel
        The module with all parameters that the run moved.
    train : Instances
        The training set.
    capture : GradientCapture
        Gradients of the model's instances. It is used for a batch only where it gives, in the
        mode of the step, what differentiating the whole batch gives: it may not where instances
        meet (batch normalisation while training).
    products : Products
        How inner products are taken.
    memory : int
        About half of the bytes that multiplying several vectors with a batch's Hessian may take.
    remedy : str
        A sentence: what to do where the module cannot be differentiated twice.
    """

    def __init__(
        self,
        replay: Replay,
        model: TorchModel,
        train: Instances,
        capture: GradientCapture,
        products: Products,
        memory: int,
        remedy: str = ONCE,
    ) -> None:
        self._remedy = remedy
        self.replay = replay
        self.model = model
        self.parameters = model.selected
        self._parts = list(model.module.modules())
        chosen = {id(parameter) for parameter in self.parameters.values()}
        self._fixed = [p for p in model.module.parameters() if id(p) not in chosen]
        self._train = train
        self._capture = capture
        self._products = products
        self._memory = memory
        self._at_once: int | None = None
        self._ways: dict[tuple[bool, ...], Way | None] = {}
        self._taps = LinearTaps(model.module, model.selected)
        self._layers_trusted: dict[tuple[bool, ...], bool] = {}

    @contextmanager
    def linearised(self, moment: Moment) -> Iterator[Linearised | Layered]:
        """Give the linearised batch of a moment, for a while, to multiply vectors with."""
        with self._entering(moment):
            modes = self._modes()
            if self._layers_trusted.get(modes):
                batch = self._batch(moment)
                yield self._layered(batch)
                return
        if modes not in self._layers_trusted:
            with self.fully_linearised(moment) as full:
                full.check_twice()
            self._layers_trusted[modes] = bool(self._taps.names) and self._layers_agree(moment)
            with self.linearised(moment) as linearised:
                yield linearised
            return
        with self.fully_linearised(moment) as full:
            yield full

    @contextmanager
    def fully_linearised(self, moment: Moment) -> Iterator[Linearised]:
        """Give the linearised batch of a moment, for a while, in full."""
        if self._at_once is None:
            with self._entering(moment):
                taken = graph_bytes(lambda: self._linearise(moment, 1), self.model.module)
            room = int(2 * self._memory / max(taken, 1))
            self._at_once = max(1, min(VECTORS_AT_ONCE, room))
        with self._entering(moment):
            yield self._linearise(moment, self._at_once)

    def _linearise(self, moment: Moment, at_once: int) -> Linearised:
        batch, remedy = self._batch(moment), self._remedy
        return Linearised(self.model, self.parameters, *batch, at_once=at_once, remedy=remedy)

    def _layered(self, batch: tuple[Any, Tensor, Any]) -> Layered:
        return Layered(self.model, self.parameters, self._taps, *batch, remedy=self._remedy)

    def _batch(self, moment: Moment) -> tuple[Any, Tensor, Any]:
        """Return a moment's batch, the weights of its risks, and its instances' ids."""
        step = moment.step
        batch, n = self.replay.batch(moment)
        check_length(n, step)
        return batch, torch.tensor(step.weights), self._train.ids[step.indices]

    @contextmanager
    def _entering(self, moment: Moment, *, twice: bool = True) -> Iterator[None]:
        """Lend the module the state of a moment, to be differentiated, perhaps twice."""
        attention = twice_differentiable() if twice else nullcontext()
        with self.replay.entering(moment), differentiable(self.parameters, self._fixed), attention:
            yield

    def _modes(self) -> tuple[bool, ...]:
        return tuple([part.training for part in self._parts])

    def provide(self, moment: Moment, linearised: Linearised | Layered) -> None:
        """Spare the replay the gradient of a batch that was linearised in full."""
        if isinstance(linearised, Layered) or moment.step.without_gradient is None:
            return
        found = linearised.gradient
        moment.provide({name: found[name] for name in moved_by(moment.step)})

    def inner(self, moment: Moment, pulled: Pulled) -> Tensor:
        """Return ``<v_k, g_j>``, (k, batch)."""
        query = VectorQuery(pulled.vectors, self._products, pulled.factors)
        found = self.meet(moment, [query])
        if found is not None:
            return found[0]
        with self.fully_linearised(moment) as linearised:
            scaled = {n: part * pulled.factors[n] for n, part in pulled.vectors.items()}
            return linearised.inner(scaled)

    def meet(
        self, moment: Moment, queries: list[GradientQuery | VectorQuery]
    ) -> list[Tensor] | None:
        """Return the products of the batch's gradients with queries, each (k, batch).

        None where the gradients of single instances cannot be captured in the mode of the step.
        """
        with self._entering(moment, twice=False):
            modes = self._modes()
            way = self._ways.get(modes)
            if way is not None:
                return self._meet(way(moment), queries)
        if modes in self._ways:
            return None
        self._ways[modes] = self._way(moment, any(modes))
        return self.meet(moment, queries)

    def fault(self, moment: Moment) -> NonFiniteError | None:
        """Return the error, to be raised, that names the instances whose gradients are not finite.

        Each alone; None where all are.
        """
        step = moment.step
        wrong = [i for i in np.unique(step.indices) if not self._is_finite(moment, int(i))]
        if not wrong:
            return None
        listed = ", ".join(map(str, self._train.ids[wrong[:10]]))
        return NonFiniteError(
            f"the gradient of training instances {listed}{', ...' if len(wrong) > 10 else ''} at "
            f"step {step.index} is not finite: look at their features and labels, or leave them "
            f"out of the training."
        )

    def _is_finite(self, moment: Moment, position: int) -> bool:
        """Whether the gradient of a training instance alone is finite."""
        with self._entering(moment, twice=False), self.model.evaluating():
            batch = self.model.prepare(self._train.batch(np.array([position])))
            risks = self.model.batch_risk(batch, 1)
            found = torch.autograd.grad(
                risks.sum(), list(self.parameters.values()), allow_unused=True
            )
        return all(bool(part.isfinite().all()) for part in (risks, *found) if part is not None)

    def captures(self, moment: Moment) -> bool:
        """Whether the gradients of single instances can be captured in the mode of a step."""
        return self.meet(moment, []) is not None

    def _way(self, moment: Moment, training: bool) -> Way | None:
        """Return the quickest way to the gradients of single instances that is right."""
        ways: list[Way] = []
        if self._taps.names >= self.parameters.keys():
            ways.append(self._watched)
        if not (training and self._capture.coverage.differentiated):
            # Else some would see each instance alone, with random numbers of its own.
            ways.append(self._captured)
        vectors = self._directions()
        with self.fully_linearised(moment) as linearised:
            expected = linearised.inner(vectors)
        query = VectorQuery(vectors, self._products)
        return next((way for way in ways if self._agrees(way, moment, query, expected)), None)

    def _agrees(self, way: Way, moment: Moment, query: VectorQuery, expected: Tensor) -> bool:
        """Whether gradients of single instances are those of the batch, along a direction."""
        try:
            with self._entering(moment, twice=False):
                found = self._meet(way(moment), [query])[0]
        except NonFiniteError:
            raise
        except (RuntimeError, ValueError):
            return False
        return _close(found, expected)

    def _captured(self, moment: Moment) -> tuple[Gradients, Tensor | None, int]:
        """Return the gradients of the instances, as they are."""
        batch, _, ids = self._batch(moment)
        return self._capture(batch, ids), None, len(ids)

    def _watched(self, moment: Moment) -> tuple[Gradients, Tensor | None, int]:
        """Return the gradients of the instances times their weights, and the weights.

        They come with the gradient of the batch, which the replay is handed.
        """
        batch, weights, ids = self._batch(moment)
        gradients, total = watched_gradients(self.model, self._taps, batch, ids, weights)
        if moment.step.without_gradient is not None:
            moment.provide({name: total[name] for name in moved_by(moment.step)})
        return gradients, weights, len(ids)

    def _meet(
        self,
        captured: tuple[Gradients, Tensor | None, int],
        queries: list[GradientQuery | VectorQuery],
    ) -> list[Tensor]:
        gradients, weights, n = captured
        found = [query.meet(gradients, n)[0].T for query in queries]
        return found if weights is None else [part / weights.to(part) for part in found]

    def _layers_agree(self, moment: Moment) -> bool:
        """Whether treating linear layers by hand gives what differentiating in full gives."""
        vectors = self._directions()
        with self.fully_linearised(moment) as full:
            expected, inner = full.products(vectors)
            gradient = full.gradient
        try:
            with self._entering(moment):
                layered = self._layered(self._batch(moment))
                by_hand = layered.gradient
                products = layered.multiply(vectors, {})
                found = {name: torch.zeros_like(part) for name, part in expected.items()}
                products.add_to(found)
        except NonFiniteError:
            raise
        except (RuntimeError, ValueError):
            return False
        return (
            _close(products.inner, inner)
            and _close(_flat(found), _flat(expected))
            and _close(_flat(by_hand), _flat(gradient))
        )

    def _directions(self) -> Vectors:
        return {name: _direction(value)[None] for name, value in self.parameters.items()}


def _flat(parts: Vectors) -> Tensor:
    return torch.cat([parts[name].flatten() for name in sorted(parts)])


def _close(found: Tensor, expected: Tensor) -> bool:
    allowed = torch.finfo(expected.dtype).eps ** 0.75 * float(expected.abs().max())
    return bool(((found - expected).abs() <= allowed).all())


def check_length(n: int, step: Step) -> None:
    """Make sure that a batch has the length that was recorded."""
    if n != len(step.indices):
        raise RuntimeError(f"step {step.index}: a batch of {n} for {len(step.indices)} indices.")


def _direction(parameter: Tensor) -> Tensor:
    """Return a direction that weighs every entry differently, without random numbers."""
    places = torch.arange(1, parameter.numel() + 1, dtype=parameter.dtype, device=parameter.device)
    return torch.sin(1.7 * places).view(parameter.shape)
