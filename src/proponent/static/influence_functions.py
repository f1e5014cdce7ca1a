"""Influence functions: the leave-one-out change of the test risk to first order (5.1.1)."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import Curvature, Hessian
from proponent.gradients.fisher import EmpiricalFisher, TrueFisher
from proponent.gradients.gauss_newton import GaussNewton
from proponent.gradients.method import MEMORY, GradientMethod
from proponent.gradients.path import PathPoint, TestSet, batches
from proponent.gradients.products import Gradients, Query, VectorQuery, Way
from proponent.gradients.solvers.conjugate_gradients import ConjugateGradients
from proponent.gradients.solvers.explicit import Explicit
from proponent.gradients.solvers.lanczos import extreme_eigenvalues
from proponent.gradients.solvers.solution import Prepared, Solution, Solver
from proponent.gradients.space import ParameterSpace
from proponent.models.torch import ParameterChoice, TorchModel

if TYPE_CHECKING:
    from typing_extensions import Self

CurvatureName = Literal["ggn", "hessian", "fisher", "empirical_fisher"]
Convention = Literal["fixed_divisor", "renormalised"]

# Damping where neither it nor a weight decay is given, relative to the largest eigenvalue.
RELATIVE_DAMPING = 1e-3
# Up to this many parameters the matrix is written out: it fits in 128 MB of float32.
EXPLICIT_PARAMETERS = 4000


class _ShiftedQuery(Query):
    """A query whose products with every training instance are shifted by a constant.

    Parameters
    ----------
    query : Query
        The query.
    constants : Tensor of shape (m,), optional
        What is added to the products with each of its vectors.
    """

    def __init__(self, query: Query, constants: Tensor | None) -> None:
        self._query = query
        self._constants = constants

    @override
    def __len__(self) -> int:
        return len(self._query)

    @override
    def meet(
        self, train: Gradients, n: int, *, norms: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        products, squares = self._query.meet(train, n, norms=norms)
        return products if self._constants is None else products + self._constants, squares


class InfluenceFunctions(GradientMethod):
    r"""First-order estimate of what leaving an instance out does to the test risk.

    ``I(z_i, z_te) = (1/n) g_te^T (C + (weight_decay + damping) 1)^{-1} g_i``, gradients of the
    risk at the trained parameters, with C the curvature of the mean training risk. Up to first
    order in 1/n this is ``L(z_te; theta without z_i) - L(z_te; theta)``.

    **Source** Koh and Liang, ICML 2017; survey eqs. (27)-(34). Generalised Gauss-Newton instead
    of the Hessian: Bae et al., NeurIPS 2022, whose proximal Bregman response it then estimates
    also where training has not converged.

    **Differs from the paper in** the default curvature, and in how the two meanings of leaving
    an instance out are kept apart (``loo_convention``). Weight decay belongs to the curvature:
    without it the estimate is far off. The gradient of the test risk never contains it.

    Scores are ``(n_test, n_train)`` in units of the risk, leave-one-out differences; positive
    means that the training instance lowers the test risk.

    **Cost** Upfront that of the solver; for a test instance one solve, and for each training
    instance a forward-backward pass, less the weight gradients, and the products.

    Parameters
    ----------
    solver : "auto", "explicit", "cg", or a solver
        How ``(C + shift 1) x = g`` is solved. ``auto`` writes the matrix out up to some thousand
        parameters and takes conjugate gradients beyond.
    curvature : "ggn", "hessian", "fisher" or "empirical_fisher", or a Curvature
        C. The generalised Gauss-Newton matrix needs a loss of outputs and targets; for a risk
        that is a callable of module and batch take ``"hessian"``.
    damping : float, optional
        Added to the diagonal, in units of the mean risk's Hessian. None: 0 where there is weight
        decay, else a thousandth of the largest eigenvalue. It is reported.
    weight_decay : float
        The training objective is ``mean risk + (weight_decay / 2) ||theta||^2``, as torch's SGD
        has it.
    loo_convention : "fixed_divisor" or "renormalised"
        ``fixed_divisor``: the instance's term is removed and the others keep the weight 1/n
        (survey eq. (28)). ``renormalised``: the model is trained on the others with the mean
        over n - 1 and the same weight decay; the training gradient then contains
        ``weight_decay * theta``.
    seed : int
        Fixes the labels that ``"fisher"`` draws.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> pp.InfluenceFunctions(weight_decay=0.01).fit(model, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="InfluenceFunctions",
        survey_name="IF",
        title="Influence Functions",
        aliases=("infinitesimal jackknife",),
        family="static",
        section="5.1.1",
        equations="27-34",
        paper="Koh and Liang, ICML 2017",
        needs="a trained torch module with its per-instance risk (pp.TorchModel)",
        full_complexity="O(np)",
        incremental_complexity="O(np)",
        space_complexity="O(n + p)",
        storage_complexity="0",
        assumes=("differentiable", "convex", "stationary"),
        estimates_loo=True,
        group=True,
        generative=True,
        original_sign="the same: the predicted change of the test loss on removal",
    )

    def __init__(
        self,
        solver: str | Solver = "auto",
        *,
        curvature: str | Curvature = "ggn",
        damping: float | None = None,
        weight_decay: float = 0.0,
        loo_convention: Convention = "fixed_divisor",
        seed: int = 0,
        parameters: ParameterChoice | None = None,
        batch_size: int | None = None,
        products: Way = "auto",
        memory: int = MEMORY,
        dtype: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            parameters=parameters,
            batch_size=batch_size,
            products=products,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
        self.solver = solver
        self.curvature = curvature
        self.damping = damping
        self.weight_decay = weight_decay
        self.loo_convention = loo_convention
        self.seed = seed

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a trained model and its training set, and prepare the solver.

        Parameters
        ----------
        model : TorchModel
            The module, its risk and the chosen parameters.
        train : (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model or a setting cannot be used.
        SolveError
            If the curvature, damped, is not positive definite or too large for the solver.
        """
        if not isinstance(model, TorchModel):
            raise self._wrong_kind(model)
        for name in ("weight_decay", "damping"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InvalidInputError(
                    f"{name} must be a finite number of at least 0; got {value}."
                )
        if self.loo_convention not in get_args(Convention):
            raise InvalidInputError(
                f"loo_convention={self.loo_convention!r}: expected one of "
                f"{', '.join(get_args(Convention))}."
            )
        self._prepare(model, train, ids)
        self._space = ParameterSpace.of(self.model_)
        self._curvature = self._chosen_curvature()
        self.damping_ = self._chosen_damping()
        solver, self._why = self._chosen_solver()
        self._prepared: Prepared = solver.prepare(
            self._curvature, self.weight_decay + self.damping_
        )
        self._gradient_norm = self._objective_gradient_norm()
        return self

    def _chosen_curvature(self) -> Curvature:
        if isinstance(self.curvature, Curvature):
            return self.curvature
        settings: dict[str, Any] = {"batch_size": self._batch_size, "progress": self.progress}
        model, train = self.model_, self.train_
        if self.curvature == "ggn":
            return GaussNewton(model, train, **settings)
        if self.curvature == "hessian":
            return Hessian(model, train, **settings)
        if self.curvature == "fisher":
            return TrueFisher(model, train, seed=self.seed, **settings)
        if self.curvature == "empirical_fisher":
            return EmpiricalFisher(model, train, **settings)
        raise InvalidInputError(
            f"curvature={self.curvature!r}: expected a Curvature or one of "
            f"{', '.join(get_args(CurvatureName))}."
        )

    def _chosen_damping(self) -> float:
        if self.damping is not None:
            return float(self.damping)
        if self.weight_decay > 0:
            return 0.0
        like = torch.empty(self._space.size, dtype=self._space.dtype, device=self._space.device)
        _, largest = extreme_eigenvalues(self._curvature.matvec, like)
        return RELATIVE_DAMPING * max(float(largest), 0.0)

    def _chosen_solver(self) -> tuple[Solver, str]:
        if not isinstance(self.solver, str):
            return self.solver, "as given"
        if self.solver == "explicit":
            return Explicit(), "as given"
        if self.solver == "cg":
            return ConjugateGradients(), "as given"
        if self.solver == "auto":
            p = self._space.size
            if p <= EXPLICIT_PARAMETERS:
                return Explicit(), f"explicit: {p:,} parameters are few enough to write C out"
            return ConjugateGradients(), f"cg: {p:,} parameters are too many to write C out"
        raise InvalidInputError(
            f"solver={self.solver!r}: expected 'auto', 'explicit', 'cg' or a solver."
        )

    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        return (PathPoint("the model", 1.0 / len(self.train_), nullcontext),)

    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        # One solution takes as much memory as the model: the test set is cut accordingly.
        size = max(1, self.memory // (8 * self._space.size))
        if query.joint or len(query.instances) <= size:
            return super()._scores(query, rows)
        parts = []
        for start in range(0, len(query.instances), size):
            instances = query.instances.select(slice(start, start + size))
            parts.append(super()._scores(TestSet(instances, False, query.points), rows))
        return np.concatenate(parts)

    def _test_side(self, query: TestSet, point: PathPoint) -> tuple[Query, None]:
        gradients = self._gradients(query.instances)
        solved = self._solve(gradients.sum(0, keepdim=True) if query.joint else gradients)
        vectors = self._space.unflatten(solved.to(self._capture.dtype))
        constant = None
        if self.loo_convention == "renormalised":
            constant = self.weight_decay * solved @ self._theta()
        return _ShiftedQuery(VectorQuery(vectors, self._products), constant), None

    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        scores = torch.zeros(len(rows), dtype=self._capture.dtype)
        point = self._points(self.train_)[0]
        size = max(1, min(self._batch_size, self.memory // (8 * self._space.size)))
        with self.model_.evaluating():
            cut = batches(len(rows), size, rows.start)
            for batch, captured in self._captured(self.train_, cut):
                gradients = self._space.gradients(captured, len(batch))
                others = gradients
                if self.loo_convention == "renormalised":
                    others = gradients + self.weight_decay * self._theta()
                products = (self._solve(gradients) * others).sum(1)
                batch.add(products.cpu(), point.weight, scores, rows.start)
        return scores.numpy()

    def _gradients(self, instances: Instances) -> Tensor:
        """Return the gradients of a set at the model, ``(n, p)``."""
        cut = batches(len(instances), self._batch_size)
        captured = self._captured(instances, cut)
        return torch.cat([self._space.gradients(forms, len(batch)) for batch, forms in captured])

    def _solve(self, right: Tensor) -> Tensor:
        self._solution: Solution = self._prepared.solve(right)
        return self._solution.vectors

    def _theta(self) -> Tensor:
        parameters = self.model_.selected.items()
        return self._space.flatten({name: value.detach()[None] for name, value in parameters})[0]

    def _objective_gradient_norm(self) -> float:
        """Return the norm of the training objective's gradient: 0 at a stationary point."""
        total = torch.zeros(self._space.size, dtype=self._space.dtype, device=self._space.device)
        with self.model_.evaluating():
            cut = batches(len(self.train_), self._batch_size)
            for batch, captured in self._captured(self.train_, cut):
                ones = torch.ones(1, len(batch), dtype=self._capture.dtype, device=total.device)
                sums = {name: form.weighted_sum(ones) for name, form in captured.items()}
                total += self._space.flatten(sums)[0] if sums else 0
        mean = total / len(self.train_) + self.weight_decay * self._theta()
        return float(mean.norm())

    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        solved = self._solution.diagnostics()
        return {
            **noticed,
            **solved,
            "curvature": self._curvature.name,
            "damping": self.damping_,
            "weight_decay": self.weight_decay,
            "why_solver": self._why,
            "objective_gradient_norm": self._gradient_norm,
            "warnings": [*noticed.get("warnings", []), *solved["warnings"]],
        }
