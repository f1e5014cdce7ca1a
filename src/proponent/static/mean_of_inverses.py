r"""The mean of the inverses of rank-one matrices, taken for the inverse of their mean.

With the gradients ``g_1 .. g_n`` of one parameter and ``s_j = ||g_j||^2``,

.. math:: \frac{1}{n} \sum_j (g_j g_j^T + \delta)^{-1} v = \frac{1}{\delta}
    \Big[v - \frac{1}{n} \sum_j \frac{\langle g_j, v \rangle}{\delta + s_j} g_j\Big]

stands for ``((1/n) sum_j g_j g_j^T + delta)^{-1} v``. Its inner products with gradients need no
more than inner products of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from proponent.gradients.products import (
    PAIR_COST,
    GradientQuery,
    Gradients,
    Products,
    Query,
    VectorQuery,
    squared_norms,
)

Parts = Callable[[], Iterator[tuple[Gradients, slice]]]


@dataclass(frozen=True)
class TrainingGradients:
    """The training gradients, parameter by parameter.

    Attributes
    ----------
    n : int
        Their number.
    parts : callable
        Goes through them in batches: forms, and which instances they are of.
    kept : bool
        Whether that is free, as they are in memory.
    norms : mapping
        Their squared norms, (n,), by parameter.
    dampings : mapping
        delta, by parameter. A parameter that is not named has no influence.
    products : Products
        How inner products are taken.
    """

    n: int
    parts: Parts
    kept: bool
    norms: Mapping[str, Tensor]
    dampings: Mapping[str, float]
    products: Products

    def inner(self, name: str, block: GradientQuery, part: Gradients, where: slice) -> Tensor:
        """Return ``<g_j, g_i>`` in one parameter, (part, block); 0 where a part has none of it."""
        n = where.stop - where.start
        return block.meet({name: part[name]} if name in part else {}, n)[0]


@dataclass
class MeanOfInverses(Query):
    """Test gradients times the mean of inverses, ready to meet training gradients.

    Parameters
    ----------
    test : GradientQuery or VectorQuery
        m test gradients.
    train : TrainingGradients
        The g_j.
    """

    test: GradientQuery | VectorQuery
    train: TrainingGradients
    _vectors: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _weights: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Take the inner products with all training gradients, and what they weigh."""
        train = self.train
        for part, where in train.parts():
            n = where.stop - where.start
            for name, damping in train.dampings.items():
                if name not in part:
                    continue
                inner = self.test.meet({name: part[name]}, n)[0]
                shrunk = inner / (train.norms[name][where] + damping)[:, None] / train.n
                if self._by_pairs(name, part):
                    if name not in self._weights:
                        self._weights[name] = inner.new_zeros(train.n, len(self))
                    self._weights[name][where] = shrunk
                else:
                    total = part[name].weighted_sum(shrunk.T)
                    known = self._vectors.get(name)
                    self._vectors[name] = total if known is None else known.add_(total)

    def _by_pairs(self, name: str, part: Gradients) -> bool:
        """Whether sums over the g_j are met term by term, and not as a vector."""
        form, way, m = part[name], self.train.products.way, len(self)
        if not self.train.kept or not form.positions or way == "materialise":
            return name in self._weights
        pairs = self.train.n * (form.positions**2 * (form.width + PAIR_COST) + m)
        return way == "pair" or name in self._weights or pairs < 2 * form.contract_cost(m)

    @override
    def __len__(self) -> int:
        return len(self.test)

    @override
    def meet(
        self, train: Gradients, n: int, *, norms: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return the products with n training gradients, (n, m)."""
        total = self.test.like.new_zeros(n, len(self))
        for name, damping in self.train.dampings.items():
            if name in train:
                alone = {name: train[name]}
                products = self.test.meet(alone, n)[0]
                if name in self._vectors:
                    vectors = {name: self._vectors[name]}
                    products = (
                        products - VectorQuery(vectors, self.train.products).meet(alone, n)[0]
                    )
                if name in self._weights:
                    products = products - self._met_by_pairs(name, alone, n)
                total += products / damping
        return total, squared_norms(train, n, self.train.products) if norms else None

    def _met_by_pairs(self, name: str, alone: Gradients, n: int) -> Tensor:
        block = GradientQuery([alone], [n], self.train.products)
        total = self.test.like.new_zeros(n, len(self))
        for part, where in self.train.parts():
            total += self.train.inner(name, block, part, where).T @ self._weights[name][where]
        return total


def self_products(block: GradientQuery, train: TrainingGradients) -> Tensor:
    """Return the products of the gradients in a block with themselves, (block,)."""
    products = block.like.new_zeros(len(block))
    for name, damping in train.dampings.items():
        parts = [({name: part[name]}, n) for part, n in zip(block.parts, block.sizes, strict=True)]
        products += torch.cat([squared_norms(*part, train.products) for part in parts]) / damping
    for part, where in train.parts():
        for name, damping in train.dampings.items():
            inner = train.inner(name, block, part, where)
            shrunk = inner.square() / (train.norms[name][where] + damping)[:, None]
            products -= shrunk.sum(0) / (train.n * damping)
    return products


def sample_error(
    gradients: Gradients, n: int, dampings: Mapping[str, float], products: Products
) -> tuple[float, float | None]:
    """Compare the mean of inverses with the inverse of the mean, on a sample of gradients.

    Parameters
    ----------
    gradients : mapping
        Of the n instances of the sample, which is taken for the training set.
    n : int
        Their number.
    dampings : mapping
        delta, by parameter.
    products : Products
        How inner products are taken.

    Returns
    -------
    float, float or None
        Of the products of the sample with itself, (n, n): the error relative to the exact ones,
        norm-wise, and the correlation between both off the diagonal; None where there is none.
    """
    block = GradientQuery([gradients], [n], products)
    exact = torch.zeros(n, n, dtype=torch.float64)
    approximate = torch.zeros(n, n, dtype=torch.float64)
    for name, damping in dampings.items():
        if name not in gradients:
            continue
        gram = block.meet({name: gradients[name]}, n)[0].double().cpu()
        shifted = gram + n * damping * torch.eye(n, dtype=gram.dtype)
        exact += (gram - gram @ torch.linalg.solve(shifted, gram)) / damping
        shrunk = gram / (gram.diagonal() + damping)[:, None]
        approximate += (gram - gram @ shrunk / n) / damping
    size = float(exact.norm())
    error = float((approximate - exact).norm()) / size if size else 0.0
    apart = ~torch.eye(n, dtype=torch.bool)
    pair = torch.stack([exact[apart], approximate[apart]])
    if n < 3 or not (pair.std(1) > 0).all():
        return error, None
    return error, float(torch.corrcoef(pair)[0, 1])
