"""From what a scikit-learn linear model takes to the features and targets of a linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError

NAMED = 5  # labels or columns that a message names


@dataclass(frozen=True)
class Encoder:
    """Turns instances into features and targets in float64.

    Attributes
    ----------
    estimator : scikit-learn linear model
        The linear model.
    transformers : tuple
        Fitted transformers that stand before it.
    codes : array of shape (classes,) or (classes, outputs), optional
        The target that stands for each class; None: regression.
    """

    estimator: Any
    transformers: tuple[Any, ...]
    codes: NDArray[Any] | None

    def __call__(self, data: Any, *, ids: Any = None, role: str = "test") -> Instances:
        """Return encoded instances, in the same order and with the same ids.

        Parameters
        ----------
        data : (X, y) or Instances
            Features as the estimator takes them, and labels of its kind.
        ids : array-like of shape (n,), optional
            Unique labels of the instances.
        role : str
            The argument's name in error messages.

        Raises
        ------
        InvalidInputError
            If the features or labels are not of the kind that the estimator was fitted to.
        """
        instances = Instances.of(data, ids=ids, role=role)
        self._check_columns(instances, role)
        features = self._transformed(_features_of(instances, role), role)
        targets = self._targets(labels_of(instances, role), role)
        return Instances.of((features, targets), ids=instances.ids)

    @property
    def _names(self) -> list[str]:
        """The columns that the first step was fitted to, where it knows their names."""
        first = (*self.transformers, self.estimator)[0]
        return list(getattr(first, "feature_names_in_", ()))

    def _check_columns(self, instances: Instances, role: str) -> None:
        """Refuse a data frame whose columns are others, or stand in another order."""
        names = list(instances.feature_names)
        if names and self._names and names != self._names:
            raise InvalidInputError(
                f"{role}: the columns {_listed(names)} are not, in this order, those that the "
                f"estimator was fitted to ({_listed(self._names)})."
            )

    def _transformed(self, features: NDArray[Any], role: str) -> NDArray[np.float64]:
        found: Any = features
        if self.transformers and self._names:
            found = self._framed(features, role)
        for transformer in self.transformers:
            try:
                found = transformer.transform(found)
            except ValueError as error:
                raise InvalidInputError(
                    f"{role}: the pipeline's {type(transformer).__name__} refuses the features: "
                    f"{error}"
                ) from error
        try:
            matrix = np.array(found.toarray() if hasattr(found, "toarray") else found, np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{role}: the features are not all numbers ({error}); fit and pass a pipeline "
                f"that encodes them."
            ) from error
        expected = self.estimator.coef_.shape[-1]
        if matrix.ndim != 2 or matrix.shape[1] != expected:
            raise InvalidInputError(
                f"{role}: features of shape {matrix.shape} do not fit the "
                f"{type(self.estimator).__name__}, which was fitted to {expected} columns."
            )
        return matrix

    def _framed(self, features: NDArray[Any], role: str) -> Any:
        """Return features as the data frame that the first transformer was fitted to."""
        import pandas as pd

        if features.ndim != 2 or features.shape[1] != len(self._names):
            raise InvalidInputError(
                f"{role}: features of shape {features.shape} do not fit the pipeline, which was "
                f"fitted to {len(self._names)} columns ({_listed(self._names)})."
            )
        return pd.DataFrame(features, columns=self._names).infer_objects()

    def _targets(self, labels: NDArray[Any], role: str) -> NDArray[Any]:
        if self.codes is None:
            return self._values(labels, role)
        if labels.shape[1:] == (1,):
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise InvalidInputError(
                f"{role}: expected one label an instance; got labels of shape {labels.shape}."
            )
        positions = {label: place for place, label in enumerate(self.estimator.classes_.tolist())}
        listed = labels.tolist()
        unknown = {str(label) for label in listed if label not in positions}
        if unknown:
            raise InvalidInputError(
                f"{role}: the labels {_listed(sorted(unknown))} are none of the classes that the "
                f"{type(self.estimator).__name__} was fitted to ({_listed(positions)})."
            )
        return self.codes[[positions[label] for label in listed]]

    def _values(self, labels: NDArray[Any], role: str) -> NDArray[np.float64]:
        outputs = np.atleast_2d(self.estimator.coef_).shape[0]
        try:
            return labels.astype(np.float64).reshape(len(labels), outputs)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{role}: targets of shape {labels.shape} and dtype {labels.dtype} do not fit the "
                f"{outputs} output(s) of the {type(self.estimator).__name__}."
            ) from error


def labels_of(instances: Instances, role: str) -> NDArray[Any]:
    """Return the labels of a set, ``(n, ...)``."""
    labels = instances.labels()
    if labels is None:
        raise InvalidInputError(f"{role}: the set has no labels; pass an (X, y) pair.")
    return labels


def _features_of(instances: Instances, role: str) -> NDArray[Any]:
    """Return the features of a set of pairs, ``(n, columns)``."""
    items = [instances.item(position) for position in range(len(instances))]
    if any(not isinstance(item, (tuple, list)) or len(item) != 2 for item in items):
        raise InvalidInputError(
            f"{role}: a scikit-learn estimator needs an (X, y) pair, without sample weights."
        )
    return np.stack([np.asarray(item[0]) for item in items])


def _listed(names: Any) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:NAMED]) + (", ..." if len(shown) > NAMED else "")
