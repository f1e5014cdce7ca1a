"""LightGBM: leaves by ``predict(pred_leaf=True)``, values from the model's own text.

The text holds leaf values to full precision and is much faster to have than the JSON dump. F_0 is
stored nowhere: it is folded into the first tree, and recomputed from labels and weights here.
"""

from __future__ import annotations

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

EPSILON = 1e-15  # LightGBM's kEpsilon: smaller starting scores are not folded in


@dataclass(frozen=True, eq=False)
class _Text:
    """What the text of a model holds."""

    trees: int
    outputs: int
    objective: tuple[str, ...]
    sizes: NDArray[np.intp]
    values: Values
    shrinkage: Values
    categorical: NDArray[np.bool_]  # leaves whose own split is on a category
    parameters: dict[str, str]


@dataclass(frozen=True, eq=False)
class _Source:
    booster: Any
    text: _Text
    classes: ClassLabels | None
    start: Values

    def leaves_of(self, features: Any) -> Leaves:
        def read(rows: Any) -> NDArray[Any]:
            return np.asarray(self.booster.predict(rows, pred_leaf=True))

        text = self.text
        return place_rows(features, text.trees, text.outputs, int(text.sizes.max()), read)

    def start_of(self, features: Any, n: int) -> Values:
        return np.repeat(self.start[:, None], n, axis=1)

    def targets_of(self, instances: Instances, role: str) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.classes is None:
            targets = regression_targets(instances, role, np.float32)
            return targets, targets
        positions = self.classes.positions(instances, role)
        if self.text.outputs == 1:
            return positions.astype(np.float64), positions
        return positions, positions


def read(
    model: Any,
    instances: Instances,
    *,
    base_margin: Any = None,
    sample_weight: Any = None,
    sample_mask: Any = None,
    approximate: bool = False,
) -> Reading:
    """Read a ``lightgbm.Booster`` or an estimator of ``lightgbm.sklearn``."""
    booster = getattr(model, "booster_", model)
    if not hasattr(booster, "model_to_string"):
        raise InvalidInputError(f"model: this {type(model).__name__} is not fitted.")
    text = _parse(booster.model_to_string())
    loss = _loss(text)
    _refuse(text, approximate)
    classes = None
    if not isinstance(loss, Squared):
        count = max(text.outputs, 2)
        classes = ClassLabels(np.asarray(getattr(model, "classes_", np.arange(count))))
    source = _Source(booster, text, classes, np.zeros(text.outputs))
    targets, labels = source.targets_of(instances, "train")
    n = len(instances)
    weights = sample_weights(sample_weight, n, np.float32)
    if getattr(model, "class_weight", None) is not None and classes is not None:
        from sklearn.utils.class_weight import compute_sample_weight

        weights = weights * compute_sample_weight(model.class_weight, classes.names[labels])
        weights = weights.astype(np.float32).astype(np.float64)
    if classes is not None:
        check_classes(labels, len(classes))
    values = text.values.copy()
    averaged = base_margin is None and text.parameters.get("boost_from_average", "1") == "1"
    if averaged:
        start = _average(loss, targets, weights)
        start[np.abs(start) <= EPSILON] = 0.0
        values[: int(text.sizes[: text.outputs].sum())] -= np.repeat(
            start, text.sizes[: text.outputs]
        )
        source = _Source(booster, text, classes, start)
    if isinstance(loss, Logistic):
        weights = weights * _label_weights(text, labels)
    features = instances.features()
    train = LeafRows(
        source.leaves_of(features),
        start_of(source, features, n, text.outputs, base_margin, "train"),
        targets,
        instances.ids,
        labels,
    )
    rate = _number(text, "learning_rate", 0.1)
    rates = text.shrinkage[:: text.outputs].copy()
    rates[0] = rate  # folding F_0 in resets what the first tree says
    l2 = np.full(len(values), _number(text, "lambda_l2", 0.0))
    other = np.where(text.categorical, l2 + _number(text, "cat_l2", 10.0), np.nan)
    return Reading(
        library="lightgbm",
        kind="boosting",
        train=train,
        weights=weights,
        counts=sample_counts(sample_mask, text.trees, n),
        loss=loss,
        offsets=offsets_of(text.sizes),
        values=values,
        learning_rates=rates,
        l2=l2,
        source=source,
        l1=_number(text, "lambda_l1", 0.0),
        classes=None if classes is None else classes.names,
        calibrate=not text.categorical.any(),
        other_l2=other if text.categorical.any() else None,
        fixed=np.repeat(text.sizes == 1, text.sizes) if (text.sizes == 1).any() else None,
        single_precision="gradients",
        suspects=_suspects(text, sample_mask is not None),
        notes=("F_0 recomputed from labels and weights",) if averaged else (),
    )


def _parse(text: str) -> _Text:
    entries: dict[str, list[str]] = {}
    for line in text.split("\n"):
        name, equals, value = line.partition("=")
        if equals:
            entries.setdefault(name, []).append(value)

    def lines(name: str) -> list[str]:
        return entries.get(name, [])

    def numbers(name: str) -> Values:
        return np.fromstring(" ".join(lines(name)), sep=" ")

    sizes = numbers("num_leaves").astype(np.intp)
    if not len(sizes):
        raise InvalidInputError("model: this LightGBM model has no trees.")
    outputs = int(lines("num_tree_per_iteration")[0])
    settings = text[text.rfind("\nparameters:") :]
    parameters = dict(re.findall(r"^\[(\w+): (.*)\]$", settings, re.MULTILINE))
    objective = lines("objective")
    if "1" in lines("is_linear"):
        parameters["linear_tree"] = "1"
    categorical = np.zeros(int(sizes.sum()), bool)
    if any(count != "0" for count in lines("num_cat")):
        categorical = _under_categories(text, sizes)
    return _Text(
        trees=len(sizes) // outputs,
        outputs=outputs,
        objective=tuple(objective[0].split()) if objective else (),
        sizes=sizes,
        values=numbers("leaf_value"),
        shrinkage=numbers("shrinkage"),
        categorical=categorical,
        parameters=parameters,
    )


def _lines(text: str, name: str) -> list[str]:
    """Return the rest of every line that begins with a name, found without a pattern: faster."""
    found, mark, at = [], f"\n{name}=", 0
    while (at := text.find(mark, at)) >= 0:
        at += len(mark)
        found.append(text[at : text.find("\n", at)])
    return found


def _under_categories(text: str, sizes: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return which leaves hang on a split by category, ``(L,)``."""
    found = np.zeros(int(sizes.sum()), bool)
    starts = np.cumsum(sizes) - sizes
    for tree, block in enumerate(text.split("\nTree=")[1:]):
        kinds = _lines(block, "decision_type")
        if not kinds:
            continue
        by_category = np.fromstring(kinds[0], sep=" ").astype(int) & 1 == 1
        for side in ("left_child", "right_child"):
            child = np.fromstring(_lines(block, side)[0], sep=" ").astype(int)
            found[starts[tree] + ~child[(child < 0) & by_category]] = True
    return found


def _loss(text: _Text) -> Loss:
    name = text.objective[0] if text.objective else "none"
    if name == "regression":
        return Squared()
    if name == "binary":
        sigmoid = [part for part in text.objective if part.startswith("sigmoid:")]
        if all(float(part[8:]) == 1.0 for part in sigmoid):
            return Logistic()
        raise InvalidInputError(
            f"model: LightGBM's {sigmoid[0]} is not read; train with sigmoid=1."
        )
    if name == "multiclass":
        return Softmax(text.outputs, text.outputs / (text.outputs - 1.0))
    raise InvalidInputError(
        f"model: LightGBM's objective {name!r} is not read; the tree methods know 'regression', "
        f"'binary' and 'multiclass'."
    )


def _average(loss: Loss, targets: NDArray[Any], weights: Values) -> Values:
    """Return the starting score of ``boost_from_average``, ``(K,)``."""
    if isinstance(loss, Softmax):
        counts = np.bincount(targets, weights, loss.outputs)
        return np.asarray(np.log(np.maximum(counts / weights.sum(), EPSILON)))
    mean = float(np.dot(weights, targets) / weights.sum())
    if isinstance(loss, Logistic):
        mean = min(max(mean, EPSILON), 1.0 - EPSILON)
        return np.array([np.log(mean / (1.0 - mean))])
    return np.array([mean])


def _label_weights(text: _Text, positives: NDArray[Any]) -> Values:
    """Return the weight of each instance's class in the binary objective, ``(n,)``."""
    weights = np.ones(2)
    if text.parameters.get("is_unbalance", "0") == "1":
        counts = np.bincount(positives, minlength=2)
        weights = counts.max() / counts
    weights[1] *= _number(text, "scale_pos_weight", 1.0)
    return np.asarray(weights[positives])


def _number(text: _Text, name: str, default: float) -> float:
    return float(text.parameters.get(name, default) or default)


def _refuse(text: _Text, approximate: bool) -> None:
    if text.parameters.get("linear_tree", "0") == "1":
        raise InvalidInputError(
            "model: linear_tree=True has linear models in its leaves, which the tree methods do "
            "not read; train with linear_tree=False."
        )
    boosting = text.parameters.get("boosting", "gbdt")
    if boosting == "rf":
        raise InvalidInputError(
            "model: boosting='rf' averages LightGBM's trees, which is not read; use a random "
            "forest of scikit-learn."
        )
    if boosting == "dart" and not approximate:
        raise InvalidInputError(
            "model: boosting='dart' drops trees while it trains, and which ones is not stored; "
            "approximate=True reads it all the same, and marks the results."
        )


def _suspects(text: _Text, masked: bool) -> tuple[str, ...]:
    found = []

    def say(name: str, why: str, usual: float = 0.0) -> None:
        if _number(text, name, usual) != usual:
            found.append(f"{name}={text.parameters[name]} ({why})")

    sampled = "each tree saw a sample that is not stored; pass it as sample_mask"
    if not masked:
        if _number(text, "bagging_freq", 0) > 0:
            for name in ("bagging_fraction", "pos_bagging_fraction", "neg_bagging_fraction"):
                say(name, sampled, 1.0)
        strategy = text.parameters.get("data_sample_strategy", "bagging")
        if strategy == "goss" or text.parameters.get("boosting") == "goss":
            found.append(f"data_sample_strategy='goss' ({sampled})")
    if text.parameters.get("boosting") == "dart":
        found.append("boosting='dart' (the trees that were dropped are not stored)")
    say("max_delta_step", "leaf values are clipped")
    say("path_smooth", "leaf values are smoothed along the path")
    say("use_quantized_grad", "gradients are rounded")
    if re.search(r"[1-9]", text.parameters.get("monotone_constraints", "")):
        constraints = text.parameters["monotone_constraints"]
        found.append(f"monotone_constraints={constraints} (leaf values are constrained)")
    if _number(text, "reg_sqrt", 0) == 1:
        found.append("reg_sqrt=True (it was fitted to other targets)")
    return tuple(found)
