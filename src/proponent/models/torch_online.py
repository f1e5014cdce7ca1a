"""One pass over a training set by gradient descent on single instances, for many orders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from proponent._content import as_numpy
from proponent._one_thread import one_thread
from proponent.exceptions import InvalidInputError, ProponentError
from proponent.models.learner import Fitted, Seeds
from proponent.models.torch_batches import BatchPlan
from proponent.models.torch_recipe import State, TorchRecipe, seeded, state_of, train_step
from proponent.models.torch_rows import HeldRows
from proponent.models.torch_stack import Together
from proponent.models.torch_trainer import DIVERGED, TorchTrainer, finite

See = Callable[[int, Fitted], None]


def online_passes(
    trainer: TorchTrainer, orders: NDArray[np.intp], seeds: Seeds, learning_rate: float, see: See
) -> None:
    r"""Walk through the training set in given orders, one instance a step.

    :math:`\theta_j = \theta_{j-1} - \alpha \nabla L(z_{\pi_j}; \theta_{j-1})`, plain gradient
    descent, from the module that each seed makes.

    Parameters
    ----------
    trainer : TorchTrainer
        Its module and risk; its optimizer and batches play no role. One that trains several
        submodels at once makes several passes at once.
    orders : ndarray of shape (P, n)
        The positions of the instances in the order of each pass; one pass where the trainer
        trains one by one.
    seeds : ndarray of shape (P,)
        One for each.
    learning_rate : float
        The step size.
    see : callable
        ``see(j, models)`` is shown the P models after j steps, j = 0 to n; those whose parameters
        are no longer finite are its failures. It may not keep them: they are stepped on.

    Raises
    ------
    InvalidInputError
        If a step on a single instance fails.
    """
    recipe = replace(
        trainer.recipe,
        optimizer_factory=lambda parameters: torch.optim.SGD(parameters, lr=learning_rate),
        plan=BatchPlan(1, 1, None, False),
    )
    with one_thread():
        if len(orders) > 1:
            _together(recipe, trainer, orders, seeds, see)
        else:
            _alone(recipe, trainer, orders[0], int(seeds[0]), see)


def _together(
    recipe: TorchRecipe, trainer: TorchTrainer, orders: NDArray[np.intp], seeds: Seeds, see: See
) -> None:
    assert isinstance(trainer.train, HeldRows)
    together = Together(recipe, trainer.train, seeds.tolist())
    weights = np.ones((len(orders), 1))
    see(0, _models(together.state))
    for step in range(orders.shape[1]):
        with _said():
            together.step(orders[:, step : step + 1], weights)
        see(step + 1, _models(together.state))


def _alone(
    recipe: TorchRecipe, trainer: TorchTrainer, order: NDArray[np.intp], seed: int, see: See
) -> None:
    with seeded(seed):
        module = recipe.made()
        model, optimizer = recipe.model(module), recipe.optimizer(module)

        def models() -> Fitted:
            return _models({name: tensor[None] for name, tensor in state_of(module).items()})

        see(0, models())
        for step, position in enumerate(order):
            with _said():
                train_step(model, optimizer, trainer.train, np.array([position]), np.ones(1))
            see(step + 1, models())


@contextmanager
def _said() -> Iterator[None]:
    """Say of an exception that it came of a step on a single instance."""
    try:
        yield
    except ProponentError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"a step on a single instance failed: {type(error).__name__}: {error} (Batch "
            f"normalisation needs several; layer or group normalisation does not.)"
        ) from error


def _models(state: State) -> Fitted:
    good = finite(state)
    arrays: dict[str, Any] = {name: as_numpy(tensor) for name, tensor in state.items()}
    return Fitted(arrays, len(good), dict.fromkeys(np.flatnonzero(~good).tolist(), DIVERGED))
