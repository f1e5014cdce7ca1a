"""What is studied, where a fitted object alone does not say it: factors, matrices, a last layer.

Each says what was minimised: the mean risk over the n training instances plus a penalty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from proponent.exceptions import InvalidInputError
from proponent.static.high_dimensional.arrays import Array

if TYPE_CHECKING:
    from proponent.models.torch import TorchModel

LossName = Literal["mse", "bce_with_logits"]


@dataclass(frozen=True, eq=False)
class MatrixFactorisation:
    r"""A recommender with factors of users and items, ``f(u, v) = intercept + U_u^T V_v``.

    It minimises ``(1/n) sum_i risk_i + (weight_decay / 2) (||U||^2 + ||V||^2)`` over its n
    ratings. Its training set is ``((n, 2) pairs of user and item, ratings)`` or
    ``(users, items, ratings)``, by their rows in the factors.

    Parameters
    ----------
    user_factors : array-like of shape (users, r)
        U.
    item_factors : array-like of shape (items, r)
        V.
    weight_decay : float, or a pair of arrays of shapes (users,) and (items,)
        The strength, larger than 0; a pair where each row has its own, as in alternating least
        squares that weight the penalty of a user by the number of its ratings (Zhou et al.,
        2008): then ``lambda * counts / n``, with a number larger than 0 for a row without
        ratings. Where a library minimises ``sum_i (y_i - f_i)^2 + c (||U||^2 + ||V||^2)`` it is
        ``2 c / n``.
    loss : "mse" or "bce_with_logits"
        The risk of a rating: ``(y - f)^2``, or the cross-entropy of a label in [0, 1] from the
        logit f.
    intercept : float
        A constant that was not fitted with the factors, such as the mean rating.

    Raises
    ------
    InvalidInputError
        If the arrays do not fit, a number is not finite, or a strength is not positive.
    """

    user_factors: Any
    item_factors: Any
    weight_decay: Any
    loss: LossName = "mse"
    intercept: float = 0.0

    def __post_init__(self) -> None:
        """Turn the fields into arrays and check them."""
        users = finite_array("user_factors", self.user_factors, 2)
        items = finite_array("item_factors", self.item_factors, 2)
        if users.shape[1] != items.shape[1]:
            raise InvalidInputError(
                f"item_factors: a row has {items.shape[1]} factors, but one of user_factors "
                f"{users.shape[1]}; pass arrays (users, r) and (items, r)."
            )
        _check_loss(self.loss)
        _finite_number("intercept", self.intercept)
        object.__setattr__(self, "user_factors", users)
        object.__setattr__(self, "item_factors", items)
        object.__setattr__(self, "weight_decay", self._strengths(len(users), len(items)))

    def _strengths(self, users: int, items: int) -> float | tuple[Array, Array]:
        if not isinstance(self.weight_decay, (tuple, list)):
            return positive_number("weight_decay", self.weight_decay)
        pair = tuple(finite_array("weight_decay", part, 1) for part in self.weight_decay)
        if [len(part) for part in pair] != [users, items] or min(map(np.min, pair)) <= 0:
            raise InvalidInputError(
                f"weight_decay: expected a number, or two arrays of numbers larger than 0, one of "
                f"each of the {users} users and one of each of the {items} items."
            )
        return pair[0], pair[1]


@dataclass(frozen=True, eq=False)
class LowRankModel:
    r"""A linear model of matrices, ``f(X) = intercept + <Theta, X>``, of low rank.

    It minimises ``(1/n) sum_i risk_i + penalty ||Theta||_*``, the sum of the singular values.
    Its training set is ``(X, y)`` with matrices X ``(n, a, b)``; or with pairs ``(n, 2)`` of a
    row and a column, each for the matrix with a single 1 there: matrix completion.

    Parameters
    ----------
    theta : array-like of shape (a, b)
        The fitted matrix.
    penalty : float
        lambda, larger than 0. Where ``(1/2) sum_i (y_i - f_i)^2 + c ||Theta||_*`` was minimised
        it is ``2 c / n``.
    loss : "mse" or "bce_with_logits"
        The risk: ``(y - f)^2``, or the cross-entropy of a label in [0, 1] from the logit f.
    intercept : float
        A constant that was not fitted with Theta.

    Raises
    ------
    InvalidInputError
        If a field is of the wrong shape or not finite, or the strength is not positive.
    """

    theta: Any
    penalty: float
    loss: LossName = "mse"
    intercept: float = 0.0

    def __post_init__(self) -> None:
        """Turn theta into an array and check the fields."""
        object.__setattr__(self, "theta", finite_array("theta", self.theta, 2))
        positive_number("penalty", self.penalty)
        _check_loss(self.loss)
        _finite_number("intercept", self.intercept)


@dataclass(frozen=True, eq=False)
class SparseLastLayer:
    r"""A torch module whose last linear layer was trained under a sparse penalty.

    Its weight W minimises, the other layers held fixed,
    ``mean risk + penalty (l1_ratio ||W||_1 + (1 - l1_ratio) / 2 ||W||^2)``.

    Parameters
    ----------
    model : TorchModel
        The module and its loss, convex in the outputs.
    penalty : float
        The strength, larger than 0.
    l1_ratio : float
        The share of the L1 norm, larger than 0 and at most 1.
    penalise_bias : bool
        Whether the layer's bias was penalised as the weight was. Otherwise it is no part of the
        scores.

    Raises
    ------
    InvalidInputError
        If the model is no TorchModel, or a number is out of range.
    """

    model: TorchModel
    penalty: float
    l1_ratio: float = 1.0
    penalise_bias: bool = False

    def __post_init__(self) -> None:
        """Check the model and the numbers."""
        from proponent.models.torch import TorchModel

        if not isinstance(self.model, TorchModel):
            raise InvalidInputError(
                f"model: expected a pp.TorchModel(module, loss=...); got "
                f"{type(self.model).__name__}."
            )
        positive_number("penalty", self.penalty)
        if not 0 < _finite_number("l1_ratio", self.l1_ratio) <= 1:
            raise InvalidInputError(
                f"l1_ratio must be larger than 0 and at most 1; got {self.l1_ratio}. Without an "
                f"L1 part use RepresenterPoint."
            )


def finite_array(name: str, value: Any, dimensions: int) -> Array:
    """Return an array (or tensor) in float64.

    Raises
    ------
    InvalidInputError
        If it has another number of dimensions, is empty, or a number is not finite.
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu().double()
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise InvalidInputError(f"{name}: expected numbers; got {type(value).__name__}.") from None
    if found.ndim != dimensions or not found.size:
        raise InvalidInputError(
            f"{name}: expected an array of {dimensions} dimension(s); got shape {found.shape}."
        )
    if not np.isfinite(found).all():
        raise InvalidInputError(f"{name}: {(~np.isfinite(found)).sum()} numbers are not finite.")
    return found


def positive_number(name: str, value: Any) -> float:
    """Return a number larger than 0.

    Raises
    ------
    InvalidInputError
        If it is not.
    """
    number = _finite_number(name, value)
    if number <= 0:
        raise InvalidInputError(
            f"{name} must be larger than 0; got {value}. Without a penalty a prediction is no sum "
            f"over the training instances."
        )
    return number


def _finite_number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise InvalidInputError(f"{name} must be a finite number; got {value!r}.")
    return number


def _check_loss(loss: object) -> None:
    if loss not in get_args(LossName):
        raise InvalidInputError(f"loss={loss!r}: expected one of {', '.join(get_args(LossName))}.")
