"""Read any tree ensemble as a leaf view."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.trees.check import checked
from proponent.trees.view import LeafView, start_of

READERS = {
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "catboost": "catboost",
    "sklearn.ensemble._gb": "gradient_boosting",
    "sklearn.ensemble._hist_gradient_boosting": "hist_gradient_boosting",
    "sklearn.ensemble._forest": "forests",
}


def read(
    model: Any,
    train: Any,
    *,
    base_margin: Any = None,
    sample_weight: Any = None,
    sample_mask: Any = None,
    approximate: bool = False,
) -> LeafView:
    """Read a trained tree ensemble and its training set as leaves.

    Parameters
    ----------
    model : object
        A trained estimator or booster of XGBoost, LightGBM, CatBoost or scikit-learn
        (GradientBoosting, HistGradientBoosting, RandomForest, ExtraTrees); or a
        :class:`LeafView`, which is returned if what else is given is what it was read with.
    train : (X, y) or Instances
        The whole training set, in the order of training. None only beside a view.
    base_margin : array of shape (n,) or (n, K), optional
        Initial scores (LightGBM's ``init_score``), where the model was trained with some.
    sample_weight : array of shape (n,), optional
        Sample weights, where the model was trained with some. Class weights are read.
    sample_mask : array of shape (T, n), optional
        Which instances (or how often) each tree was fitted to, where rows were sampled.
    approximate : bool
        Read a model whose settings break the formulas all the same, and mark the view.

    Raises
    ------
    InvalidInputError
        If the model is of no library that is read, is not fitted, or has settings under which the
        formulas of the tree methods do not hold; the message names them.
    """
    if isinstance(model, LeafView):
        if train is not None:
            _check_view(model, train, base_margin, sample_weight, sample_mask)
        return model
    if not isinstance(approximate, bool):
        raise InvalidInputError(f"approximate: expected True or False; got {approximate!r}.")
    instances = Instances.of(train, role="train")
    reader = import_module(f"proponent.trees.readers.{_reader_of(model)}")
    reading = reader.read(
        model,
        instances,
        base_margin=base_margin,
        sample_weight=sample_weight,
        sample_mask=sample_mask,
        approximate=approximate,
    )
    return checked(reading, instances, approximate=approximate)


def _check_view(
    view: LeafView, train: Any, base_margin: Any, sample_weight: Any, sample_mask: Any
) -> None:
    """Refuse a view with what it was not read with."""
    for name, given in (("sample_weight", sample_weight), ("sample_mask", sample_mask)):
        if given is not None:
            raise InvalidInputError(
                f"{name}: a leaf view has those it was read with; read the ensemble again, or "
                f"leave {name} out."
            )
    instances = Instances.of(train, role="train")
    if len(instances) != len(view.train):
        raise InvalidInputError(
            f"train: the leaf view was read with {len(view.train)} training instances; got "
            f"{len(instances)}."
        )
    if view.source is None:
        return
    _, labels = view.source.targets_of(instances, "train")
    if not np.array_equal(labels, view.train.labels):
        raise InvalidInputError("train: its labels are not those the leaf view was read with.")
    features = instances.features()
    start = start_of(view.source, features, len(instances), view.outputs, base_margin, "train")
    if not np.array_equal(start, view.train.start):
        raise InvalidInputError(
            "base_margin: the initial scores are not those the leaf view was read with; give the "
            "same ones, or none where it was read without."
        )


def is_ensemble(model: Any) -> bool:
    """Whether a model is a leaf view, or of a class that is read as one."""
    if isinstance(model, LeafView):
        return True
    return any(
        base.__module__ == prefix or base.__module__.startswith(f"{prefix}.")
        for base in type(model).__mro__
        for prefix in READERS
    )


def _reader_of(model: Any) -> str:
    """Return the reader of a model, found by where its class or a base of it is defined."""
    for base in type(model).__mro__:
        for prefix, reader in READERS.items():
            if base.__module__ == prefix or base.__module__.startswith(f"{prefix}."):
                return reader
    raise InvalidInputError(
        f"model: expected a trained tree ensemble of XGBoost, LightGBM, CatBoost or scikit-learn "
        f"(GradientBoosting, HistGradientBoosting, RandomForest, ExtraTrees); got "
        f"{type(model).__name__}."
    )
