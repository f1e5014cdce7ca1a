"""Influence functions of nearest neighbours alone (survey section 5.1.1.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import Curvature
from proponent.gradients.inverse import SolvedSet
from proponent.gradients.last_layer import BATCH_SIZE, LastLayer
from proponent.gradients.method import MEMORY
from proponent.gradients.path import TestSet
from proponent.gradients.products import Way
from proponent.gradients.solvers.lissa import LiSSA
from proponent.models.torch import ParameterChoice, check_finite
from proponent.static.chosen_inverse import NEEDS, Request, SolverChoice
from proponent.static.curvature_method import Convention, CurvatureMethod
from proponent.static.nearest import nearest
from proponent.top import TopInfluence

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class NeighbourSet(SolvedSet):
    """A test set, and the training instances that are scored for it.

    Attributes
    ----------
    neighbours : integer array of shape (rows, c)
        Positions of the training instances that are scored: a row for each test instance, or one
        for the sum over them.
    """

    neighbours: NDArray[np.int64]

    def among(self, rows: range) -> NDArray[np.bool_]:
        """Tell which of the neighbours are at ``rows``, (rows, c)."""
        inside: NDArray[np.bool_] = (self.neighbours >= rows.start) & (self.neighbours < rows.stop)
        return inside


class FastIF(CurvatureMethod):
    r"""Influence functions of the training instances that resemble the test instance.

    ``I(z_i, z_te) = (1/n) g_te^T A^{-1} g_i`` where z_i is one of the k training instances whose
    features are nearest to those of z_te; every other training instance is **not scored** (NaN):
    it is neither 0 nor ever ranked. A is as in :class:`InfluenceFunctions`; with ``k >= n`` the
    scores are that method's.

    **Source** Guo, Rajani, Hase, Bansal and Xiong, EMNLP 2021; survey section 5.1.1.3.

    **Differs from the paper in** the default solver, our LiSSA; ``solver="paper"`` has the
    settings of the paper, whose damping of 0.005 at scale 10,000 amounts to adding 50 to the
    diagonal, so that the scores are all but those of :class:`GradientDot`. The gradient of the
    test risk does not contain weight decay. Neighbours are exact.

    Scores are ``(n_test, n_train)`` in units of the risk, leave-one-out differences; positive
    means that the training instance lowers the test risk. Instances that harm may be dissimilar,
    as those of another class are, and are then missed. A joint influence scores the instances
    that are neighbours of every test instance, as a sum over scores of which one is missing is
    not known.

    **Cost** Upfront the features, one forward pass an instance, and the solver; for a test
    instance one solve (after which LiSSA measures its residual on the whole training set), the
    distances, and a forward-backward pass for each of its k neighbours.

    Parameters
    ----------
    k : int
        Neighbours of a test instance that are scored.
    features : callable, optional
        ``features(instances) -> (n, d)``, any embedding of an :class:`Instances`; None takes what
        enters the last linear layer (of a scikit-learn model its features). Distances are
        Euclidean.
    solver : str, solver or KroneckerFactors
        ``"lissa"``; ``"paper"``, LiSSA with 1,000 steps on single instances, damping 0.005,
        scale 10,000 and no averaging; or as in :class:`InfluenceFunctions`.
    repeats : int
        Runs of LiSSA whose answers are averaged, where the solver is chosen by its name.
    n_jobs : int
        Processes in which LiSSA's repeats run, as joblib counts them. It does not change the
        numbers.
    curvature, damping, weight_decay, loo_convention, seed
        As in :class:`InfluenceFunctions`.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Examples
    --------
    >>> import numpy as np, torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> influence = pp.FastIF(k=4, weight_decay=0.1).fit(model, train).influence(train)
    >>> int(np.isnan(influence.values[0]).sum())
    6
    """

    marks_unscored: ClassVar[bool] = True
    card: ClassVar[MethodCard] = MethodCard(
        name="FastIF",
        survey_name="FastIF",
        title="Fast Influence Functions",
        family="static",
        section="5.1.1.3",
        equations="33, 34",
        paper="Guo, Rajani, Hase, Bansal and Xiong, EMNLP 2021",
        needs=NEEDS,
        full_complexity="O(np)",
        incremental_complexity="O(kp), k neighbours scored",
        space_complexity="O(nd + p), d features",
        storage_complexity="O(nd)",
        assumes=("differentiable", "convex", "stationary"),
        estimates_loo=True,
        generative=True,
        original_sign="the opposite: positive was harmful",
    )

    def __init__(
        self,
        k: int = 1000,
        *,
        features: Callable[[Instances], Any] | None = None,
        solver: SolverChoice = "lissa",
        repeats: int = 1,
        n_jobs: int = 1,
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
        self.k = k
        self.features = features
        self.repeats = repeats
        self.n_jobs = n_jobs

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        super().fit(model, train, ids=ids)
        self._k = min(int(self.k), len(self.train_))
        self._embed = self.features or self._inputs_of_last_layer()
        self._trained = self._embedded(self.train_)
        return self

    @override
    def _check_settings(self) -> None:
        super()._check_settings()
        for name, value in {"k": self.k, "repeats": self.repeats}.items():
            if not isinstance(value, Integral) or value < 1:
                raise InvalidInputError(f"{name} must be a positive integer; got {value!r}.")
        if self.repeats > 1 and self.solver not in ("lissa", "paper"):
            raise InvalidInputError(
                f"repeats={self.repeats} are of solver='lissa' or 'paper'; a LiSSA object has its "
                f"own, LiSSA(repeats=...), and other solvers have none."
            )

    @override
    def _request(self) -> Request:
        return replace(super()._request(), solver=self._solver())

    @override
    def _wanted_damping(self) -> float | Mapping[str, float] | None:
        # The paper's damping is within its solver.
        return 0.0 if self.damping is None and self.solver == "paper" else super()._wanted_damping()

    def _solver(self) -> SolverChoice:
        solver = self.solver
        if solver == "paper":
            solver = LiSSA(
                batch_size=1,
                steps=1000,
                scale=1e4,
                koh_damping=5e-3,
                average=False,
                repeats=self.repeats,
                seed=self.seed,
            )
        elif solver == "lissa":
            solver = LiSSA(repeats=self.repeats, seed=self.seed)
        if isinstance(solver, LiSSA) and self.n_jobs != 1:
            return replace(solver, n_jobs=self.n_jobs)
        return solver

    @override
    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in super()._settings().items() if name != "n_jobs"}

    # Features

    def _inputs_of_last_layer(self) -> Callable[[Instances], Any]:
        if self._study is not None:  # a linear scikit-learn model: the last layer is the first
            return lambda instances: instances.batch(slice(None))[0]  # type: ignore[index]
        size = BATCH_SIZE if self.batch_size is None else self.batch_size
        try:
            last = LastLayer(self.model_, self.train_, batch_size=size, progress=self.progress)
        except InvalidInputError as error:
            raise InvalidInputError(f"{error} Or give features=, an embedding.") from error
        return last.features

    def _embedded(self, instances: Instances) -> Tensor:
        """Return the features of a set, ``(n, d)``."""
        features = torch.as_tensor(self._embed(instances)).detach().cpu()
        if features.ndim != 2 or len(features) != len(instances):
            raise InvalidInputError(
                f"features: expected shape ({len(instances)}, d), a row an instance; got "
                f"{tuple(features.shape)}."
            )
        return check_finite(features, instances.ids, "embedding")

    # Test instances

    @override
    def _query(self, instances: Instances) -> NeighbourSet:
        query = super()._query(instances)
        return _scoring(query, self._neighbours(query.instances))

    @override
    def _joint_query(self, instances: Instances) -> NeighbourSet:
        query = super()._joint_query(instances)
        found, counts = np.unique(self._neighbours(query.instances), return_counts=True)
        common = found[counts == len(instances)]
        if not len(common):
            raise InvalidInputError(
                f"joint: no training instance is among the k={self._k} nearest of all "
                f"{len(instances)} test instances, so that none has a score for every one of "
                f"them; raise k, or take the influence on each."
            )
        return _scoring(query, common[None])

    def _neighbours(self, instances: Instances) -> NDArray[np.int64]:
        return nearest(self._embedded(instances), self._trained, self._k, self.memory)

    @override
    def _parts(self, query: TestSet) -> list[SolvedSet]:
        neighbours, start = cast(NeighbourSet, query).neighbours, 0
        parts: list[SolvedSet] = []
        for part in super()._parts(query):
            end = start + (1 if query.joint else len(part.instances))
            parts.append(_scoring(part, neighbours[start:end]))
            start = end
        return parts

    @override
    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        query = cast(NeighbourSet, query)
        scores = super()._scores(query, rows)
        unscored = np.ones(scores.shape, dtype=bool)
        test, which = query.among(rows).nonzero()
        unscored[test, query.neighbours[test, which] - rows.start] = False
        scores[unscored] = np.nan
        return scores

    @override
    def _strongest(
        self, query: NeighbourSet, instances: Instances, rows: range, k: int
    ) -> TopInfluence:
        fewest = int(query.among(rows).sum(1).min())
        if k > fewest:
            raise InvalidInputError(
                f"top_k: only {fewest} neighbours of some test instance are among these "
                f"{len(rows)} training instances, the others are not scored; ask for fewer, or "
                f"raise k={self._k}, the number of neighbours."
            )
        return super()._strongest(query, instances, rows, k)

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        noticed = super()._diagnostics(query)
        if isinstance(query, NeighbourSet):
            noticed["scored_instances"] = len(np.unique(query.neighbours))
        return noticed


def _scoring(query: SolvedSet, neighbours: NDArray[np.int64]) -> NeighbourSet:
    """Return a test set for which only its neighbours are looked at."""
    members = np.unique(neighbours)
    points = tuple(replace(point, members=members) for point in query.points)
    return NeighbourSet(query.instances, query.joint, points, query.inverse, query.kept, neighbours)
