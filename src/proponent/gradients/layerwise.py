"""Cosines of gradients layer by layer, averaged over the layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from proponent.gradients.forms import Form
from proponent.gradients.products import Gradients, Query, divide, out_of_range, unit_scaled

Layer = tuple[str, ...]  # the names of its parameters


def layers_of(names: Iterable[str], scales: Mapping[str, float]) -> list[Layer]:
    """Return the layers of some parameters: the modules that own them, a weight with its bias.

    Parameters whose scale is 0 do not move and count in no layer. A tied parameter belongs to
    the first module that owns it.
    """
    layers: dict[str, list[str]] = {}
    for name in names:
        if scales.get(name, 1.0) != 0.0:
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    return [tuple(names) for names in layers.values()]


def restricted(gradients: Gradients, layer: Layer) -> dict[str, Form]:
    """Return the gradients of the parameters of a layer."""
    return {name: gradients[name] for name in layer if name in gradients}


def by_layer(gradients: Gradients, layers: Iterable[Layer]) -> list[dict[str, Form]]:
    """Return the gradients of each layer."""
    return [restricted(gradients, layer) for layer in layers]


@dataclass
class LayerwiseCosines(Query):
    """Test gradients whose product with a training gradient is the mean of the layers' cosines.

    A layer in which one of the two gradients is 0 has the similarity 0, and counts in the mean.

    Parameters
    ----------
    layers : mapping
        For each layer its test vectors and their norms (m,); None where they have been divided
        by them.
    """

    layers: Mapping[Layer, tuple[Query, Tensor | None]]

    @override
    def __len__(self) -> int:
        return max((len(query) for query, _ in self.layers.values()), default=0)

    @override
    def meet(
        self, train: Gradients, n: int, *, norms: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the mean over the layers of their cosines, (n, m); no norms are left to give."""
        cosines = []
        for layer, (query, test_norms) in self.layers.items():
            gradients = restricted(train, layer)
            if not gradients or not len(query):
                continue  # the risk of none of these depends on the layer
            products, squares = query.meet(gradients, n, norms=True)
            if squares is not None and out_of_range(squares):
                products, squares = query.meet(unit_scaled(gradients), n, norms=True)
            if squares is not None:
                products = divide(products, squares.sqrt()[:, None])
            cosines.append(products if test_norms is None else divide(products, test_norms[None]))
        if not cosines:
            return torch.zeros(n, len(self)), None
        return torch.stack(cosines).sum(0) / len(self.layers), None
