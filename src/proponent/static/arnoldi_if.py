"""Influence functions on the leading eigenvectors of the curvature (5.1.1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from typing_extensions import override

from proponent.card import MethodCard
from proponent.gradients.curvature import Curvature
from proponent.gradients.method import MEMORY
from proponent.gradients.products import Way
from proponent.gradients.solvers.arnoldi import Arnoldi, Complement
from proponent.models.torch import ParameterChoice
from proponent.static.chosen_inverse import NEEDS, Request
from proponent.static.curvature_method import Convention, CurvatureMethod


class ArnoldiIF(CurvatureMethod):
    r"""Influence functions with the curvature inverted on its leading eigenvectors.

    With Ritz pairs (mu_j, v_j), mu_j > 0, of the curvature and ``d = weight_decay + damping``,

        I(z_i, z_te) = (1/n) [ sum_j <v_j, g_te> <v_j, g_i> (1 / (mu_j + d) - 1 / d)
                               + <g_te, g_i> / d ]

    The last term and the ``- 1 / d`` are what the directions outside the leading ones get, whose
    curvature counts as zero; ``complement="drop"`` leaves them out as the paper does, although
    small eigenvalues count most in an inverse.

    **Source** Schioppa, Zablotskaia, Vilar and Sokolov, AAAI 2022; survey section 5.1.1.3.

    **Differs from the paper in** the complement, the factor 1/n, products with the whole training
    set instead of a fresh batch each, a second orthogonalisation, and real, positive eigenvalues
    alone; :class:`~proponent.gradients.solvers.arnoldi.Arnoldi` says more.

    Scores are ``(n_test, n_train)`` in units of the risk, leave-one-out differences; positive
    means that the training instance lowers the test risk.

    **Cost** ``iterations`` products with the curvature and ``iterations^2 p`` multiply-adds
    upfront, ``iterations * p`` numbers to hold; then no solve at all: ``rank * p`` multiply-adds
    a test instance, and the products with the training gradients.

    Parameters
    ----------
    rank : int
        Leading eigenvectors that are kept.
    iterations : int
        Dimension of the Krylov space that they are found in.
    complement : "damped" or "drop"
        What the other directions get.
    curvature, damping, weight_decay, loo_convention, seed
        As in :class:`InfluenceFunctions`; the seed fixes the first vector too.
    parameters, batch_size, products, memory, dtype, progress
        As in :class:`GradientDot`.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> module = torch.nn.Linear(2, 3)
    >>> train = torch.randn(10, 2), torch.randint(3, (10,))
    >>> model = pp.TorchModel(module, loss="cross_entropy")
    >>> pp.ArnoldiIF(rank=4).fit(model, train).influence(train).shape
    (10, 10)
    """

    card: ClassVar[MethodCard] = MethodCard(
        name="ArnoldiIF",
        survey_name="Arnoldi IF",
        title="Arnoldi-Based Influence Functions",
        family="static",
        section="5.1.1.3",
        equations="33, 34",
        paper="Schioppa, Zablotskaia, Vilar and Sokolov, AAAI 2022",
        needs=NEEDS,
        full_complexity="O(rbp + r^2 p + nkp), r iterations, k eigenvectors",
        incremental_complexity="O(kp + nk)",
        space_complexity="O(rp)",
        storage_complexity="O(kp + nk)",
        assumes=("differentiable", "convex", "stationary"),
        estimates_loo=True,
        group=True,
        generative=True,
        original_sign="the same, without the factor 1/n",
    )

    def __init__(
        self,
        rank: int = 100,
        *,
        iterations: int = 200,
        complement: Complement = "damped",
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
        self.rank = rank
        self.iterations = iterations
        self.complement = complement

    @override
    def _request(self) -> Request:
        solver = Arnoldi(
            iterations=self.iterations, rank=self.rank, complement=self.complement, seed=self.seed
        )
        return replace(super()._request(), solver=solver)
