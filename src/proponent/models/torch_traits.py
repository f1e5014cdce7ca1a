"""What a recipe does while it trains, found out by trying it on a few instances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from proponent._content import as_numpy
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, ProponentError
from proponent.models.torch import TorchModel
from proponent.models.torch_batches import BatchPlan
from proponent.models.torch_evaluation import evaluated_alone, evaluated_together
from proponent.models.torch_many import train_many
from proponent.models.torch_recipe import (
    State,
    TorchRecipe,
    draws,
    seeded,
    state_of,
    train_one,
)
from proponent.models.torch_rows import HeldRows
from proponent.models.torch_stack import not_elementwise

TRIED = 4  # instances


@dataclass(frozen=True)
class Traits:
    """What there is to know of a recipe.

    Attributes
    ----------
    alone : str or None
        Why submodels have to be trained one by one; None: several can be at once.
    exact : bool
        Whether the instances of a batch depend on each other, as in batch normalisation.
    evaluated_alone : bool
        Whether submodels have to be evaluated one by one.
    parameters, activations : int
        Entries of the parameters, and of the activations of one instance.
    itemsize : int
        Bytes of an entry.
    """

    alone: str | None
    exact: bool
    evaluated_alone: bool
    parameters: int
    activations: int
    itemsize: int


def study(recipe: TorchRecipe, train: Instances) -> Traits:
    """Try a recipe on its training set.

    Raises
    ------
    InvalidInputError
        If the factories or the risk are not what they have to be, or a step of training fails.
    NonFiniteError
        If the risk of an untrained module is not finite; the message names the instances.
    """
    module = recipe.module(0)
    _check_factory(recipe, module)
    model = recipe.model(module)
    model.risks(train)  # of all of them: labels out of range, NaN among the features
    few = _Few(recipe, train)
    _check_registered(recipe, few)
    try:
        train_one(few.recipe(recipe), few.train, few.counts[0], 0)
    except ProponentError:
        raise
    except Exception as error:
        raise InvalidInputError(
            f"a step of training failed: {type(error).__name__}: {error}"
        ) from error
    random = draws(few.training_risk)
    exact = not random and few.coupled()
    first = next(parameter for parameter in module.parameters() if parameter.is_floating_point())
    return Traits(
        alone=_alone(recipe, module, train, few, random, exact),
        exact=exact,
        evaluated_alone=draws(few.evaluated_risk) or _evaluated_alone(recipe, few),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        activations=few.activations(),
        itemsize=first.element_size(),
    )


class _Few:
    """A few instances of the training set, and what the recipe's risk makes of them."""

    def __init__(self, recipe: TorchRecipe, train: Instances) -> None:
        positions = np.unique(np.linspace(0, len(train) - 1, TRIED).astype(np.intp))
        self.train = train.select(np.resize(positions, TRIED))
        self.counts = np.ones((2, TRIED), bool)
        self._recipe = recipe

    def recipe(self, recipe: TorchRecipe) -> TorchRecipe:
        """Return a recipe that takes one step on all of them."""
        return replace(recipe, plan=BatchPlan(TRIED, None, 1, recipe.plan.common))

    def risk(self, module: nn.Module, size: int = TRIED) -> Tensor:
        """Return the risks of the first few."""
        model = self._recipe.model(module)
        return model.batch_risk(model.prepare(self.train.batch(np.arange(size))), size)

    def training_risk(self) -> None:
        """Evaluate the risk as training does."""
        self.risk(self._recipe.module(0))

    def evaluated_risk(self) -> None:
        """Evaluate the risk as testing does."""
        self.risk(self._recipe.module(0).eval())

    def coupled(self) -> bool:
        """Whether an instance's risk changes with the others of its batch."""
        module = self._recipe.module(0)
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):
            return True
        try:
            fewer = self.risk(self._recipe.module(0), TRIED // 2)
        except Exception:
            return True
        return not _close(self.risk(module)[: TRIED // 2], fewer)

    def activations(self) -> int:
        """Return the entries of what the layers put out, for one instance."""
        module, entries = self._recipe.module(0), [0]

        def count(layer: nn.Module, given: Any, output: Any) -> None:
            entries[0] += output.numel() if isinstance(output, Tensor) else 0

        for part in module.modules():
            if not any(part.children()):
                part.register_forward_hook(count)
        with seeded(0):
            self.risk(module)
        return max(1, entries[0] // TRIED)


def _check_factory(recipe: TorchRecipe, module: nn.Module) -> None:
    again = recipe.module(0)
    if again is module:
        raise InvalidInputError(
            "module_factory: it returned the same module twice, so that one submodel would go on "
            "where another stopped; make a new one, or copy.deepcopy it, at each call."
        )
    before, after = state_of(module), state_of(again)
    same = before.keys() == after.keys() and all(
        before[name].shape == after[name].shape and torch.equal(before[name], after[name])
        for name in before
    )
    if not same:
        raise InvalidInputError(
            "module_factory: two modules from the same seed differ; let it draw from torch's, "
            "numpy's or Python's global generator only, which are seeded for it."
        )
    recipe.optimizer(again)


def _check_registered(recipe: TorchRecipe, few: _Few) -> None:
    """Refuse modules of which parameters and buffers are not everything."""
    own, other = recipe.module(0), recipe.module(1)
    risks = []
    for module in (own, other):
        model: TorchModel = recipe.model(module)
        with model.at(state_of(own)), model.evaluating():
            risks.append(few.risk(module).detach())
    if not _close(*risks):
        raise InvalidInputError(
            "module_factory: a module is not told by its parameters and buffers; one holds a "
            "random tensor elsewhere. Register it: self.register_buffer(name, tensor)."
        )


def _alone(
    recipe: TorchRecipe,
    module: nn.Module,
    train: Instances,
    few: _Few,
    random: bool,
    exact: bool,
) -> str | None:
    """Return why submodels have to be trained one by one."""
    if not isinstance(train, HeldRows):
        return (
            "its instances are not tensors of one shape, are drawn at random when they are read, "
            "or are too large to be held together"
        )
    if random:
        return "it draws random numbers while it trains (dropout, sampling)"
    if exact and recipe.plan.common:
        return (
            "the instances of a batch depend on each other (batch normalisation), so that those "
            "left out would leak into common batches"
        )
    reason = not_elementwise(recipe.optimizer(module))
    return reason if reason is not None else _not_vectorised(recipe, few, exact)


def _not_vectorised(recipe: TorchRecipe, few: _Few, exact: bool) -> str | None:
    """Take one step of plain gradient descent in both ways; return how they differ."""
    plain = replace(
        few.recipe(recipe), optimizer_factory=lambda found: torch.optim.SGD(found, lr=1.0)
    )
    try:
        assert isinstance(few.train, HeldRows)  # as the whole set is
        together = train_many(plain, few.train, few.counts, [0, 1], exact)
    except Exception as error:
        return f"torch.func cannot vectorise it ({type(error).__name__}: {_line(error)})"
    for seed in (0, 1):
        before = state_of(plain.module(seed))
        alone = train_one(plain, few.train, few.counts[0], seed)
        if not _same_step(before, alone, {name: together[name][seed] for name in together}):
            return "torch.func does not give the step that it takes alone"
    return None


def _evaluated_alone(recipe: TorchRecipe, few: _Few) -> bool:
    """Whether the risks of several submodels cannot be had at once."""
    states = [state_of(recipe.module(seed)) for seed in (0, 1)]
    arrays = {name: np.stack([as_numpy(state[name]) for state in states]) for name in states[0]}
    alone = evaluated_alone(recipe, arrays, few.train, recipe.risk)
    try:
        together = evaluated_together(recipe, arrays, few.train, recipe.risk, 1)
    except Exception:
        return True
    return not np.allclose(alone, together, rtol=1e-3, atol=1e-6)


def _same_step(before: State, alone: State, together: State) -> bool:
    return all(
        _close(together[name] - before[name], alone[name] - before[name], before[name])
        for name in before
    )


def _close(left: Tensor, right: Tensor, scale: Tensor | None = None) -> bool:
    """Whether two tensors are the same but for rounding."""
    if not right.is_floating_point():
        return torch.equal(left, right)
    epsilon = torch.finfo(right.dtype).eps
    largest = right.abs().max().item() if right.numel() else 0.0
    around = scale.abs().max().item() if scale is not None and scale.numel() else 0.0
    slack = 1e4 * epsilon * largest + 1e2 * epsilon * around
    return bool(torch.allclose(left, right, rtol=0.0, atol=slack, equal_nan=True))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:120]
