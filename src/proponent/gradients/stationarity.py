"""Whether a model is at a stationary point of its training objective."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proponent.data import Instances
from proponent.gradients.capture import GradientCapture
from proponent.gradients.products import Products, squared_norms
from proponent.gradients.space import ParameterSpace

# Instances whose gradients tell how long one is.
SAMPLE = 64
# A mean gradient of this size beside single ones is no longer the noise of a stationary point.
STATIONARY = 0.1


@dataclass(frozen=True)
class ObjectiveGradient:
    """Size of the gradient of ``mean risk + (weight decay / 2) ||theta||^2``.

    Attributes
    ----------
    norm : float
        0 at a stationary point.
    relative : float
        The same, in units of the root mean square norm of a single instance's gradient, from
        instances spread over the set.
    """

    norm: float
    relative: float

    @classmethod
    def measure(
        cls,
        capture: GradientCapture,
        instances: Instances,
        space: ParameterSpace,
        decayed: Tensor,
        batch_size: int,
    ) -> ObjectiveGradient:
        """Measure it by one plain backward pass over the training set.

        Parameters
        ----------
        capture : GradientCapture
            Of the model.
        instances : Instances
            The training set.
        space : ParameterSpace
            The chosen parameters.
        decayed : Tensor of shape (p,)
            The weight decay's gradient.
        batch_size : int
            Instances in a pass.
        """
        model, n = capture.model, len(instances)
        total, some = space.gradients({}, 1), np.linspace(0, n - 1, min(n, SAMPLE)).astype(int)
        squares = []
        with model.evaluating():
            for start in range(0, n, batch_size):
                rows = slice(start, min(start + batch_size, n))
                risk = model.batch_risk(model.prepare(instances.batch(rows)), rows.stop - start)
                found = torch.autograd.grad(
                    risk.sum(), list(model.selected.values()), materialize_grads=True
                )
                parts = zip(model.selected, found, strict=True)
                total += space.flatten({name: part[None] for name, part in parts})
            for start in range(0, len(some), batch_size):
                chosen = some[start : start + batch_size]
                forms = capture(model.prepare(instances.batch(chosen)), instances.ids[chosen])
                squares.append(squared_norms(forms, len(chosen), Products()))
        norm = float((total[0] / n + decayed).norm())
        single = float(torch.cat(squares).mean().sqrt())
        return cls(norm, norm / single if single > 0 else 0.0)

    def diagnostics(self) -> dict[str, float]:
        """Return both sizes."""
        return {"objective_gradient_norm": self.norm, "relative_objective_gradient": self.relative}

    def warnings(self) -> list[str]:
        """Return what the user should know."""
        if self.relative <= STATIONARY:
            return []
        return [
            f"the model is not at a stationary point: the training objective's gradient is "
            f"{self.relative:.2f} of an instance's. With the Gauss-Newton matrix scores then "
            f"estimate the response of a proximal step from here, not retraining: train longer, "
            f"check weight_decay, or measure the difference with pp.diagnose."
        ]
