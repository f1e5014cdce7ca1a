"""The curvature of segments of a run, found as asked, and what it does to changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from proponent.data import Instances
from proponent.dynamic.segments import Segment
from proponent.dynamic.segments_explicit import explicit_propagator
from proponent.dynamic.segments_factored import FactoredPropagator, factored
from proponent.dynamic.segments_propagation import Propagation, Propagator
from proponent.dynamic.segments_rates import Pace
from proponent.gradients.curvature import Curvature, Hessian
from proponent.gradients.fisher import EmpiricalFisher, TrueFisher
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.kfac.passes import FisherGradients
from proponent.gradients.space import ParameterSpace
from proponent.models.run import TrainingRun
from proponent.models.torch import TorchModel

SolverName = Literal["ekfac", "kfac", "explicit"]
CurvatureName = Literal["ggn", "hessian", "fisher", "empirical_fisher"]


@dataclass(frozen=True)
class SegmentCurvature:
    """How the curvature of segments is found.

    Parameters
    ----------
    run : TrainingRun
        The run.
    model : TorchModel
        Its module, with the parameters that are studied.
    train : Instances
        The training set; a segment's curvature is that of the instances it used.
    solver, curvature, damping, propagation, seed
        As in :class:`~proponent.dynamic.source.SOURCE`.
    batch_size, memory, progress
        As in :class:`~proponent.gradients.method.GradientMethod`.
    """

    run: TrainingRun
    model: TorchModel
    train: Instances
    solver: SolverName
    curvature: CurvatureName
    damping: float
    propagation: Propagation
    seed: int
    batch_size: int
    memory: int
    progress: bool | None

    def propagator(self, segment: Segment, pace: Pace) -> Propagator:
        """Return what a segment does to a change of the parameters.

        Raises
        ------
        InvalidInputError
            If Kronecker factors cannot have the learning rates or weight decays.
        FactorError
            If gradients of training instances are not finite.
        SolveError
            If the segment magnifies beyond all numbers.
        """
        space = ParameterSpace.of(self.model)
        if self.solver == "explicit":
            return explicit_propagator(
                self.run,
                segment,
                space,
                pace,
                self._matrix,
                damping=self.damping,
                propagation=self.propagation,
            )
        factors = factored(
            self.run,
            segment,
            self.model,
            partial(self._gradients, segment),
            method=self.solver,
            dtype=space.dtype,
        )
        return FactoredPropagator(
            factors, pace, self.damping, len(segment.steps), self.propagation, segment.label
        )

    def _matrix(self, segment: Segment) -> Curvature:
        """Return the curvature at the state that the module has."""
        kinds: dict[CurvatureName, Callable[..., Curvature]] = {
            "ggn": GaussNewton,
            "hessian": Hessian,
            "fisher": partial(TrueFisher, seed=self.seed),
            "empirical_fisher": EmpiricalFisher,
        }
        used = self._used(segment)
        return kinds[self.curvature](self.model, used, memory=self.memory, progress=self.progress)

    def _gradients(self, segment: Segment, position: int) -> FisherGradients:
        """Return the gradients whose second moment is the curvature, at a segment's state."""
        return FisherGradients(
            self.model,
            self._used(segment),
            labels="observed" if self.curvature == "empirical_fisher" else None,
            seed=self.seed + position,  # states draw for themselves
            batch_size=self.batch_size,
            memory=self.memory,
            dtype=ParameterSpace.of(self.model).dtype,
            progress=self.progress,
        )

    def _used(self, segment: Segment) -> Instances:
        if len(segment.used) == len(self.train):
            return self.train
        return self.train.select(segment.used)
