"""A trained model, and its test risks without some of its training instances."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from proponent.data import Instances
from proponent.evaluation.diagnosis import Array, Optimisation
from proponent.evaluation.linear_response import each_gradient, leading_inverse, solve_exactly
from proponent.evaluation.minimise import Preconditioner, minimise
from proponent.evaluation.proximal_bregman import Removals, named_parameters
from proponent.evaluation.retrain import retrain_on_subsets
from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import BATCH_SIZE
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.kfac.precondition import Preconditioner as Factors
from proponent.gradients.space import ParameterSpace
from proponent.gradients.weight_decay import Penalised, WeightDecay
from proponent.models.torch import TorchModel
from proponent.progress import progress
from proponent.static.curvature_method import CurvatureMethod

# Times what its derivatives foresee: so far a response that exists does not fall.
UNBOUNDED = 1e4

Retrain = Callable[[NDArray[np.intp], int], Any]


@dataclass(frozen=True)
class Study:
    """A model, and which of its training instances are left out.

    Attributes
    ----------
    model : TorchModel
        In the precision of the study.
    train, test : Instances
    positions : array of shape (k,)
        Of the instances left out.
    removals : Removals
        What is minimised without them.
    taken : Tensor of shape (k, p)
        Gradients of the terms that they take with them, without the factor 1/n.
    matrix : Penalised
        ``G + lambda + delta``.
    precondition : callable
        Products with about its inverse.
    base : array of shape (n_test,)
        Risks of the trained model.
    """

    model: TorchModel
    train: Instances
    test: Instances
    positions: NDArray[np.intp]
    removals: Removals
    taken: Tensor
    matrix: Penalised
    precondition: Preconditioner
    base: Array

    @classmethod
    def of(
        cls,
        method: CurvatureMethod,
        positions: NDArray[np.intp],
        test: Instances,
        dtype: str | None,
        show_progress: bool | None,
    ) -> Study:
        """Prepare for the instances at ``positions`` of a fitted method's training set."""
        model = _in_precision(method.model_, dtype)
        space, train = ParameterSpace.of(model), method.train_
        batch_size = method.batch_size or BATCH_SIZE
        decay, damping = method._chosen.decay, _damping(method, space)
        removals = Removals(
            model,
            train,
            decay=decay.diagonal(space),
            damping=damping.diagonal(space),
            renormalised=method.loo_convention == "renormalised",
            batch_size=batch_size,
        )
        gradients = each_gradient(model, train.select(positions), lambda gradient: gradient)
        curvature = GaussNewton(model, train, batch_size=batch_size, progress=show_progress)
        together = {name: decay.each[name] + damping.each[name] for name in space.names}
        matrix = Penalised(curvature, WeightDecay(together))
        return cls(
            model,
            train,
            test,
            positions,
            removals,
            removals.removed_gradients(gradients),
            matrix,
            leading_inverse(matrix, method.memory),
            _as_array(model.risks(test)),
        )

    @property
    def resolution(self) -> float:
        """Rounding of a change of the risk."""
        return float(torch.finfo(self.removals.space.dtype).eps * np.abs(self.base).mean())

    def linear_response(self) -> tuple[Array, float]:
        """Return ``(1/n) g_te^T (G + lambda + delta)^{-1} g_i``, (n_test, k), and the residual."""
        solution = solve_exactly(self.matrix, self.taken, self.precondition)
        changes = each_gradient(self.model, self.test, lambda g: solution.vectors @ g)
        return _as_array(changes / len(self.train)), float(solution.residuals.max())

    def optimised(
        self, tolerance: float, max_iterations: int, show_progress: bool | None
    ) -> tuple[dict[str, Array], dict[str, Array], tuple[Optimisation, ...]]:
        """Return the responses that are optimised, their drifts, and how far each got."""
        kinds = {
            "warm": self.removals.warm,
            "proximal": self.removals.proximal,
            "pbrf": self.removals.bregman,
        }
        n, k = len(self.train), len(self.positions)
        scale = float(self.taken.square().sum(1).mean().sqrt()) / n
        # What Newton's first step from the trained model to the response gains.
        gains = (self.taken * self.precondition(self.taken)).sum(1).cpu().numpy() / (2 * n**2)
        changes = {name: np.full((k + 1, len(self.test)), np.nan) for name in kinds}
        reached = []
        bar: Any
        with progress(
            total=len(kinds) * (k + 1), description="diagnosis", enabled=show_progress
        ) as bar:
            for row, removed in enumerate([*self.positions.tolist(), None]):
                for name, objective in kinds.items():
                    bounded = name != "pbrf" or removed is None
                    minimum = minimise(
                        objective(removed),
                        self.removals.start,
                        precondition=self.precondition,
                        gradient_goal=tolerance * scale,
                        value_goal=tolerance**2 * float(gains.mean()),
                        max_iterations=max_iterations,
                        deepest_fall=math.inf if bounded else UNBOUNDED * float(gains[row]),
                    )
                    if minimum.stop != "unbounded":
                        changes[name][row] = self._risks_at(minimum.theta) - self.base
                    reached.append(
                        Optimisation(
                            name,
                            None if removed is None else self.train.ids[removed].item(),
                            minimum.iterations,
                            minimum.gradient_norm / scale if scale else minimum.gradient_norm,
                            minimum.stop,
                        )
                    )
                    bar.update()
        responses = {name: values[:k].T for name, values in changes.items()}
        drifts = {f"{name}_drift": changes[name][k] for name in ("warm", "proximal")}
        return responses, drifts, tuple(reached)

    def retrained(
        self, retrain: Retrain | None, seeds: int | Sequence[int], show_progress: bool | None
    ) -> tuple[Array, Array]:
        """Return the changes by retraining, (r, n_test, k), and on the whole set, (r, n_test)."""
        n, k, n_test = len(self.train), len(self.positions), len(self.test)
        if retrain is None:
            return np.empty((0, n_test, k)), np.empty((0, n_test))
        subsets = np.ones((k + 1, n), dtype=bool)
        subsets[np.arange(k), self.positions] = False
        risks = retrain_on_subsets(
            retrain,
            self._risks_of,
            subsets,
            seeds=[int(seeds)] if isinstance(seeds, (int, np.integer)) else seeds,
            show_progress=show_progress,
        )
        changes = risks - self.base
        return changes[:k].transpose(1, 2, 0), changes[k]

    def _risks_at(self, theta: Tensor) -> Array:
        with self.model.at(named_parameters(theta, self.removals.space)):
            return _as_array(self.model.risks(self.test))

    def _risks_of(self, retrained: Any) -> Any:
        """Return the test risks of what ``retrain`` returned."""
        if isinstance(retrained, nn.Module):
            retrained = TorchModel(retrained, risk=self.model.risk)
        return retrained.risks(self.test) if isinstance(retrained, TorchModel) else retrained


def _in_precision(model: TorchModel, dtype: str | None) -> TorchModel:
    """Return the model, or a copy of it in another precision."""
    if dtype not in (None, "float32", "float64"):
        raise InvalidInputError(f"dtype must be 'float32', 'float64' or None; got {dtype!r}.")
    if dtype is None or getattr(torch, dtype) == model.dtype:
        return model
    module = copy.deepcopy(model.module).to(getattr(torch, dtype))
    return TorchModel(module, risk=model.risk, parameters=list(model.selected))


def _damping(method: CurvatureMethod, space: ParameterSpace) -> WeightDecay:
    """Return the damping of each parameter, which pulls it to its trained value."""
    damping = method.damping_
    if not isinstance(damping, Mapping):
        return WeightDecay(dict.fromkeys(space.names, damping))
    factors = cast(Factors, method._chosen.fresh())  # only theirs differs by layer
    layers = [block.layer for block in factors.blocks]
    each = {name: damping[layer.name] for layer in layers for name in layer.parameters}
    excluded = [name for name in space.names if name not in each]
    if excluded:
        raise InvalidInputError(
            f"method: its Kronecker factors leave out {', '.join(excluded)}, which retraining "
            f"would move. Fit it with parameters= that name the others alone."
        )
    return WeightDecay(each)


def _as_array(values: Tensor) -> Array:
    return values.detach().cpu().double().numpy()
