"""What distances are taken between: the features themselves, or what a model makes of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent._content import as_numpy
from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError

Features = NDArray[np.float64]
Embedding = Callable[[Instances, str], Features]


def embedding_of(
    model: Any, instances: Instances, *, progress: bool | None = None
) -> Embedding | None:
    """Return the function from instances and their role to features, ``(n, d)`` in float64.

    Parameters
    ----------
    model : None, callable or TorchModel
        None for the features as they are; a function of X, as a numpy array, to features; or a
        trained network, whose features enter its last linear layer.
    instances : Instances
        The training set.
    progress : bool, optional
        Whether a network's forward passes show a progress bar.

    Returns
    -------
    callable or None
        None if the model is of another kind.
    """
    if model is None:
        return lambda given, role: _matrix(_features(given, role), given, role)
    if "torch" in sys.modules:  # else it can be neither of these
        from torch.nn import Module

        from proponent.models.torch import TorchModel

        if isinstance(model, TorchModel):
            from proponent.gradients.last_layer import LastLayer

            layer = LastLayer(model, instances, progress=progress)
            return lambda given, role: _matrix(as_numpy(layer.features(given)), given, role)
        if isinstance(model, Module):
            return None
    if isinstance(model, type) or not callable(model):
        return None
    return lambda given, role: _matrix(as_numpy(model(_features(given, role))), given, role)


def labels_of(instances: Instances, role: str) -> NDArray[Any]:
    """Return the labels of a set, ``(n, ...)``.

    Raises
    ------
    InvalidInputError
        If it has none.
    """
    with _unseen(instances):
        labels = instances.labels()
    if labels is None:
        raise InvalidInputError(f"{role}: the set has no labels; pass an (X, y) pair.")
    return labels


def _features(instances: Instances, role: str) -> NDArray[Any]:
    """Return X of a set of (X, y) pairs, ``(n, ...)``."""
    with _unseen(instances):
        return as_numpy(instances.features(role))


def _matrix(features: NDArray[Any], instances: Instances, role: str) -> Features:
    """Return features as a matrix ``(n, d)``, or say why they are none."""
    if features.dtype.kind not in "biuf":
        try:
            features = features.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{role}: the features are not all numbers ({error}); encode them, or pass a "
                "function that does: fit(function, train)."
            ) from error
    if features.ndim < 2 or len(features) != len(instances) or not features[0].size:
        raise InvalidInputError(
            f"{role}: features must have shape (n, d) with n = {len(instances)}; got "
            f"{features.shape}."
        )
    matrix = np.ascontiguousarray(features.reshape(len(features), -1), dtype=np.float64)
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        named = ", ".join(map(str, instances.ids[~finite][:10]))
        raise NonFiniteError(
            f"{role}: features of {np.count_nonzero(~finite)} instances are NaN or infinite, the "
            f"first with the ids {named}; impute them or leave these instances out."
        )
    return matrix


def _unseen(instances: Instances) -> AbstractContextManager[None]:
    """Look at a data set's items without a trace in the random state; arrays draw nothing."""
    if isinstance(instances._source, (tuple, dict)):
        return nullcontext()
    return fixed_randomness()
