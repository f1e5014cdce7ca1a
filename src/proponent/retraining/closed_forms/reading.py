"""Features as the closed forms take them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError
from proponent.models.labels import listed

Values = NDArray[np.float64]


def matrix_of(instances: Instances, role: str, width: int | None = None) -> Values:
    """Return the features of a set of (X, y) pairs as numbers, ``(n, d)``.

    Parameters
    ----------
    instances : Instances
    role : str
        The argument's name in error messages.
    width : int, optional
        How many features there must be.

    Raises
    ------
    InvalidInputError
        If these are not d numbers an instance.
    NonFiniteError
        If one is NaN or infinite.
    """
    given = instances.features(role)
    try:
        matrix = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{role}: the features are not all numbers ({error}); encode them first."
        ) from error
    if matrix.ndim != 2:
        raise InvalidInputError(
            f"{role}: features must have shape (n, d); got {matrix.shape}. Reshape them first."
        )
    if width is not None and matrix.shape[1] != width:
        raise InvalidInputError(
            f"{role}: instances have {matrix.shape[1]} features, the training set {width}."
        )
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise NonFiniteError(
            f"{role}: features of {np.count_nonzero(~finite)} instances are NaN or infinite, such "
            f"as {listed(instances.ids[~finite].tolist())}; impute them or leave these out."
        )
    return matrix


def weights_of(given: Any, n: int) -> Values:
    """Return the weights of n training instances; None: all 1.

    Raises
    ------
    InvalidInputError
        If they are not n numbers, none negative and two positive.
    """
    if given is None:
        return np.ones(n)
    weights = np.array(given, dtype=np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise InvalidInputError(
            f"sample_weight: expected {n} numbers, none negative; got {given!r:.100}."
        )
    return weights


def penalties_of(alpha: Any, outputs: int) -> list[tuple[NDArray[np.intp], float]]:
    """Return each penalty, and the outputs that have it.

    Raises
    ------
    InvalidInputError
        If they are not one number, or one for each output, none negative.
    """
    given = np.asarray(alpha, dtype=np.float64)
    if given.shape not in ((), (1,), (outputs,)) or not (np.isfinite(given) & (given >= 0)).all():
        raise InvalidInputError(
            f"alpha: expected a number that is not negative, or one for each of {outputs} "
            f"outputs; got {alpha!r:.100}."
        )
    every = np.broadcast_to(given, (outputs,))
    return [(np.flatnonzero(every == value), float(value)) for value in np.unique(every)]
