"""What the methods share that multiply gradients with an inverse curvature.

With ``A = C + weight_decay + damping`` each is built from

    I(z_i, z_te) = (1/n) g_te^T A^{-1} g_i,    g = grad of the risk at the trained parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent._results.checks import as_count
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import Curvature
from proponent.gradients.inverse import Inverse, SolvedSet
from proponent.gradients.method import MEMORY, GradientMethod
from proponent.gradients.path import Batch, PathPoint, TestSet, batches
from proponent.gradients.products import (
    Gradients,
    Products,
    Query,
    Way,
)
from proponent.gradients.solved_tests import DecayTerm, TestSolver
from proponent.gradients.space import ParameterSpace
from proponent.gradients.stationarity import ObjectiveGradient
from proponent.influence import Influence
from proponent.models.sklearn_linear import LinearStudy, is_linear_estimator, linear_study
from proponent.models.torch import ParameterChoice, TorchModel
from proponent.static.chosen_inverse import Request, SolverChoice, choose_inverse

if TYPE_CHECKING:
    from typing_extensions import Self

Convention = Literal["fixed_divisor", "renormalised"]


class CurvatureMethod(GradientMethod):
    """Base of the methods that multiply gradients with an inverse curvature.

    Parameters
    ----------
    solver, curvature, damping, weight_decay, loo_convention, query_rank, seed
        As in :class:`~proponent.static.influence_functions.InfluenceFunctions`.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientMethod`.
    """

    # Whether there is a right-hand side for every training instance.
    every_instance: ClassVar[bool] = False

    def __init__(
        self,
        solver: SolverChoice = "auto",
        *,
        curvature: str | Curvature = "ggn",
        damping: float | Mapping[str, float] | None = None,
        weight_decay: float | Mapping[str, float] = 0.0,
        loo_convention: Convention = "fixed_divisor",
        query_rank: int | None = None,
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
        self.query_rank = query_rank
        self.seed = seed

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a trained model and its training set, and prepare the solver.

        Parameters
        ----------
        model : TorchModel or scikit-learn linear model
            The module, its risk and the chosen parameters; or a fitted linear, ridge or logistic
            regression, or a pipeline that ends in one (see
            :func:`~proponent.models.sklearn_linear.linear_study`). Its risk and its penalty,
            and so the weight decay, are then those that scikit-learn minimised.
        train : (X, y), dict, Dataset or Instances
            The training set; for scikit-learn as it was given to its ``fit``.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model or a setting cannot be used.
        SolveError
            If the curvature, damped, is not positive definite or too large for the solver.
        """
        self._check_settings()
        study = None
        if is_linear_estimator(model):
            study = self._linear_study(model, train, ids)
            model, train, ids = study.model, study.train, None
        if not isinstance(model, TorchModel):
            raise self._wrong_kind(model)
        self._prepare(model, train, ids)
        self._study: LinearStudy | None = study
        self._space = ParameterSpace.of(self.model_)
        self._chosen = choose_inverse(self.model_, self.train_, self._request())
        self.damping_ = self._chosen.damping
        self._decayed = self._chosen.decay.diagonal(self._space) * self._theta()
        self._gradient = self._objective_gradient()
        self._decay_term = DecayTerm(None, self._products)
        if self.loo_convention == "renormalised":
            self._solve_decay()
        return self

    def _solve_decay(self) -> None:
        """Solve for the weight decay, which every training gradient contains."""
        self._solved_decay = self._chosen.fresh().solve(self._decayed[None]).vectors
        self._decay_term = DecayTerm(self._held(self._solved_decay), self._products)

    def _linear_study(self, model: Any, train: Any, ids: Any) -> LinearStudy:
        if self.weight_decay != 0.0:
            raise InvalidInputError(
                f"weight_decay={self.weight_decay!r}: the penalty of a scikit-learn model is read "
                f"from it; leave weight_decay out."
            )
        return linear_study(model, train, ids=ids)

    def _check_settings(self) -> None:
        if self.query_rank is not None:
            as_count(self.query_rank, "query_rank")
        if self.loo_convention not in get_args(Convention):
            raise InvalidInputError(
                f"loo_convention={self.loo_convention!r}: expected one of "
                f"{', '.join(get_args(Convention))}."
            )

    def _request(self) -> Request:
        """Return what the settings ask for."""
        return Request(
            solver=self.solver,
            curvature=self.curvature,
            damping=self._wanted_damping(),
            weight_decay=self._weight_decay(),
            seed=self.seed,
            batch_size=self.batch_size,
            products=Products(self.products, self.memory),
            progress=self.progress,
            dtype=self._capture.dtype,
            every_instance=self.every_instance,
        )

    def _weight_decay(self) -> float | Mapping[str, float]:
        if self._study is None:
            return self.weight_decay
        return {name: self._study.weight_decay[name] for name in self.model_.selected}

    def _wanted_damping(self) -> float | Mapping[str, float] | None:
        # What scikit-learn minimised is known exactly: nothing has to stand in for it.
        return 0.0 if self.damping is None and self._study is not None else self.damping

    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        return (PathPoint("the model", 1.0 / len(self.train_), nullcontext),)

    # Test instances

    @override
    def _query(self, instances: Instances) -> SolvedSet:
        return self._solved_set(instances, joint=False)

    @override
    def _joint_query(self, instances: Instances) -> SolvedSet:
        return self._solved_set(instances, joint=True)

    def _solved_set(self, instances: Instances, *, joint: bool) -> SolvedSet:
        if self._study is not None:
            instances = self._study.encode(instances)
        return SolvedSet(instances, joint, self._points(instances), self._chosen.fresh(), [])

    @override
    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        parts = [super(CurvatureMethod, self)._scores(part, rows) for part in self._parts(query)]
        return np.concatenate(parts)

    def _parts(self, query: TestSet) -> list[SolvedSet]:
        """Cut the test set into blocks whose solutions fit the memory."""
        query = cast(SolvedSet, query)
        n, size = len(query.instances), self._solved_at_once
        if query.joint or n <= size:
            return [query]
        instances = query.instances
        parts = [instances.select(slice(start, start + size)) for start in range(0, n, size)]
        return [SolvedSet(part, False, query.points, query.inverse, []) for part in parts]

    @property
    def _solved_at_once(self) -> int:
        """Test instances whose gradients and solutions fit the memory; compressed, all do."""
        return self._fitting if self.query_rank is None else sys.maxsize

    @property
    def _fitting(self) -> int:
        return max(1, self.memory // (16 * self._space.size))

    @override
    def _test_side(self, query: TestSet, point: PathPoint) -> tuple[Query, Tensor | None]:
        query = cast(SolvedSet, query)
        if not query.kept:  # solved once, however many blocks of training instances follow
            query.kept.append(self._solved(query))
        return query.kept[0], None

    def _solved(self, query: SolvedSet) -> Query:
        """Return ``A^{-1} g_te`` of a test set, or of the sum of its gradients."""
        solver = TestSolver(
            query.inverse, self._space, self._products, self._capture.dtype, self._decay_term
        )
        rank = None if query.joint else self.query_rank
        size = self._batch_size if rank is None else min(self._batch_size, self._fitting)
        captured = self._captured(query.instances, batches(len(query.instances), size))
        parts = ((self._as_test(forms, len(batch)), len(batch)) for batch, forms in captured)
        if query.joint:
            return solver.summed(parts)
        return solver.whole(parts) if rank is None else solver.of_rank(parts, rank, self.seed)

    def _as_test(self, gradients: Gradients, n: int) -> Gradients:
        """Return what of n captured test gradients is multiplied with the inverse."""
        return gradients

    @override
    def _block_rows(self, n_test: int) -> int:
        rows = super()._block_rows(n_test)
        # Each block of training instances has the parts of the test set solved again.
        return rows if n_test <= self._solved_at_once else max(rows, self.memory // (8 * n_test))

    # Training instances

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        inverse, weight = self._chosen.fresh(), 1.0 / len(self.train_)

        def inner(forms: Gradients, n: int) -> Tensor:
            return (inverse.self_inner(forms, n) + self._decay_term(forms, n)) * weight

        return self._each(rows, inner, inverse)

    def _each(
        self, rows: range, measure: Callable[[Gradients, int], Tensor], inverse: Inverse
    ) -> NDArray[np.floating[Any]]:
        """Return ``measure(gradients, n)``, (n,), of each of the training instances at ``rows``."""
        scores = torch.zeros(len(rows), dtype=self._capture.dtype)
        point = self._points(self.train_)[0]
        with self.model_.evaluating():
            for batch, captured in self._captured(self.train_, self._cut(rows)):
                found = measure(captured, len(batch))
                if not torch.isfinite(found.sum()):
                    self._refuse_gradients(captured, batch, point)
                batch.add(found.cpu(), 1.0, scores, rows.start)
        self._noticed = inverse.diagnostics()
        return scores.numpy()

    def cooks_distance(self) -> Influence:
        r"""Return how far leaving each training instance out moves the parameters.

        The change is ``theta - theta_{-i} = -(1/n) A^{-1} g_i`` (eq. (5), to first order), and
        Cook's distance its size in the metric of the curvature, by parameter,

            D_i = (n / p) (theta - theta_{-i})^T A (theta - theta_{-i}) = g_i^T A^{-1} g_i / (n p).

        For least squares with the risk ``(y - f)^2 / 2`` this is Cook's classical distance times
        the residual variance ``s^2``, to first order in the leverage.

        Returns
        -------
        Influence
            ``(n_train,)``, at least 0, in units of the risk.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.
        NonFiniteError
            If a gradient is not finite.

        Notes
        -----
        **Source**: Cook (1977); survey eq. (5).
        """
        rows, inverse = self._rows(None), self._chosen.fresh()
        scale = 1.0 / (len(self.train_) * self._space.size)
        values = self._each(rows, lambda forms, n: inverse.self_inner(forms, n) * scale, inverse)
        self._check_finite(values, rows, None)
        return self._answer(values, rows, None, None, self._diagnostics(None))

    def parameter_changes(self, instances: Any = None) -> dict[str, NDArray[np.floating[Any]]]:
        """Return the change of the parameters that training instances make, eq. (5).

        Parameters
        ----------
        instances : integer array of shape (k,), optional
            Positions in the training set; None: all of them.

        Returns
        -------
        dict
            For each chosen parameter ``theta - theta_{-i}``, ``(k, *shape)``: what the model
            would lose without the instance, to first order.

        Raises
        ------
        InvalidInputError
            If a position is outside the training set.
        """
        positions, n = self._positions(instances), len(self.train_)
        chosen, inverse = self.train_.select(positions), self._chosen.fresh()
        changes = []
        with self.model_.evaluating():
            cut = batches(len(positions), self._batch_size)
            for batch, forms in self._captured(chosen, cut):
                gradients = self._space.gradients(forms, len(batch))
                if self.loo_convention == "renormalised":
                    gradients = gradients + self._decayed
                changes.append(inverse.solve(gradients).vectors / -n)
        parts = self._space.unflatten(torch.cat(changes))
        return {name: part.cpu().numpy() for name, part in parts.items()}

    def _positions(self, instances: Any) -> NDArray[np.int64]:
        """Return positions in the training set that a user gave; None: all of them."""
        n = self._rows(None).stop
        positions = np.arange(n) if instances is None else np.asarray(instances)
        if positions.ndim != 1 or positions.dtype.kind not in "iu":
            raise InvalidInputError("instances: expected a list of integer positions.")
        if positions.size and not (positions.min() >= 0 and positions.max() < n):
            raise InvalidInputError(f"instances: positions must be in 0 .. {n - 1}.")
        return positions.astype(np.int64)

    def _cut(self, rows: range) -> list[Batch]:
        return batches(len(rows), self._batch_size, rows.start)

    # The parameters

    def _theta(self) -> Tensor:
        parameters = self.model_.selected.items()
        return self._space.flatten({name: value.detach()[None] for name, value in parameters})[0]

    def _held(self, vectors: Tensor) -> dict[str, Tensor]:
        """Cut vectors (k, p) into parameters, in the precision of the gradients."""
        return self._space.unflatten(vectors, self._capture.dtype)

    def _objective_gradient(self) -> ObjectiveGradient:
        return ObjectiveGradient.measure(
            self._capture, self.train_, self._space, self._decayed, self._batch_size
        )

    # What was noticed

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        solved = query.inverse.diagnostics() if isinstance(query, SolvedSet) else self._noticed
        warnings = [*noticed.get("warnings", []), *solved.get("warnings", [])]
        warnings += self._gradient.warnings()
        if isinstance(query, SolvedSet) and query.compression_errors:
            noticed["query_rank"] = self.query_rank
            noticed["query_errors"] = query.compression_errors
        if self._study is not None:
            noticed["notes"] = list(self._study.notes)
            warnings += self._study.warnings
        return {
            **noticed,
            "solver": self._chosen.curvature,
            **solved,
            "curvature": self._chosen.curvature,
            "damping": self.damping_,
            "weight_decay": self._chosen.decay.setting,
            "why_solver": self._chosen.why,
            **self._gradient.diagnostics(),
            "warnings": warnings,
        }
