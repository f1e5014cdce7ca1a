"""LoGra: influence functions in low-rank subspaces of each layer's gradients (Choe et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from typing_extensions import override

from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.gradients.fingerprint import fingerprint
from proponent.gradients.kfac.covariances import Covariances
from proponent.gradients.kfac.layers import Layer
from proponent.gradients.kfac.passes import FisherGradients, covariance_pass
from proponent.gradients.layer_maps import layers_of
from proponent.gradients.method import MEMORY
from proponent.gradients.path import TestSet
from proponent.gradients.products import Gradients
from proponent.gradients.projected_gradients import ProjectedGradients
from proponent.gradients.row_store import Rows, RowStore
from proponent.gradients.second_moment import DampedInverse, SecondMoment, check_damping
from proponent.gradients.subspaces import (
    Subspace,
    as_tensors,
    basis_sizes,
    from_tensors,
    subspaces,
)
from proponent.models.torch import ParameterChoice, TorchModel
from proponent.progress import progress as progress_bar
from proponent.static.projected_method import ProjectedMethod, ProjectedSet

if TYPE_CHECKING:
    from typing_extensions import Self

ProjectionKind = Literal["random", "pca"]
CurvatureName = Literal["empirical_fisher", "fisher"]


class LoGra(ProjectedMethod):
    r"""Influence functions in a low-rank subspace of each layer's gradients.

    The gradient of a layer's weight, ``G = sum_t d_t a_t^T``, is projected from both sides by its
    factors, ``g~ = P_o G P_i^T``, and

        I(z_i, z_te) = (1/n) sum_layers g~_te^T (F~ + weight_decay + damping)^{-1} g~_i,
        F~ = (1/n) sum_i g~_i g~_i^T.

    As ``P_o`` and ``P_i`` have orthonormal rows, this is the influence function of the model whose
    weights may move in the subspaces alone, with the empirical Fisher matrix, layer by layer; with
    bases of full rank it is that of the whole model. Projected training gradients are kept: **log
    once, query often**. With ``path=`` they outlive the process, and a query costs its own
    gradients and one reading of them.

    **Source** Choe et al., "What is your data worth to GPT? LLM-scale data valuation with
    influence functions" (2024).

    **Differs from the paper in** orthonormal bases (the code's random ones are not, so that its
    scale depends on them); in what is projected: a layer's bias with its weight (as a further
    column), embeddings, convolutions as well as linear layers, and every parameter that is no
    matrix as one vector, whole up to ``rank^2`` entries and else by a random basis of as many,
    where the original leaves all but weights out; in the damping (the code's is a tenth of the
    mean of all eigenvalues, most of which are 0 for few instances); and in scale, by 1/n.

    Scores are ``(n_test, n_train)`` in units of the risk, leave-one-out differences to first
    order; positive means that the training instance lowers the test risk.

    **Cost** Upfront a forward-backward pass an instance, less the weight gradients, with the
    projection, and ``n r^2 min(n, r^2)`` multiply-adds a layer for F~ of rank r; ``"pca"`` and
    ``"fisher"`` take a pass more each. A test instance has its own pass and ``n r^2``
    multiply-adds a layer. ``n r^2`` numbers a layer are kept.

    Parameters
    ----------
    rank : int
        r, vectors in a basis; a side of fewer dimensions is kept whole.
    projection : "random" or "pca"
        Random bases, or the leading eigenvectors of the covariances of the inputs and output
        gradients (of an embedding and of vectors random bases too). ``"pca"`` is the better
        for small ranks.
    curvature : "empirical_fisher" or "fisher"
        Whether F~ is of the gradients themselves, as the original has it, or of gradients at
        labels that are drawn from the model.
    damping : float, optional
        Added to the eigenvalues of F~. None: 0.3 times the mean of those that need not be 0, layer
        by layer. It is reported.
    weight_decay : float
        The training objective is ``mean risk + (weight_decay / 2) ||theta||^2``.
    seed : int
        Fixes random bases, and the labels that ``"fisher"`` draws.
    path : str or Path, optional
        A directory in which the projected training gradients are stored: a fit that was stopped
        goes on there, one to the same model and data reads them, another is refused. None: they
        are kept in memory.
    parameters, batch_size, memory, dtype, progress
        As in :class:`GradientDot`. ``memory`` also bounds F~ and its inverse, and what is kept in
        memory.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> pp.LoGra(rank=2).fit(model, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="LoGra",
        title="Low-rank Gradient Projection",
        aliases=("LogIX",),
        family="static",
        paper="Choe et al., 2024",
        needs="a trained torch module with its per-instance risk (pp.TorchModel)",
        full_complexity="O(np + nr^4 L), L layers, rank r",
        incremental_complexity="O(p + nr^2 L), L layers, rank r",
        space_complexity="O(nr^2 L + r^4 L + p), L layers, rank r",
        storage_complexity="O(nr^2 L), L layers, rank r",
        assumes=("differentiable", "convex", "stationary"),
        estimates_loo=True,
        group=True,
        generative=True,
        original_sign="the same, without the factor 1/n",
        cost=lambda *, n, n_test, **_: n + n_test,
    )

    def __init__(
        self,
        rank: int = 64,
        *,
        projection: ProjectionKind = "random",
        curvature: CurvatureName = "empirical_fisher",
        damping: float | None = None,
        weight_decay: float = 0.0,
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
        self.rank = rank
        self.projection = projection
        self.curvature = curvature
        self.weight_decay = weight_decay

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        """Project the gradients of the training set, or read those that are stored.

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
            If the model or a setting cannot be used, ``path`` holds projected gradients of another
            model or data set, or more memory is needed than allowed.
        NonFiniteError
            If a risk or a gradient is not finite; the message names the instances.
        SolveError
            If F~, damped, is singular.
        """
        if not isinstance(model, TorchModel):
            raise self._wrong_kind(model)
        self._check_settings()
        self._prepare(model, train, ids)
        self._layers = layers_of(self._capture, self.train_)
        self._check_memory()
        self._sets = (self._projected_set(),)
        return self

    def _check_settings(self) -> None:
        for name, least in (("rank", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < least:
                raise InvalidInputError(
                    f"{name} must be an integer of at least {least}; got {value!r}."
                )
        for name, choices in (("projection", ProjectionKind), ("curvature", CurvatureName)):
            if getattr(self, name) not in get_args(choices):
                raise InvalidInputError(
                    f"{name}={getattr(self, name)!r}: expected one of "
                    f"{', '.join(get_args(choices))}."
                )
        check_damping(self.damping)
        if not 0 <= self.weight_decay < float("inf"):
            raise InvalidInputError(
                f"weight_decay must be a finite number of at least 0; got {self.weight_decay!r}."
            )

    def _widths(self) -> dict[str, int]:
        sizes = {layer.weight: basis_sizes(layer, int(self.rank)) for layer in self._layers}
        return {name: left * right for name, (left, right) in sizes.items()}

    def _check_memory(self) -> None:
        n, itemsize = len(self.train_), self._capture.dtype.itemsize
        needed = sum(SecondMoment.nbytes(n, width, itemsize) for width in self._widths().values())
        if needed > self.memory:
            raise InvalidInputError(
                f"rank={self.rank}: the projected Fisher matrices of {len(self._layers)} layers "
                f"and their inverses take {needed / 2**20:,.0f} MiB, more than memory="
                f"{self.memory / 2**20:,.0f} MiB. Choose a lower rank (they grow with its fourth "
                f"power) or fewer parameters, or raise memory."
            )

    def _projected_set(self) -> ProjectedSet:
        print_of_module = fingerprint(self.model_.module.state_dict())
        header = {
            "method": "LoGra",
            "rank": self.rank,
            "projection": [self.projection] + [self.curvature] * (self.projection == "pca"),
            "seed": self.seed,
            "layers": [layer.describe() for layer in self._layers],
            "module": print_of_module,
        }
        path = None if self.path is None else Path(self.path)
        rows = self._open_rows(path, header, self._widths(), self.memory)
        spaces = self._subspaces(rows)
        project = partial(_coordinates, spaces, max(1, self.memory // 8))
        gradients = ProjectedGradients(self.model_, self._capture, project, self._batch_size)
        n = len(self.train_)
        bar: Any = progress_bar(total=n, description="LoGra", enabled=self.progress)
        with bar:
            bar.update(n - sum(map(len, rows.missing())))
            gradients.fill(rows, self.train_, bar.update)
        moments = self._second_moments(rows, project)
        return ProjectedSet(gradients, rows, self._inverses(moments), print_of_module)

    def _subspaces(self, rows: RowStore) -> list[Subspace]:
        kept = rows.kept("bases")
        if kept is not None:
            return from_tensors(self._layers, kept)
        covariances = self._covariances() if self.projection == "pca" else None
        found = subspaces(self._layers, int(self.rank), self.seed, rows.like, covariances)
        rows.keep("bases", as_tensors(found))
        return found

    def _covariances(self) -> Covariances:
        covariances = covariance_pass(self._fisher_gradients(), self._layers)
        if covariances.failed:
            failed = [f"{name}: {why}" for name, why in covariances.failed.items()]
            raise NonFiniteError(f"projection='pca': {'; '.join(failed)}.")
        return covariances

    def _fisher_gradients(self) -> FisherGradients:
        return FisherGradients(
            self.model_,
            self.train_,
            labels="observed" if self.curvature == "empirical_fisher" else None,
            seed=int(self.seed),
            batch_size=self._batch_size,
            dtype=self._capture.dtype,
            progress=self.progress,
        )

    def _second_moments(
        self, rows: RowStore, project: Callable[[Gradients, int], Rows]
    ) -> dict[str, SecondMoment]:
        moments = {
            name: SecondMoment(rows.n, width, rows.like) for name, width in rows.widths.items()
        }
        drawn = self.curvature == "fisher"
        name = f"second-moments-{self.curvature}" + (f"-{self.seed}" if drawn else "")
        kept = rows.kept(name)
        if kept is not None:
            for layer, moment in moments.items():
                moment.tensor = kept[layer]
            return moments
        observed = (tables for _, tables in rows.read(range(rows.n)))
        for tables in self._drawn(project) if drawn else observed:
            for layer, values in tables.items():
                moments[layer].add(values)
        rows.keep(name, {layer: moment.tensor for layer, moment in moments.items()})
        return moments

    def _drawn(self, project: Callable[[Gradients, int], Rows]) -> Iterator[Rows]:
        """Go through the projected gradients at labels that are drawn from the model."""
        for gradients, n, _ in self._fisher_gradients().batches(self._layers, "LoGra: Fisher"):
            yield project(gradients, n)

    def _inverses(self, moments: dict[str, SecondMoment]) -> dict[str, DampedInverse]:
        """Return each layer's damped inverse; a layer without any gradient has no influence."""
        self._damping = {name: m.chosen_damping(self.damping) for name, m in moments.items()}
        return {
            name: moment.damped_inverse(self._damping[name] + self.weight_decay, f"layer {name!r}")
            for name, moment in moments.items()
            if moment.mean_eigenvalue > 0
        }

    @override
    def _weights(self, rows: range) -> float:
        return 1.0 / len(self.train_)

    @override
    def _diagnostics(self, query: TestSet | None) -> dict[str, Any]:
        idle = [name for name in self._damping if name not in self._sets[0].inverses]
        return {
            **super()._diagnostics(query),
            "layers": [self._described(layer) for layer in self._layers],
            "curvature": self.curvature,
            "damping": self._damping,
            "weight_decay": self.weight_decay,
            "warnings": [f"{name}: no training gradient, and so no influence" for name in idle],
        }

    def _described(self, layer: Layer) -> dict[str, Any]:
        left, right = basis_sizes(layer, int(self.rank))
        return {
            "layer": layer.name,
            "parameters": list(layer.parameters),
            "kind": layer.kind.value,
            "basis_sizes": [left, right],
        }


def _coordinates(spaces: Sequence[Subspace], memory: int, gradients: Gradients, n: int) -> Rows:
    return {space.layer.weight: space.coordinates(gradients, n, memory) for space in spaces}
