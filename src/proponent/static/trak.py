"""TRAK: data models from randomly projected gradients of the model output (Park et al. 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.khatri_rao import KhatriRaoProjection
from proponent.gradients.layer_maps import layers_of
from proponent.gradients.method import MEMORY
from proponent.gradients.path import PathPoint, TestSet
from proponent.gradients.products import Gradients
from proponent.gradients.projected_gradients import ProjectedGradients
from proponent.gradients.projection import Projection
from proponent.gradients.row_store import Rows, RowStore
from proponent.gradients.second_moment import SecondMoment, check_damping
from proponent.models.torch import ParameterChoice, TorchModel
from proponent.progress import progress as progress_bar
from proponent.static.ensemble import Member, members_of
from proponent.static.model_output import ModelOutput, Output, Residual
from proponent.static.projected_method import PreparedSet, ProjectedMethod, ProjectedSet

if TYPE_CHECKING:
    from typing_extensions import Self

ProjectionKind = Literal["factored", "rademacher", "gaussian"]

GRADIENT, OUTPUT = "gradient", "output"


class TRAK(ProjectedMethod):
    r"""Influence on the model output by a linear model in projected gradients.

    With the output ``f = log(p / (1 - p))``, the log-odds of the label, and projected gradients
    ``phi = P grad f`` of C independently trained models,

        I(z_i, z_te) = [mean_c phi_te^T (Phi^T Phi + n damping)^{-1} phi_i] [mean_c (1 - p_i)]

    with the rows ``phi_1 .. phi_n`` of the training set in Phi and ``1 - p``, minus the slope of
    the risk in f, the residual. It estimates by how much the output on the test instance falls
    when the training instance is left out.

    **Source** Park, Georgiev, Ilyas, Leclerc and Madry, "TRAK: attributing model behavior at
    scale", ICML 2023.

    **Differs from the paper in** the default projection, which takes the factors of each layer's
    gradient instead of the gradient; in the default damping (the paper has none: its
    ``lambda`` is n times ours), without which the second moment is singular for fewer than k
    training instances and the scores are poor for not many more; in precision, and in scale: the
    original code divides the inverse by its mean entry.

    Scores are ``(n_test, n_train)`` in units of f; positive means that the training instance
    raises the output (the log-odds of the test label), and so lowers the test risk. With
    ``curvature_weights`` they are influence functions on f, leave-one-out differences, with the
    curvature ``(1/n) sum_i p_i (1 - p_i) grad f_i grad f_i^T``, projected; without, as in the
    paper, the factor ``p_i (1 - p_i)`` is left out of it. Leave-one-out differences of the risk
    are, to first order, these scores times ``1 - p_te``.

    **Cost** Upfront a forward-backward pass an instance and model, less the weight gradients,
    with the projection (half a pass more for k of 512, two for 2048, of a perceptron with half a
    million parameters), and ``n k min(n, k)`` multiply-adds for the second moment. A test
    instance has its own pass, and nk multiply-adds. ``nk`` numbers a model are kept.

    Parameters
    ----------
    projection_dim : int
        k, the number of dimensions.
    projection : "factored", "rademacher" or "gaussian"
        ``factored``: :class:`~proponent.gradients.khatri_rao.KhatriRaoProjection`. ``rademacher``
        (the paper's) and ``gaussian``: a dense matrix, k p multiply-adds an instance.
    damping : float, optional
        Added to the eigenvalues of ``Phi^T Phi / n``. None: 0.3 times the mean of those that need
        not be 0. It is reported.
    curvature_weights : bool
        Whether training instances count by ``p (1 - p)``, the curvature of their risk in f, in
        ``Phi^T Phi``.
    soft_threshold : float
        Scores are moved towards 0 by as much, and are 0 within it: the paper's sparsification.
    output : callable, optional
        ``output(module, batch) -> (batch,)``, another f: larger is better. None: the log-odds of
        the label for the losses ``"cross_entropy"`` (one class an instance) and
        ``"bce_with_logits"`` (one logit an instance); minus the risk, with residual 1, for all
        others.
    residual : callable, optional
        ``residual(f) -> (batch,)``, minus the derivative of the risk by the given ``output``, which
        is otherwise taken for log-odds: ``1 - sigmoid(f)``.
    seed : int
        Fixes the projections.
    path : str or Path, optional
        A directory in which projected training gradients are stored: a fit that was stopped goes
        on there, and one to the same models and data reads them. None: they are kept in memory.
    parameters, batch_size, memory, dtype, progress
        As in :class:`GradientDot`. ``memory`` also bounds what is kept.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> train = torch.randn(40, 2), torch.randint(3, (40,))
    >>> models = [pp.TorchModel(torch.nn.Linear(2, 3), loss="cross_entropy") for _ in range(2)]
    >>> pp.TRAK(projection_dim=64).fit(models, train).influence(train).shape
    (40, 40)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="TRAK",
        title="Tracing with the Randomly-projected After Kernel",
        family="static",
        paper="Park, Georgiev, Ilyas, Leclerc and Madry, ICML 2023",
        needs="a trained torch module with its risk (pp.TorchModel), or a list of them",
        full_complexity="O(npC + nk^2 C), C models, k dimensions",
        incremental_complexity="O(pC + nkC), C models, k dimensions",
        space_complexity="O(nkC + k^2 C + p), C models, k dimensions",
        storage_complexity="O(nkC), C models, k dimensions",
        assumes=("differentiable", "convex", "stationary"),
        group=True,
        generative=True,
        original_sign="the same, in another scale",
        cost=lambda *, n, n_test, checkpoints=1, **_: checkpoints * (n + n_test),
    )

    def __init__(
        self,
        projection_dim: int = 2048,
        *,
        projection: ProjectionKind = "factored",
        damping: float | None = None,
        curvature_weights: bool = False,
        soft_threshold: float = 0.0,
        output: Output | None = None,
        residual: Residual | None = None,
        seed: int = 0,
        path: str | Path | None = None,
        parameters: ParameterChoice | None = None,
        batch_size: int | None = None,
        memory: int = MEMORY,
        dtype: str | None = None,
        progress: bool | None = None,
    ) -> None:
        super().__init__(
            damping=damping,
            seed=seed,
            path=path,
            parameters=parameters,
            batch_size=batch_size,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
        self.projection_dim = projection_dim
        self.projection = projection
        self.curvature_weights = curvature_weights
        self.soft_threshold = soft_threshold
        self.output = output
        self.residual = residual

    @override
    def fit(
        self,
        model: Any,
        train: Any,
        *,
        ids: Any = None,
        states: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> Self:
        """Project the gradients of the training set.

        Parameters
        ----------
        model : TorchModel, or a list of them
            The module with its loss; several, trained independently, are averaged over.
        train : (X, y), dict, Dataset or Instances
            The training set.
        ids : array-like of shape (n,), optional
            Unique labels of the training instances.
        states : sequence of state dicts, optional
            Parameters (and buffers) of independently trained copies of the one module, which are
            averaged over in place of its own.

        Raises
        ------
        InvalidInputError
            If the models or a setting cannot be used, two of the models are the same, or ``path``
            holds projected gradients of something else.
        NonFiniteError
            If an output or a gradient is not finite; the message names the instances.
        SolveError
            If the second moment, damped, is singular.
        """
        self._check_settings()
        members = self._members(model, states)
        first = members[0]
        self._prepare(first.model, train, ids, PathPoint("the model", 1.0, first.enter))
        total = len(self.train_) * len(members)
        bar: Any = progress_bar(total=total, description="TRAK", enabled=self.progress)
        with bar:
            made = [
                self._projected_set(index, member, len(members), bar.update)
                for index, member in enumerate(members)
            ]
        self._sets = tuple(part for part, _ in made)
        self._residuals = torch.stack([slopes for _, slopes in made]).mean(0)
        self._output = first.output.name
        return self

    def _check_settings(self) -> None:
        for name, least in (("projection_dim", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise InvalidInputError(
                    f"{name} must be an integer of at least {least}; got {value!r}."
                )
        if self.projection not in get_args(ProjectionKind):
            raise InvalidInputError(
                f"projection={self.projection!r}: expected one of "
                f"{', '.join(get_args(ProjectionKind))}."
            )
        check_damping(self.damping)
        if not 0 <= self.soft_threshold < float("inf"):
            raise InvalidInputError(
                f"soft_threshold must be a finite number of at least 0; got "
                f"{self.soft_threshold!r}."
            )

    def _members(self, model: Any, states: Sequence[Mapping[str, Tensor]] | None) -> list[Member]:
        models = list(model) if isinstance(model, (list, tuple)) else [model]
        wrong = [each for each in models if not isinstance(each, TorchModel)]
        if wrong or not models:
            raise self._wrong_kind(wrong[0] if wrong else model)
        return members_of(models, states, self.output, self.residual)

    def _projected_set(
        self, index: int, member: Member, count: int, done: Callable[[int], Any]
    ) -> tuple[ProjectedSet, Tensor]:
        """Return a model's projected training set, and the residuals ``1 - p_i``, (n,)."""
        k = int(self.projection_dim)
        with member.enter():
            capture = self._capture if index == 0 else self._captured_of(member.model)
            projection = self._projection(index, capture)

        def project(gradients: Gradients, n: int) -> Rows:
            outputs = member.recorded.values.to(self._capture.dtype)
            projected = projection(gradients, n).to(outputs)
            return {GRADIENT: projected, OUTPUT: outputs[:, None]}

        gradients = ProjectedGradients(
            capture.model,
            partial(member.recorded.captured, capture),
            project,
            self._batch_size,
            member.enter,
        )
        fingerprint = gradients.fingerprint()
        header = {
            "method": "TRAK",
            "projection": self.projection,
            "seed": [self.seed, index],
            "output": member.output.name,
            "parameters": list(capture.model.selected),
            "module": fingerprint,
        }
        folder = None if self.path is None else Path(self.path) / f"model-{index:04d}"
        widths = {GRADIENT: k, OUTPUT: 1}
        rows = self._open_rows(folder, header, widths, self.memory // count)
        gradients.fill(rows, self.train_, done)
        moment, residuals = self._second_moment(rows, member.output)
        damping = moment.chosen_damping(self.damping)
        inverse = moment.damped_inverse(damping, f"projection_dim={k}")
        return ProjectedSet(gradients, rows, {GRADIENT: inverse}, fingerprint), residuals

    def _captured_of(self, model: TorchModel) -> GradientCapture:
        if self.parameters is not None:
            model = model.with_parameters(self.parameters)
        return GradientCapture(model, self.train_, self._capture.dtype)

    def _projection(
        self, index: int, capture: GradientCapture
    ) -> Callable[[Gradients, int], Tensor]:
        k, seed, memory = int(self.projection_dim), f"{self.seed}/{index}", max(1, self.memory // 4)
        if self.projection == "factored":
            return KhatriRaoProjection(layers_of(capture, self.train_), k, seed, memory)
        return Projection(k, self.projection, seed, memory)

    def _second_moment(self, rows: RowStore, output: ModelOutput) -> tuple[SecondMoment, Tensor]:
        """Return ``Phi^T R Phi / n``, and the residuals."""
        everyone = range(rows.n)
        outputs = torch.cat([part[OUTPUT][:, 0] for _, part in rows.read(everyone, [OUTPUT])])
        roots = output.curvatures(outputs).sqrt() if self.curvature_weights else None
        moment = SecondMoment(rows.n, rows.widths[GRADIENT], rows.like)
        for where, part in rows.read(everyone, [GRADIENT]):
            gradients = part[GRADIENT]
            if roots is not None:
                gradients = gradients * roots[where.start : where.stop, None]
            moment.add(gradients)
        return moment, output.slopes(outputs)

    # Scores

    @override
    def _weights(self, rows: range) -> Tensor:
        share = 1.0 / (len(self.train_) * len(self._sets))
        return self._residuals[rows.start : rows.stop] * share

    @override
    def _joint_query(self, instances: Instances) -> PreparedSet:
        # The threshold is for the scores of each test instance, not for their sum.
        return self._prepared(instances, joint=not self.soft_threshold)

    @override
    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        return self._thresholded(super()._scores(query, rows))

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        return self._thresholded(super()._self_scores(rows))

    def _thresholded(self, scores: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        if not self.soft_threshold:
            return scores
        sizes = np.maximum(np.abs(scores) - self.soft_threshold, 0).astype(scores.dtype)
        thresholded: NDArray[np.floating[Any]] = np.copysign(sizes, scores)
        return thresholded

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        n, k = len(self.train_), int(self.projection_dim)
        warnings = []
        if n < k:
            warnings.append(
                f"{n:,} training instances for {k:,} dimensions: the second moment of their "
                f"projected gradients is singular, and its damping alone makes it invertible."
            )
        return {
            **super()._diagnostics(query),
            "models": len(self._sets),
            "output": self._output,
            "damping": [part.inverses[GRADIENT].damping for part in self._sets],
            "warnings": warnings,
        }
