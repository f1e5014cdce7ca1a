"""Cards of the retraining-based methods that are not built (survey section 4)."""

from __future__ import annotations

from proponent.card import MethodCard

RETRAINING: tuple[MethodCard, ...] = (
    # It explains features: `proponent.retraining.game_adapters` hands games to and from shap.
    MethodCard(
        name="SHAP",
        survey_name="SHAP",
        title="Shapley Additive Explanations",
        family="retraining",
        section="4.3.3",
        paper="Lundberg and Lee, NeurIPS 2017",
        needs="a fitted model and a background set; it scores features, not training instances",
        full_complexity="O(2^d), d features",
        incremental_complexity="O(2^d)",
        space_complexity="O(d + p)",
        storage_complexity="0",
        any_model=True,
        original_sign="the contribution to the prediction, not to its risk",
    ),
)
