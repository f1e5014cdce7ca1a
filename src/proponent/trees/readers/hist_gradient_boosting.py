"""scikit-learn's HistGradientBoostingClassifier and HistGradientBoostingRegressor.

There is no ``apply``: a copy of each tree whose leaves hold their own numbers as values is asked
to predict, so missing values and categories stay with scikit-learn. These names are private.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
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

    @cached_property
    def trees(self) -> list[Any]:
        """Copies of the trees whose leaves hold their numbers."""
        copies = []
        for at, tree in enumerate(t for stage in self.model._predictors for t in stage):
            nodes = tree.nodes.copy()
            leaf = self.numbers.leaf_nodes[at]
            nodes["value"][leaf] = np.arange(len(leaf))
            copies.append(
                type(tree)(nodes, tree.binned_left_cat_bitsets, tree.raw_left_cat_bitsets)
            )
        return copies

    def leaves_of(self, features: Any) -> Leaves:
        rows = self.model._preprocess_X(features, reset=False)
        known, places = self.model._bin_mapper.make_known_categories_bitsets()
        largest = np.min_scalar_type(max(self.numbers.largest - 1, 0))
        leaves = np.empty((len(self.trees), len(rows)), largest)
        for tree, out in zip(self.trees, leaves, strict=True):
            out[:] = tree.predict(rows, known, places, 1)
        return leaves.reshape(-1, self.outputs, len(rows))

    def start_of(self, features: Any, n: int) -> Values:
        baseline = np.ravel(self.model._baseline_prediction).astype(np.float64)
        return np.repeat(baseline[:, None], n, axis=1)

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
    """Read a fitted ``HistGradientBoostingClassifier`` or ``HistGradientBoostingRegressor``."""
    if not hasattr(model, "_predictors"):
        raise InvalidInputError(f"model: this {type(model).__name__} is not fitted.")
    if not model._predictors:
        raise InvalidInputError(f"model: this {type(model).__name__} has no trees.")
    refuse_margins(base_margin)
    outputs = len(model._predictors[0])
    loss = _loss(model, outputs)
    classes = None if isinstance(loss, Squared) else ClassLabels(model.classes_)
    trees = [tree for stage in model._predictors for tree in stage]
    numbers = LeafNumbers.of_flags([tree.nodes["is_leaf"].astype(bool) for tree in trees])
    source = _Source(model, numbers, outputs, classes)
    targets, labels = source.targets_of(instances, "train")
    n = len(instances)
    weights = sample_weights(sample_weight, n)
    if classes is not None:
        check_classes(labels, len(classes))
        if model.class_weight is not None:
            from sklearn.utils.class_weight import compute_sample_weight

            # scikit-learn weighs the encoded labels, so a dictionary is by position.
            weights = weights * compute_sample_weight(model.class_weight, labels)
    notes: tuple[str, ...] = ()
    out = _held_out(model, loss, targets, labels, weights)
    if len(out):
        weights[out] = 0.0
        notes = (f"{len(out)} instances were held out for early stopping: no influence",)
    features = instances.features()
    train = LeafRows(
        source.leaves_of(features), source.start_of(features, n), targets, instances.ids, labels
    )
    values = np.concatenate(
        [tree.nodes["value"][leaf] for tree, leaf in zip(trees, numbers.leaf_nodes, strict=True)]
    )
    suspects: tuple[str, ...] = ()
    if model.monotonic_cst is not None:
        suspects = (f"monotonic_cst={model.monotonic_cst} (leaf values are constrained)",)
    return Reading(
        library="scikit-learn",
        kind="boosting",
        train=train,
        weights=weights,
        counts=sample_counts(sample_mask, len(model._predictors), n),
        loss=loss,
        offsets=offsets_of(numbers.sizes),
        values=values,
        learning_rates=np.full(len(model._predictors), float(model.learning_rate)),
        l2=np.full(len(values), float(model.l2_regularization)),
        source=source,
        classes=None if classes is None else classes.names,
        single_precision="gradients",
        suspects=suspects,
        notes=notes,
    )


def _loss(model: Any, outputs: int) -> Loss:
    if model.loss == "squared_error":
        return Squared()
    if model.loss == "log_loss":
        return Logistic() if outputs == 1 else Softmax(outputs, 1.0)
    raise InvalidInputError(
        f"model: loss={model.loss!r} is not read; the tree methods know 'squared_error' and "
        f"'log_loss'."
    )


def _held_out(
    model: Any, loss: Loss, targets: NDArray[Any], labels: NDArray[Any], weights: Values
) -> NDArray[np.intp]:
    """Return the instances of the internal validation split, by the seed that the model kept.

    A validation set that was given to ``fit`` leaves no trace but the starting score, which is
    then that of all instances.
    """
    none = np.empty(0, dtype=np.intp)
    if not model.do_early_stopping_ or model.validation_fraction is None:
        return none
    stratify = None if isinstance(loss, Squared) else labels
    out = held_out(len(labels), model.validation_fraction, model._random_seed, stratify)
    kept = weights.copy()
    kept[out] = 0.0
    baseline = np.ravel(model._baseline_prediction)
    departures = [np.abs(_baseline(loss, targets, w) - baseline).max() for w in (kept, weights)]
    return out if departures[0] <= departures[1] else none


def _baseline(loss: Loss, targets: NDArray[Any], weights: Values) -> Values:
    if isinstance(loss, Softmax):
        prior = np.bincount(targets, weights, loss.outputs) / weights.sum()
        with np.errstate(divide="ignore"):
            logs = np.log(prior)
        return np.asarray(logs - logs.mean())
    mean = np.dot(weights, targets) / weights.sum()
    return np.array([mean if isinstance(loss, Squared) else np.log(mean / (1.0 - mean))])
