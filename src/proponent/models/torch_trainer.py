"""The trainer of torch modules: fits many submodels and evaluates them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from proponent._content import as_numpy
from proponent._one_thread import one_thread
from proponent.data import Instances
from proponent.exceptions import InvalidInputError, MethodCapabilityError
from proponent.models.learner import Counts, Empty, Fitted, Prepared, Seeds, Trainer, Values
from proponent.models.torch import check_finite
from proponent.models.torch_evaluation import (
    OutputOf,
    constant_risks,
    evaluated_alone,
    evaluated_together,
    tried_output,
)
from proponent.models.torch_many import train_many
from proponent.models.torch_outputs import outputs_of
from proponent.models.torch_recipe import State, TorchRecipe, state_of, train_one
from proponent.models.torch_rows import HeldRows, held
from proponent.models.torch_traits import Traits

ALONE = 8  # submodels that one task of a worker trains one by one
DIVERGED = "diverged: the parameters are not finite (a smaller learning rate may help)"
CONSTANT = "constant output"


@dataclass(frozen=True)
class Constants:
    """Models that put out the same for every instance.

    Attributes
    ----------
    outputs : ndarray of shape (K, ...)
        What each puts out.
    """

    outputs: NDArray[np.float64]


class TorchTrainer(Trainer):
    """A recipe for torch modules and the training set that it was bound to.

    Parameters
    ----------
    recipe : TorchRecipe
        How a submodel is trained.
    train : Instances
        The training set; :class:`HeldRows` where it could be held.
    traits : Traits
        What was found out about the recipe.
    loss : object
        What the user gave as loss.
    chunk : int
        How many submodels are trained at once; 0: one by one.
    """

    def __init__(
        self, recipe: TorchRecipe, train: Instances, traits: Traits, loss: Any, chunk: int
    ) -> None:
        self.n = len(train)
        self.recipe = recipe
        self.train = train
        self.traits = traits
        self.chunk = chunk
        self.at_once = chunk or ALONE
        self._labels = train.labels()
        output = None if loss is None else tried_output(recipe, train)
        self._outputs = outputs_of(loss, output, self._labels)
        self.output = self._outputs.kind

    # Training

    def fit(self, counts: Counts, seeds: Seeds) -> Fitted:
        """Train submodels, as :meth:`Trainer.fit` says."""
        arrays = self._empty_arrays(len(counts))
        failures: dict[int, str] = {}
        with one_thread():
            for rows in self._chunks(counts):
                left = self._fit_together(rows, counts, seeds, arrays) if len(rows) > 1 else rows
                for row in left:
                    reason = self._fit_alone(row, counts, seeds, arrays)
                    if reason is not None:
                        failures[row] = reason
        return Fitted(arrays, len(counts), dict(sorted(failures.items())))

    def _chunks(self, counts: Counts) -> Iterator[list[int]]:
        """Return which submodels are trained at once: those that take about as long."""
        sizes = counts.sum(axis=1, dtype=np.int64)
        order = np.argsort(-sizes, kind="stable").tolist()
        if not self.chunk:
            yield from ([row] for row in order)
            return
        while order:
            first = sizes[order[0]]
            alike = [row for row in order[: self.chunk] if sizes[row] == first]
            rows = alike if self.traits.exact else order[: self.chunk]
            yield rows
            order = order[len(rows) :]

    def _fit_together(
        self, rows: list[int], counts: Counts, seeds: Seeds, arrays: dict[str, NDArray[Any]]
    ) -> list[int]:
        """Train several submodels; return those that have to be trained alone after all."""
        assert isinstance(self.train, HeldRows)
        try:
            states = train_many(
                self.recipe, self.train, counts[rows], seeds[rows].tolist(), self.traits.exact
            )
        except Exception:
            return rows
        for name, tensor in states.items():
            arrays[name][rows] = as_numpy(tensor)
        # In common batches even an instance that is left out can bring in an infinity.
        good = finite(states)
        return [row for row, fine in zip(rows, good, strict=True) if not fine]

    def _fit_alone(
        self, row: int, counts: Counts, seeds: Seeds, arrays: dict[str, NDArray[Any]]
    ) -> str | None:
        """Train one submodel; return why it failed."""
        reason: str | None = None
        try:
            state = train_one(self.recipe, self.train, counts[row], int(seeds[row]))
            if finite({name: tensor[None] for name, tensor in state.items()})[0]:
                for name, tensor in state.items():
                    arrays[name][row] = as_numpy(tensor)
                return None
            reason = DIVERGED
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        for array in arrays.values():
            array[row] = np.nan if array.dtype.kind == "f" else 0
        return reason

    def _empty_arrays(self, size: int) -> dict[str, NDArray[Any]]:
        arrays = {}
        for name, tensor in state_of(self.recipe.module(0)).items():
            like = as_numpy(tensor)
            arrays[name] = np.zeros((size, *like.shape), like.dtype)
        return arrays

    # Evaluation

    def prepare(self, test: Instances, role: str = "test") -> Prepared:
        """Return test instances as the modules take them.

        Raises
        ------
        InvalidInputError
            If a label is not one of the module's classes.
        """
        rows = held(test, self.recipe.model(self.recipe.module(0)).dtype)
        return Prepared(rows, self._outputs.targets(rows.labels(), role), test.ids)

    def risks(self, fitted: Fitted, test: Prepared) -> Values:
        """Return the risk of each submodel on each test instance, ``(K, T)``.

        Raises
        ------
        NonFiniteError
            If the risk of a module whose parameters are finite is not; the message names the
            instances.
        """
        if isinstance(fitted.models, Constants):
            found = constant_risks(self.recipe, fitted.models.outputs, test.inputs)
        else:
            found = self._evaluated(fitted, test, self.recipe.risk)
        for row in set(range(fitted.size)) - set(fitted.failures):
            check_finite(torch.from_numpy(found[row]), test.ids, "risk of a submodel")
        return found

    def outputs(self, fitted: Fitted, test: Prepared) -> Values:
        """Return the logits ``(K, T, C)``, or the values ``(K, T)`` or ``(K, T, outputs)``.

        Raises
        ------
        MethodCapabilityError
            If the loss is not one whose outputs can be read.
        """
        if self.output is None:
            raise MethodCapabilityError(
                "what this learner's modules put out can be read only for loss='cross_entropy', "
                "'bce_with_logits' or 'mse' with a label an instance; use utility='risk'."
            )
        if isinstance(fitted.models, Constants):
            constants = torch.from_numpy(fitted.models.outputs)
            rows = [self._outputs.read(row.expand(len(test), *row.shape)) for row in constants]
            return np.stack([row.numpy() for row in rows])
        return self._evaluated(fitted, test, OutputOf(self.recipe.risk, self._outputs))

    def _evaluated(
        self, fitted: Fitted, test: Prepared, function: Callable[[nn.Module, Any], Tensor]
    ) -> Values:
        rows = [row for row in range(fitted.size) if row not in fitted.failures]
        arrays = {name: array[rows] for name, array in fitted.models.items()}
        if not rows:  # the shape of an answer is that of the untrained module's
            arrays = dict(self.constant("init").models)
        with one_thread():
            found = self._found(arrays, test.inputs, function)
        table = np.full((fitted.size, *found.shape[1:]), np.nan)
        if rows:
            table[rows] = found
        return table

    def _found(
        self,
        arrays: dict[str, NDArray[Any]],
        test: Instances,
        function: Callable[[nn.Module, Any], Tensor],
    ) -> Values:
        if not self.traits.evaluated_alone:
            entry = self.traits.activations * self.traits.itemsize
            try:
                return evaluated_together(self.recipe, arrays, test, function, entry)
            except Exception:
                pass  # what is wrong is said when they are evaluated one by one
        return evaluated_alone(self.recipe, arrays, test, function)

    # What stands for no training instance, and what is stored

    def constant(self, kind: Empty) -> Fitted:
        """Return a constant output, or the untrained module of seed 0 for ``"init"``.

        Raises
        ------
        MethodCapabilityError
            If the risk does not tell which constant output that would be.
        """
        if kind == "init":
            state = state_of(self.recipe.module(0))
            return Fitted({name: as_numpy(tensor)[None] for name, tensor in state.items()}, 1)
        return Fitted(Constants(self._outputs.constant(kind, self._labels)[None]), 1)

    def to_arrays(self, fitted: Fitted) -> dict[str, NDArray[Any]]:
        """Return parameters and buffers by name, ``(K, *shape)``."""
        if isinstance(fitted.models, Constants):
            return {CONSTANT: fitted.models.outputs}
        return dict(fitted.models)

    def from_arrays(
        self, arrays: Mapping[str, NDArray[Any]], size: int, failures: Mapping[int, str]
    ) -> Fitted:
        """Return the submodels that ``to_arrays`` stored.

        Raises
        ------
        InvalidInputError
            If they are of another module.
        """
        if CONSTANT in arrays:
            return Fitted(Constants(arrays[CONSTANT]), size, failures)
        expected = {name: array.shape for name, array in self._empty_arrays(size).items()}
        found = {name: array.shape for name, array in arrays.items()}
        if found != expected:
            wrong = sorted(
                name for name in expected | found if expected.get(name) != found.get(name)
            )
            raise InvalidInputError(
                f"arrays: stored submodels of another module; {wrong[0]!r} has shape "
                f"{found.get(wrong[0])} there and {expected.get(wrong[0])} here."
            )
        return Fitted(dict(arrays), size, failures)


def finite(state: State) -> NDArray[np.bool_]:
    """Return which of several submodels have only finite parameters and buffers, ``(K,)``."""
    rows = [torch.isfinite(t).reshape(len(t), -1).all(1) for t in state.values() if t.numel()]
    return np.asarray(torch.stack(rows).all(0).cpu())
