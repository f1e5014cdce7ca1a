"""Inner products of per-instance gradients, parameter by parameter, the cheaper way for each.

Gradients ``G_i = sum_t d_it a_it^T`` (n training instances) and ``G'_j`` (m test instances) meet
either as *pairs* of factors, ``<G_i, G'_j> = sum_ts (a_it . a'_js)(d_it . d'_js)``, which forms
no gradient, or *materialised*, as one matrix product. Pairs win where there are few positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.gradients.forms import Form, Outer

Gradients = Mapping[str, Form]
Way = Literal["auto", "pair", "materialise"]

# Costs in multiply-adds, measured on a CPU: what writing a gradient's entry and reading it again
# costs beside the multiplication, and what a pair of positions costs beside its two products.
ENTRY_COST = 8
PAIR_COST = 12


@dataclass(frozen=True)
class Products:
    """How inner products are taken.

    Parameters
    ----------
    way : "auto", "pair" or "materialise"
        Which of the two ways; ``auto`` chooses for each parameter by a cost rule. A parameter
        whose gradients have no factors (a bias) is always materialised.
    memory : int
        Bytes that gradients held for products may take: an eighth for blocks of training
        gradients, half for test gradients that are kept.
    """

    way: Way = "auto"
    memory: int = 512 * 2**20

    def __post_init__(self) -> None:
        """Refuse unknown settings."""
        if self.way not in get_args(Way):
            raise InvalidInputError(
                f"products={self.way!r}: expected one of {', '.join(get_args(Way))}."
            )
        if self.memory <= 0:
            raise InvalidInputError(
                f"memory must be a positive number of bytes; got {self.memory}."
            )

    def pairs(self, form: Form, m: int, positions: int) -> bool:
        """Whether products with m gradients of ``positions`` positions are to go by pairs."""
        if not form.positions or not positions or self.way == "materialise":
            return False
        if self.way == "pair":
            return True
        by_pairs = m * form.positions * positions * (form.width + PAIR_COST)
        materialised = form.materialise_cost + (ENTRY_COST + m) * form.numel
        return by_pairs < materialised

    def inner_by_pairs(self, train: Form, test: Form) -> Tensor:
        """Return ``<G_i, G'_j>``, (n, m), from the factors."""
        others = test.tokens() or []
        rows = []
        for block in self.blocks(train, 3 * train.positions * test.n * test.positions):
            tokens = block.tokens() or []
            rows.append(_total([a.inner(b) for a in tokens for b in others]))
        return torch.cat(rows)

    def squared_norms(self, form: Form, diagonal: Tensor | None = None) -> Tensor:
        """Return ``||G_i||^2``, or ``G_i . diagonal . G_i`` for one in the shape of G, (n,)."""
        if diagonal is not None:
            if isinstance(form, Outer) and form.positions == 1:
                # The squares of one outer product are the outer product of the squares.
                squares = replace(form, left=form.left.square(), right=form.right.square())
                return squares.contract(diagonal[None])[:, 0]
            weights = diagonal.flatten()
            return torch.cat([g.flat().square() @ weights for g in self.blocks(form)])
        if self.pairs(form, 1, form.positions):
            tokens = form.tokens() or []
            return _total([a.dot_rowwise(b) for a in tokens for b in tokens])
        return torch.cat([_squares(g.flat()) for g in self.blocks(form)])

    def blocks(self, form: Form, entries: int | None = None) -> Iterator[Form]:
        """Cut the instances into blocks for which ``entries`` an instance fit the memory."""
        size = 4 * (form.numel if entries is None else entries)
        rows = max(1, self.memory // 8 // max(1, size))
        if rows >= form.n:
            return iter([form])
        return (form[start : start + rows] for start in range(0, form.n, rows))


def squared_norms(
    gradients: Gradients,
    n: int,
    products: Products,
    scales: Mapping[str, float] | None = None,
    diagonals: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Return ``sum_p scale_p g_i^T diagonal_p g_i`` over the parameters p, (n,).

    Scales and diagonals are 1 where none is named.
    """
    scales, diagonals = scales or {}, diagonals or {}
    norms = [
        products.squared_norms(form, diagonals.get(name)) * scales.get(name, 1.0)
        for name, form in gradients.items()
        if scales.get(name, 1.0) != 0.0
    ]
    return _total(norms) if norms else torch.zeros(n)


def unit_scaled(gradients: Gradients) -> dict[str, Form]:
    """Return the gradients, each divided by a bound of its entries: directions, not lengths.

    Their squares then neither underflow nor overflow. A zero gradient stays one.
    """
    if not gradients:
        return {}
    bounds = entry_bounds(gradients)
    weights = torch.where(bounds > 0, 1 / torch.where(bounds > 0, bounds, 1), 1)
    return {name: form.scaled(weights.to(form.like.dtype)) for name, form in gradients.items()}


def entry_bounds(gradients: Gradients) -> Tensor:
    """Return a bound of the entries of each gradient, (n,); 0 for a zero gradient."""
    return torch.stack([form.magnitude for form in gradients.values()]).amax(0)


def divide(values: Tensor, norms: Tensor) -> Tensor:
    """Divide by norms; a zero gradient has similarity 0 with everything.

    What is divided by a norm that is not finite is NaN, and refused later.
    """
    quotients = torch.where(norms == 0, 0, values / torch.where(norms == 0, 1, norms))
    return torch.where(torch.isfinite(norms), quotients, torch.nan)


def out_of_range(squares: Tensor) -> bool:
    """Whether some squared norms are too small to have digits, or not finite."""
    precision = torch.finfo(squares.dtype)
    smallest = precision.tiny / precision.eps**2
    return bool(((squares < smallest) | ~torch.isfinite(squares)).any())


class Query(ABC):
    """Test-side vectors at one set of parameters, ready to meet training gradients."""

    @abstractmethod
    def __len__(self) -> int:
        """Return m, the number of vectors."""

    @abstractmethod
    def meet(
        self, train: Gradients, n: int, *, norms: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``sum_p scale_p <g_i, v_j>_p``, (n, m), and, if wanted, ``||g_i||^2``, (n,)."""


class ParameterwiseQuery(Query):
    """A query that meets training gradients one parameter at a time."""

    scales: Mapping[str, float]

    def meet(
        self, train: Gradients, n: int, *, norms: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Return ``sum_p scale_p <g_i, v_j>_p``, (n, m), and, if wanted, ``||g_i||^2``, (n,).

        Parameters whose scale is 0 enter neither.
        """
        products: list[Tensor] = []
        squares: list[Tensor] = []
        for name, form in train.items():
            scale = self.scales.get(name, 1.0)
            if scale == 0.0:
                continue
            product, square = self._meet(name, form, norms)
            if product is not None:
                products.append(product if scale == 1.0 else product.mul_(scale))
            if square is not None:
                squares.append(square)
        total = _total(products) if products else self.like.new_zeros(n, len(self))
        return total, (_total(squares) if squares else self.like.new_zeros(n)) if norms else None

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the vectors' dtype and device."""

    @abstractmethod
    def _meet(self, name: str, form: Form, norms: bool) -> tuple[Tensor | None, Tensor | None]:
        """Return one parameter's products (n, m) and, if wanted, squared norms (n,)."""


@dataclass
class GradientQuery(ParameterwiseQuery):
    """Gradients of m test instances, in factored form.

    Parameters
    ----------
    parts : sequence of gradients
        Of consecutive batches of test instances.
    sizes : sequence of int
        Number of test instances in each.
    products : Products
        How inner products are taken.
    scales : mapping, optional
        A factor for each parameter's products (a learning rate, say); 1 where none is named.
    diagonals : mapping, optional
        A factor for each entry of a parameter, in its shape; 1 where none is named. Gradients
        that are multiplied entry by entry have no factors, so they meet materialised.
    """

    parts: Sequence[Gradients]
    sizes: Sequence[int]
    products: Products
    scales: Mapping[str, float] = field(default_factory=dict)
    diagonals: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with nothing kept."""
        self._kept: dict[tuple[str, int, int, bool], Tensor] = {}
        self._room = self.products.memory // 2

    @override
    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    @override
    def like(self) -> Tensor:
        forms = (form for part in self.parts for form in part.values())
        return next((form.like for form in forms), torch.empty(0))

    def norms(self) -> Tensor:
        """Return ``||g_j||, (m,), over the parameters whose scale is not 0."""
        counted = {name: 0.0 for name, scale in self.scales.items() if scale == 0.0}
        pairs = zip(self.parts, self.sizes, strict=True)
        return torch.cat(
            [squared_norms(part, m, self.products, counted) for part, m in pairs]
        ).sqrt()

    def _meet(self, name: str, form: Form, norms: bool) -> tuple[Tensor, Tensor | None]:
        factored = name not in self.diagonals
        only = self.parts[0].get(name) if factored and len(self.parts) == 1 else None
        if only is not None and self.products.pairs(form, only.n, only.positions):
            square = self.products.squared_norms(form) if norms else None
            return self.products.inner_by_pairs(form, only), square
        result = form.like.new_zeros(form.n, len(self))
        materialised: list[tuple[slice, int]] = []
        start = 0
        for index, (part, size) in enumerate(zip(self.parts, self.sizes, strict=True)):
            columns, test = slice(start, start + size), part.get(name)
            start += size
            if test is None:
                continue  # the risk of none of these depends on the parameter
            if factored and self.products.pairs(form, size, test.positions):
                result[:, columns] = self.products.inner_by_pairs(form, test)
            else:
                materialised.append((columns, index))
        if not materialised:
            return result, self.products.squared_norms(form) if norms else None
        if form.contract_cost(len(self)) < form.materialise_cost + len(self) * form.numel:
            # Few enough vectors to be met by the factors: no training gradient is formed.
            for columns, index in materialised:
                column = columns.start
                for others in self._gradients(name, index, transposed=False):
                    end = column + len(others)
                    result[:, column:end] = form.contract(others.view(-1, *form.shape))
                    column = end
            return result, self.products.squared_norms(form) if norms else None
        squares, row = [], 0
        for block in self.products.blocks(form):
            gradients = block.flat()
            for columns, index in materialised:
                column = columns.start
                for others in self._gradients(name, index, transposed=True):
                    end = column + others.shape[1]
                    result[row : row + block.n, column:end] = gradients @ others
                    column = end
            squares.append(_squares(gradients) if norms else gradients.new_empty(0))
            row += block.n
        return result, torch.cat(squares) if norms else None

    def _gradients(self, name: str, index: int, *, transposed: bool) -> Iterator[Tensor]:
        """Go through one part's materialised gradients, kept while there is room.

        They are (m, entries) or, as a matrix product reads them faster, transposed.
        """
        diagonal = self.diagonals.get(name)
        for block_index, block in enumerate(self.products.blocks(self.parts[index][name])):
            key = (name, index, block_index, transposed)
            gradients = self._kept.get(key)
            if gradients is None:
                gradients = block.flat()
                gradients = gradients if diagonal is None else gradients * diagonal.flatten()
                gradients = gradients.T.contiguous() if transposed else gradients
                size = gradients.numel() * gradients.element_size()
                if size <= self._room:
                    self._room -= size
                    self._kept[key] = gradients
            yield gradients


@dataclass
class VectorQuery(ParameterwiseQuery):
    """Vectors in the shape of the parameters: a sum of test gradients, or a preconditioned one.

    Parameters
    ----------
    vectors : mapping
        For each parameter ``(m, *shape)``.
    products : Products
        How products are taken.
    scales : mapping, optional
        A factor for each parameter's products; 1 where none is named.
    """

    vectors: Mapping[str, Tensor]
    products: Products
    scales: Mapping[str, float] = field(default_factory=dict)

    @property
    @override
    def like(self) -> Tensor:
        return next(iter(self.vectors.values()), torch.empty(0))

    @override
    def __len__(self) -> int:
        return max((len(vector) for vector in self.vectors.values()), default=0)

    def _meet(self, name: str, form: Form, norms: bool) -> tuple[Tensor | None, Tensor | None]:
        vectors = self.vectors.get(name)
        squares = self.products.squared_norms(form) if norms else None
        if vectors is None:
            return None, squares
        return torch.cat([block.contract(vectors) for block in self.products.blocks(form)]), squares


def weighted_sum(query: GradientQuery, weights: Tensor) -> VectorQuery:
    """Return ``sum_j weights_kj g_j`` of a query's gradients as k vectors, for weights (k, m)."""
    vectors: dict[str, Tensor] = {}
    for part, columns in zip(query.parts, torch.split(weights, list(query.sizes), 1), strict=True):
        for name, form in part.items():
            total = form.weighted_sum(columns.to(form.like.dtype))
            vectors[name] = vectors[name] + total if name in vectors else total
    for name, diagonal in query.diagonals.items():
        if name in vectors:
            vectors[name] = vectors[name] * diagonal
    return VectorQuery(vectors, query.products, query.scales)


def _squares(gradients: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(gradients, dim=1)
    return norms.square()


def _total(parts: Sequence[Tensor]) -> Tensor:
    total, *others = parts
    for part in others:
        total = total.add_(part)
    return total
