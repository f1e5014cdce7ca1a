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
    # Only the loss has to be differentiable (Table 1's asterisk).
    _representer(
        name="RepresenterPoint",
        survey_name="RP",
        title="Representer Point",
        aliases=("RPS-l2", "representer point selection"),
        section="5.1.2",
        equations="36-46",
        paper="Yeh et al., NeurIPS 2018",
        assumes=("differentiable", "convex", "stationary", "linear"),
    ),
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
    _representer(
        name="RPSLJE",
        survey_name="RPS-LJE",
        title="Representer Point Based on Local Jacobian Expansion",
        section="5.1.2.3",
        equations="46",
        paper="Sui, Wu and Sanner, NeurIPS 2021",
        full_complexity="O(nq^2 + q^3), q parameters of the last layer",
        incremental_complexity="O(nq)",
        space_complexity="O(n + q^2)",
        assumes=("differentiable", "linear"),
    ),
)
