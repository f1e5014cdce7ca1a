"""What would reduce each of the gaps between an influence and retraining."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proponent.gradients.curvature import Hessian
from proponent.gradients.gauss_newton import GaussNewton

# Relative residual below which a gap is not the solver's.
SOLVED = 1e-3


def remedies(method: str, n: int, diagnostics: Mapping[str, Any]) -> dict[str, str]:
    """Return what to do about each gap.

    Parameters
    ----------
    method : str
        Name of the method.
    n : int
        Number of training instances.
    diagnostics : mapping
        Those of the estimate: its solver, curvature, damping and the gradient at the model.
    """
    return {
        "warm_start": (
            "Trained from scratch, the model ends elsewhere than trained on from here, which no "
            "influence of one model foresees. Average influences over models trained from several "
            "seeds."
        ),
        "proximity": (
            f"The damping ({_damping(diagnostics['damping'])}) holds the model nearer to its "
            f"parameters than retraining does. Lower it, as far as the solver converges and the "
            f"linearisation holds."
        ),
        "non_convergence": _of_non_convergence(n, diagnostics["relative_objective_gradient"]),
        "linearisation": (
            "Without one of these instances the model moves further than its derivatives hold. "
            "Raise the damping, correct for the leverage (RescaledIF), or take the PBRF itself or "
            "retraining for the instances that matter."
        ),
        "solver": _of_the_solver(method, diagnostics),
    }


def _of_non_convergence(n: int, relative_gradient: float) -> str:
    # Leaving an instance out adds 1/n of its gradient: less is no drift beside that.
    if relative_gradient * n < 1:
        return (
            "The model is stationary, so what is left is the curvature of the outputs in the "
            "parameters, which the Gauss-Newton matrix leaves out and retraining feels. Where the "
            "Hessian is positive definite take curvature='hessian'; else read the estimate as one "
            "of the proximal Bregman response."
        )
    return (
        f"The model is not where its training objective is stationary (the gradient there is "
        f"{relative_gradient:.2g} of an instance's), and would move without any removal. Train on, "
        f"or see that loss and weight_decay are those of the training; until then read the "
        f"estimate as one of the proximal Bregman response."
    )


def _of_the_solver(method: str, diagnostics: Mapping[str, Any]) -> str:
    solver, curvature = diagnostics["solver"], diagnostics["curvature"]
    if curvature == Hessian.name:
        return (
            "The estimate inverts the Hessian, and not the Gauss-Newton matrix. That may make up "
            "for the non-convergence gap: see that it comes nearer to proximal retraining."
        )
    if curvature != GaussNewton.name:
        return (
            f"The estimate inverts another matrix ({curvature}) than the Gauss-Newton matrix of "
            f"the whole model. Use curvature='ggn' with solver='cg' or 'explicit'."
        )
    if diagnostics["largest_residual"] < SOLVED:
        return (
            f"The solver ({solver}) reached the solution: this is what {method} adds to the linear "
            f"response, and may make up for the linearisation gap: see that it comes nearer to the "
            f"PBRF."
        )
    return (
        f"The solver ({solver}) stops short of the solution. Give it a smaller tolerance and more "
        f"steps, or use solver='cg' or 'explicit'."
    )


def _damping(damping: float | Mapping[str, float]) -> str:
    if not isinstance(damping, Mapping):
        return f"{damping:.2g}"
    return f"{min(damping.values()):.2g} to {max(damping.values()):.2g}, by layer"
