"""What a recorded run tells of each step and each stored state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from proponent.exceptions import RunError
from proponent.models import journal
from proponent.models.layout import ParameterGroup, read_groups
from proponent.models.step_seeds import seed_of_step


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    r"""One step of the optimizer.

    The gradient of step t is :math:`\sum_j \nabla\ell(z_j; \theta^{(t-1)}) / d_j`, times the
    clipping scale.

    Parameters
    ----------
    index : int
        t, counted from 1.
    learning_rates : tuple of float
        The learning rate of each group.
    indices : array of shape (batch,)
        Positions of the batch in the training set, in order.
    divisor : float or array of shape (batch,)
        What each instance's risk was divided by: one number, or one an instance.
    clip_scale : float or None
        The factor by which clipping scaled the gradient; None where it is not known.
    groups : tuple of ParameterGroup
        The optimizer's groups, with their settings.
    has_checkpoint : bool
        Whether the parameters before the step are stored.
    seed : int or None
        The seed of the step's randomness, where the run was recorded with one.
    modes : mapping of str to bool, or None
        Whether each part of the module was in training mode, by name; None in older runs.
    without_gradient : tuple of str, or None
        Parameters that had no gradient, which the optimizer therefore passed over; None in older
        runs.
    """

    index: int
    learning_rates: tuple[float, ...]
    indices: NDArray[np.int64]
    divisor: float | NDArray[np.float64]
    clip_scale: float | None
    groups: tuple[ParameterGroup, ...]
    has_checkpoint: bool
    seed: int | None = None
    modes: Mapping[str, bool] | None = None
    without_gradient: tuple[str, ...] | None = None

    @property
    def settings(self) -> tuple[Mapping[str, Any], ...]:
        """The settings of each group: weight decay, momentum, betas, ..."""
        return tuple(group.settings for group in self.groups)

    @property
    def weights(self) -> NDArray[np.float64]:
        """The weight of each instance's gradient in the step, ``(batch,)``: 1 / divisor."""
        return np.broadcast_to(1.0 / np.asarray(self.divisor), self.indices.shape)

    def learning_rate_of(self, names: Iterable[str]) -> dict[str, float]:
        """Return the learning rate of each of the named parameters.

        It is 0 for parameters that the step could not move: those outside of the optimizer and
        those that did not require a gradient.
        """
        rates = dict.fromkeys(names, 0.0)
        for group, rate in zip(self.groups, self.learning_rates, strict=True):
            moved = set(group.parameters) - set(group.frozen)
            rates |= {name: rate for name in group.parameters if name in rates and name in moved}
        return rates


@dataclass(frozen=True, eq=False)
class Checkpoint:
    r"""A stored state: the parameters before a step, or the final ones.

    Parameters
    ----------
    t : int
        The step that the state precedes, counted from 1: the parameters are
        :math:`\theta^{(t-1)}`. One more than the number of steps for the final state.
    learning_rates : dict of str to float, or None
        The learning rate of each parameter in step t, :math:`\eta^{(t)}`; None for the final
        state. 0 for parameters that the step could not move.
    batch_size : int or None
        Number of instances of step t; None for the final state.
    divisor : float or None
        What the risks of step t were divided by; their harmonic mean where they differ.
    final : bool
        Whether these are the parameters at the end of a complete run.
    """

    t: int
    learning_rates: dict[str, float] | None
    batch_size: int | None
    divisor: float | None
    final: bool
    _folder: Path = field(repr=False)
    _tensors: journal.StoredFile = field(repr=False)
    _moments: journal.StoredFile | None = field(repr=False)
    _aliases: Mapping[str, str] = field(repr=False)

    @property
    def has_optimizer_state(self) -> bool:
        """Whether the optimizer's state is stored too."""
        return self._moments is not None

    def load(self) -> dict[str, Tensor]:
        """Return the parameters and buffers by name, mapped from disk.

        Tied parameters stand under all of their names, so that the module's
        ``load_state_dict`` takes the result.

        Raises
        ------
        RunError
            If the file is missing or damaged.
        """
        tensors = journal.read_tensors(self._folder, self._tensors)
        try:
            return tensors | {name: tensors[first] for name, first in self._aliases.items()}
        except KeyError as error:
            raise RunError(f"{self._folder / self._tensors.file} has no tensor {error}.") from None

    def optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        """Return the optimizer's state by parameter and entry, such as ``["weight"]["exp_avg"]``.

        Numbers are tensors without axes. Before the first step most optimizers have no state.

        Raises
        ------
        RunError
            If it was not recorded, or its file is missing or damaged.
        """
        if self._moments is None:
            raise RunError(
                "the optimizer's state was not recorded; record with "
                "Recorder(..., optimizer_state=True)."
            )
        state: dict[str, dict[str, Tensor]] = {}
        for key, tensor in journal.read_tensors(self._folder, self._moments).items():
            entry, _, name = key.partition("/")
            state.setdefault(name, {})[entry] = tensor
        return state


def read_step(
    entry: Mapping[str, Any],
    index: int,
    before: Step | tuple[ParameterGroup, ...],
    n_train: int | None,
    seed: int | None = None,
) -> Step:
    """Return the step that a line of the journal tells of.

    ``before`` is the step before, or the groups that the run started with: a line says only what
    has changed.

    Raises
    ------
    RunError
        If the line is not that of step ``index``.
    """
    groups = before.groups if isinstance(before, Step) else before
    modes = before.modes if isinstance(before, Step) else None
    passed_over = before.without_gradient if isinstance(before, Step) else None
    try:
        if "modes" in entry:
            modes = MappingProxyType({str(part): bool(on) for part, on in entry["modes"].items()})
        if "without_gradient" in entry:
            passed_over = tuple(str(name) for name in entry["without_gradient"])
        if entry["step"] != index:
            raise ValueError(f"step {entry['step']} stands where step {index} should")
        divisor = entry["divisor"]
        if isinstance(divisor, list):
            divisor = read_only(np.array(divisor, dtype=float))
        step = Step(
            index=index,
            learning_rates=tuple(float(rate) for rate in entry["lr"]),
            indices=read_only(np.array(entry["batch"], dtype=np.int64)),
            divisor=divisor,
            clip_scale=entry["clip_scale"],
            groups=read_groups(entry, groups) if {"groups", "settings"} & set(entry) else groups,
            has_checkpoint="checkpoint" in entry,
            seed=None if seed is None else seed_of_step(seed, index),
            modes=modes,
            without_gradient=passed_over,
        )
        if len(step.groups) != len(step.learning_rates):
            raise ValueError("it has not one learning rate for each group")
        if n_train is not None and step.indices.max() >= n_train:
            raise ValueError(f"instance {step.indices.max()} is not in the training set")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{journal.STEPS}, line {index}, is damaged: {error}.") from error
    return step


def read_checkpoint(
    path: Path, step: int, taken: Step | None, names: Sequence[str], aliases: Mapping[str, str]
) -> Checkpoint:
    """Return the state before ``step`` of the run at ``path``; without ``taken``, the final one.

    Raises
    ------
    RunError
        If a file is missing or has the wrong size.
    """
    folder = path.absolute() / journal.CHECKPOINTS
    sidecar = folder / f"{journal.checkpoint_name(step)}.json"
    tensors, moments = journal.read_sidecar(sidecar, step)
    divisor = None if taken is None else float(len(taken.indices) / taken.weights.sum())
    return Checkpoint(
        t=step,
        learning_rates=None if taken is None else taken.learning_rate_of(names),
        batch_size=None if taken is None else len(taken.indices),
        divisor=divisor,
        final=taken is None,
        _folder=folder,
        _tensors=tensors,
        _moments=moments,
        _aliases=aliases,
    )


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array itself, no longer writeable."""
    array.setflags(write=False)
    return array
