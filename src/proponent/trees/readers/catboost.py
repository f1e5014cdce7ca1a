"""CatBoost: leaves by ``calc_leaf_indexes``, values by ``get_leaf_values``."""

from __future__ import annotations

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
    shared_by,
)
from proponent.trees.view import LeafRows, Leaves, start_of


@dataclass(frozen=True, eq=False)
class _Source:
    model: Any
    trees: int
    outputs: int
    largest: int
    start: Values
    classes: ClassLabels | None

    def leaves_of(self, features: Any) -> Leaves:
        found = place_rows(features, self.trees, 1, self.largest, self.model.calc_leaf_indexes)
        return shared_by(found, self.outputs)

    def start_of(self, features: Any, n: int) -> Values:
        return np.repeat(self.start[:, None], n, axis=1)

    def targets_of(self, instances: Instances, role: str) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.classes is None:
            targets = regression_targets(instances, role, np.float32)
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
    """Read a ``catboost.CatBoost``, ``CatBoostClassifier`` or ``CatBoostRegressor``."""
    if not model.is_fitted():
        raise InvalidInputError("model: this CatBoost model is not fitted.")
    settings = model.get_all_params()
    loss = _loss(settings, model)
    method = settings.get("leaf_estimation_method", "Newton")
    if method not in ("Newton", "Gradient"):
        raise InvalidInputError(
            f"model: leaf_estimation_method={method!r} is not read; train with 'Newton' or "
            f"'Gradient'."
        )
    sizes = np.asarray(model.get_tree_leaf_counts(), dtype=np.intp)
    if not len(sizes):
        raise InvalidInputError("model: this CatBoost model has no trees.")
    outputs = loss.outputs
    scale, bias = model.get_scale_and_bias()
    classes = None
    if not isinstance(loss, Squared):
        classes = ClassLabels(np.asarray(model.classes_))
    start = np.broadcast_to(np.asarray(bias, dtype=np.float64).ravel(), (outputs,))
    source = _Source(model, len(sizes), outputs, int(sizes.max()), start, classes)
    targets, labels = source.targets_of(instances, "train")
    if targets.ndim == 2:
        raise InvalidInputError(
            f"train: the model has one output; got targets of shape {targets.T.shape}."
        )
    n = len(instances)
    weights = sample_weights(sample_weight, n, np.float32)
    if classes is not None:
        check_classes(labels, len(classes))
        weights = weights * _class_weights(settings, len(classes))[labels]
    features = instances.features()
    train = LeafRows(
        source.leaves_of(features),
        start_of(source, features, n, outputs, base_margin, "train"),
        targets,
        instances.ids,
        labels,
    )
    values = _by_output(scale * np.asarray(model.get_leaf_values()), sizes, outputs)
    # CatBoost scales L2 with the mean weight.
    l2 = float(settings.get("l2_leaf_reg", 3.0)) * float(weights.mean())
    return Reading(
        library="catboost",
        kind="boosting",
        train=train,
        weights=weights,
        counts=sample_counts(sample_mask, len(sizes), n),
        loss=loss,
        offsets=offsets_of(np.repeat(sizes, outputs)),
        values=values,
        learning_rates=np.full(len(sizes), float(settings["learning_rate"])),
        l2=np.full(len(values), l2),
        source=source,
        estimation="gradient" if method == "Gradient" else "newton",
        steps=int(settings.get("leaf_estimation_iterations", 1)),
        classes=None if classes is None else classes.names,
        suspects=_suspects(settings, model, features),
    )


def _loss(settings: dict[str, Any], model: Any) -> Loss:
    name = str(settings.get("loss_function", "")).split(":")[0]
    if name == "RMSE":
        return Squared()
    if name == "Logloss":
        return Logistic()
    if name == "MultiClass":
        return Softmax(len(model.classes_), 1.0, coupled=True)
    raise InvalidInputError(
        f"model: CatBoost's loss_function {name!r} is not read; the tree methods know 'RMSE', "
        f"'Logloss' and 'MultiClass'."
    )


def _by_output(values: Values, sizes: NDArray[np.intp], outputs: int) -> Values:
    """Return leaf values, stored output by output within each leaf, as ``(t, k, leaf)``, flat."""
    if outputs == 1:
        return values
    if (sizes == sizes[0]).all():
        return values.reshape(len(sizes), sizes[0], outputs).transpose(0, 2, 1).ravel()
    trees = np.split(values, np.cumsum(sizes[:-1] * outputs))
    return np.concatenate([tree.reshape(-1, outputs).T.ravel() for tree in trees])


def _class_weights(settings: dict[str, Any], classes: int) -> Values:
    weights = np.ones(classes)
    given = settings.get("class_weights")
    if given:
        named = settings.get("class_names") or range(classes)
        found = [given[name] for name in named] if isinstance(given, dict) else list(given)
        weights = np.asarray(found, dtype=np.float32).astype(np.float64)
    elif settings.get("scale_pos_weight"):
        weights[1] = float(np.float32(settings["scale_pos_weight"]))
    return weights


def _suspects(settings: dict[str, Any], model: Any, features: Any) -> tuple[str, ...]:
    found = []
    categorical = list(model.get_cat_feature_indices())
    if categorical:
        limit = int(settings.get("one_hot_max_size", 2))
        sizes = [_distinct(features, column) for column in categorical]
        if any(size > limit for size in sizes):
            found.append(
                f"categorical features of more than one_hot_max_size={limit} values (the target "
                f"statistics that the trees were grown on are not those of the final model)"
            )
    if settings.get("langevin"):
        found.append("langevin=True (noise is added to the gradients)")
    if settings.get("posterior_sampling"):
        found.append("posterior_sampling=True (noise is added to the gradients)")
    if float(settings.get("model_shrink_rate") or 0) > 0:
        found.append(f"model_shrink_rate={settings['model_shrink_rate']} (earlier trees shrink)")
    if settings.get("monotone_constraints"):
        found.append("monotone_constraints (leaf values are constrained)")
    steps = int(settings.get("leaf_estimation_iterations", 1))
    backtracking = settings.get("leaf_estimation_backtracking", "No")
    if steps > 1 and backtracking not in ("No", None):
        found.append(
            f"leaf_estimation_backtracking={backtracking!r} with leaf_estimation_iterations="
            f"{steps} (a step may have been halved; train with 'No')"
        )
    return tuple(found)


def _distinct(features: Any, column: int) -> int:
    values = features.iloc[:, column] if hasattr(features, "iloc") else features[:, column]
    return len(set(np.asarray(values).tolist()))
