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
        name="VAETracIn",
        survey_name="VAE-TracIn",
        title="Variational Autoencoder TracIn",
        section="5.2.1.3",
        paper="Kong and Chaudhuri, NeurIPS 2021",
        needs="a recorded training run (pp.Recorder) of a variational autoencoder",
        generative=True,
        original_sign="the same",
    ),
    _traced(
        name="TracInAD",
        survey_name="TracInAD",
        title="TracIn Anomaly Detection",
        section="5.2.1.3",
        paper="Thimonier et al., IJCNN 2022",
        full_complexity="O(spT), s sampled training instances",
        incremental_complexity="O(pT)",
        space_complexity="O(p)",
        generative=True,
        original_sign="one score a test instance, high where it is an anomaly",
    ),
    _traced(
        name="TracInWE",
        survey_name="TracInWE",
        title="TracIn Word Embeddings",
        section="5.2.1.3",
        paper="Yeh et al., NeurIPS 2022",
        needs="a recorded training run (pp.Recorder) of a module with token embeddings",
        original_sign="the same",
    ),
    # Space and storage are those of the algorithm as published (Table 1).
    _traced(
        name="HyDRA",
        survey_name="HyDRA",
        title="Hypergradient Data Relevance Analysis",
        section="5.2.2",
        equations="56-64",
        paper="Chen et al., AAAI 2021",
        incremental_complexity="O(np)",
        space_complexity="O(np)",
        storage_complexity="O(pT + np)",
        estimates_loo=True,
    ),
    _traced(
        name="SGDInfluence",
        survey_name="SGD-Influence",
        title="Stochastic Gradient Descent Influence",
        section="5.2.2.3",
        paper="Hara, Nitanda and Maehara, NeurIPS 2019",
        full_complexity="O(bpT)",
        incremental_complexity="O(bpT)",
        assumes=("differentiable", "convex", "optimizer"),
        estimates_loo=True,
        original_sign="the same",
    ),
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
