"""Cards of the dynamic, gradient-based methods to come (survey section 5.2)."""

from __future__ import annotations

from functools import partial

from proponent.card import MethodCard

_traced = partial(
    MethodCard,
    family="dynamic",
    needs="a recorded training run (pp.Recorder)",
    full_complexity="O(npT)",
    incremental_complexity="O(npT)",
    space_complexity="O(n + p)",
    storage_complexity="O(pT)",
    assumes=("differentiable", "optimizer"),
)

DYNAMIC: tuple[MethodCard, ...] = (
    _traced(
        name="GANInfluence",
        title="Influence for Generative Adversarial Networks",
        section="5.2.2.3",
        paper="Terashita et al., ICLR 2021",
        needs="a recorded training run (pp.Recorder) of a generator and its discriminator",
        full_complexity="O(bpT)",
        incremental_complexity="O(bpT)",
        generative=True,
        original_sign="the change of a metric on removal, so its sign is that of the metric",
    ),
)
