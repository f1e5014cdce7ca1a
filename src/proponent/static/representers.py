"""A refitted linear layer as a sum over the training instances, and how well that holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proponent.gradients.last_layer import Readout
from proponent.models.torch import check_finite
from proponent.static.directions import CLASSIFICATION
from proponent.static.head_fit import HeadFit, PenalisedHead
from proponent.static.head_method import HeadStudy

# Below this share of equal predictions the refitted layer is another classifier.
AGREEMENT = 0.9


@dataclass(frozen=True)
class Reconstruction:
    """The pre-activations of m instances, had in three ways.

    Attributes
    ----------
    network : ndarray of shape (m, C)
        What the network gives.
    refitted : ndarray of shape (m, C)
        What the refitted layer makes of the same features.
    representers : ndarray of shape (m, C)
        ``sum_i alpha_i <f_i, f>``, the sum over the training instances.
    """

    network: NDArray[np.floating[Any]]
    refitted: NDArray[np.floating[Any]]
    representers: NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Representers:
    """The representer values of a refitted layer.

    Attributes
    ----------
    study : HeadStudy
        The layer, and what it did on the training set.
    objective : PenalisedHead
        What it was refitted to.
    fit : HeadFit
        Where that ended.
    """

    study: HeadStudy
    objective: PenalisedHead
    fit: HeadFit

    @property
    def theta(self) -> Tensor:
        """The refitted weights, (C, d), the bias as last column."""
        return self.fit.point.theta

    @cached_property
    def alphas(self) -> Tensor:
        """``alpha_i = -(1 / (weight_decay n)) dloss_i / doutput``, (n, C).

        Raises
        ------
        NonFiniteError
            If one is not finite; the message names the instances.
        """
        head = self.objective.head
        slopes = head.slopes(self.theta)
        check_finite(slopes, self.study.train.ids, "derivative of the loss by the output")
        return slopes / (-self.objective.weight_decay * head.n)

    @cached_property
    def total(self) -> Tensor:
        """``sum_i alpha_i f_i^T``, (C, d): theta, were the fit stationary."""
        return self.objective.head.combined(self.alphas)

    def error_bound(self, inputs: Tensor, directions: Tensor) -> float:
        """Return how far sums of scores may be from the refitted outputs, at most.

        As ``sum_i alpha_i f_i^T - theta = -grad J / weight_decay`` exactly, the error of a test
        instance is at most ``||grad J|| ||f|| ||v|| / weight_decay``.

        Parameters
        ----------
        inputs : Tensor of shape (m, d)
            The features f of the test instances.
        directions : Tensor of shape (m, C)
            The directions v in which their outputs are looked at.
        """
        sizes = inputs.norm(dim=1) * directions.norm(dim=1)
        error = self.fit.point.gradient.norm() * sizes.max() / self.objective.weight_decay
        return float(error)

    def reconstruction(self, readout: Readout) -> Reconstruction:
        """Return the pre-activations of the instances of a readout."""
        head = self.study.head(readout)
        parts = readout.outputs, head.outputs(self.theta), head.outputs(self.total)
        return Reconstruction(*(part.double().cpu().numpy() for part in parts))

    @cached_property
    def noticed(self) -> dict[str, Any]:
        """How the fit went, and what it still has to do with the network, as JSON knows it."""
        rebuilt = self.reconstruction(self.study.readout)
        agreement = self._agreement(rebuilt)
        return {
            "iterations": self.fit.iterations,
            "converged": self.fit.converged,
            "relative_residual": self.fit.residual,
            "objective_gradient_norm": float(self.fit.point.gradient.norm()),
            "reconstruction_correlation": _correlation(rebuilt.refitted, rebuilt.representers),
            "network_correlation": _correlation(rebuilt.network, rebuilt.refitted),
            "network_agreement": agreement,
            "warnings": self._warnings(agreement),
        }

    def _agreement(self, rebuilt: Reconstruction) -> float | None:
        """Return the share of predictions that the refitted layer and the network have in common.

        None where there are no classes.
        """
        family = self.study.family
        if family is None or family.name not in CLASSIFICATION:
            return None
        if family.name == "cross_entropy":
            return float((rebuilt.network.argmax(1) == rebuilt.refitted.argmax(1)).mean())
        return float(((rebuilt.network > 0) == (rebuilt.refitted > 0)).mean())

    def _warnings(self, agreement: float | None) -> list[str]:
        warnings = []
        if not self.fit.converged:
            warnings.append(
                f"the refitted layer is not stationary: the sum over the training instances "
                f"misses its weights by {self.fit.residual:.1e} of their size. solver='paper' "
                f"stops early; solver='newton' does so only where the precision allows no more, "
                f"which a larger weight_decay remedies."
            )
        if agreement is not None and agreement < AGREEMENT:
            warnings.append(
                f"the refitted layer, which the scores explain, predicts another class than the "
                f"network for {1 - agreement:.0%} of the training instances: lower weight_decay."
            )
        return warnings


def _correlation(first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> Any:
    """Return Pearson's correlation of all entries; None where one side is constant."""
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first.ravel(), second.ravel())[0, 1])
