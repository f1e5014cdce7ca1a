"""Influence of groups of training instances (survey section 5.1.1.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError, SolveError
from proponent.gradients.curvature import Curvature
from proponent.gradients.inverse import Inverse, SolvedInverse
from proponent.gradients.method import MEMORY
from proponent.gradients.products import Way
from proponent.gradients.remaining import Remaining
from proponent.gradients.solvers.solution import Prepared, Solver
from proponent.gradients.weight_decay import Penalised, WeightDecay
from proponent.models.torch import ParameterChoice
from proponent.static.chosen_inverse import NEEDS, SolverChoice
from proponent.static.curvature_method import Convention
from proponent.static.group_method import Group, GroupMethod

if TYPE_CHECKING:
    from typing_extensions import Self

Estimate = Literal["additive", "newton"]


class GroupIF(GroupMethod):
    r"""Influence of a group of training instances: to first order, or by one Newton step.

    With ``A = C + weight_decay + damping`` the group U changes the parameters by

        additive:  Delta_U = (1/n) A^{-1} sum_U g_i
        newton:    Delta_U = [n A - sum_U C_i]^{-1} sum_U g_i

    and the test risk by ``I(U, z_te) = g_te^T Delta_U``. The additive estimate is the sum of
    the members' influence. It ranks groups well, but tends to come out too small for groups
    whose members are alike. The Newton step takes the curvature of the group with its gradients
    (and leaves the weight decay where it is): it is exact for a quadratic objective, and no sum.

    **Source** Koh, Ang, Teo and Liang, NeurIPS 2019; survey section 5.1.1.3. Eq. (35), that the
    absolute values of the members' influence sum to less than that of the group, is no law, and
    is not what the paper says: that concerns the absolute value of the sum.

    **Differs from the paper in** nothing where ``loo_convention="fixed_divisor"``, whose
    objective it is. Where it is ``"renormalised"`` the model is trained on the others with the
    mean over n - \|U\|: then each risk carries the weight decay, in ``g_i`` and ``C_i``.

    Scores of :meth:`group_influence` are ``(n_test, n_groups)`` in units of the risk, estimates
    of what training without the group does; positive means that the group lowers the test risk.
    :meth:`influence` and :meth:`memorization` are those of groups of one.

    **Cost** Upfront that of the solver. One solve for each group, with its own matrix for
    ``newton``, and one pass over its members; then a product with each test gradient, however
    many there are. The additive estimate solves for the tests where these are fewer.

    Parameters
    ----------
    estimate : "additive" or "newton"
        How the parameters without a group are estimated.
    solver : str, solver or KroneckerFactors
        As in :class:`InfluenceFunctions`; ``newton`` needs products with the curvature of a
        group, which Kronecker factors (``"ekfac"``, ``"kfac"``) do not have.
    curvature, damping, weight_decay, loo_convention, seed
        As in :class:`InfluenceFunctions`.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> method = pp.GroupIF("newton", weight_decay=0.1).fit(model, train)
    >>> method.group_influence({"first": [0, 1, 2], "last": [8, 9]}, train).values.shape
    (10, 2)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="GroupIF",
        survey_name="Group IF",
        title="Group Influence Functions",
        family="static",
        section="5.1.1.3",
        equations="35",
        paper="Koh, Ang, Teo and Liang, NeurIPS 2019",
        needs=NEEDS,
        full_complexity="O(np)",
        incremental_complexity="O(np)",
        space_complexity="O(n + p)",
        storage_complexity="0",
        assumes=("differentiable", "convex", "stationary"),
        estimates_loo=True,
        group=True,
        generative=True,
    )

    def __init__(
        self,
        estimate: Estimate = "additive",
        *,
        solver: SolverChoice = "auto",
        curvature: str | Curvature = "ggn",
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
            curvature=curvature,
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
        self.estimate = estimate

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        super().fit(model, train, ids=ids)
        if self.estimate == "newton":
            self._dense = cache(self._operator.dense)  # of all instances, once for all groups
        return self

    @override
    def _check_settings(self) -> None:
        super()._check_settings()
        if self.estimate not in get_args(Estimate):
            raise InvalidInputError(
                f"estimate={self.estimate!r}: expected one of {', '.join(get_args(Estimate))}."
            )

    @override
    def _is_additive(self) -> bool:
        return self.estimate == "additive"

    @override
    def _changes(self, groups: Sequence[Group], inverse: Inverse) -> Tensor:
        means = self._mean_gradients(groups)
        if self.estimate == "additive":
            return inverse.solve(means).vectors
        steps = [self._newton_step(*pair, inverse) for pair in zip(groups, means, strict=True)]
        return torch.stack(steps)

    def _newton_step(self, group: Group, mean: Tensor, inverse: Inverse) -> Tensor:
        """Return ``[A - (1/n) sum_U C_i]^{-1} (1/n) sum_U g_i``, (p,)."""
        assert isinstance(inverse, SolvedInverse)
        try:
            inverse.prepared = self._without(group)
            return inverse.solve(mean[None]).vectors[0]
        except SolveError as error:
            raise SolveError(f"group {group.name!r}: {error}") from error

    def _without(self, group: Group) -> Prepared:
        """Prepare ``A - (1/n) sum_U C_i``.

        Where the mean is renormalised the group's C_i contain weight decay and damping.
        """
        removed = len(group) / len(self.train_)
        kept = 1.0 if self.loo_convention == "fixed_divisor" else 1.0 - removed
        damping, decay = kept * self._damping, self._chosen.decay
        left: Curvature = Remaining(self._operator, group.positions, self._dense)
        if decay.everywhere is not None:
            return self._solver.prepare(left, damping + kept * decay.everywhere)
        scaled = {name: kept * amount for name, amount in decay.each.items()}
        return self._solver.prepare(Penalised(left, WeightDecay(scaled)), damping)

    @property
    def _solver(self) -> Solver:
        solver = self._chosen.solver
        assert solver is not None  # Kronecker factors are refused at first
        return solver


class SecondOrderGroupIF(GroupMethod):
    r"""Influence of a group of training instances to second order in its size.

    With ``A = C + weight_decay + damping``, the share ``q = |U| / n`` of the group, the first
    order ``d = (1/n) A^{-1} sum_U g_i`` and ``S = (1/n) sum_U C_i``, the parameters change by

        renormalised:   Delta_U = [(1 - 2 q) d + A^{-1} S d] / (1 - q)^2
        fixed_divisor:  Delta_U = d + A^{-1} S d

    and the test risk by ``I(U, z_te) = g_te^T Delta_U``. In the second term every member meets
    the curvature of every other: the estimate is no sum over the members. Third derivatives of
    the risk are left out.

    **Source** Basu, You and Feizi, ICML 2020; survey section 5.1.1.3. The paper trains on the
    others with the mean over n - \|U\|, ``loo_convention="renormalised"``: each risk then
    carries the weight decay, in ``g_i`` and ``C_i``.

    **Differs from the paper in** the sign of the second-order term,
    ``theta' = -(q / (1 - q)) [1 - A^{-1} S / q] theta^(1)``: with a plus the estimate is worse than
    that of first order. ``fixed_divisor``, the default as everywhere, is the same expansion
    where the others keep the weight 1/n.

    Scores of :meth:`group_influence` are ``(n_test, n_groups)`` in units of the risk, estimates
    of what training without the group does; positive means that the group lowers the test risk.
    :meth:`influence` and :meth:`memorization` are those of groups of one. The expansion is of
    use up to some 30 % of the training set; above, a warning says so.

    **Cost** Upfront that of the solver. Two solves for each group, a pass over its members for
    their gradients and one for a product with their curvature; then a product with each test
    gradient, however many there are. :meth:`influence` does so for each training instance.

    Parameters
    ----------
    solver : str or solver
        As in :class:`InfluenceFunctions`, but for Kronecker factors (``"ekfac"``, ``"kfac"``),
        which have no products with the curvature of a group.
    curvature, damping, weight_decay, loo_convention, seed
        As in :class:`InfluenceFunctions`.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> method = pp.SecondOrderGroupIF(weight_decay=0.1).fit(model, train)
    >>> method.group_influence({"first": [0, 1, 2], "last": [8, 9]}, train).values.shape
    (10, 2)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="SecondOrderGroupIF",
        survey_name="Second-Order IF",
        title="Second-Order Group Influence Functions",
        family="static",
        section="5.1.1.3",
        paper="Basu, You and Feizi, ICML 2020",
        needs=NEEDS,
        full_complexity="O(np)",
        incremental_complexity="O(p) a group",
        space_complexity="O(n + p)",
        storage_complexity="0",
        assumes=("differentiable", "convex", "stationary"),
        estimates_loo=True,
        group=True,
        generative=True,
    )

    @override
    def _is_additive(self) -> bool:
        return False

    @override
    def _changes(self, groups: Sequence[Group], inverse: Inverse) -> Tensor:
        first = inverse.solve(self._mean_gradients(groups)).vectors
        second = inverse.solve(self._bent(groups, first)).vectors
        if self.loo_convention == "fixed_divisor":
            return first + second
        q = self._shares(groups)
        return ((1 - 2 * q) * first + second) / (1 - q) ** 2

    def _bent(self, groups: Sequence[Group], vectors: Tensor) -> Tensor:
        """Return ``(1/n) sum_U C_i v`` for a vector of each group, (k, p)."""
        rows = zip(groups, vectors.split(1), strict=True)
        bent = torch.cat([self._operator.matvec_on(row, group.positions) for group, row in rows])
        if self.loo_convention == "renormalised":
            bent += (self._chosen.decay.diagonal(self._space) + self._damping) * vectors
        return self._shares(groups) * bent
