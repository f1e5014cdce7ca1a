"""Labels of any kind: classes as codes, targets of a regression as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError, NonFiniteError

Codes = NDArray[np.signedinteger[Any]]

UNSEEN = -1


@dataclass(frozen=True)
class Classes:
    """The classes of a training set.

    Attributes
    ----------
    names : ndarray of shape (C,)
        In ascending order.
    """

    names: NDArray[Any]

    @classmethod
    def of(cls, labels: NDArray[Any]) -> Classes:
        """Return the distinct labels of a training set.

        Raises
        ------
        InvalidInputError
            If these are no class labels.
        """
        return cls(np.unique(_class_labels(labels, "train")))

    def codes(self, labels: NDArray[Any], role: str) -> Codes:
        """Return the positions of labels in ``names``; ``UNSEEN`` where they are not there.

        Raises
        ------
        InvalidInputError
            If these are no class labels, or text where those of the training set are numbers.
        """
        plain = _class_labels(labels, role)
        if (plain.dtype.kind == "U") != (self.names.dtype.kind == "U"):
            raise InvalidInputError(
                f"{role}: labels of dtype {plain.dtype} cannot be compared with the training "
                f"set's, of dtype {self.names.dtype}; give both as text or both as numbers."
            )
        places = np.minimum(np.searchsorted(self.names, plain), len(self.names) - 1)
        codes = np.where(self.names[places] == plain, places, UNSEEN)
        # Small types are read faster: each label is, once for every test instance.
        return codes.astype(np.min_scalar_type(-len(self.names)))


def _class_labels(labels: NDArray[Any], role: str) -> NDArray[Any]:
    """Return labels as a vector of text or numbers."""
    labels = _vector(labels, role)
    if labels.dtype == object:
        text = [isinstance(label, str) for label in labels]
        labels = labels.astype(str) if all(text) else labels if any(text) else _numbers(labels)
    if labels.dtype.kind in "SUT":
        return labels.astype(str)
    if labels.dtype.kind in "biu" or (labels.dtype.kind == "f" and _whole(labels)):
        return labels
    raise InvalidInputError(
        f"{role}: labels of dtype {labels.dtype} are no classes; classes are text or whole "
        "numbers. For a target that varies continuously choose utility='regression'."
    )


def targets_of(labels: NDArray[Any], role: str) -> NDArray[np.float64]:
    """Return the targets of a regression, ``(n,)``.

    Raises
    ------
    InvalidInputError
        If they are not one number an instance.
    NonFiniteError
        If one is NaN or infinite.
    """
    numbers = _numbers(_vector(labels, role))
    if numbers.dtype.kind not in "biuf":
        raise InvalidInputError(
            f"{role}: targets of dtype {numbers.dtype} are no numbers; a regression needs them."
        )
    targets = numbers.astype(np.float64)
    finite = np.isfinite(targets)
    if not finite.all():
        raise NonFiniteError(
            f"{role}: {np.count_nonzero(~finite)} targets are NaN or infinite, the first at "
            f"position {int(finite.argmin())}; leave these instances out."
        )
    return targets


def _vector(labels: NDArray[Any], role: str) -> NDArray[Any]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InvalidInputError(
            f"{role}: expected one label an instance; got labels of shape {labels.shape}. Of "
            "one-hot labels pass the classes: labels.argmax(axis=1)."
        )
    return labels


def _numbers(labels: NDArray[Any]) -> NDArray[Any]:
    """Return numbers that came as objects as such, and everything else as it is."""
    return np.array(labels.tolist()) if labels.dtype == object else labels


def _whole(labels: NDArray[Any]) -> bool:
    return bool((np.isfinite(labels) & (labels == np.rint(labels))).all())
