"""XGBoost: leaves by ``predict(pred_leaf=True)``, values from the model's own JSON.

A reloaded model reports the default learning rate and L2 whatever it was trained with, so the
settings are a first guess, and the leaves themselves have the last word.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.trees.losses import Logistic, Loss, Softmax, Squared, Values
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
from proponent.trees.view import LeafRows, Leaves, start_of

PRUNED = 2**31 - 1  # where the split of a node would be, in one that was pruned away


@dataclass(frozen=True, eq=False)
class _Source:
    booster: Any
    missing: float
    rounds: int
    trees: int
    outputs: int
    parallel: int
    numbers: Values  # leaf number of each node, flat over the trees, in the order (t, k)
    nodes: NDArray[np.intp]  # where each tree's nodes begin in it
    largest: int
    start: Values
    classes: ClassLabels | None

    def leaves_of(self, features: Any) -> Leaves:
        def read(rows: Any) -> NDArray[Any]:
            data = matrix(self.booster, rows, self.missing)
            found = self.booster.predict(
                data, pred_leaf=True, strict_shape=True, iteration_range=(0, self.rounds)
            )
            # (rows, round, output, parallel): trees of a round follow each other
            by_tree = np.asarray(found).transpose(0, 1, 3, 2).reshape(len(rows), -1)
            return np.asarray(self.numbers.take(by_tree.astype(np.intp) + self.nodes))

        return place_rows(features, self.trees, self.outputs, self.largest, read)

    def start_of(self, features: Any, n: int) -> Values:
        return np.repeat(self.start[:, None], n, axis=1)

    def targets_of(self, instances: Instances, role: str) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.classes is None:
            targets = regression_targets(instances, role, np.float32)
            if targets.size != len(instances) * self.outputs:
                raise InvalidInputError(
                    f"{role}: the model has {self.outputs} outputs; got targets of shape "
                    f"{targets.T.shape}."
                )
            return targets, targets
        positions = self.classes.positions(instances, role)
        return (positions.astype(np.float64) if self.outputs == 1 else positions), positions


def matrix(booster: Any, rows: Any, missing: float) -> Any:
    """Return rows as XGBoost's own matrix, with the booster's names where they have none."""
    import xgboost

    if hasattr(rows, "columns"):
        return xgboost.DMatrix(rows, missing=missing, enable_categorical=True)
    return xgboost.DMatrix(
        rows,
        missing=missing,
        feature_names=booster.feature_names,
        feature_types=booster.feature_types,
        enable_categorical=True,
    )


def read(
    model: Any,
    instances: Instances,
    *,
    base_margin: Any = None,
    sample_weight: Any = None,
    sample_mask: Any = None,
    approximate: bool = False,
) -> Reading:
    """Read an ``xgboost.Booster`` or an estimator of ``xgboost.sklearn``."""
    estimator = hasattr(model, "get_booster")
    if estimator and not model.__sklearn_is_fitted__():
        raise InvalidInputError(f"model: this {type(model).__name__} is not fitted.")
    booster = model.get_booster() if estimator else model
    content = json.loads(bytes(booster.save_raw("json")))["learner"]
    settings = json.loads(booster.save_config())["learner"]
    boosting = content["gradient_booster"]
    dart = boosting["name"] == "dart"
    _refuse(content, settings, approximate)
    drops = boosting["weight_drop"] if dart else None
    trees_of = (boosting["gbtree"] if dart else boosting)["model"]
    loss = _loss(content)
    outputs = loss.outputs
    parallel = int(trees_of["gbtree_model_param"]["num_parallel_tree"] or 1)
    rounds = len(trees_of["trees"]) // (outputs * parallel)
    best = booster.attr("best_iteration")
    if estimator and best is not None:
        rounds = min(rounds, int(best) + 1)
    if not rounds:
        raise InvalidInputError("model: this XGBoost model has no trees.")
    # stored as (round, output, parallel); trees of a round are to follow each other
    stored_order = np.arange(rounds * outputs * parallel).reshape(rounds, outputs, parallel)
    order = stored_order.transpose(0, 2, 1).ravel()
    sizes, nodes, numbers, values = [], [], [], []
    for tree in order.tolist():
        stored = trees_of["trees"][tree]
        leaf = np.asarray(stored["left_children"]) == -1
        if stored["tree_param"]["num_deleted"] != "0":
            leaf &= np.asarray(stored["split_indices"]) != PRUNED
        value = np.asarray(stored["split_conditions"], np.float32)[leaf].astype(np.float64)
        values.append(value if drops is None else value * drops[tree])
        numbers.append(np.cumsum(leaf) - 1)
        nodes.append(len(leaf))
        sizes.append(len(value))
    classes = None
    if not isinstance(loss, Squared):
        names = getattr(model, "classes_", None) if estimator else None
        classes = ClassLabels(np.arange(max(outputs, 2)) if names is None else np.asarray(names))
    missing = float(getattr(model, "missing", np.nan)) if estimator else np.nan
    source = _Source(
        booster=booster,
        missing=missing,
        rounds=rounds,
        trees=rounds * parallel,
        outputs=outputs,
        parallel=parallel,
        numbers=np.concatenate(numbers),
        nodes=offsets_of(nodes)[:-1],
        largest=max(sizes),
        start=np.zeros(outputs),
        classes=classes,
    )
    features, n = instances.features(), len(instances)
    leaves = source.leaves_of(features)
    offsets, flat = offsets_of(sizes), np.concatenate(values)
    start = _start(content, loss, source, features, leaves, offsets, flat)
    source = _Source(**{**vars(source), "start": start})
    targets, labels = source.targets_of(instances, "train")
    weights = sample_weights(sample_weight, n, np.float32)
    if classes is not None:
        check_classes(labels, len(classes))
    if isinstance(loss, Logistic):
        positive = content["objective"].get("reg_loss_param", {}).get("scale_pos_weight", 1.0)
        weights = np.where(labels == 1, float(np.float32(positive)), 1.0) * weights
    train = LeafRows(
        leaves,
        start_of(source, features, n, outputs, base_margin, "train"),
        targets,
        instances.ids,
        labels,
    )
    tree_settings = _tree_settings(settings)
    trees = rounds * parallel
    return Reading(
        library="xgboost",
        kind="boosting",
        train=train,
        weights=weights,
        counts=sample_counts(sample_mask, trees, n),
        loss=loss,
        offsets=offsets,
        values=flat,
        learning_rates=np.full(trees, float(tree_settings.get("eta", 0.3)) / parallel),
        l2=np.full(len(flat), float(tree_settings.get("lambda", 1.0))),
        l1=float(tree_settings.get("alpha", 0.0)),
        source=source,
        parallel=parallel,
        classes=None if classes is None else classes.names,
        calibrate=True,
        single_precision="scores",
        suspects=(
            *_suspects(tree_settings, dart, sample_mask is not None),
            *_own_objective(getattr(model, "objective", None)),
        ),
    )


def _own_objective(objective: Any) -> tuple[str, ...]:
    """Name an objective of the user's own, of which the model's content says nothing."""
    if not callable(objective):
        return ()
    name = getattr(objective, "__name__", type(objective).__name__)
    return (f"objective={name} (an objective of its own, of which the loss is not known)",)


def _loss(content: dict[str, Any]) -> Loss:
    name = content["objective"]["name"]
    if name in ("reg:squarederror", "reg:linear"):
        return Squared(int(content["learner_model_param"].get("num_target", 1)))
    if name in ("binary:logistic", "binary:logitraw", "reg:logistic"):
        return Logistic()
    if name in ("multi:softprob", "multi:softmax"):
        return Softmax(int(content["learner_model_param"]["num_class"]), 2.0)
    raise InvalidInputError(
        f"model: XGBoost's objective {name!r} is not read; the tree methods know "
        f"'reg:squarederror', 'binary:logistic' and 'multi:softprob'."
    )


def _start(
    content: dict[str, Any],
    loss: Loss,
    source: _Source,
    features: Any,
    leaves: Leaves,
    offsets: NDArray[np.intp],
    values: Values,
) -> Values:
    """Return ``base_score`` as a score, ``(K,)``.

    It is stored as a probability for some objectives and as a score for others: one raw
    prediction tells which.
    """
    stored = str(content["learner_model_param"]["base_score"]).strip("[]").split(",")
    given = np.array([float(part) for part in stored])
    given = np.repeat(given, loss.outputs) if len(given) == 1 else given
    if not isinstance(loss, Logistic):
        return given
    row = features.iloc[:1] if hasattr(features, "iloc") else features[:1]
    margin = source.booster.predict(
        matrix(source.booster, row, source.missing),
        output_margin=True,
        iteration_range=(0, source.rounds),
    )
    seen = float(np.ravel(margin)[0]) - float(values[offsets[:-1] + leaves[:, 0, 0]].sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        logit = np.log(given) - np.log1p(-given)
    if not np.isfinite(logit).all():
        return given
    return logit if abs(logit[0] - seen) <= abs(given[0] - seen) else given


def _tree_settings(settings: dict[str, Any]) -> dict[str, str]:
    booster = settings["gradient_booster"]
    found = booster.get("gbtree", booster).get("tree_train_param", {})
    return dict(found)


def _refuse(content: dict[str, Any], settings: dict[str, Any], approximate: bool) -> None:
    name = content["gradient_booster"]["name"]
    if name == "gblinear":
        raise InvalidInputError("model: booster='gblinear' is no tree ensemble.")
    if name == "dart" and not approximate:
        raise InvalidInputError(
            "model: booster='dart' drops trees while it trains, and which ones is not stored; "
            "approximate=True reads it all the same, and marks the results."
        )
    strategy = settings["learner_train_param"].get("multi_strategy", "one_output_per_tree")
    trees = content["gradient_booster"]
    first = trees.get("gbtree", trees)["model"]["trees"][:1]
    vector = any(int(tree["tree_param"].get("size_leaf_vector") or 1) > 1 for tree in first)
    if strategy == "multi_output_tree" or vector:
        raise InvalidInputError(
            "model: multi_strategy='multi_output_tree' is not read, as XGBoost gives no leaf "
            "indices for it; train with multi_strategy='one_output_per_tree'."
        )


def _suspects(settings: dict[str, str], dart: bool, masked: bool) -> tuple[str, ...]:
    found = []
    if float(settings.get("subsample", 1)) < 1 and not masked:
        found.append(
            f"subsample={float(settings['subsample']):g} (each tree saw a sample that is not "
            f"stored; pass it as sample_mask)"
        )
    if float(settings.get("max_delta_step", 0)) > 0:
        found.append(f"max_delta_step={settings['max_delta_step']} (leaf values are clipped)")
    if re.search(r"[1-9]", settings.get("monotone_constraints", "")):
        constraints = settings["monotone_constraints"]
        found.append(f"monotone_constraints={constraints} (leaf values are constrained)")
    if dart:
        found.append("booster='dart' (the trees that were dropped are not stored)")
    return tuple(found)
