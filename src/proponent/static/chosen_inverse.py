"""Which curvature, damping and solver: from what a user asked for to a prepared inverse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import Curvature, Hessian, InstanceCurvature
from proponent.gradients.fisher import EmpiricalFisher, GradientCovariance, TrueFisher
from proponent.gradients.gauss_newton import GaussNewton, SplitRisk
from proponent.gradients.inverse import Inverse, SolvedInverse
from proponent.gradients.kfac.factors import KroneckerFactors
from proponent.gradients.neglected import neglected_shift
from proponent.gradients.products import Products
from proponent.gradients.solvers.arnoldi import Arnoldi
from proponent.gradients.solvers.choose import choose
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.gradients.solvers.explicit import Explicit
from proponent.gradients.solvers.gram_dual import GramDual
from proponent.gradients.solvers.lanczos import extreme_eigenvalues
from proponent.gradients.solvers.lissa import LiSSA
from proponent.gradients.solvers.solution import Solver
from proponent.gradients.space import ParameterSpace
from proponent.gradients.weight_decay import Penalised, WeightDecay, check_amount
from proponent.models.torch import TorchModel

CurvatureName = Literal["ggn", "hessian", "fisher", "empirical_fisher"]
SolverName = Literal["auto", "explicit", "cg", "ekfac", "kfac", "lissa", "arnoldi", "gram_dual"]
SolverChoice = str | Solver | KroneckerFactors
Damping = float | dict[str, float]

# What the methods' cards say that they need.
NEEDS = (
    "a trained torch module with its per-instance risk (pp.TorchModel), or a fitted scikit-learn "
    "linear, ridge or logistic regression"
)

# By name, with the seed of what they draw.
SOLVERS: Mapping[str, Callable[[int], Solver]] = {
    "explicit": lambda seed: Explicit(),
    "cg": lambda seed: ConjugateGradients(seed=seed),
    "lissa": lambda seed: LiSSA(seed=seed),
    "arnoldi": lambda seed: Arnoldi(seed=seed),
    "gram_dual": lambda seed: GramDual(),
}

# Damping where neither it nor a weight decay is given, relative to the largest eigenvalue.
RELATIVE_DAMPING = 1e-3
# Instances times parameters from which even a pass for each of some hundred steps is too much.
FACTORED = 10**10


@dataclass(frozen=True)
class Request:
    """What a user asked for.

    Attributes
    ----------
    solver, curvature, damping, weight_decay, seed, batch_size, products, progress
        As in :class:`~proponent.static.influence_functions.InfluenceFunctions`.
    dtype : torch.dtype, optional
        Precision of the gradients that will be met; None: that of the parameter space.
    every_instance : bool
        Whether there is a right-hand side for each training instance.
    """

    solver: SolverChoice = "auto"
    curvature: str | Curvature = "ggn"
    damping: float | Mapping[str, float] | None = None
    weight_decay: float | Mapping[str, float] = 0.0
    seed: int = 0
    batch_size: int | None = None
    products: Products = field(default_factory=Products)
    progress: bool | None = None
    dtype: torch.dtype | None = None
    every_instance: bool = False


@dataclass(frozen=True)
class ChosenInverse:
    """An inverse that is prepared, and how it came about.

    Attributes
    ----------
    fresh : callable
        Returns the :class:`Inverse`, which has not noticed anything yet.
    damping : float or dict
        What was added to the diagonal beside the weight decay; for Kronecker factors by layer.
    decay : WeightDecay
        The weight decay of each parameter.
    curvature : str
        What was inverted.
    why : str
        Why this solver.
    cheap : bool
        Whether a right-hand side costs no pass over the training set.
    operator : Curvature, optional
        C itself, without weight decay and damping; None for Kronecker factors.
    solver : Solver, optional
        Solves with other matrices as it does with this one; None for Kronecker factors.
    """

    fresh: Callable[[], Inverse]
    damping: Damping
    decay: WeightDecay
    curvature: str
    why: str
    cheap: bool
    operator: Curvature | None = None
    solver: Solver | None = None


def choose_inverse(model: TorchModel, train: Instances, request: Request) -> ChosenInverse:
    """Prepare ``(C + weight_decay + damping)^{-1}`` as asked.

    Raises
    ------
    InvalidInputError
        If a setting is unknown or two do not go together.
    SolveError
        If the curvature, damped, is not positive definite or too large for the solver.
    """
    space = ParameterSpace.of(model)
    decay = WeightDecay.of(request.weight_decay, space)
    solver: SolverChoice = request.solver
    why = "as given"
    if isinstance(solver, str) and solver not in get_args(SolverName):
        raise InvalidInputError(
            f"solver={solver!r}: expected one of {', '.join(get_args(SolverName))}, a solver, or "
            f"KroneckerFactors."
        )
    if solver == "auto" and _factored_is_due(request, space, len(train)):
        solver = "ekfac"
        why = (
            f"ekfac: {space.size:,} parameters and {len(train):,} instances are too many for "
            + ("a solve for every instance" if request.every_instance else "passes in every step")
            + "; it is approximate"
        )
    if isinstance(solver, KroneckerFactors) or solver in ("ekfac", "kfac"):
        return _factored(model, train, request, decay, solver, why)
    curvature = _curvature(model, train, request)
    damping = _damping(curvature, decay, request.damping, _curvature_settings(request))
    operator, everywhere = curvature, decay.everywhere
    if everywhere is None:
        curvature, everywhere = Penalised(curvature, decay), 0.0
    shift = everywhere + damping
    if solver == "auto":
        right = len(train) if request.every_instance else None
        memory = request.products.memory
        chosen = choose(curvature, shift, right_hand_sides=right, memory=memory)
        made, why = chosen.solver, chosen.reason
    else:
        made = SOLVERS[solver](request.seed) if isinstance(solver, str) else solver
    prepared, dtype = made.prepare(curvature, shift), request.dtype or space.dtype
    return ChosenInverse(
        fresh=lambda: SolvedInverse(prepared, space, request.products, dtype),
        damping=damping,
        decay=decay,
        curvature=curvature.name,
        why=why,
        cheap=isinstance(made, (Explicit, Arnoldi, GramDual)),
        operator=operator,
        solver=made,
    )


def _factored_is_due(request: Request, space: ParameterSpace, n: int) -> bool:
    """Whether EK-FAC is to be preferred; only of a Gauss-Newton or Fisher matrix can it be."""
    if request.curvature not in ("ggn", "fisher"):
        return False
    if request.every_instance:
        return 3 * space.size**2 * torch.finfo(space.dtype).bits // 8 > request.products.memory
    return n * space.size > FACTORED


def _factored(
    model: TorchModel,
    train: Instances,
    request: Request,
    decay: WeightDecay,
    solver: str | KroneckerFactors | Solver,
    why: str,
) -> ChosenInverse:
    if isinstance(solver, KroneckerFactors):
        factors = solver
        if factors.space != ParameterSpace.of(model):
            raise InvalidInputError(
                "solver: these Kronecker factors are of other parameters than those chosen "
                f"({', '.join(ParameterSpace.of(model).names)}); fit them to this model."
            )
    else:
        if request.curvature not in ("ggn", "fisher", "empirical_fisher"):
            raise InvalidInputError(
                f"curvature={request.curvature!r}: solver={solver!r} factorises Gauss-Newton and "
                f"Fisher matrices ('ggn', 'fisher', 'empirical_fisher'); use solver='cg'."
            )
        factors = KroneckerFactors.fit(
            model,
            train,
            method="kfac" if solver == "kfac" else "ekfac",
            labels="observed" if request.curvature == "empirical_fisher" else None,
            seed=request.seed,
            batch_size=request.batch_size,
            memory=request.products.memory,
            progress=request.progress,
        )
    damping = _layer_damping(factors, request.damping)
    layers = {block.layer.name: block.layer.parameters for block in factors.blocks}
    shifts = {name: amount + decay.of_layer(name, layers[name]) for name, amount in damping.items()}
    prepared = factors.prepare(shifts, dtype=request.dtype)
    return ChosenInverse(
        fresh=lambda: prepared,
        damping=damping,
        decay=decay,
        curvature=factors.method,
        why=why,
        cheap=True,
    )


def _layer_damping(
    factors: KroneckerFactors, damping: float | Mapping[str, float] | None
) -> dict[str, float]:
    if damping is None:
        return factors.default_damping()
    if isinstance(damping, Mapping):
        return {name: check_amount("damping", value) for name, value in damping.items()}
    amount = check_amount("damping", damping)
    return {block.layer.name: amount for block in factors.blocks}


def _curvature(model: TorchModel, train: Instances, request: Request) -> Curvature:
    if isinstance(request.curvature, Curvature):
        return request.curvature
    settings = _curvature_settings(request)
    if request.curvature == "ggn":
        return GaussNewton(model, train, **settings)
    if request.curvature == "hessian":
        return Hessian(model, train, **settings)
    if request.curvature == "fisher":
        return TrueFisher(model, train, seed=request.seed, **settings)
    if request.curvature == "empirical_fisher":
        return EmpiricalFisher(model, train, **settings)
    raise InvalidInputError(
        f"curvature={request.curvature!r}: expected a Curvature or one of "
        f"{', '.join(get_args(CurvatureName))}."
    )


def _curvature_settings(request: Request) -> dict[str, Any]:
    settings: dict[str, Any] = {"memory": request.products.memory, "progress": request.progress}
    return (
        settings if request.batch_size is None else {**settings, "batch_size": request.batch_size}
    )


def _damping(
    curvature: Curvature,
    decay: WeightDecay,
    damping: float | Mapping[str, float] | None,
    settings: Mapping[str, Any],
) -> float:
    if isinstance(damping, Mapping):
        raise InvalidInputError(
            "damping: one number a layer is for Kronecker factors (solver='ekfac' or 'kfac'); give "
            "one number, or None."
        )
    if damping is not None:
        return check_amount("damping", damping)
    needed = 0.0
    if isinstance(curvature, (InstanceCurvature, GradientCovariance)):
        model, instances = curvature.model, curvature.instances
        if isinstance(model.risk, SplitRisk):
            needed = neglected_shift(model, instances, **settings)
    if not decay.is_zero:
        return max(0.0, needed - min(decay.each.values()))
    space = curvature.space
    like = torch.empty(space.size, dtype=space.dtype, device=space.device)
    _, largest = extreme_eigenvalues(curvature.matvec, like)
    return max(needed, RELATIVE_DAMPING * max(float(largest), 0.0))
