"""Labels of a training set of any kind: classes by position, targets of a regression as numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError, NonFiniteError

Values = NDArray[np.float64]
Positions = NDArray[np.intp]

NAMED = 5  # labels or instances that a message names


@dataclass(frozen=True)
class Classes:
    """The classes of a training set.

    Attributes
    ----------
    names : ndarray of shape (C,)
        The distinct labels in ascending order: text, whole numbers or booleans.
    counts : ndarray of shape (C,)
        How many training instances each has.
    """

    names: NDArray[Any]
    counts: NDArray[np.intp]

    @classmethod
    def of(cls, labels: NDArray[Any], role: str = "train") -> Classes:
        """Return the distinct labels of a whole training set, ``(n,)``.

        Raises
        ------
        InvalidInputError
            If these are no class labels, or there are none.
        """
        plain = _class_labels(labels, role)
        if not len(plain):
            raise InvalidInputError(f"{role}: the set is empty; a classifier needs instances.")
        names, counts = np.unique(plain, return_counts=True)
        return cls(names, counts.astype(np.intp))

    def __len__(self) -> int:
        """Return the number of classes, C."""
        return len(self.names)

    def positions(self, labels: NDArray[Any], role: str = "test") -> Positions:
        """Return where each label stands in ``names``, ``(T,)``.

        Raises
        ------
        InvalidInputError
            If these are no class labels, or one is of no class of the training set.
        """
        plain = _class_labels(labels, role)
        if (plain.dtype.kind == "U") != (self.names.dtype.kind == "U"):
            raise InvalidInputError(
                f"{role}: labels of dtype {plain.dtype} cannot be compared with the training "
                f"set's, of dtype {self.names.dtype}; give both as text or both as numbers."
            )
        places = np.minimum(np.searchsorted(self.names, plain), len(self.names) - 1)
        unseen = self.names[places] != plain
        if unseen.any():
            raise InvalidInputError(
                f"{role}: the labels {listed(np.unique(plain[unseen]).tolist())} are none of the "
                f"training set's classes ({listed(self.names.tolist())}); leave these instances "
                f"out, or add their class to the training set."
            )
        return places.astype(np.intp, copy=False)

    @cached_property
    def prior(self) -> Values:
        """Frequencies of the classes with one more instance of each (Laplace), ``(C,)``."""
        return np.asarray((self.counts + 1.0) / (self.counts.sum() + len(self.counts)))

    @cached_property
    def uniform(self) -> Values:
        """The same probability for every class, ``(C,)``."""
        return np.full(len(self.counts), 1.0 / len(self.counts))

    def only(self, position: int) -> Values:
        """Probability 1 for the class at a position, ``(C,)``."""
        return np.asarray(np.eye(len(self.counts))[position])


def labels_of(instances: Instances, role: str) -> NDArray[Any]:
    """Return the labels of a set, ``(n, ...)``.

    Raises
    ------
    InvalidInputError
        If it has none.
    """
    labels = instances.labels()
    if labels is None:
        raise InvalidInputError(f"{role}: the set has no labels; pass an (X, y) pair.")
    return labels


def targets_of(instances: Instances, role: str) -> Values:
    """Return the targets of a regression in float64, ``(n,)`` or ``(n, outputs)``.

    Raises
    ------
    InvalidInputError
        If there are none, or they are no numbers.
    NonFiniteError
        If one is NaN or infinite.
    """
    labels = labels_of(instances, role)
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    plain = np.array(labels.tolist()) if labels.dtype == object else labels
    if plain.dtype.kind not in "biuf" or plain.ndim > 2 or not len(plain):
        raise InvalidInputError(
            f"{role}: expected targets of shape (n,) or (n, outputs), in numbers; got shape "
            f"{labels.shape} and dtype {labels.dtype}. Labels that are text need a classifier."
        )
    targets = plain.astype(np.float64)
    wrong = ~np.isfinite(targets.reshape(len(targets), -1)).all(axis=1)
    if wrong.any():
        raise NonFiniteError(
            f"{role}: the targets of {np.count_nonzero(wrong)} instances are NaN or infinite, "
            f"such as {listed(instances.ids[wrong].tolist())}; leave these instances out."
        )
    return targets


def _class_labels(labels: NDArray[Any], role: str) -> NDArray[Any]:
    """Return labels as a vector of text or of whole numbers."""
    if labels.shape[1:] == (1,):
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InvalidInputError(
            f"{role}: expected one label an instance; got labels of shape {labels.shape}. Of "
            f"one-hot labels pass the classes: labels.argmax(axis=1)."
        )
    plain = labels
    if labels.dtype == object:
        text = [isinstance(label, str) for label in labels]
        if all(text):
            plain = labels.astype(str)
        elif not any(text):
            plain = np.array(labels.tolist())
    if plain.dtype.kind in "SUT":
        return plain.astype(str)
    whole = plain.dtype.kind == "f" and bool((np.isfinite(plain) & (plain == np.rint(plain))).all())
    if whole or plain.dtype.kind in "biu":
        return plain
    raise InvalidInputError(
        f"{role}: labels of dtype {labels.dtype} ({listed(labels.tolist())}) are no classes; "
        f"classes are text, whole numbers or booleans, without missing ones. A target that varies "
        f"continuously needs a regressor."
    )


def listed(names: list[Any]) -> str:
    """Return the first few as a message shows them."""
    return ", ".join(map(repr, names[:NAMED])) + (", ..." if len(names) > NAMED else "")
