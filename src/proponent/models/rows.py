"""Rows of features that are an array or a data frame."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError
from proponent.models.labels import listed


def take_rows(features: Any, positions: NDArray[np.intp]) -> Any:
    """Return the rows at ``positions``, in the form that the features have."""
    if isinstance(features, np.ndarray):
        return features.take(positions, axis=0)  # some three times faster than features[positions]
    return features.iloc[positions]


def same_kind(features: Any, train: Any, role: str) -> Any:
    """Return features as an array where the training set's are one.

    Raises
    ------
    InvalidInputError
        If the training set is a data frame, whose columns are found by name, and these are not.
    """
    if hasattr(train, "iloc") and not hasattr(features, "iloc"):
        raise InvalidInputError(
            f"{role}: the training set is a data frame, so this must be one, with the columns "
            f"{listed(list(train.columns))}."
        )
    return features if hasattr(train, "iloc") else np.asarray(features)


def check_features(features: Any, train: Any, role: str) -> None:
    """Refuse features that are not of the training set's shape or names.

    Raises
    ------
    InvalidInputError
        If they are not.
    """
    if hasattr(train, "iloc"):
        names, expected = list(features.columns), list(train.columns)
        if names != expected:
            raise InvalidInputError(
                f"{role}: the columns ({listed(names)}) are not, in this order, the training "
                f"set's ({listed(expected)})."
            )
    elif features.shape[1:] != train.shape[1:]:
        raise InvalidInputError(
            f"{role}: features of shape {features.shape} do not fit the training set's, of shape "
            f"{train.shape}; they need the same columns."
        )
