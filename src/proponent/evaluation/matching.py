"""Influences with the ids of their rows and columns, and two of them brought into one order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.evaluation.inputs import listed, real_array
from proponent.exceptions import InvalidInputError
from proponent.influence import Influence


@dataclass(frozen=True, eq=False)
class LabelledMatrix:
    """Influence values with their ids.

    Attributes
    ----------
    values : array of shape (n_test, n_train)
        One row for a joint influence or a memorization.
    test_ids, train_ids : array
        Positions where none were given.
    labelled : bool
        Whether the ids came with the values, so that they can be matched.
    """

    values: NDArray[np.float64]
    test_ids: NDArray[Any]
    train_ids: NDArray[Any]
    labelled: bool

    @classmethod
    def of(cls, value: Any, name: str, dimensions: tuple[int, ...]) -> LabelledMatrix:
        """Read an ``Influence`` or an array.

        Raises
        ------
        InvalidInputError
            Empty, or another number of dimensions.
        """
        labelled = isinstance(value, Influence)
        values = real_array(value.values if labelled else value, name, dimensions)
        if values.size == 0:
            raise InvalidInputError(f"{name} is empty: shape {values.shape}.")
        train_ids = value.train_ids if labelled else np.arange(values.shape[-1])
        test_ids = value.test_ids if labelled else None
        values = np.atleast_2d(values)
        if test_ids is None:
            test_ids = np.arange(len(values))
        return cls(values, test_ids, train_ids, labelled)

    def ordered_like(self, other: LabelledMatrix, name: str, other_name: str) -> LabelledMatrix:
        """Return the same values in the order of the other's ids; by position without ids.

        Raises
        ------
        InvalidInputError
            The shapes or the ids differ.
        """
        if self.labelled and other.labelled:
            rows = _places(self.test_ids, other.test_ids, "test", name, other_name)
            columns = _places(self.train_ids, other.train_ids, "train", name, other_name)
            values = self.values[np.ix_(rows, columns)]
            return LabelledMatrix(values, other.test_ids, other.train_ids, True)
        if self.values.shape != other.values.shape:
            raise InvalidInputError(
                f"{name} is of shape {self.values.shape} (n_test, n_train) and {other_name} of "
                f"shape {other.values.shape}: they must be the same."
            )
        return self


def _places(
    ids: NDArray[Any], wanted: NDArray[Any], kind: str, name: str, other_name: str
) -> NDArray[np.intp]:
    where = {key: place for place, key in enumerate(ids.tolist())}
    keys = wanted.tolist()
    asked = set(keys)
    missing = [key for key in keys if key not in where]
    extra = [key for key in where if key not in asked]
    if missing or extra:
        absent, here, there = (missing, name, other_name) if missing else (extra, other_name, name)
        raise InvalidInputError(
            f"{here} has no {kind} id {listed(absent)}, which {there} has: select what "
            "both have first (influence.select)."
        )
    return np.array([where[key] for key in keys], dtype=np.intp)
