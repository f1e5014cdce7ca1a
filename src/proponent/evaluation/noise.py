"""Plant wrong labels, to see whether they are found."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.evaluation.inputs import listed, positive_integer, to_array
from proponent.exceptions import InvalidInputError


def flip_labels(
    y: Any, fraction: float, *, n_classes: int | None = None, seed: int = 0
) -> tuple[Any, NDArray[np.bool_]]:
    """Give a fraction of the instances another class, drawn uniformly from the wrong ones.

    Exactly ``round(fraction * n)`` distinct instances are chosen (without replacement), and
    each label really changes, so the returned mask has no missing and no false entry.

    Parameters
    ----------
    y : array-like or tensor of shape (n,)
        Integer, boolean or string labels. Left as it is.
    fraction : float
        Share of the instances to flip, from 0 to 1.
    n_classes : int, optional
        The classes are 0 to ``n_classes - 1``. By default they are the distinct labels in ``y``.
    seed : int
        Fixes the choice.

    Returns
    -------
    y_noisy : array or tensor of shape (n,)
        A tensor where ``y`` is one (same device and type), otherwise an array of the same type.
    flipped : boolean array of shape (n,)
        True where the label was changed.

    Raises
    ------
    InvalidInputError
        ``y`` is not a vector of class labels, there is no other class, or the fraction is not
        one.

    Examples
    --------
    >>> import numpy as np
    >>> y_noisy, flipped = flip_labels(np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0]), 0.2)
    >>> int(flipped.sum())
    2
    """
    labels = to_array(y)
    if labels.ndim != 1 or labels.size == 0:
        raise InvalidInputError(f"y must be of shape (n,) with n > 0, got {labels.shape}.")
    if labels.dtype.kind not in "biuUSOT":
        raise InvalidInputError(
            f"y must hold class labels (integers, booleans or strings), got {labels.dtype}."
        )
    if not 0.0 <= fraction <= 1.0:
        raise InvalidInputError(f"fraction must lie between 0 and 1, got {fraction!r}.")
    classes, codes = _classes(labels, n_classes)
    if len(classes) < 2:
        raise InvalidInputError(
            f"y has a single class, {classes[0]!r}: there is no other label to give. If there "
            "are more classes than occur in y, say so with n_classes."
        )
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(labels), size=round(fraction * len(labels)), replace=False)
    # A step of 1 to C - 1 around the circle of classes reaches every other class equally often.
    steps = rng.integers(1, len(classes), size=len(chosen))
    replacement = classes[(codes[chosen] + steps) % len(classes)]
    flipped = np.zeros(len(labels), dtype=bool)
    flipped[chosen] = True
    return _replaced(y, labels, chosen, replacement), flipped


def _classes(labels: NDArray[Any], n_classes: int | None) -> tuple[NDArray[Any], NDArray[np.intp]]:
    if n_classes is None:
        try:
            classes, codes = np.unique(labels, return_inverse=True)
        except TypeError as error:
            raise InvalidInputError(f"y mixes labels that cannot be ordered: {error}") from error
        return classes, codes
    count = positive_integer(n_classes, "n_classes")
    if labels.dtype.kind not in "iu":
        raise InvalidInputError(
            f"n_classes says that the labels are 0 to {count - 1}, but y holds {labels.dtype}."
        )
    outside = np.unique(labels[(labels < 0) | (labels >= count)])
    if outside.size:
        raise InvalidInputError(
            f"y holds {listed(outside)}, outside 0 to {count - 1} given by n_classes."
        )
    return np.arange(count, dtype=labels.dtype), labels.astype(np.intp)


def _replaced(y: Any, labels: NDArray[Any], chosen: NDArray[Any], replacement: NDArray[Any]) -> Any:
    if hasattr(y, "detach"):
        import torch

        noisy = y.detach().clone()
        noisy[torch.from_numpy(chosen).to(noisy.device)] = torch.from_numpy(replacement).to(noisy)
        return noisy
    changed = labels.copy()
    changed[chosen] = replacement
    return changed
