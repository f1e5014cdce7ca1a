"""What ``fit`` takes, turned into a study."""

from __future__ import annotations

from typing import Any

import numpy as np

from proponent.data import Instances
from proponent.static.high_dimensional.estimators import is_scikit_learn, sparse_linear
from proponent.static.high_dimensional.factors import Factors
from proponent.static.high_dimensional.losses import Logistic, SquaredError
from proponent.static.high_dimensional.low_rank import LowRank
from proponent.static.high_dimensional.models import (
    LowRankModel,
    MatrixFactorisation,
    SparseLastLayer,
)
from proponent.static.high_dimensional.penalties import NuclearNorm
from proponent.static.high_dimensional.study import Study

LOSSES: dict[str, SquaredError | Logistic] = {
    "mse": SquaredError(),
    "bce_with_logits": Logistic(),
}


def study_of(
    model: Any, train: Instances, *, batch_size: int | None, progress: bool | None
) -> Study | None:
    """Return a model as what a representer needs of it; None if it is of another kind.

    Raises
    ------
    InvalidInputError
        If it is of a known kind and cannot be used.
    """
    if isinstance(model, MatrixFactorisation):
        return _factors(model)
    if isinstance(model, LowRankModel):
        penalty = NuclearNorm(model.penalty)
        return LowRank(model.theta, penalty, LOSSES[model.loss], float(model.intercept))
    if isinstance(model, SparseLastLayer):
        from proponent.static.high_dimensional.head import sparse_head

        return sparse_head(model, train, batch_size=batch_size, progress=progress)
    if is_scikit_learn(model):
        return sparse_linear(model, train)
    return None


def _factors(model: MatrixFactorisation) -> Factors:
    users, items = model.user_factors, model.item_factors
    decays = model.weight_decay
    if not isinstance(decays, tuple):
        decays = np.full(len(users), decays), np.full(len(items), decays)
    return Factors(users, items, decays, LOSSES[model.loss], float(model.intercept))
