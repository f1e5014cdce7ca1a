"""Gradients of a matrix as sums of outer products, and their inner products from the factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Factors of ``G_i = sum_t left_it right_it^T``.

    ``left`` is (n, T, o), or (n, T) integers where each left factor is a unit vector (a row of
    an embedding); ``right`` is (n, T, d).
    """

    left: Tensor
    right: Tensor

    @property
    def one_hot(self) -> bool:
        """Whether the left factors are unit vectors, held by their index."""
        return not self.left.is_floating_point()

    def inner(self, other: Tokens) -> Tensor:
        """Return ``<G_i, G'_j>``, (n, m): ``sum_ts (left_it . left'_js)(right_it . right'_js)``."""
        (n, length, _), (m, other_length, _) = self.right.shape, other.right.shape
        grams = _gram(self.right, other.right)
        if self.one_hot and other.one_hot:
            grams *= self.left.reshape(-1, 1) == other.left.reshape(1, -1)
        elif self.one_hot:
            grams *= other.left.flatten(0, 1).T[self.left.flatten()]
        elif other.one_hot:
            grams *= self.left.flatten(0, 1)[:, other.left.flatten()]
        else:
            grams *= _gram(self.left, other.left)
        if length == other_length == 1:
            return grams
        return grams.view(n, length, m, other_length).sum((1, 3))

    def dot_rowwise(self, other: Tokens) -> Tensor:
        """Return ``<G_i, G'_i>``, (n,), instance by instance."""
        if self.right.shape[1] == other.right.shape[1] == 1 and not (self.one_hot or other.one_hot):
            return _rowwise(self.left, other.left) * _rowwise(self.right, other.right)
        grams = self.right @ other.right.mT
        if self.one_hot and other.one_hot:
            grams = grams * (self.left[:, :, None] == other.left[:, None, :])
        elif self.one_hot:
            grams = grams * _gather_left(other.left, self.left).mT
        elif other.one_hot:
            grams = grams * _gather_left(self.left, other.left)
        else:
            grams = grams * (self.left @ other.left.mT)
        return grams.sum((1, 2))

    def __getitem__(self, rows: slice) -> Tokens:
        """Return the factors of some of the instances."""
        return Tokens(self.left[rows], self.right[rows])


def _rowwise(left: Tensor, right: Tensor) -> Tensor:
    if left is right:
        norms: Tensor = torch.linalg.vector_norm(left, dim=(1, 2))
        return norms.square()
    return (left * right).sum((1, 2))


def _gram(left: Tensor, right: Tensor) -> Tensor:
    return left.flatten(0, 1) @ right.flatten(0, 1).T


def _gather_left(dense: Tensor, indices: Tensor) -> Tensor:
    """Entry ``dense[i, t, indices[i, s]]`` at (i, t, s)."""
    return dense.gather(2, indices[:, None, :].expand(-1, dense.shape[1], -1))
