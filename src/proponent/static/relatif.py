"""RelatIF: influence relative to what an instance does to the model as a whole (5.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import Curvature
from proponent.gradients.inverse import Inverse
from proponent.gradients.method import MEMORY
from proponent.gradients.path import TestSet
from proponent.gradients.products import Gradients, Way, entry_bounds, unit_scaled
from proponent.models.torch import ParameterChoice
from proponent.static.chosen_inverse import NEEDS, SolverChoice
from proponent.static.curvature_method import CurvatureMethod

if TYPE_CHECKING:
    from typing_extensions import Self

Relative = Literal["loss", "theta"]


class RelatIF(CurvatureMethod):
    r"""Influence an instance has on a prediction, for the change it makes to the model at large.

    ``relative="theta"`` bounds the change of the parameters, ``relative="loss"`` the expected
    squared change of the training losses:

        theta:  I(z_i, z_te) = (1/n) g_te^T A^{-1} g_i / ||A^{-1} g_i||
        loss:   I(z_i, z_te) = (1/n) g_te^T A^{-1} g_i / sqrt(g_i^T A^{-1} g_i)

    with ``A = C + weight_decay + damping``. Instances that are far from all others, outliers and
    wrong labels, no longer head every list: what is left is what is special to the prediction.
    A zero gradient has influence 0.

    **Source** Barshan, Brunet and Dziugaite, AISTATS 2020; survey eq. (65), which has the
    theta-relative form alone.

    **Differs from the paper in** the factor 1/n, and the choice of curvature.

    Scores are ``(n_test, n_train)``, ``1/n`` times units of risk per parameter (theta) or the
    root of the risk (loss); positive means that the training instance lowers the test risk. They
    are not leave-one-out differences, and those of a group do not add up.

    **Cost** A solve for every *training* instance upfront, once (the survey's Remark 9 has it
    otherwise), then as influence functions. ``"explicit"``, ``"ekfac"``, ``"arnoldi"`` and
    ``"gram_dual"`` make these cheap; ``solver="auto"`` takes one of them.

    Parameters
    ----------
    relative : "loss" or "theta"
        To what. ``"loss"`` does not depend on how the model is parameterised.
    solver, curvature, damping, weight_decay, seed
        As in :class:`InfluenceFunctions`.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> pp.RelatIF(weight_decay=0.01).fit(model, train).influence(train).shape
    (10, 10)
    """

    every_instance = True
    card: ClassVar[MethodCard] = MethodCard(
        name="RelatIF",
        survey_name="RelatIF",
        title="Relative Influence Functions",
        family="static",
        section="5.3",
        equations="65",
        paper="Barshan, Brunet and Dziugaite, AISTATS 2020",
        needs=NEEDS,
        full_complexity="O(n^2 p), or O(np) with a factored inverse",
        incremental_complexity="O(np)",
        space_complexity="O(n + p)",
        storage_complexity="0",
        assumes=("differentiable", "convex", "stationary"),
        generative=True,
        original_sign="the same, without the factor 1/n",
    )

    def __init__(
        self,
        relative: Relative = "loss",
        *,
        solver: SolverChoice = "auto",
        curvature: str | Curvature = "ggn",
        damping: float | Mapping[str, float] | None = None,
        weight_decay: float | Mapping[str, float] = 0.0,
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
            seed=seed,
            parameters=parameters,
            batch_size=batch_size,
            products=products,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
        self.relative = relative

    @override
    def _check_settings(self) -> None:
        super()._check_settings()
        if self.relative not in get_args(Relative):
            raise InvalidInputError(f"relative={self.relative!r}: expected 'loss' or 'theta'.")

    @override
    def fit(self, model: Any, train: Any, *, ids: Any = None) -> Self:
        super().fit(model, train, ids=ids)
        inverse = self._chosen.fresh()
        rows = range(len(self.train_))
        self._changes = self._each(rows, lambda forms, n: self._change(inverse, forms, n), inverse)
        return self

    @override
    def _scores(self, query: TestSet, rows: range) -> NDArray[np.floating[Any]]:
        return _over(super()._scores(query, rows), self._changes[rows.start : rows.stop])

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        if self.relative == "loss":  # g^T A^{-1} g over its own root
            return self._changes[rows.start : rows.stop] / len(self.train_)
        return _over(super()._self_scores(rows), self._changes[rows.start : rows.stop])

    def _change(self, inverse: Inverse, gradients: Gradients, n: int) -> Tensor:
        """Return what is divided by, of n captured gradients, (n,).

        Gradients are divided by a bound of their entries first, whose squares may underflow.
        """
        if not gradients:
            return torch.zeros(n, dtype=self._capture.dtype)
        scaled = unit_scaled(gradients)
        if self.relative == "theta":
            sizes = inverse.inverse_norms(scaled, n)
        else:
            sizes = inverse.self_inner(scaled, n).sqrt()
        return sizes * entry_bounds(gradients).to(sizes)


def _over(
    scores: NDArray[np.floating[Any]], sizes: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Divide by the sizes; a zero gradient has influence 0."""
    result = np.zeros_like(scores)
    np.divide(scores, sizes, out=result, where=sizes != 0)
    return result
