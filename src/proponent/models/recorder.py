"""Record a training run while it happens (the survey's Algorithm 1)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import nn
from torch.optim import Optimizer

from proponent import __version__
from proponent._randomness import fixed_randomness
from proponent.exceptions import InvalidInputError, RunError
from proponent.models import journal
from proponent.models._recorder_changes import Changes
from proponent.models._recorder_checks import (
    check_single_process,
    checked_clip_scale,
    checked_module,
    checked_optimizer,
    checked_seed,
    checked_set,
    divisors,
    positions,
)
from proponent.models._recorder_risks import measured_risks
from proponent.models.indexed import indexed as indexed
from proponent.models.layout import (
    describe_groups,
    describe_module,
    describe_optimizer,
    find_aliases,
    learning_rates,
    optimizer_tensors,
    parameter_groups,
    parameter_names,
    state_tensors,
)
from proponent.models.risk import Loss, Risk
from proponent.models.schedule import Every, Schedule
from proponent.models.step_seeds import StepSeeds, check_free
from proponent.models.torch import TorchModel
from proponent.models.writer import RunWriter


class Recorder:
    r"""Records what the dynamic methods need to know of a training run, on disk.

    For every step :math:`t` the recorder logs the learning rates :math:`\eta^{(t)}`, the ordered
    batch :math:`\mathcal{B}^{(t)}`, the divisor of the loss and the optimizer's settings; before
    chosen steps it stores :math:`\theta^{(t-1)}`; at the end :math:`\theta^{(T)}`. Two lines are
    added to a training loop::

        with Recorder("runs/digits", net, optimizer, loss="cross_entropy", train=train) as recorder:
            for indices, x, y in loader:            # a loader over indexed(train)
                optimizer.zero_grad()
                cross_entropy(net(x), y).backward()
                recorder.step(indices)              # just before the optimizer's step
                optimizer.step()

    Parameters
    ----------
    path : str or Path
        Directory of the run; created.
    module : torch.nn.Module
        The module that is trained. Recording changes nothing about its training: not its
        parameters, modes or buffers, nor (without ``seed``) any random state.
    optimizer : torch.optim.Optimizer
        The optimizer that trains it.
    loss, risk : optional
        The per-instance risk as :class:`TorchModel` takes it. A name is stored with the run; a
        callable has to be given again when the run is loaded. Needed only with ``test``.
    train : (X, y), dict, Dataset or Instances, optional
        The training set that the indices point into. Its length and fingerprint are stored, and
        another set is later refused.
    test : (X, y), dict, Dataset or Instances, optional
        A test set whose risks are measured, in evaluation mode, before the first step and after
        every step: what ideal TracIn needs.
    every : "epoch", int or collection of ints
        When parameters are stored: before the first step of each epoch (the default), every k
        steps (1 is every step), or before the given steps, counted from 1.
    optimizer_state : bool
        Whether to store the optimizer's state (such as Adam's moments) with the parameters.
    seed : int, optional
        Makes the randomness of the steps repeatable, for methods that replay the run: the
        recorder takes charge of the global generators of torch, numpy and Python (see the notes).
    overwrite : bool
        Whether a run that is already at ``path`` is replaced.

    Raises
    ------
    InvalidInputError
        If an argument cannot be used.
    RunError
        If something is already at ``path``.

    Notes
    -----
    The parameters before step t are those that the gradients of step t were taken at. Buffers
    are stored with them as they are then, so a BatchNorm's running statistics have already seen
    the batch of step t.

    A step counts once the optimizer has taken it. Where a gradient scaler skips one, nothing is
    recorded; an optimizer's step without a ``recorder.step`` before it is an error.

    With ``seed`` the generators are seeded before the first step, after every one, before a step's
    first fetch from an :func:`indexed` set and before its first forward pass. Worker processes of
    a loader draw for themselves; where their items are random a replay says that it diverged.

    A kill at any moment leaves a run that loads up to its last complete step; after a crash of
    the machine itself the last seconds may be lost.

    **Source**: Hammoudeh and Lowd, Algorithm 1; Pruthi et al. 2020.
    """

    def __init__(
        self,
        path: str | Path,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        loss: str | nn.Module | Loss | None = None,
        risk: Risk | None = None,
        train: Any = None,
        test: Any = None,
        every: Every = "epoch",
        optimizer_state: bool = False,
        seed: int | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self._module = checked_module(module)
        self._optimizer = checked_optimizer(optimizer)
        self._train = checked_set(train, "train")
        self._test = checked_set(test, "test")
        self._n_train = None if self._train is None else len(self._train)
        self._schedule = Schedule(every, self._n_train)
        self._optimizer_state = optimizer_state
        self._seed = checked_seed(seed)
        self._overwrite = overwrite
        self._model = None
        if loss is not None or risk is not None:
            self._model = TorchModel(self._module, loss=loss, risk=risk)
        elif test is not None:
            raise InvalidInputError("test: give loss= or risk= too; its risks are measured.")
        self._names = parameter_names(self._module)
        self._parameters = list(self._module.parameters())
        if not any(group.parameters for group in parameter_groups(self._optimizer, self._names)):
            raise InvalidInputError(
                "optimizer: it holds no parameter of the module; give the one that trains it."
            )
        self._writer: RunWriter | None = None
        self._pending: dict[str, Any] | None = None
        self._versions: tuple[int, ...] = ()
        self._taken = self._skipped = 0

    def __repr__(self) -> str:
        """Return the path and what was recorded."""
        state = "closed" if self._writer is None else "open"
        return f"Recorder({str(self.path)!r}, {self._taken:,} steps recorded, {state})"

    def __enter__(self) -> Recorder:
        """Open the recorder."""
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the recorder; after an error the run is not complete."""
        self.close(complete=kind is None)

    def open(self) -> None:
        """Create the run's directory; what entering the recorder as a context does.

        Raises
        ------
        RunError
            If something is at the path already, several processes train together, or there is a
            ``seed`` and another recorder with one is open.
        """
        if self._writer is not None or self._taken:
            raise RunError("a recorder records one run; make another for another run.")
        check_single_process()
        check_free(self._seed)
        self._layout = describe_module(self._module)
        self._changes = Changes(self._module, self._optimizer, self._names)
        self._versions = self._parameter_versions()
        writer = RunWriter(self.path.absolute(), overwrite=self._overwrite)
        try:
            self._measure(writer, first=True)
            writer.write_header(self._header())
        except BaseException:
            writer.discard()
            raise
        self._hook = self._optimizer.register_step_post_hook(self._after_step)
        self._writer = writer
        self._seeds = StepSeeds(self._seed, self._module, self._upcoming)

    def step(
        self,
        indices: ArrayLike | torch.Tensor,
        *,
        divisor: float | ArrayLike | None = None,
        clip_scale: float | None = 1.0,
        checkpoint: bool | None = None,
    ) -> None:
        r"""Record the step that the optimizer is about to take.

        Call it after ``backward`` and just before ``optimizer.step()``. With gradient
        accumulation call it once, with the indices of all batches.

        Parameters
        ----------
        indices : integers of shape (batch,)
            Positions in the training set of the instances that the gradient is of, in order. An
            instance that is drawn twice stands twice.
        divisor : float or array of shape (batch,), optional
            What each instance's risk is divided by in the loss: the gradient is
            :math:`\sum_j \nabla\ell(z_j) / d_j`. The default is the batch size, the divisor of a
            mean; a sum has 1.
        clip_scale : float or None
            The factor by which clipping has scaled the gradient; None where it is not known or
            no single factor.
        checkpoint : bool, optional
            True stores the parameters whether or not they are due, False does not.

        Raises
        ------
        InvalidInputError
            If an argument cannot be used.
        RunError
            If the recorder is not open.
        """
        if self._writer is None:
            raise RunError("the recorder is not open: use it as `with Recorder(...) as recorder:`.")
        retry = self._settle(self._writer)
        batch = positions(indices, self._n_train)
        if self._taken == 0 and self._parameter_versions() != self._versions:
            # The module was given other parameters after the recorder was opened.
            self._measure(self._writer, first=True)
        step = self._taken + 1
        entry: dict[str, Any] = {
            "step": step,
            "lr": learning_rates(self._optimizer),
            "batch": batch.tolist(),
            "divisor": divisors(divisor, len(batch)),
            "clip_scale": checked_clip_scale(clip_scale),
            **self._changes.entry(),
        }
        due = self._schedule.is_due(step, batch) or retry
        if due if checkpoint is None else checkpoint:
            entry["checkpoint"] = self._store(self._writer, step, entry["lr"])
        self._versions = self._parameter_versions()
        self._pending = entry
        self._seeds.expect()

    def close(self, *, complete: bool = True) -> None:
        """Store the final parameters and end the run; what leaving the context does.

        Parameters
        ----------
        complete : bool
            False after an error: what was recorded stays, the run is not marked as complete and
            its final parameters are not stored.
        """
        if self._writer is None:
            return
        writer = self._writer
        try:
            self._settle(writer)
            if complete:
                self._finish(writer)
        finally:
            self._writer = None
            self._hook.remove()
            self._seeds.close()
            writer.close()

    def _finish(self, writer: RunWriter) -> None:
        notes = []
        if self._skipped:
            notes.append(f"{self._skipped:,} recorded steps were not taken by the optimizer")
        if self._skipped and not self._taken:
            warnings.warn(
                "Recorder: the optimizer that was given took none of the recorded steps; is it "
                "the one that trains the module?",
                RuntimeWarning,
                stacklevel=4,
            )
        if self._taken and self._parameter_versions() != self._versions:
            notes.append("the parameters were changed after the last step")
            warnings.warn(
                "Recorder: the parameters were changed after the optimizer's last step (others "
                "loaded, or averaged?); the final parameters of the run are the changed ones.",
                RuntimeWarning,
                stacklevel=4,
            )
        final = self._store(writer, self._taken + 1, None)
        writer.append({"end": self._taken, "checkpoint": final, "notes": notes})

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Commit the step that the optimizer has just taken (a hook of the optimizer)."""
        if self._writer is None:
            return
        if self._pending is not None:
            self._commit(self._writer, self._pending)
        elif any(
            value.grad is not None for group in optimizer.param_groups for value in group["params"]
        ):
            raise RunError(
                "optimizer.step() was called without recorder.step(indices) just before it: the "
                "parameters have changed, and the step can no longer be recorded. Call "
                "recorder.step(indices) after backward() and before every optimizer.step()."
            )

    def _settle(self, writer: RunWriter) -> bool:
        """Close the books on a step that the optimizer did not report.

        Returns whether the step was skipped and its checkpoint is still due.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return False
        if self._parameter_versions() != self._versions:
            # A compiled optimizer takes its step without calling hooks.
            self._commit(writer, pending)
            return False
        self._skipped += 1
        return "checkpoint" in pending

    def _commit(self, writer: RunWriter, entry: Mapping[str, Any]) -> None:
        self._pending = None
        self._versions = self._parameter_versions()
        self._measure(writer)
        writer.append(entry)
        self._taken += 1
        self._changes.commit(entry)
        self._seeds.start_step()

    def _upcoming(self) -> int:
        """Return the step that is being prepared, counted from 1."""
        # A compiled optimizer takes its step without telling.
        untold = self._pending is not None and self._parameter_versions() != self._versions
        return self._taken + 1 + untold

    def _measure(self, writer: RunWriter, *, first: bool = False) -> None:
        """Append the risk of every test instance at the current parameters."""
        if self._test is not None and self._model is not None:
            writer.append_risks(measured_risks(self._model, self._test), first=first)

    def _store(self, writer: RunWriter, step: int, rates: list[float] | None) -> str:
        """Store the module's state before ``step``, final without rates; return its name."""
        tensors = state_tensors(self._module)
        aliases = find_aliases(tensors)
        if aliases != self._layout["aliases"] or parameter_names(self._module) != self._names:
            raise RunError(
                "the module's parameters were replaced, tied or untied while it was recorded; "
                "record the training of the changed module as another run."
            )
        kept = {name: tensor for name, tensor in tensors.items() if name not in aliases}
        state = self._optimizer_state
        moments = optimizer_tensors(self._optimizer, self._names) if state else None
        return writer.store(step, rates, kept, moments)

    def _parameter_versions(self) -> tuple[int, ...]:
        """Return counters that move whenever a parameter is written to."""
        return tuple(parameter._version for parameter in self._parameters)

    def _header(self) -> dict[str, Any]:
        every = self._schedule.every
        test = None
        with fixed_randomness():
            fingerprint = None if self._train is None else self._train.fingerprint()
            if self._test is not None:
                test = {"ids": self._test.ids.tolist(), "fingerprint": self._test.fingerprint()}
        return {
            "format": journal.FORMAT,
            "format_version": journal.FORMAT_VERSION,
            "library_version": __version__,
            "module": self._layout,
            "optimizer": describe_optimizer(self._optimizer, self._names),
            **describe_groups(self._changes.groups),
            "loss": None if self._model is None else self._model.loss_name,
            "every": sorted(every) if isinstance(every, frozenset) else every,
            "optimizer_state": self._optimizer_state,
            "seed": self._seed,
            "environment": {"torch": torch.__version__, "threads": torch.get_num_threads()},
            "n_train": self._n_train,
            "train_fingerprint": fingerprint,
            "test": test,
        }
