"""How many submodels are trained at once."""

from __future__ import annotations

from typing import Literal

from proponent.models.torch_recipe import TorchRecipe
from proponent.models.torch_traits import Traits

CACHE = 12 * 2**20  # bytes that submodels trained at once may take together
ACCELERATOR = 2**31  # the same where the module is on an accelerator
MOST = {"cpu": 128, "accelerator": 1024}  # submodels
FEWEST = 8  # below, the work itself takes so long that nothing is gained


def chunk_of(asked: int | Literal["auto"], recipe: TorchRecipe, traits: Traits, n: int) -> int:
    """Return how many submodels are trained at once.

    By itself as many as fit the cache with parameters, gradients, what the optimizer remembers
    and the activations of a batch, forward and backward.
    """
    if asked != "auto":
        return asked
    on_cpu = recipe.model(recipe.module(0)).device.type == "cpu"
    entries = 3 * traits.parameters + 2 * traits.activations * recipe.plan.width(n)
    fitting = (CACHE if on_cpu else ACCELERATOR) // (entries * traits.itemsize)
    return min(max(1, fitting), MOST["cpu" if on_cpu else "accelerator"])
