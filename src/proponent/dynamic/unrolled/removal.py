"""What leaving an instance out changes about the gradient of a recorded step."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proponent.exceptions import InvalidInputError, RunError
from proponent.models.history import Step
from proponent.models.run import TrainingRun

Divisor = Literal["kept", "reduced"]


def check_divisor(divisor: str, run: TrainingRun, *, by: str) -> None:
    """Refuse a convention that is not known, or that the run's loss does not have.

    Raises
    ------
    InvalidInputError
        If ``divisor`` is neither ``"kept"`` nor ``"reduced"``.
    RunError
        If it is ``"reduced"`` and a step's loss is no mean over its batch, or an instance has a
        batch to itself.
    """
    if divisor not in get_args(Divisor):
        raise InvalidInputError(f"divisor={divisor!r}: expected 'kept' or 'reduced'.")
    if divisor == "kept":
        return
    for step in run.steps:
        size = len(step.indices)
        if not np.all(np.asarray(step.divisor) == size):
            raise RunError(
                f"{by}: divisor='reduced' is for losses that are means over the batch; at step "
                f"{step.index} the risks of {size} instances were divided by {step.divisor}. "
                f"Use divisor='kept'."
            )
        if np.unique(step.indices).size == 1:
            raise RunError(
                f"{by}: divisor='reduced' takes the mean over the rest of a batch; at step "
                f"{step.index} instance {step.indices[0]} has the batch to itself. Use "
                f"divisor='kept'."
            )


def removal_scores(products: Tensor, step: Step, divisor: Divisor) -> Tensor:
    r"""Return what each row of a batch adds to its instance's influence, (k, batch).

    Parameters
    ----------
    products : Tensor of shape (k, batch)
        :math:`\langle \gamma_k, \nabla \ell_j \rangle`, the adjoint of the step's gradient with
        each row's.
    step : Step
    divisor : "kept" or "reduced"
        Without an instance, the gradient :math:`\sum_j \nabla\ell_j / d_j` loses its rows
        (``kept``), or is the mean over the others (``reduced``).
    """
    if divisor == "kept":
        return products * -_tensor(step.weights, products)
    others = len(step.indices) - _copies(step.indices)
    return (products - products.mean(1, keepdim=True)) / -_tensor(others, products)


def removal_weights(step: Step, positions: NDArray[np.int64], divisor: Divisor) -> Tensor:
    """Return the weights of the batch's gradients in the change that each removal makes.

    Parameters
    ----------
    step : Step
    positions : integer array of shape (k,)
        The instances that are left out, each alone.
    divisor : "kept" or "reduced"

    Returns
    -------
    Tensor of shape (k, batch)
        Float64.
    """
    rows = positions[:, None] == step.indices[None, :]
    if divisor == "kept":
        weights = -(rows * step.weights)
    else:
        size, copies = len(step.indices), rows.sum(1, keepdims=True)
        weights = -(rows - copies / size) / (size - copies)
    return torch.as_tensor(weights, dtype=torch.float64)


def _copies(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how often the instance of each row stands in the batch."""
    _, which, counts = np.unique(indices, return_inverse=True, return_counts=True)
    copies: NDArray[np.int64] = counts[which]
    return copies


def _tensor(values: NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)
