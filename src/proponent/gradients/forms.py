"""The gradients of one parameter, one for each instance, in the form that is cheapest to hold.

A weight gradient is a sum over positions t (tokens, pixels, calls of a shared module) of outer
products of an output gradient and an input, ``G_i = sum_t left_it right_it^T``. The forms keep
those factors; ``materialise`` multiplies them out. All are linear in the gradients, so inner
products, norms, sums and contractions need no more than what stands here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from typing_extensions import override

from proponent.gradients.tokens import Tokens


class Form(ABC):
    """The gradients of one parameter for n instances."""

    shape: torch.Size

    @property
    @abstractmethod
    def n(self) -> int:
        """Number of instances."""

    @property
    def numel(self) -> int:
        """Number of entries of the parameter."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the gradients' dtype and device."""

    @abstractmethod
    def __getitem__(self, rows: slice) -> Form:
        """Return the gradients of some of the instances."""

    @property
    def nbytes(self) -> int:
        """Bytes that the gradients take in this form."""
        values = (getattr(self, entry.name) for entry in fields(self))  # type: ignore[arg-type]
        return sum(value.nbytes for value in values if isinstance(value, Tensor))

    @abstractmethod
    def materialise(self) -> Tensor:
        """Return the gradients themselves, ``(n, *shape)``."""

    def flat(self) -> Tensor:
        """Return the gradients themselves as rows, ``(n, numel)``."""
        return self.materialise().reshape(self.n, self.numel)

    @property
    @abstractmethod
    def magnitude(self) -> Tensor:
        """A bound of each gradient's entries, (n,): 0 where the gradient is 0."""

    @abstractmethod
    def scaled(self, weights: Tensor) -> Form:
        """Return the gradients times one weight an instance, ``weights`` (n,)."""

    @property
    @abstractmethod
    def materialise_cost(self) -> float:
        """Multiply-adds that ``materialise`` needs for one instance."""

    def tokens(self) -> list[Tokens] | None:
        """Return the factors, one entry a use of the parameter; None where there are none."""
        return None

    @property
    def positions(self) -> int:
        """Number of outer products summed for one instance; 0 where there are no factors."""
        return 0

    @property
    def width(self) -> int:
        """Length of both factors of an outer product together."""
        return 0

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Return ``sum_i weights_ki G_i``, ``(k, *shape)``, for weights (k, n)."""
        return (weights @ self.flat()).view(len(weights), *self.shape)

    def contract(self, vectors: Tensor) -> Tensor:
        """Return ``<G_i, vectors_k>``, (n, k), for vectors ``(k, *shape)``."""
        return self.flat() @ vectors.reshape(len(vectors), -1).T

    def contract_cost(self, k: int) -> float:
        """Multiply-adds that ``contract`` with k vectors needs for one instance."""
        return self.materialise_cost + k * self.numel


@dataclass(frozen=True)
class Dense(Form):
    """Gradients held as they are: biases, norms, and what no rule covers."""

    gradients: Tensor

    @property
    @override
    def n(self) -> int:
        return len(self.gradients)

    @property
    @override
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.gradients.shape[1:]

    @property
    @override
    def like(self) -> Tensor:
        return self.gradients

    @override
    def __getitem__(self, rows: slice) -> Dense:
        return Dense(self.gradients[rows])

    @override
    def materialise(self) -> Tensor:
        return self.gradients

    @property
    @override
    def magnitude(self) -> Tensor:
        return largest(self.gradients)

    @override
    def scaled(self, weights: Tensor) -> Dense:
        return Dense(self.gradients * column(weights, self.gradients.ndim))

    @property
    @override
    def materialise_cost(self) -> float:
        return 0.0


@dataclass(frozen=True)
class Outer(Form):
    """Gradients of a matrix as sums over T positions of outer products.

    ``left`` (n, T, o) and ``right`` (n, T, d) make gradients (n, o, d), which are read as
    ``shape``.
    """

    left: Tensor
    right: Tensor
    shape: torch.Size

    @property
    @override
    def n(self) -> int:
        return len(self.left)

    @property
    @override
    def positions(self) -> int:
        return self.left.shape[1]

    @property
    @override
    def width(self) -> int:
        return self.left.shape[2] + self.right.shape[2]

    @property
    @override
    def like(self) -> Tensor:
        return self.left

    @override
    def __getitem__(self, rows: slice) -> Outer:
        return replace(self, left=self.left[rows], right=self.right[rows])

    @override
    def materialise(self) -> Tensor:
        return torch.bmm(self.left.mT, self.right).view(self.n, *self.shape)

    @property
    @override
    def magnitude(self) -> Tensor:
        return largest(self.left) * largest(self.right)

    @override
    def scaled(self, weights: Tensor) -> Outer:
        return replace(self, left=self.left * weights[:, None, None])

    @property
    @override
    def materialise_cost(self) -> float:
        return float(self.positions * self.numel)

    @override
    def tokens(self) -> list[Tokens]:
        return [Tokens(self.left, self.right)]

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        sums = [self.scaled(row).left.flatten(0, 1).T @ self.right.flatten(0, 1) for row in weights]
        return torch.stack(sums).view(len(weights), *self.shape)

    @override
    def contract(self, vectors: Tensor) -> Tensor:
        if self.contract_cost(len(vectors)) > super().contract_cost(len(vectors)):
            return super().contract(vectors)
        matrices = vectors.reshape(len(vectors), self.left.shape[2], self.right.shape[2])
        parts = [((self.left @ matrix) * self.right).sum((1, 2)) for matrix in matrices]
        return torch.stack(parts, 1)

    @override
    def contract_cost(self, k: int) -> float:
        return float(min(k * self.positions * self.numel, super().contract_cost(k)))


@dataclass(frozen=True)
class Lookup(Form):
    """Gradients of an embedding: row ``indices[i, t]`` receives ``right[i, t]``."""

    indices: Tensor
    right: Tensor
    shape: torch.Size

    @property
    @override
    def n(self) -> int:
        return len(self.indices)

    @property
    @override
    def positions(self) -> int:
        return self.indices.shape[1]

    @property
    @override
    def width(self) -> int:
        return 1 + self.right.shape[2]

    @property
    @override
    def like(self) -> Tensor:
        return self.right

    @override
    def __getitem__(self, rows: slice) -> Lookup:
        return replace(self, indices=self.indices[rows], right=self.right[rows])

    @override
    def materialise(self) -> Tensor:
        gradients = self.right.new_zeros(self.n, *self.shape)
        index = self.indices[:, :, None].expand_as(self.right)
        return gradients.scatter_add_(1, index, self.right)

    @property
    @override
    def magnitude(self) -> Tensor:
        return largest(self.right)

    @override
    def scaled(self, weights: Tensor) -> Lookup:
        return replace(self, right=self.right * weights[:, None, None])

    @property
    @override
    def materialise_cost(self) -> float:
        return float(self.positions * self.shape[1] + self.numel)

    @override
    def tokens(self) -> list[Tokens]:
        return [Tokens(self.indices, self.right)]

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        sums = self.right.new_zeros(len(weights), *self.shape)
        for row, total in zip(weights, sums, strict=True):
            total.index_add_(0, self.indices.flatten(), self.scaled(row).right.flatten(0, 1))
        return sums

    @override
    def contract(self, vectors: Tensor) -> Tensor:
        parts = [(table[self.indices] * self.right).sum((1, 2)) for table in vectors]
        return torch.stack(parts, 1)

    @override
    def contract_cost(self, k: int) -> float:
        return float(k * self.positions * self.shape[1])


@dataclass(frozen=True)
class Uses(Form):
    """Gradients of a parameter that is used several times: the sum of the forms of its uses."""

    forms: tuple[Form, ...]

    @property
    @override
    def n(self) -> int:
        return self.forms[0].n

    @property
    @override
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.forms[0].shape

    @property
    @override
    def positions(self) -> int:
        counts = [form.positions for form in self.forms]
        return sum(counts) if all(counts) else 0

    @property
    @override
    def width(self) -> int:
        return max(form.width for form in self.forms)

    @property
    @override
    def like(self) -> Tensor:
        return self.forms[0].like

    @property
    @override
    def nbytes(self) -> int:
        return sum(form.nbytes for form in self.forms)

    @override
    def __getitem__(self, rows: slice) -> Uses:
        return Uses(tuple(form[rows] for form in self.forms))

    @override
    def materialise(self) -> Tensor:
        first, *others = self.forms
        total = first.materialise()
        total = total.clone() if isinstance(first, Dense) else total
        for form in others:
            total += form.materialise()
        return total

    @property
    @override
    def magnitude(self) -> Tensor:
        return torch.stack([form.magnitude for form in self.forms]).amax(0)

    @override
    def scaled(self, weights: Tensor) -> Uses:
        return Uses(tuple(form.scaled(weights) for form in self.forms))

    @property
    @override
    def materialise_cost(self) -> float:
        return sum(form.materialise_cost for form in self.forms) + self.numel

    @override
    def tokens(self) -> list[Tokens] | None:
        parts = [form.tokens() for form in self.forms]
        return (
            None
            if any(part is None for part in parts)
            else [t for part in parts for t in part or ()]
        )

    @override
    def weighted_sum(self, weights: Tensor) -> Tensor:
        return torch.stack([form.weighted_sum(weights) for form in self.forms]).sum(0)

    @override
    def contract(self, vectors: Tensor) -> Tensor:
        return torch.stack([form.contract(vectors) for form in self.forms]).sum(0)

    @override
    def contract_cost(self, k: int) -> float:
        return sum(form.contract_cost(k) for form in self.forms)


def summed(forms: list[Form]) -> Form:
    """Return the form of a parameter from those of its uses."""
    if len(forms) == 1:
        return forms[0]
    if all(isinstance(form, Outer) for form in forms):
        outers = [form for form in forms if isinstance(form, Outer)]
        left = torch.cat([form.left for form in outers], 1)
        return Outer(left, torch.cat([form.right for form in outers], 1), outers[0].shape)
    if all(isinstance(form, Dense) for form in forms):
        return Dense(torch.stack([form.materialise() for form in forms]).sum(0))
    return Uses(tuple(forms))


def largest(values: Tensor) -> Tensor:
    """Return the largest magnitude of each row's entries, (n,)."""
    return values.abs().reshape(len(values), -1).amax(1)


def column(weights: Tensor, ndim: int) -> Tensor:
    """View weights (n,) so that they multiply the rows of a tensor of ``ndim`` axes."""
    return weights.view(-1, *[1] * (ndim - 1))
