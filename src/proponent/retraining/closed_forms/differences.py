"""What leaving out does to the parameters: the differences ``theta - theta_without``.

A closed form has coordinates of its own, in which an output of the model is linear: features
``(T, q)`` of test instances times parameters ``(q, m)``, for m outputs. The differences of R
removals are ``(R, q, m)`` numbers, of which most models need far fewer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

Values = NDArray[np.float64]


class Differences(ABC):
    """``theta - theta_without`` of R removals."""

    @abstractmethod
    def outputs(self, features: Values) -> Values:
        """Return by how much outputs fall without each, ``(T, R, m)``, of features ``(T, q)``."""

    @abstractmethod
    def parameters(self) -> Values:
        """Return the differences themselves, ``(R, q, m)``."""


@dataclass(frozen=True)
class Full(Differences):
    """Differences without structure.

    Attributes
    ----------
    values : ndarray of shape (R, q, m)
    """

    values: Values

    @override
    def outputs(self, features: Values) -> Values:
        """Multiply, as :meth:`Differences.outputs` says."""
        removals, coordinates, outputs = self.values.shape
        flat = self.values.transpose(1, 0, 2).reshape(coordinates, removals * outputs)
        return (features @ flat).reshape(len(features), removals, outputs)

    @override
    def parameters(self) -> Values:
        """Return the differences, ``(R, q, m)``."""
        return self.values


@dataclass(frozen=True)
class RankOne(Differences):
    """A direction for each removal, and how far each output goes along it.

    Attributes
    ----------
    directions : ndarray of shape (R, q)
    sizes : ndarray of shape (R, m)
    """

    directions: Values
    sizes: Values

    @override
    def outputs(self, features: Values) -> Values:
        """Multiply, as :meth:`Differences.outputs` says."""
        if self.sizes.shape[1] == 1:
            return (features @ (self.directions * self.sizes).T)[:, :, None]
        return self.products(features)[:, :, None] * self.sizes

    @override
    def parameters(self) -> Values:
        """Return the differences, ``(R, q, m)``."""
        return self.directions[:, :, None] * self.sizes[:, None, :]

    def products(self, features: Values) -> Values:
        """Return the products of features and directions, ``(T, R)``."""
        return np.asarray(features @ self.directions.T)


@dataclass(frozen=True)
class Shared(Differences):
    """One matrix for all removals, scaled by output.

    Attributes
    ----------
    matrix : ndarray of shape (q, m)
    sizes : ndarray of shape (R, m)
    """

    matrix: Values
    sizes: Values

    @override
    def outputs(self, features: Values) -> Values:
        """Multiply, as :meth:`Differences.outputs` says."""
        return np.asarray((features @ self.matrix)[:, None, :] * self.sizes)

    @override
    def parameters(self) -> Values:
        """Return the differences, ``(R, q, m)``."""
        return self.matrix * self.sizes[:, None, :]


@dataclass(frozen=True)
class Sum(Differences):
    """The sum of two differences."""

    first: Differences
    second: Differences

    @override
    def outputs(self, features: Values) -> Values:
        """Add, as :meth:`Differences.outputs` says."""
        total = self.first.outputs(features)
        total += self.second.outputs(features)
        return total

    @override
    def parameters(self) -> Values:
        """Return the differences, ``(R, q, m)``."""
        return self.first.parameters() + self.second.parameters()


@dataclass(frozen=True)
class Replaced(Differences):
    """Differences, some of which were computed in another way.

    Attributes
    ----------
    most : Differences
    at : mapping from int to ndarray of shape (q, m)
        Places among the R removals, and what stands there instead.
    """

    most: Differences
    at: Mapping[int, Values]

    @override
    def outputs(self, features: Values) -> Values:
        """Multiply, as :meth:`Differences.outputs` says."""
        found = self.most.outputs(features)
        for place, value in self.at.items():
            found[:, place] = features @ value
        return found

    @override
    def parameters(self) -> Values:
        """Return the differences, ``(R, q, m)``."""
        found = self.most.parameters().copy()
        for place, value in self.at.items():
            found[place] = value
        return found


@dataclass(frozen=True)
class ByOutput(Differences):
    """Outputs that have nothing in common but the features.

    Attributes
    ----------
    parts : sequence of (ndarray, Differences)
        Some outputs, and their differences.
    """

    parts: Sequence[tuple[NDArray[np.intp], Differences]]

    @classmethod
    def of(cls, parts: Sequence[tuple[NDArray[np.intp], Differences]]) -> Differences:
        """Return the parts together; a single one as it is."""
        return parts[0][1] if len(parts) == 1 else cls(parts)

    @override
    def outputs(self, features: Values) -> Values:
        """Multiply, as :meth:`Differences.outputs` says."""
        return self._joined([part.outputs(features) for _, part in self.parts])

    @override
    def parameters(self) -> Values:
        """Return the differences, ``(R, q, m)``."""
        return self._joined([part.parameters() for _, part in self.parts])

    def _joined(self, found: list[Values]) -> Values:
        columns = np.concatenate([outputs for outputs, _ in self.parts])
        joined = np.empty((*found[0].shape[:2], len(columns)))
        for (outputs, _), part in zip(self.parts, found, strict=True):
            joined[:, :, outputs] = part
        return joined
