"""Cards of the methods for tree ensembles to come (survey sections 4.1.3, 5.1 and 5.2)."""

from __future__ import annotations

from functools import partial

from proponent.card import MethodCard

# Here T is the number of boosting iterations, and the structure of the trees is held fixed.
_trees = partial(
    MethodCard,
    family="trees",
    needs="a fitted tree ensemble of XGBoost, LightGBM, CatBoost or scikit-learn",
    full_complexity="O(nT)",
    incremental_complexity="O(nT)",
    space_complexity="O(nT)",
    storage_complexity="0",
    assumes=("differentiable",),
)

TREES: tuple[MethodCard, ...] = (
    _trees(
        name="LeafRefit",
        survey_name="LeafRefit",
        title="Decision Forest Leaf Refitting",
        section="4.1.3",
        paper="Sharchilev et al., ICML 2018",
        full_complexity="O(n^2 T)",
        storage_complexity="O(nL), L leaves",
        estimates_loo=True,
        group=True,
        original_sign="the same",
    ),
    _trees(
        name="TREX",
        survey_name="TREX",
        title="Tree-Ensemble Representer-Point Explanations",
        section="5.1.2.3",
        paper="Brophy, Hammoudeh and Lowd, JMLR 2023",
        full_complexity="O(snT), s solver steps",
        assumes=("differentiable", "convex", "stationary", "linear"),
        original_sign="the same",
    ),
    _trees(
        name="TreeSim",
        title="Tree-Ensemble Similarity",
        aliases=("LeafSim",),
        paper="Brophy, Hammoudeh and Lowd, JMLR 2023",
        assumes=(),
        original_sign="the same: positive where the labels agree",
    ),
)
