"""What is measured: this library, its peers and a plain prototype, under one signature."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from benchmarks import peers
from benchmarks.ours import proponent_scores
from benchmarks.workloads import Workload


@dataclass(frozen=True)
class Implementation:
    """A way to score the first n training instances of a workload.

    ``install`` is what a missing import needs.
    """

    title: str
    run: Callable[[Workload, int], Tensor]
    install: str


IMPLEMENTATIONS: dict[str, Implementation] = {
    "proponent": Implementation("**proponent**", proponent_scores, "pip install -e .[torch]"),
    "vmap": Implementation("`vmap(grad)`, materialised", peers.vmap_materialised, ""),
    "captum": Implementation("captum, hooks", peers.captum_hooks, "pip install captum==0.9.0"),
    "captum-loop": Implementation("captum, loop", peers.captum_loop, "pip install captum==0.9.0"),
    "dattri": Implementation(
        "dattri, exact", peers.dattri_tracin, "pip install --no-deps dattri==0.3.0"
    ),
}
