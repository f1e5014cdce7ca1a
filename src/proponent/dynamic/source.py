"""SOURCE: unrolled differentiation over segments of training (Bae et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, cast, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack, override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.dynamic.checkpoints import LargestRiskChange, choose
from proponent.dynamic.segments import Cut, cut_run
from proponent.dynamic.segments_curvature import CurvatureName, SegmentCurvature, SolverName
from proponent.dynamic.segments_explicit import check_size
from proponent.dynamic.segments_points import (
    Averaging,
    CarriedSet,
    SegmentPoint,
    carry_back,
    describe,
    own_products,
    refuse_non_finite,
    segment_points,
    warnings,
)
from proponent.dynamic.segments_propagation import Propagation
from proponent.dynamic.segments_rates import check_optimizer, pace
from proponent.exceptions import InvalidInputError
from proponent.gradients.labels import loss_family
from proponent.gradients.method import GradientMethod, Settings
from proponent.gradients.path import PathPoint, TestSet, batches
from proponent.gradients.products import Query, VectorQuery
from proponent.gradients.space import ParameterSpace
from proponent.gradients.weight_decay import check_amount
from proponent.models.run import TrainingRun
from proponent.models.torch import TorchModel
from proponent.stepwise import Contributions, StepwiseMethod

if TYPE_CHECKING:
    from typing_extensions import Self

CHOICES: dict[str, Any] = {
    "solver": SolverName,
    "curvature": CurvatureName,
    "averaging": Averaging,
    "propagation": Propagation,
}


def _cost(*, n: int, n_test: int, checkpoints: int = 1, **_: Any) -> float:
    return float(3 * checkpoints * n + n_test)


class SOURCE(StepwiseMethod, GradientMethod):
    r"""Segmented stationary unrolling: how a run would have gone without an instance.

    The run is cut into segments l of K_l steps, in each of which curvature ``H_l``, learning rate
    ``eta_l`` and the gradient of each instance are taken for constant, their means over the states
    that were stored there. Leaving ``z_i`` out then moves the final parameters by

        theta_{-i} - theta = (1/n) sum_l (prod_{l' > l} S_l') (1 - S_l) H_l^{-1} g_{i,l},
        S_l = exp(-eta_l K_l H_l),

    and ``I(z_i, z_te) = <g_te, theta_{-i} - theta>``, with the test gradient at the end. Along
    an eigenvector of curvature s a segment has the factor ``(1 - exp(-eta K s)) / s``: ``1/s``, as
    influence functions have it, where training has converged, and ``eta K``, as TracIn has it,
    where it has not. So nothing has to be stationary or unique, and the order of training counts.

    **Source** Bae et al., "Training data attribution via approximate unrolled
    differentiation", NeurIPS 2024.

    **Differs from the paper in** the optimizer: plain stochastic gradient descent, with momentum by
    its effective learning rate ``eta / (1 - momentum)``; the variant for Adam is refused. In the
    means: each stored state stands for the steps of the segment that are nearest to it, weighted by
    their learning rates, where the paper's states count alike. In what is covered: every parameter,
    by layers of linear maps, convolutions and embeddings, and by its diagonal elsewhere. Weight
    decay, which is read from the run, is part of ``H_l``, clipping and the sum of the weights in a
    batch are part of ``eta_l``, and an instance counts in those segments alone that used it. Layers
    may have learning rates of their own (with ``solver="explicit"`` parameters).

    Scores are ``(n_test, n_train)`` in units of the risk, leave-one-out differences to first
    order; positive means that the training instance lowers the test risk.

    **Cost** Upfront two forward-backward passes over the training set for each state of a segment,
    and an eigendecomposition a layer and segment; a test instance has a gradient and a product with
    the factors of each segment, each training instance a pass a state, and the products.

    Parameters
    ----------
    segments : int, "learning_rate" or sequence of int
        How many segments, of equally many steps; or a cut wherever a learning rate changes; or the
        steps with which the second and later segments begin. Each needs a stored state.
    solver : "ekfac", "kfac" or "explicit"
        How the curvature is held: Kronecker factors, averaged over the states of a segment, or the
        matrix itself (up to some thousand parameters).
    curvature : "ggn", "hessian", "fisher" or "empirical_fisher"
        As in :class:`InfluenceFunctions`. The Hessian is for ``solver="explicit"``; its negative
        eigenvalues are kept, as unrolling has them, and reported.
    damping : float
        Added to the curvature. Segments need none: ``(1 - exp(-eta K s)) / s`` is finite at 0.
    averaging : "expected" or "recorded"
        What an instance's share of a segment is: in expectation over the order of training, where
        all that the segment used count alike, or as the recorded batches used it, which is the
        derivative of this very run.
    propagation : "exponential" or "power"
        Whether ``S_l`` is the exponential or ``(1 - eta_l H_l)^K_l``, of which it is the limit for
        small steps. With ``"power"``, ``solver="explicit"``, ``averaging="recorded"`` and a segment
        for each step this is unrolled differentiation itself.
    checkpoints : "all", EveryKth or sequence of int
        Which of the recorded states to use, as in :class:`TracInCP`; the final one always is.
    seed : int
        Fixes the labels that Fisher matrices draw.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`. ``memory`` also bounds matrices and the test gradients carried.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> with pp.Recorder("runs/doc", module, optimizer, loss="cross_entropy", every="epoch",
    ...                  train=train, overwrite=True) as recorder:
    ...     for batch in 4 * torch.arange(10).split(5):
    ...         optimizer.zero_grad()
    ...         logits = module(train[0][batch])
    ...         torch.nn.functional.cross_entropy(logits, train[1][batch]).backward()
    ...         recorder.step(batch)
    ...         optimizer.step()
    >>> run = pp.TrainingRun.load("runs/doc", module)
    >>> pp.SOURCE(segments=2).fit(run, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="SOURCE",
        title="Segmented Stationary Unrolling for Counterfactual Estimation",
        aliases=("approximate unrolled differentiation",),
        family="dynamic",
        paper="Bae et al., NeurIPS 2024",
        needs="a recorded training run (pp.Recorder) by SGD, with states at several epochs",
        full_complexity="O(npK), K checkpoints",
        incremental_complexity="O(npK), K checkpoints",
        space_complexity="O(n + pL), L segments",
        storage_complexity="O(pK), K checkpoints",
        assumes=("differentiable", "optimizer"),
        estimates_loo=True,
        group=True,
        generative=True,
        original_sign="the same: the predicted change of the test loss on removal",
        cost=_cost,
    )

    def __init__(
        self,
        segments: Cut = 3,
        *,
        solver: SolverName = "ekfac",
        curvature: CurvatureName = "ggn",
        damping: float = 0.0,
        averaging: Averaging = "expected",
        propagation: Propagation = "exponential",
        checkpoints: Any = "all",
        seed: int = 0,
        **settings: Unpack[Settings],
    ) -> None:
        super().__init__(**settings)
        self.segments = segments
        self.solver = solver
        self.curvature = curvature
        self.damping = damping
        self.averaging = averaging
        self.propagation = propagation
        self.checkpoints = checkpoints
        self.seed = seed

    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Take a recorded run, cut it into segments, and find the curvature of each.

        Parameters
        ----------
        model : TrainingRun
            The recorded run.
        train : (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.

        Raises
        ------
        InvalidInputError
            If the model or a setting cannot be used, or matrices do not fit the memory.
        RunError
            If the run was recorded on another training set, by another optimizer than SGD, lacks
            its end or the scales of clipping, or has no state in a segment.
        NonFiniteError
            If gradients of training instances are not finite.
        SolveError
            If a segment magnifies beyond all numbers.
        """
        if not isinstance(model, TrainingRun):
            raise self._wrong_kind(model)
        self._check_settings(model.model)
        instances = Instances.of(train, ids=ids, role="train")
        if not len(instances):
            raise InvalidInputError("train: the set is empty; influence needs instances.")
        model.check_train(instances)
        model.require(
            batches=True, checkpoints=True, clip_scale=True, complete=True, by=self.card.name
        )
        self._notes = check_optimizer(model, self.card.name)
        chosen = [*choose(model, self.checkpoints, instances), model.checkpoints[-1]]
        self._segments = cut_run(model, self.segments, chosen, self.card.name)
        first = PathPoint("the beginning", 1.0, lambda: model.at(chosen[0]))
        self._prepare(model.model, instances, None, first)
        self.run_ = model
        self._space = ParameterSpace.of(self.model_)
        names = self._space.names
        self._paces = tuple(pace(segment.steps, names) for segment in self._segments)
        if self.solver == "explicit":
            check_size(self._space, len(self._segments), self.memory)
        found = SegmentCurvature(
            run=model,
            model=self.model_,
            train=instances,
            solver=self.solver,
            curvature=self.curvature,
            damping=float(self.damping),
            propagation=self.propagation,
            seed=int(self.seed),
            batch_size=self._batch_size,
            memory=self.memory,
            progress=self.progress,
        )
        self._propagators = tuple(map(found.propagator, self._segments, self._paces))
        return self

    def _check_settings(self, model: TorchModel) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise InvalidInputError(
                    f"{name}={getattr(self, name)!r}: expected one of "
                    f"{', '.join(get_args(choices))}."
                )
        if self.curvature == "hessian" and self.solver != "explicit":
            raise InvalidInputError(
                f"curvature='hessian': solver={self.solver!r} factorises Gauss-Newton and Fisher "
                f"matrices ('ggn', 'fisher', 'empirical_fisher'); use solver='explicit'."
            )
        factored = self.solver != "explicit"
        if self.curvature in ("ggn", "fisher") and factored and loss_family(model) is None:
            raise InvalidInputError(
                f"curvature={self.curvature!r}: solver={self.solver!r} draws labels from the "
                f"model, which is known for losses by name and not for this risk; use "
                f"curvature='empirical_fisher', or curvature='hessian' with solver='explicit'."
            )
        if isinstance(self.checkpoints, LargestRiskChange):
            raise InvalidInputError(
                "checkpoints: segments are the same for every test set; give 'all', EveryKth or "
                "the steps."
            )
        if not isinstance(self.seed, Integral) or self.seed < 0:
            raise InvalidInputError(f"seed must be an integer of at least 0; got {self.seed!r}.")
        check_amount("damping", self.damping)

    def _points(self, instances: Instances) -> tuple[PathPoint, ...]:
        n = len(self.train_)
        return segment_points(self.run_, self._segments, self._paces, n, self.averaging)

    # Test instances

    @override
    def _query(self, instances: Instances) -> CarriedSet:
        return CarriedSet(instances, False, self._points(instances))

    @override
    def _joint_query(self, instances: Instances) -> CarriedSet:
        return CarriedSet(instances, True, self._points(instances))

    @override
    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        found = [super(SOURCE, self)._scores(part, rows) for part in self._parts(query)]
        return np.concatenate(found)

    def _parts(self, query: TestSet) -> list[CarriedSet]:
        """Cut the test set into blocks whose carried gradients fit the memory."""
        query = cast(CarriedSet, query)
        n, size = len(query.instances), self._at_once
        if query.joint or n <= size:
            return [query]
        return [
            CarriedSet(query.instances.select(slice(start, start + size)), False, query.points)
            for start in range(0, n, size)
        ]

    @property
    def _at_once(self) -> int:
        """How many gradients, carried to all segments, fit the memory."""
        return max(1, self.memory // (8 * self._space.size * (len(self._segments) + 3)))

    def _carried_tests(self, query: CarriedSet) -> list[dict[str, Tensor]]:
        n = len(query.instances)
        with self.run_.at(self.run_.checkpoints[-1]), self.model_.evaluating():
            captured = self._captured(query.instances, batches(n, self._batch_size))
            if query.joint:
                total = self._space.gradients({}, 1)
                for batch, forms in captured:
                    total += self._space.gradient_sum(forms, len(batch))
            else:
                parts = [self._space.gradients(forms, len(batch)) for batch, forms in captured]
                total = torch.cat(parts)
        refuse_non_finite(total, query)
        found = carry_back(self._propagators, total)
        return [self._space.unflatten(part, self._capture.dtype) for part in found]

    @override
    def _test_side(self, query: TestSet, point: PathPoint) -> tuple[Query, Tensor | None]:
        query = cast(CarriedSet, query)
        if not query.carried:  # once, however many blocks of training instances follow
            query.carried.append(self._carried_tests(query))
        met = query.carried[0][cast(SegmentPoint, point).segment]
        return VectorQuery(met, self._products), None

    @override
    def _block_rows(self, n_test: int) -> int:
        rows = super()._block_rows(n_test)
        # Each block of training instances has the parts of the test set carried again.
        return rows if n_test <= self._at_once else max(rows, self.memory // (8 * n_test))

    # When influence was made: segment by segment

    @override
    def _steps(self, query: TestSet) -> list[int]:
        segments = {cast(SegmentPoint, point).segment for point in query.points}
        return [self._segments[position].steps[0].index for position in sorted(segments)]

    @override
    def _add_contributions(
        self, query: TestSet, rows: range, at: Callable[[int], Contributions]
    ) -> None:
        parts = self._parts(query)
        for position, segment in enumerate(self._segments):
            points = tuple(p for p in query.points if cast(SegmentPoint, p).segment == position)
            if not points:
                continue
            scores, row = torch.from_numpy(at(segment.steps[0].index)), 0
            for part in parts:
                size = 1 if part.joint else len(part.instances)
                kept = part.carried if len(parts) == 1 else []
                here = CarriedSet(part.instances, part.joint, points, kept)
                block = scores[row : row + size]
                self._accumulate(here, rows, lambda point, block=block: block)  # type: ignore[misc]
                row += size

    @override
    def _contribution_dtype(self) -> np.dtype[Any]:
        return np.dtype(str(self._capture.dtype).removeprefix("torch."))

    # Training instances

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        scores = torch.zeros(len(rows), dtype=self._capture.dtype)
        for start in range(rows.start, rows.stop, self._at_once):
            part = range(start, min(start + self._at_once, rows.stop))
            instances = self.train_.select(slice(part.start, part.stop))
            carried = self._carried_tests(CarriedSet(instances, False, ()))
            for point, captured in self._walk(self._points(self.train_), part):
                met = carried[cast(SegmentPoint, point).segment]
                for batch, gradients in captured:
                    products = own_products(gradients, met, batch.positions - part.start)
                    if not torch.isfinite(products.sum()):
                        self._refuse_gradients(gradients, batch, point)
                    batch.add(products.cpu(), point.weight, scores, rows.start)
        return scores.numpy()

    # What was noticed

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        parts = tuple(zip(self._segments, self._paces, self._propagators, strict=True))
        return {
            **super()._diagnostics(query),
            "segments": [describe(*part) for part in parts],
            "solver": self.solver,
            "curvature": self.curvature,
            "damping": self.damping,
            "test_gradients": "at the final parameters",
            "warnings": [*self._notes, *warnings(self._paces, self._propagators)],
        }
