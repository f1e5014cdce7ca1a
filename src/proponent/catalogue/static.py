"""Cards of the static, gradient-based methods to come (survey sections 5.1 and 5.3)."""

from __future__ import annotations

from functools import partial

from proponent.card import MethodCard

_representer = partial(
    MethodCard,
    family="static",
    needs="a trained torch module whose last layer is linear (pp.TorchModel)",
    full_complexity="O(n)",
    incremental_complexity="O(n)",
    space_complexity="O(n + p)",
    storage_complexity="0",
    original_sign="the contribution to the pre-activation of the test label, not to its risk",
)

STATIC: tuple[MethodCard, ...] = (
    _representer(
        name="HighDimensionalRepresenter",
        survey_name="High Dim. Rep.",
        title="High-Dimensional Representers",
        section="5.1.2.3",
        equations="47",
        paper="Tsai et al., ICML 2023",
        needs="a linear or matrix-factorisation model fitted with a sparse or low-rank penalty",
        assumes=("differentiable", "convex", "stationary", "linear"),
    ),
)
