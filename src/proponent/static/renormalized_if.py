"""Renormalised influence functions: directions of training gradients, not their lengths (5.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.card import MethodCard
from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import Curvature
from proponent.gradients.method import MEMORY, divide
from proponent.gradients.products import Gradients, Way, squared_norms, unit_scaled
from proponent.models.torch import ParameterChoice
from proponent.static.chosen_inverse import NEEDS, SolverChoice
from proponent.static.curvature_method import CurvatureMethod

Normalise = Literal["train", "both"]


class RenormalizedIF(CurvatureMethod):
    r"""Influence functions of unit gradients.

    ``I(z_i, z_te) = (1/n) g_te^T A^{-1} g_i / ||g_i||``, and with ``normalise="both"`` also over
    ``||g_te||``, ``A = C + weight_decay + damping``. Large gradients, which belong to large
    losses, no longer decide alone; a confidently learned instance can be influential too. A zero
    gradient has influence 0.

    **Source** Hammoudeh and Lowd, CCS 2022; survey eq. (68), which normalises the training
    gradient alone. The test gradient's norm is the same for a whole row: it changes no ranking
    of one test instance, but the weight of each in a joint influence.

    **Differs from the paper in** the curvature and the solver (the paper: LiSSA, whose damping
    is so large there that the scores are close to those of gradient directions).

    Scores are ``(n_test, n_train)`` and positive where the training instance lowers the test
    risk. They are not leave-one-out differences, and those of a group do not add up.

    **Cost** As influence functions, and the norms.

    Parameters
    ----------
    normalise : "train" or "both"
        Whose gradients have length 1.
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
    >>> pp.RenormalizedIF(weight_decay=0.01).fit(model, train).influence(train).shape
    (10, 10)
    """

    normalise_train = True
    card: ClassVar[MethodCard] = MethodCard(
        name="RenormalizedIF",
        survey_name="Renorm. IF",
        title="Renormalized Influence Functions",
        family="static",
        section="5.3",
        equations="68",
        paper="Hammoudeh and Lowd, CCS 2022",
        needs=NEEDS,
        full_complexity="O(np)",
        incremental_complexity="O(np)",
        space_complexity="O(n + p)",
        storage_complexity="0",
        assumes=("differentiable", "convex", "stationary"),
        generative=True,
        original_sign="the same",
    )

    def __init__(
        self,
        normalise: Normalise = "train",
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
        self.normalise = normalise

    @override
    def _check_settings(self) -> None:
        super()._check_settings()
        if self.normalise not in get_args(Normalise):
            raise InvalidInputError(f"normalise={self.normalise!r}: expected 'train' or 'both'.")

    @override
    def _as_test(self, gradients: Gradients, n: int) -> Gradients:
        return self._unit(gradients, n) if self.normalise == "both" else gradients

    @override
    def _self_scores(self, rows: range) -> NDArray[np.floating[Any]]:
        inverse, weight = self._chosen.fresh(), 1.0 / len(self.train_)

        def inner(gradients: Gradients, n: int) -> Any:
            products = inverse.self_inner(self._unit(gradients, n), n) * weight
            if self.normalise == "both":
                return products
            return products * squared_norms(gradients, n, self._products).sqrt()

        return self._each(rows, inner, inverse)

    def _unit(self, gradients: Gradients, n: int) -> Gradients:
        """Return n captured gradients with length 1; a zero gradient stays one."""
        scaled = unit_scaled(gradients)  # whose squares neither underflow nor overflow
        norms = squared_norms(scaled, n, self._products).sqrt()
        weights = divide(norms.new_ones(n), norms)
        return {name: form.scaled(weights.to(form.like.dtype)) for name, form in scaled.items()}
