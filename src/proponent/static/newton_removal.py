r"""One Newton step to the minimum without one instance, through its few outputs.

Let the objective's Gauss-Newton matrix with weight decay and damping be A, and let instance i
have outputs ``z_i`` with Jacobian ``J_i``, a loss with slopes ``d_i`` and curvature ``D_i`` there,
so that its gradient is ``J_i^T d_i`` and its share of A is ``J_i^T D_i J_i / n``. Without it the
Newton step from the minimum is

.. math::
    \Delta_i = \frac{1}{n} \Big(A - \frac{1}{n} J_i^T D_i J_i\Big)^{-1} J_i^T d_i
             = \frac{1}{n} A^{-1} J_i^T e_i, \qquad
    e_i = \Big(I - D_i S_i\Big)^{-1} d_i, \quad S_i = \frac{1}{n} J_i A^{-1} J_i^T,

by Woodbury's identity, which also holds where ``D_i`` is singular. It is the influence function's
step with other slopes. The largest eigenvalue of ``D_i S_i`` is the instance's leverage; with one
output ``e_i = d_i / (1 - leverage)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.gradients.inverse import Inverse
from proponent.gradients.output_gradients import LossDerivatives


@dataclass(frozen=True)
class Removals:
    """What taking out each of k instances does.

    Attributes
    ----------
    slopes : Tensor of shape (k, m)
        ``e_i``: the slopes that take the place of the loss's own.
    leverages : Tensor of shape (k,)
        Below 1 where the others determine the parameters.
    shifts : Tensor of shape (k, m)
        ``J_i Delta_i``, how far the instance's own outputs move.
    distances : Tensor of shape (k,)
        ``n Delta_i^T A Delta_i``.
    """

    slopes: Tensor
    leverages: Tensor
    shifts: Tensor
    distances: Tensor


@dataclass(frozen=True)
class ConstantStep:
    """The part of ``n Delta_i`` that is the same for all: ``A^{-1}`` of a vector.

    Attributes
    ----------
    vector, solved : Tensor of shape (p,)
        The vector v and ``A^{-1} v``.
    """

    vector: Tensor
    solved: Tensor

    @classmethod
    def none(cls, like: Tensor) -> ConstantStep:
        """Return a step of zero, in the space of a vector."""
        return cls(torch.zeros_like(like), torch.zeros_like(like))


def removals(
    loss: LossDerivatives, jacobian: Tensor, inverse: Inverse, n: int, constant: ConstantStep
) -> Removals:
    """Return the Newton steps without each of k instances.

    With a constant v the step is that of the gradient ``J_i^T d_i + v``, and
    ``e_i = (I - D_i S_i)^{-1} (d_i + D_i J_i A^{-1} v / n)``.

    Parameters
    ----------
    loss : LossDerivatives
        Of the k instances.
    jacobian : Tensor of shape (k, m, p)
        Their ``J_i``.
    inverse : Inverse
        ``A^{-1}``.
    n : int
        The number of training instances.
    constant : ConstantStep
        v.
    """
    solved = inverse.solve(jacobian.flatten(0, 1)).vectors.view_as(jacobian)
    spread = jacobian @ solved.mT / n
    curvatures, slopes = loss.curvatures.to(spread), loss.slopes.to(spread)
    common = jacobian @ constant.solved / n
    system = torch.eye(spread.shape[-1]).to(spread) - curvatures @ spread
    right = slopes + _times(curvatures, common)
    # What is singular has leverage 1, which is for the caller to refuse.
    rescaled = torch.linalg.solve_ex(system, right)[0]
    moved = _times(spread, rescaled)
    squares = (rescaled * (moved + 2 * common)).sum(1)
    constants = constant.vector @ constant.solved / n
    return Removals(rescaled, _leverages(curvatures, spread), common + moved, squares + constants)


def _leverages(curvatures: Tensor, spread: Tensor) -> Tensor:
    """Return the largest eigenvalues of ``D_i S_i``, (k,), those of ``S_i^(1/2) D_i S_i^(1/2)``."""
    if spread.shape[-1] == 1:
        return (curvatures * spread).flatten()
    values, vectors = torch.linalg.eigh((spread + spread.mT) / 2)
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]  # negative ones are rounding
    eigenvalues: Tensor = torch.linalg.eigvalsh(root.mT @ curvatures @ root)
    return eigenvalues[:, -1]


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    products: Tensor = torch.linalg.vecdot(matrices, vectors[:, None, :])
    return products
