"""Rescaled influence functions: leave-one-out by one Newton step, beyond the survey."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.inverse import ShiftedQuery, SolvedSet
from proponent.gradients.method import MEMORY
from proponent.gradients.output_gradients import LossDerivatives, OutputGradients
from proponent.gradients.path import Batch, PathPoint, TestSet, batches
from proponent.gradients.products import Gradients, Query, VectorQuery, Way
from proponent.gradients.solvers.solution import refuse_memory
from proponent.gradients.weight_decay import WeightDecay
from proponent.influence import Influence
from proponent.models.torch import ParameterChoice
from proponent.static.chosen_inverse import Request, SolverChoice
from proponent.static.curvature_method import Convention, CurvatureMethod
from proponent.static.newton_removal import ConstantStep, removals

if TYPE_CHECKING:
    from typing_extensions import Self

TestRisk = Literal["linear", "evaluated"]

NAMED = 10  # instances that a message names


class RescaledIF(CurvatureMethod):
    r"""Influence functions with each instance's leverage put right: near-exact leave-one-out.

    An influence function keeps the curvature as it is while an instance is taken out; here the
    instance takes its own curvature with it. With outputs z of Jacobian J, and a loss of slopes d
    and curvature D there, the parameters move by one Newton step,

        Delta_i = (1/n) A^{-1} J_i^T (I - D_i S_i)^{-1} d_i,    S_i = J_i A^{-1} J_i^T / n
        I(z_i, z_te) = g_te^T Delta_i

    with ``A = C + weight_decay + damping``, C the generalised Gauss-Newton matrix. For one output
    this is the influence function over ``1 - leverage_i``. Where outputs are linear in the
    parameters (linear models, the last layer) it is a full Newton step, and for squared error
    exact: the parameters move as they do in retraining.

    **Source** Rubinstein and Hopkins, NeurIPS 2025; for regression Cook (1977), for generalised
    linear models Pregibon (1981), as approximate cross-validation Rad and Maleki (2020).

    **Differs from the paper in** the C x C system of models with several outputs, in serving both
    meanings of leaving an instance out, and in ``test_risk="evaluated"``.

    Scores are ``(n_test, n_train)`` in units of the risk, leave-one-out differences; positive
    means that the training instance lowers the test risk. Those of a group add up, as an
    estimate, where ``test_risk="linear"``.

    **Cost** As influence functions, and in ``fit`` m backward passes and m solves for every
    training instance, m the outputs of an instance.

    Parameters
    ----------
    test_risk : "linear" or "evaluated"
        ``linear``: the test risk changes by its gradient times the step. ``evaluated``: it is
        evaluated at the test outputs moved by ``J_te Delta_i``: for outputs linear in the
        parameters nothing but the Newton step is then approximate. It takes m solves for a test
        instance, and neither groups nor test instances can be added up beforehand.
    solver, damping, weight_decay, seed
        As in :class:`InfluenceFunctions`.
    loo_convention : "fixed_divisor" or "renormalised"
        As in :class:`InfluenceFunctions`; the Newton step is that of the chosen objective,
        ``(1/n) sum_{j != i} risk_j`` or ``(1/(n-1)) sum_{j != i} risk_j`` plus weight decay.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Attributes
    ----------
    leverages_ : array of shape (n,)
        How much of its own fit each training instance determines: at least 0, below 1.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> pp.RescaledIF(weight_decay=0.01).fit(model, train).influence(train).shape
    (10, 10)
    """

    every_instance = True
    card: ClassVar[MethodCard] = MethodCard(
        name="RescaledIF",
        title="Rescaled Influence Functions",
        aliases=("RIF", "approximate leave-one-out", "one-step Newton"),
        family="static",
        paper="Rubinstein and Hopkins, NeurIPS 2025",
        needs="a trained torch module with a loss of its outputs (pp.TorchModel)",
        full_complexity="O(np^2 + p^3), or m solves an instance, m outputs",
        incremental_complexity="O(np)",
        space_complexity="O(n + p^2)",
        storage_complexity="O(nm)",
        assumes=("differentiable", "convex", "stationary"),
        estimates_loo=True,
        group=True,
        original_sign="the same: the predicted change of a test function on removal",
    )

    def __init__(
        self,
        test_risk: TestRisk = "linear",
        *,
        solver: SolverChoice = "auto",
        damping: float | Mapping[str, float] | None = None,
        weight_decay: float | Mapping[str, float] = 0.0,
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
            solver,
            damping=damping,
            weight_decay=weight_decay,
            loo_convention=loo_convention,
            seed=seed,
            parameters=parameters,
            batch_size=batch_size,
            products=products,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
        self.test_risk = test_risk

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a trained model and its training set, and take each instance out.

        Parameters
        ----------
        model, train, ids
            As in :meth:`InfluenceFunctions.fit`.

        Raises
        ------
        InvalidInputError
            If the model or a setting cannot be used, or the outputs cannot be told from the loss.
        SolveError
            If the curvature is singular, or would be without some instance.
        """
        super().fit(model, train, ids=ids)
        if self.loo_convention == "renormalised":
            # The inverse has (n - 1)/n of the weight decay; the objective and its gradient all.
            decay = WeightDecay.of(self._weight_decay(), self._space)
            self._chosen = replace(self._chosen, decay=decay)
            self._decayed = decay.diagonal(self._space) * self._theta()
            self._gradient = self._objective_gradient()
            self._solve_decay()
        self._outputs = OutputGradients(self.model_, self.train_, self._capture.dtype)
        self._remove_each()
        return self

    @override
    def _check_settings(self) -> None:
        super()._check_settings()
        if self.test_risk not in get_args(TestRisk):
            raise InvalidInputError(
                f"test_risk={self.test_risk!r}: expected one of {', '.join(get_args(TestRisk))}."
            )

    @override
    def _request(self) -> Request:
        request, n = super()._request(), len(self.train_)
        if self.loo_convention == "fixed_divisor":
            return request
        if n < 2:
            raise InvalidInputError("train: without its only instance no mean is left.")
        # The others' mean, times (n - 1)/n: C without the instance, and as much of the decay.
        decay = WeightDecay.of(request.weight_decay, self._space)
        scaled = {name: amount * (n - 1) / n for name, amount in decay.each.items()}
        return replace(request, weight_decay=scaled)

    @override
    def _is_additive(self) -> bool:
        return self.test_risk == "linear"

    # Training instances

    def _remove_each(self) -> None:
        n, inverse = len(self.train_), self._chosen.fresh()
        constant = ConstantStep.none(self._decayed)
        if self.loo_convention == "renormalised":
            constant = ConstantStep(self._decayed, self._solved_decay[0])
        parts, own = [], []
        with self.model_.evaluating():
            for batch in batches(n, min(self._batch_size, self._jacobians_at_once)):
                prepared, ids = self._prepared(self.train_, batch)
                loss = self._outputs.derivatives(prepared, ids)
                jacobian = self._outputs.jacobian(prepared, ids)
                parts.append(removals(loss, jacobian, inverse, n, constant))
                own.append(self._own_change(loss, parts[-1].shifts, prepared))
        self._slopes = torch.cat([part.slopes for part in parts])
        self._distances = torch.cat([part.distances for part in parts]).cpu().numpy()
        self._own = torch.cat(own).cpu().numpy()
        self.leverages_ = torch.cat([part.leverages for part in parts]).cpu().numpy()
        # Of the many residuals, diagnostics keep the largest.
        self._noticed = {**inverse.diagnostics(), "residuals": []}
        self._refuse_leverages()

    def _own_change(self, loss: LossDerivatives, shifts: Tensor, prepared: Any) -> Tensor:
        """Return the change of each instance's own risk, (k,)."""
        if self._is_additive():
            return (loss.slopes * shifts).sum(1)
        outputs = self._outputs.values(prepared)
        before = self._outputs.loss(outputs, prepared)
        return self._outputs.loss(outputs + shifts.view_as(outputs), prepared) - before

    def _refuse_leverages(self) -> None:
        # Closer to 1 than this, 1 - leverage has lost its digits.
        limit = 1 - torch.finfo(self._space.dtype).eps ** 0.5
        alone = self.train_.ids[~(self.leverages_ < limit)]
        if len(alone):
            listed = ", ".join(map(str, alone[:NAMED])) + (", ..." if len(alone) > NAMED else "")
            raise SolveError(
                f"the leverage of {len(alone)} training instance(s) is 1 or more (ids {listed}): "
                f"without one of them the curvature is singular or indefinite, for it determines "
                f"some direction of the parameters alone, or the solver is too coarse. Give a "
                f"damping above 0, train with weight decay and say so, use solver='explicit' or "
                f"'cg', or InfluenceFunctions, which leave the curvature as it is."
            )

    @property
    def _jacobians_at_once(self) -> int:
        """Instances whose Jacobians fit the memory, with their solutions."""
        outputs, entry = self._outputs.count, torch.finfo(self._space.dtype).bits // 8
        needed = 3 * outputs * self._space.size * entry
        what = f"the Jacobian of the {outputs:,} outputs of one instance"
        refuse_memory(what, needed, self.memory, ["InfluenceFunctions"])
        return self.memory // needed

    def _prepared(self, instances: Instances, batch: Batch) -> tuple[Any, NDArray[Any]]:
        where = batch.positions
        return self.model_.prepare(instances.batch(where)), instances.ids[where]

    def _removed(self, cut: list[Batch]) -> Iterator[tuple[Batch, Gradients]]:
        """Go through ``J_i^T e_i`` of training instances in batches."""
        for batch in cut:
            slopes = self._slopes[torch.as_tensor(batch.positions)]
            prepared, ids = self._prepared(self.train_, batch)
            yield batch, self._outputs.combined(prepared, slopes, ids)

    @override
    def _walk(
        self, points: tuple[PathPoint, ...], rows: range
    ) -> Iterator[tuple[PathPoint, Iterator[tuple[Batch, Gradients]]]]:
        for point, _ in super()._walk(points, rows):
            yield point, self._removed(self._cut(rows))

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        return self._own[rows.start : rows.stop].copy()

    @override
    def cooks_distance(self) -> Influence:
        r"""Return how far leaving each training instance out moves the parameters.

        ``D_i = (n / p) Delta_i^T A Delta_i``, p the number of parameters: for least squares with
        the risk ``(y - f)^2 / 2`` Cook's classical distance times the residual variance ``s^2``.

        Returns
        -------
        Influence
            ``(n_train,)``, at least 0, in units of the risk.

        Raises
        ------
        NotFittedError
            If ``fit`` has not been called.

        Notes
        -----
        **Source**: Cook (1977); survey eq. (5).
        """
        rows = self._rows(None)
        values = self._distances / self._space.size
        return self._answer(values, rows, None, None, self._diagnostics(None))

    @override
    def parameter_changes(self, instances: Any = None) -> dict[str, NDArray[np.floating[Any]]]:
        positions, n = self._positions(instances), len(self.train_)
        size, inverse, changes = self._batch_size, self._chosen.fresh(), []
        cut = [Batch(positions[k : k + size], None) for k in range(0, len(positions), size)]
        with self.model_.evaluating():
            for batch, forms in self._removed(cut):
                gradients = self._space.gradients(forms, len(batch))
                if self.loo_convention == "renormalised":
                    gradients = gradients + self._decayed
                changes.append(inverse.solve(gradients).vectors / -n)
        parts = self._space.unflatten(torch.cat(changes))
        return {name: part.cpu().numpy() for name, part in parts.items()}

    # Test instances

    @property
    @override
    def _solved_at_once(self) -> int:
        rows = super()._solved_at_once
        return rows if self._is_additive() else max(1, rows // self._outputs.count)

    @override
    def _joint_query(self, instances: Instances) -> SolvedSet:
        return super()._joint_query(instances) if self._is_additive() else self._query(instances)

    @override
    def _joint_scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        if self._is_additive():
            return super()._joint_scores(query, rows)
        total = np.zeros(len(rows))
        for part in self._parts(query):
            total += self._evaluated(part, rows).sum(0)
        return total

    @override
    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        if self._is_additive():
            return super()._scores(query, rows)
        return np.concatenate([self._evaluated(part, rows) for part in self._parts(query)])

    @override
    def _solved(self, query: SolvedSet) -> Query:
        if self._is_additive():
            return super()._solved(query)
        prepared, ids = self._prepared(query.instances, _whole(query.instances))
        jacobian = self._outputs.jacobian(prepared, ids).flatten(0, 1)
        solved = query.inverse.solve(jacobian).vectors
        made = VectorQuery(self._held(solved), self._products)
        if self.loo_convention == "fixed_divisor":
            return made
        return ShiftedQuery(made, jacobian @ self._solved_decay[0])

    def _evaluated(self, query: SolvedSet, rows: range) -> NDArray[np.floating[Any]]:
        """Return the change of the risks at moved outputs, ``(n_test, len(rows))``."""
        scores = torch.zeros(len(query.instances), len(rows), dtype=self._capture.dtype)
        for point, captured in self._walk(query.points, rows):
            test, _ = self._test_side(query, point)
            prepared, _ = self._prepared(query.instances, _whole(query.instances))
            outputs = self._outputs.values(prepared)
            before = self._outputs.loss(outputs, prepared)
            for batch, gradients in captured:
                shifts = test.meet(gradients, len(batch))[0] * point.weight
                moved = [outputs + shift.view_as(outputs) for shift in shifts]
                after = torch.stack([self._outputs.loss(one, prepared) for one in moved])
                batch.add((after - before).cpu(), 1.0, scores, rows.start)
        return scores.numpy()

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        warnings = [*noticed["warnings"], *self._noticed.get("warnings", [])]
        return {
            **noticed,
            "largest_leverage": float(self.leverages_.max()),
            "warnings": list(dict.fromkeys(warnings)),
        }


def _whole(instances: Instances) -> Batch:
    return Batch(np.arange(len(instances)), None)
