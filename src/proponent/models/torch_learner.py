"""A torch module as a learner: trained on any subset, many small ones at once."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import nn

from proponent._content import as_numpy
from proponent._one_thread import one_thread
from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.models.learner import Learner
from proponent.models.recipe import recipe_of
from proponent.models.risk import Loss, Risk, risk_of
from proponent.models.torch_batches import BatchPlan
from proponent.models.torch_chunks import FEWEST, chunk_of
from proponent.models.torch_recipe import (
    ModuleFactory,
    OptimizerFactory,
    TorchRecipe,
    state_of,
)
from proponent.models.torch_rows import held
from proponent.models.torch_trainer import TorchTrainer
from proponent.models.torch_traits import study

BATCHES = ("own", "common")


class TorchLearner(Learner):
    """Trains a torch module on any subset, from a seed; many small modules at once.

    A submodel with seed s is ``module_factory()`` called under ``torch.manual_seed(s)``, trained
    with ``optimizer_factory(parameters)`` on the mean risk of each batch. The batches are drawn
    from the seed too, and so is whatever draws from torch's, numpy's or Python's global
    generators while it trains (dropout); the generators are as they were afterwards.

    Small modules are trained together, with one forward and backward pass for all of them, where
    that gives what each would become alone: with torch's elementwise optimizers, without dropout
    or sampling, without batch normalisation over subsets of several sizes. Where it does not,
    they are trained one after the other.

    Parameters
    ----------
    module_factory : callable
        ``module_factory()`` returns a new ``torch.nn.Module``: ``lambda: Net(...)``, or
        ``lambda: copy.deepcopy(pretrained)`` to fine-tune.
    optimizer_factory : callable
        ``optimizer_factory(parameters)`` returns a torch optimizer, such as
        ``lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)``.
    loss : str, loss module or callable, optional
        As :class:`pp.TorchModel` takes it: ``"cross_entropy"``, ``"mse"``,
        ``"bce_with_logits"``, ``"causal_lm"``, ...
    risk : callable, optional
        ``risk(module, batch) -> (batch,)``, in place of ``loss``: any per-instance risk, that of
        a generative model included.
    epochs : int, optional
        Passes over the subset.
    steps : int, optional
        Steps of the optimizer, in place of ``epochs``.
    batch_size : int
        Instances a batch; the last of an epoch may be smaller.
    batches : {"own", "common"}
        ``"own"``: each subset is shuffled and cut into batches, as in ordinary training on it.
        ``"common"``: the whole training set is shuffled and cut into batches, in the same way for
        the same seed, and a subset takes what it has of each (the mean over those; where it has
        none the step is left out; ``steps`` counts it). Submodels of one seed then differ by
        their instances alone and not by chance, which leave-one-out needs: common random numbers.
    vectorized : {"auto"} or bool
        Whether submodels are trained at once; True raises where they cannot be. The numbers do
        not depend on it, but for rounding.
    chunk : {"auto"} or int
        How many are trained at once, at most; ``"auto"``: as many as fit the processor's cache.
    dtype : torch.dtype, optional
        What the module is moved to; None leaves it as the factory made it.
    device : str, optional
        Likewise.

    Examples
    --------
    >>> import torch, proponent as pp
    >>> learner = pp.TorchLearner(
    ...     lambda: torch.nn.Linear(2, 3),
    ...     lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ...     loss="cross_entropy", epochs=5)
    >>> train = torch.randn(20, 2), torch.randint(3, (20,))
    >>> pp.Downsampling(n_models=8).fit(learner, train).influence(train).shape
    (20, 20)
    """

    def __init__(
        self,
        module_factory: ModuleFactory,
        optimizer_factory: OptimizerFactory,
        *,
        loss: str | nn.Module | Loss | None = None,
        risk: Risk | None = None,
        epochs: int | None = None,
        steps: int | None = None,
        batch_size: int = 32,
        batches: Literal["own", "common"] = "own",
        vectorized: bool | Literal["auto"] = "auto",
        chunk: int | Literal["auto"] = "auto",
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        self.module_factory = module_factory
        self.optimizer_factory = optimizer_factory
        self.loss = loss
        self.risk = risk
        self.epochs = epochs
        self.steps = steps
        self.batch_size = batch_size
        self.batches = batches
        self.vectorized = vectorized
        self.chunk = chunk
        self.dtype = dtype
        self.device = device

    def bind(self, train: Instances) -> TorchTrainer:
        """Return the recipe with its training set, after trying it on a few instances.

        Raises
        ------
        InvalidInputError
            If a parameter is out of range, the factories or the risk are not what they have to
            be, or ``vectorized=True`` and submodels cannot be trained at once.
        NonFiniteError
            If the risk of an untrained module is not finite; the message names the instances.
        """
        if not len(train):
            raise InvalidInputError("train: the set is empty; a module needs instances.")
        recipe = self.torch_recipe()
        with one_thread():
            rows = held(train, recipe.model(recipe.module(0)).dtype)
            traits = study(recipe, rows)
        chunk = chunk_of(self.chunk, recipe, traits, len(train))
        if self.vectorized is True and traits.alone is not None:
            raise InvalidInputError(
                f"vectorized=True: submodels of this recipe are trained one by one, for "
                f"{traits.alone}. Use vectorized='auto'."
            )
        together = traits.alone is None and self.vectorized is not False
        if self.vectorized == "auto" and self.chunk == "auto" and chunk < FEWEST:
            together = False
        return TorchTrainer(recipe, rows, traits, self.loss, chunk if together else 0)

    def torch_recipe(self) -> TorchRecipe:
        """Return how a submodel is made and trained.

        Raises
        ------
        InvalidInputError
            If a parameter is out of range.
        """
        self._check_factories()
        if (self.epochs is None) == (self.steps is None):
            raise InvalidInputError("give exactly one of epochs= and steps=.")
        for name in ("epochs", "steps", "batch_size"):
            _check_count(name, getattr(self, name), optional=name != "batch_size")
        if self.chunk != "auto":
            _check_count("chunk", self.chunk, optional=False)
        if self.batches not in BATCHES:
            raise InvalidInputError(f"batches: expected 'own' or 'common'; got {self.batches!r}.")
        if self.vectorized not in (True, False, "auto"):
            raise InvalidInputError(
                f"vectorized: expected True, False or 'auto'; got {self.vectorized!r}."
            )
        plan = BatchPlan(self.batch_size, self.epochs, self.steps, self.batches == "common")
        risk = risk_of(self.loss, self.risk)
        device = None if self.device is None else str(self.device)
        return TorchRecipe(
            self.module_factory, self.optimizer_factory, risk, plan, self.dtype, device
        )

    def _check_factories(self) -> None:
        module, optimizer = self.module_factory, self.optimizer_factory
        if not callable(module) or isinstance(module, nn.Module):
            raise InvalidInputError(
                f"module_factory: expected a function that returns a new module each time, such "
                f"as lambda: copy.deepcopy(module); got {type(module).__name__}."
            )
        if not callable(optimizer) or isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidInputError(
                f"optimizer_factory: expected a function of the parameters that returns an "
                f"optimizer, such as lambda p: torch.optim.SGD(p, lr=0.1); got "
                f"{type(optimizer).__name__}."
            )

    def with_common_randomness(self) -> TorchLearner:
        """Return the recipe with ``batches="common"``; subsets of one seed differ by instances."""
        common = copy.copy(self)
        common.batches = "common"
        return common

    def recipe(self) -> str:
        """Return what decides the submodels, the initial parameters included.

        ``vectorized``, ``chunk`` and ``device`` decide only how they are rounded.
        """
        recipe = self.torch_recipe()
        module = recipe.module(0)
        state = {
            name: (tuple(tensor.shape), recipe_of(as_numpy(tensor)))
            for name, tensor in state_of(module).items()
        }
        optimizer = recipe.optimizer(module)
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        parts = {
            "module": recipe_of(self.module_factory),
            "state": state,
            "optimizer": (recipe_of(self.optimizer_factory), recipe_of(groups)),
            "risk": recipe_of(self.loss if self.risk is None else self.risk),
            "batches": recipe.plan,
            "dtype": self.dtype,
        }
        return f"TorchLearner({', '.join(f'{name}={part}' for name, part in parts.items())})"


def _check_count(name: str, value: Any, optional: bool) -> None:
    if value is None and optional:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{name}: expected a positive integer; got {value!r}.")
