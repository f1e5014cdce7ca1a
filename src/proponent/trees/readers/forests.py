"""scikit-learn's random forests and extremely randomised trees.

A forest is one round of T parallel trees that are fitted to F_0 = 0 with the squared loss on the
targets (one-hot for a classifier), and averaged: the learning rate is 1/T.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.trees.losses import Squared, Values
from proponent.trees.readers.sklearn_trees import LeafNumbers, refuse_margins
from proponent.trees.reading import (
    ClassLabels,
    Reading,
    check_classes,
    offsets_of,
    place_rows,
    regression_targets,
    sample_counts,
    sample_weights,
    shared_by,
)
from proponent.trees.view import LeafRows, Leaves


@dataclass(frozen=True, eq=False)
class _Source:
    model: Any
    numbers: LeafNumbers
    outputs: int
    classes: ClassLabels | None

    def leaves_of(self, features: Any) -> Leaves:
        def read(rows: Any) -> NDArray[Any]:
            return self.numbers.of(np.asarray(self.model.apply(rows)))

        trees = len(self.model.estimators_)
        found = place_rows(features, trees, 1, self.numbers.largest, read)
        return shared_by(found, self.outputs)

    def start_of(self, features: Any, n: int) -> Values:
        return np.zeros((self.outputs, n))

    def targets_of(self, instances: Instances, role: str) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.classes is None:
            targets = regression_targets(instances, role)
            if targets.size != len(instances) * self.outputs:
                raise InvalidInputError(
                    f"{role}: the model has {self.outputs} outputs; got targets of shape "
                    f"{targets.T.shape}."
                )
            return targets, targets
        positions = self.classes.positions(instances, role)
        one_hot = (np.arange(self.outputs)[:, None] == positions).astype(np.float64)
        return one_hot, positions


def read(
    model: Any,
    instances: Instances,
    *,
    base_margin: Any = None,
    sample_weight: Any = None,
    sample_mask: Any = None,
    approximate: bool = False,
) -> Reading:
    """Read a fitted random forest or ensemble of extremely randomised trees."""
    if not hasattr(model, "estimators_"):
        raise InvalidInputError(f"model: this {type(model).__name__} is not fitted.")
    refuse_margins(base_margin)
    if not hasattr(model, "predict"):
        raise InvalidInputError(f"model: {type(model).__name__} predicts no target.")
    classifier = hasattr(model, "classes_")
    if classifier and model.n_outputs_ > 1:
        raise InvalidInputError(
            "model: a forest that classifies several targets at once is not read; train one for "
            "each target."
        )
    if model.criterion == "absolute_error":
        raise InvalidInputError(
            "model: criterion='absolute_error' has medians in its leaves, which is not read; "
            "train with criterion='squared_error'."
        )
    classes = ClassLabels(model.classes_) if classifier else None
    outputs = model.n_outputs_ if classes is None else len(classes)
    trees = [tree.tree_ for tree in model.estimators_]
    numbers = LeafNumbers.of_trees(trees)
    source = _Source(model, numbers, outputs, classes)
    targets, labels = source.targets_of(instances, "train")
    n = len(instances)
    if classes is not None:
        check_classes(labels, len(classes))
    counts = _counts(model, n) if sample_mask is None else sample_counts(sample_mask, len(trees), n)
    weights, notes = _weights(model, classes, labels, sample_weight)
    if counts is not None and getattr(model, "class_weight", None) == "balanced_subsample":
        counts = _balanced(counts, labels)
    suspects: tuple[str, ...] = ()
    if getattr(model, "monotonic_cst", None) is not None:
        suspects = ("monotonic_cst (leaf values are constrained)",)
    features = instances.features()
    train = LeafRows(
        source.leaves_of(features), source.start_of(features, n), targets, instances.ids, labels
    )
    values = np.concatenate(
        [
            tree.value[leaf].reshape(len(leaf), outputs).T.ravel()
            for tree, leaf in zip(trees, numbers.leaf_nodes, strict=True)
        ]
    )
    rate = 1.0 / len(trees)
    return Reading(
        library="scikit-learn",
        kind="forest",
        train=train,
        weights=weights,
        counts=counts,
        loss=Squared(outputs),
        offsets=offsets_of(np.repeat(numbers.sizes, outputs)),
        values=rate * values,
        learning_rates=np.full(len(trees), rate),
        l2=np.zeros(len(values)),
        source=source,
        parallel=len(trees),
        classes=None if classes is None else classes.names,
        suspects=suspects,
        notes=notes,
    )


def _weights(
    model: Any, classes: ClassLabels | None, labels: NDArray[Any], given: Any
) -> tuple[Values, tuple[str, ...]]:
    """Return the weight of each instance in the trees' sums, ``(n,)``, and what was found.

    Forests of newer versions keep their weights; with bootstrap these only say how likely
    each instance is drawn, and the sums have the counts alone.
    """
    n = labels.shape[-1]
    weights = sample_weights(given, n)
    if hasattr(model, "_sample_weight"):
        kept = model._sample_weight
        if kept is None:
            if given is not None and (weights != 1.0).any():
                raise InvalidInputError(
                    "sample_weight: this forest was trained without sample weights; leave them out."
                )
            return np.ones(n), ()
        if model.bootstrap:
            return np.ones(n), ("weights decided how likely each instance was drawn, and no more",)
        return sample_weights(kept, n), ()
    balance = getattr(model, "class_weight", None)
    if classes is not None and balance is not None and balance != "balanced_subsample":
        from sklearn.utils.class_weight import compute_sample_weight

        weights = weights * compute_sample_weight(balance, classes.names[labels])
    return weights, ()


def _balanced(counts: NDArray[Any], labels: NDArray[Any]) -> Values:
    """Return counts times the class weights of each tree's own sample, ``(T, n)``."""
    classes = int(labels.max()) + 1
    drawn = np.stack([counts[:, labels == c].sum(axis=1) for c in range(classes)], axis=1)
    present = np.count_nonzero(drawn, axis=1)
    balance = drawn.sum(axis=1, keepdims=True) / (present[:, None] * np.maximum(drawn, 1))
    return np.asarray(counts * balance[:, labels], dtype=np.float64)


def _counts(model: Any, n: int) -> NDArray[Any] | None:
    """Return how often each tree drew each instance, ``(T, n)``; None without bootstrap."""
    if not model.bootstrap:
        return None
    samples = model.estimators_samples_
    if any(drawn.max(initial=-1) >= n for drawn in samples):
        raise InvalidInputError(
            f"train: the forest was trained on more than {n} instances; pass the whole training "
            f"set, in the order of training."
        )
    counts = np.empty((len(samples), n), np.uint16)
    for tree, drawn in enumerate(samples):
        counts[tree] = np.bincount(drawn, minlength=n)
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
