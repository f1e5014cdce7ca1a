"""Scores that are bilinear in what the last layer knows of a training and a test instance.

Each is ``I(z_i, z_te) = <M_te, a_i f_i^T> + c_te``: coefficients a_i (C,) and features f_i (d,) of
the training instance against a matrix (C, d) and a constant of the test instance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override


@dataclass(frozen=True)
class HeadQuery(ABC):
    """The matrices and constants of m test instances.

    Attributes
    ----------
    noticed : mapping
        What was noticed on the way, as JSON knows it.
    """

    noticed: Mapping[str, Any] = field(default_factory=dict, kw_only=True)

    @abstractmethod
    def scores(self, coefficients: Tensor, features: Tensor) -> Tensor:
        """Return the scores of k training instances by (k, C) and (k, d): ``(m, k)``."""

    @abstractmethod
    def paired(self, coefficients: Tensor, features: Tensor) -> Tensor:
        """Return the score of each of m training instances on its own test: ``(m,)``."""

    @abstractmethod
    def summed(self) -> MatrixQuery:
        """Return the query whose one row is the sum over the tests."""


@dataclass(frozen=True)
class OuterQuery(HeadQuery):
    """Matrices of rank one, ``M = v f^T``, and no constants.

    Attributes
    ----------
    directions : Tensor of shape (m, C)
        The v.
    features : Tensor of shape (m, d)
        The f.
    """

    directions: Tensor
    features: Tensor

    @override
    def scores(self, coefficients: Tensor, features: Tensor) -> Tensor:
        return (self.directions @ coefficients.T).mul_(self.features @ features.T)

    @override
    def paired(self, coefficients: Tensor, features: Tensor) -> Tensor:
        return (self.directions * coefficients).sum(1) * (self.features * features).sum(1)

    @override
    def summed(self) -> MatrixQuery:
        matrix = self.directions.T @ self.features
        return MatrixQuery(matrix[None], matrix.new_zeros(1), noticed=self.noticed)


@dataclass(frozen=True)
class MatrixQuery(HeadQuery):
    """Any matrices and constants.

    Attributes
    ----------
    matrices : Tensor of shape (m, C, d)
        The M.
    constants : Tensor of shape (m,)
        The c.
    """

    matrices: Tensor
    constants: Tensor

    @override
    def scores(self, coefficients: Tensor, features: Tensor) -> Tensor:
        scores = self.constants[:, None].repeat(1, len(features))
        for c in range(coefficients.shape[1]):
            scores += (self.matrices[:, c] @ features.T).mul_(coefficients[:, c])
        return scores

    @override
    def paired(self, coefficients: Tensor, features: Tensor) -> Tensor:
        products = torch.einsum("mcd,mc,md->m", self.matrices, coefficients, features)
        return products + self.constants

    @override
    def summed(self) -> MatrixQuery:
        matrix, constant = self.matrices.sum(0, keepdim=True), self.constants.sum(0, keepdim=True)
        return MatrixQuery(matrix, constant, noticed=self.noticed)
