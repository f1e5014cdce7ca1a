"""What a model without a training instance is worth: the utility of the empty set.

No learner can be trained on nothing, so it is a convention; the Shapley value and its relatives
depend on it (a change by c moves every Shapley value by -c / n).
"""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import InvalidInputError
from proponent.models.learner import Empty, Prepared, Trainer
from proponent.retraining.utility import Accuracy, Utility

Values = NDArray[np.float64]

POLICIES = (*get_args(Empty), "max_class_freq")


def check_empty(policy: object) -> str | float:
    """Return the policy, if it is one.

    Raises
    ------
    InvalidInputError
        If it is not.
    """
    if isinstance(policy, str) and policy in POLICIES:
        return policy
    number = isinstance(policy, (int, float, np.integer, np.floating))
    if number and not isinstance(policy, bool) and np.isfinite(policy):  # type: ignore[call-overload]
        return float(policy)  # type: ignore[arg-type]
    raise InvalidInputError(
        f"empty: expected {', '.join(map(repr, POLICIES))} or a finite number, the utility "
        f"itself; got {policy!r}."
    )


def empty_utility(
    policy: str | float, trainer: Trainer, test: Prepared, utility: Utility
) -> Values:
    """Return the utility of the empty set on each test instance, ``(T,)``.

    Parameters
    ----------
    policy : str or float
        ``"prior"``, ``"uniform"`` and ``"init"`` are models, as :meth:`Trainer.constant` says.
        ``"max_class_freq"``, of Ghorbani and Zou 2019, is how often the most frequent class
        stands in the test set, on each test instance. A number is the utility.
    trainer : Trainer
        Says what the constant models are.
    test : Prepared
        The test set.
    utility : Utility
        Judges the constant model.

    Raises
    ------
    InvalidInputError
        If the policy does not go with the utility.
    MethodCapabilityError
        If the learner has no such model.
    """
    if isinstance(policy, str) and policy != "max_class_freq":
        return np.asarray(utility.of(trainer, trainer.constant(policy), test)[0])  # type: ignore[arg-type]
    width = utility.width(test)
    if width is None:
        width = utility.of(trainer, trainer.constant("prior"), test).shape[1]
    if not isinstance(policy, str):
        return np.full(width, policy)
    if not isinstance(utility, Accuracy) or test.targets is None:
        raise InvalidInputError(
            f"empty='max_class_freq' is an accuracy, and the utility is {utility.name!r}; use "
            f"empty='prior', or utility='accuracy' with a classifier."
        )
    _, counts = np.unique(test.targets, return_counts=True)
    return np.full(width, counts.max() / len(test))
