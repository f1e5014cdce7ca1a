"""Features of instances as a matrix of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent._content import as_numpy
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError

NAMED = 5  # instances or columns that a message names
LARGEST = 1e150  # sums of squares of larger numbers overflow


def feature_matrix(
    instances: Instances, role: str, *, like: Instances | None = None
) -> NDArray[np.float64]:
    """Return the features of a set of (X, y) pairs, ``(n, d)``; further axes are made one.

    Parameters
    ----------
    instances : Instances
    role : str
        The argument's name in error messages.
    like : Instances, optional
        The training set, whose columns a test set must have.

    Raises
    ------
    InvalidInputError
        If they are no numbers, or the columns are not those of the training set.
    NonFiniteError
        If one is NaN or infinite, or so large that its square is.
    """
    features = as_numpy(instances.features(role))
    if features.dtype.kind not in "biuf":
        try:
            features = features.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{role}: the features are not all numbers ({error}); encode them first, or pass a "
                f"scikit-learn pipeline that does."
            ) from error
    if features.ndim < 2 or not features[:1].size:
        raise InvalidInputError(
            f"{role}: expected features of shape (n, d), with instances and columns; got "
            f"{features.shape}."
        )
    matrix = np.ascontiguousarray(features.reshape(len(features), -1), dtype=np.float64)
    if like is not None:
        _check_columns(matrix, instances, like, role)
    good = (np.abs(matrix) < LARGEST).all(axis=1)
    if not good.all():
        raise NonFiniteError(
            f"{role}: features of {np.count_nonzero(~good)} instances are NaN, infinite or larger "
            f"than {LARGEST:g}, such as those with the ids {_listed(instances.ids[~good])}; impute "
            f"them, or leave these instances out."
        )
    return matrix


def _check_columns(
    matrix: NDArray[np.float64], instances: Instances, train: Instances, role: str
) -> None:
    names, expected = instances.feature_names, train.feature_names
    if names and expected and names != expected:
        raise InvalidInputError(
            f"{role}: the columns {_listed(names)} are not, in this order, those of the training "
            f"set ({_listed(expected)})."
        )
    columns = as_numpy(train.features("train"))[0].size
    if matrix.shape[1] != columns:
        raise InvalidInputError(
            f"{role}: instances have {matrix.shape[1]} features, those of the training set "
            f"{columns}."
        )


def _listed(names: Any) -> str:
    shown = [str(name) for name in names[:NAMED]]
    return ", ".join(shown) + (", ..." if len(names) > NAMED else "")
