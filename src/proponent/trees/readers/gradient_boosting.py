"""scikit-learn's GradientBoostingClassifier and GradientBoostingRegressor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.trees.losses import Logistic, Loss, Softmax, Squared, Values
from proponent.trees.readers.sklearn_trees import LeafNumbers, held_out, refuse_margins
from proponent.trees.reading import (
    ClassLabels,
    Reading,
    check_classes,
    offsets_of,
    place_rows,
    regression_targets,
    sample_counts,
    sample_weights,
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
            nodes = np.asarray(self.model.apply(rows)).reshape(len(rows), -1)
            return self.numbers.of(nodes)

        trees = len(self.model.estimators_)
        return place_rows(features, trees, self.outputs, self.numbers.largest, read)

    def start_of(self, features: Any, n: int) -> Values:
        # Private, and the only way to the scores of an initial estimator.
        raw = self.model._raw_predict_init(features)
        return np.ascontiguousarray(np.asarray(raw, dtype=np.float64).T)

    def targets_of(self, instances: Instances, role: str) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.classes is None:
            targets = regression_targets(instances, role)
            return targets, targets
        positions = self.classes.positions(instances, role)
        return (positions.astype(np.float64) if self.outputs == 1 else positions), positions


def read(
    model: Any,
    instances: Instances,
    *,
    base_margin: Any = None,
    sample_weight: Any = None,
    sample_mask: Any = None,
    approximate: bool = False,
) -> Reading:
    """Read a fitted ``GradientBoostingClassifier`` or ``GradientBoostingRegressor``."""
    if not hasattr(model, "estimators_"):
        raise InvalidInputError(f"model: this {type(model).__name__} is not fitted.")
    refuse_margins(base_margin)
    outputs = model.estimators_.shape[1]
    loss = _loss(model, outputs)
    classes = None if isinstance(loss, Squared) else ClassLabels(model.classes_)
    trees = [tree.tree_ for tree in model.estimators_.ravel()]
    numbers = LeafNumbers.of_trees(trees)
    source = _Source(model, numbers, outputs, classes)
    targets, labels = source.targets_of(instances, "train")
    n = len(instances)
    weights = sample_weights(sample_weight, n)
    notes: tuple[str, ...] = ()
    if classes is not None:
        check_classes(labels, len(classes))
    if model.n_iter_no_change is not None:
        if not isinstance(model.random_state, (int, np.integer)):
            raise InvalidInputError(
                "model: n_iter_no_change holds out part of the training set by random_state, "
                "which is no whole number here; train with random_state=0, say."
            )
        out = held_out(
            n, model.validation_fraction, model.random_state, None if classes is None else labels
        )
        weights[out] = 0.0
        notes = (f"{len(out)} instances were held out for early stopping: no influence",)
    features = instances.features()
    train = LeafRows(
        source.leaves_of(features), source.start_of(features, n), targets, instances.ids, labels
    )
    rate = float(model.learning_rate)
    values = np.concatenate(
        [tree.value[leaf, 0, 0] for tree, leaf in zip(trees, numbers.leaf_nodes, strict=True)]
    )
    suspects: tuple[str, ...] = ()
    if model.subsample < 1 and sample_mask is None:
        suspects = (
            f"subsample={model.subsample} (each tree saw a sample that is not stored; pass it as "
            f"sample_mask)",
        )
    return Reading(
        library="scikit-learn",
        kind="boosting",
        train=train,
        weights=weights,
        counts=sample_counts(sample_mask, len(model.estimators_), n),
        loss=loss,
        offsets=offsets_of(numbers.sizes),
        values=rate * values,
        learning_rates=np.full(len(model.estimators_), rate),
        l2=np.zeros(len(values)),
        source=source,
        classes=None if classes is None else classes.names,
        suspects=suspects,
        notes=notes,
    )


def _loss(model: Any, outputs: int) -> Loss:
    if model.loss == "squared_error":
        return Squared()
    if model.loss == "log_loss":
        return Logistic() if outputs == 1 else Softmax(outputs, outputs / (outputs - 1.0))
    raise InvalidInputError(
        f"model: loss={model.loss!r} is not read; the tree methods know 'squared_error' and "
        f"'log_loss'."
    )
