"""A recorded training run, read back: what the dynamic methods study."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.exceptions import NonFiniteError, RunError
from proponent.models import journal
from proponent.models._recorder_checks import checked_module
from proponent.models.history import (
    Checkpoint,
    Step,
    read_checkpoint,
    read_only,
    read_step,
)
from proponent.models.layout import differences, list_differences, read_groups
from proponent.models.risk import Loss, Risk
from proponent.models.torch import ParameterChoice, TorchModel

HEADER_ENTRIES = frozenset(
    {"module", "optimizer", "groups", "settings", "loss", "n_train", "train_fingerprint", "test"}
)


class TrainingRun:
    r"""A training run that :class:`Recorder` has recorded; :meth:`load` reads it.

    Attributes
    ----------
    path : Path
        The run's directory.
    model : TorchModel
        The module with its per-instance risk and the chosen parameters. Its own parameters are
        the user's, whatever they are; :meth:`at` gives it recorded ones for a while.
    steps : tuple of Step
        The steps 1 .. T that the optimizer took.
    checkpoints : tuple of Checkpoint
        The stored states in their order; the last one is final if the run is complete.
    n_train : int or None
        Number of training instances; None if the run was recorded without its training set.
    train_fingerprint : str or None
        The training set's fingerprint.
    test_risks : array of shape (T + 1, n_test), or None
        Risk of each test instance at :math:`\theta^{(0)} .. \theta^{(T)}`.
    test_fingerprint, test_ids : str and array of shape (n_test,), or None
        The test set that they were measured on.
    complete : bool
        Whether the recording ended as it should; after a crash or a kill it did not.
    notes : tuple of str
        What the recorder noticed.
    seed : int or None
        The seed of the steps' randomness, where the run was recorded with one.
    optimizer : mapping
        What the recorder noted of the optimizer: its ``class`` and what it holds.
    """

    path: Path
    model: TorchModel
    steps: tuple[Step, ...]
    checkpoints: tuple[Checkpoint, ...]
    n_train: int | None
    train_fingerprint: str | None
    test_risks: NDArray[np.float64] | None
    test_fingerprint: str | None
    test_ids: NDArray[Any] | None
    complete: bool
    notes: tuple[str, ...]
    seed: int | None
    optimizer: Mapping[str, Any]

    @classmethod
    def load(
        cls,
        path: str | Path,
        module: nn.Module,
        *,
        loss: str | nn.Module | Loss | None = None,
        risk: Risk | None = None,
        parameters: ParameterChoice = "all",
    ) -> TrainingRun:
        """Read a run.

        Parameters
        ----------
        path : str or Path
            The run's directory.
        module : torch.nn.Module
            A module of the recorded kind: the same parameters and buffers, by name and shape.
            It is left as it is.
        loss, risk : optional
            The per-instance risk as :class:`TorchModel` takes it; the default is the loss that
            the run was recorded with, where that was given by name.
        parameters : str, module, or a list of them
            The parameters that gradients are taken of, as for :class:`TorchModel`.

        Raises
        ------
        RunError
            If there is no run at the path, a file of it is missing, truncated or damaged, it was
            written by a newer version of the library, it is of another module, or the risk has
            to be given.
        """
        run = cls()
        run.path = Path(path)
        header = _read_header(run.path)
        layout = header["module"]
        if found := differences(layout, checked_module(module)):
            raise RunError(
                f"the run at {run.path} is of another module ({layout['class']}):"
                f"{list_differences(found)}"
            )
        if loss is None and risk is None:
            loss = _recorded_loss(run.path, header)
        run.model = TorchModel(module, loss=loss, risk=risk, parameters=parameters)
        run.n_train = header["n_train"]
        run.train_fingerprint = header["train_fingerprint"]
        run._read_steps(header)
        run._read_checkpoints(layout)
        run._read_test_risks(header["test"])
        return run

    def _read_steps(self, header: Mapping[str, Any]) -> None:
        entries = journal.read_lines(self.path / journal.STEPS)
        end = entries.pop() if entries and "end" in entries[-1] else None
        if end is not None and end["end"] != len(entries):
            raise RunError(
                f"{self.path / journal.STEPS} is damaged: the run ended after step {end['end']}, "
                f"and the journal has {len(entries):,} steps."
            )
        self.optimizer = MappingProxyType(header["optimizer"])
        self.seed = header.get("seed")
        steps: list[Step] = []
        for index, entry in enumerate(entries, 1):
            before = steps[-1] if steps else read_groups(header)
            steps.append(read_step(entry, index, before, self.n_train, self.seed))
        self.steps = tuple(steps)
        self.complete = end is not None
        notes = [] if end is None else end["notes"]
        if others := header["optimizer"]["parameters_of_other_modules"]:
            notes = [*notes, f"the optimizer also held {others} parameters of other modules"]
        self.notes = tuple(notes)

    def _read_checkpoints(self, layout: Mapping[str, Any]) -> None:
        aliases = layout["aliases"]
        names = [name for name in layout["parameters"] if name not in aliases]
        stored: list[tuple[int, Step | None]] = [
            (step.index, step) for step in self.steps if step.has_checkpoint
        ]
        if self.complete:
            stored.append((len(self.steps) + 1, None))
        self.checkpoints = tuple(
            read_checkpoint(self.path, index, step, names, aliases) for index, step in stored
        )

    def _read_test_risks(self, test: Mapping[str, Any] | None) -> None:
        self.test_risks = self.test_ids = self.test_fingerprint = None
        if test is not None:
            self.test_ids = read_only(np.array(test["ids"]))
            self.test_fingerprint = test["fingerprint"]
            path = self.path / journal.TEST_RISKS
            risks = journal.read_test_risks(path, len(self.steps) + 1, len(self.test_ids))
            self.test_risks = read_only(risks)

    def __repr__(self) -> str:
        """Return the path and what was recorded."""
        return (
            f"TrainingRun({str(self.path)!r}, {len(self.steps):,} steps, "
            f"{len(self.checkpoints):,} checkpoints, "
            f"{'complete' if self.complete else 'not complete'})"
        )

    def with_parameters(self, parameters: ParameterChoice) -> TrainingRun:
        """Return the same run with gradients taken of other parameters."""
        run = copy.copy(self)
        run.model = self.model.with_parameters(parameters)
        return run

    @contextmanager
    def at(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Give the module the state of a checkpoint for a while.

        Raises
        ------
        RunError
            If the checkpoint's file is missing or damaged.
        """
        with self.model.at(checkpoint.load()):
            yield

    def final_state(self) -> dict[str, Tensor]:
        """Return the parameters and buffers at the end of training, as a state dict.

        Raises
        ------
        RunError
            If the run is not complete, or the file is missing or damaged.
        """
        if not self.complete:
            raise RunError(
                f"the run at {self.path} is not complete: the recording was interrupted after "
                f"step {len(self.steps):,}, before the final parameters could be stored."
            )
        return self.checkpoints[-1].load()

    def check_train(self, train: Any) -> None:
        """Refuse a training set that is not the recorded one.

        Raises
        ------
        RunError
            If its length or content differs. A run that was recorded without its training set
            is only checked for instances that the set does not have.
        """
        instances = Instances.of(train, role="train")
        if self.n_train is None:
            highest = max((int(step.indices.max()) for step in self.steps), default=-1)
            if highest >= len(instances):
                raise RunError(
                    f"this run was recorded on another training set: it has used instance "
                    f"{highest:,}, and the set given has {len(instances):,}."
                )
            return
        _check_set(instances, self.n_train, self.train_fingerprint, "training")

    def check_test(self, test: Any) -> None:
        """Refuse a test set that is not the one whose risks were recorded.

        Raises
        ------
        RunError
            If its length or content differs, or no test risks were recorded.
        """
        self.require(test_risks=True)
        n_test = 0 if self.test_ids is None else len(self.test_ids)
        _check_set(Instances.of(test, role="test"), n_test, self.test_fingerprint, "test")

    def require(
        self,
        *,
        batches: bool = False,
        checkpoints: bool = False,
        every_step: bool = False,
        optimizer_state: bool = False,
        test_risks: bool = False,
        clip_scale: bool = False,
        complete: bool = False,
        by: str = "this method",
    ) -> None:
        """Refuse work that the run has not recorded enough for, before it starts.

        Parameters
        ----------
        batches : bool
            At least one step, with its batch.
        checkpoints : bool
            Parameters before at least one step.
        every_step : bool
            Parameters before every step.
        optimizer_state : bool
            The optimizer's state with all of those.
        test_risks : bool
            Finite risks of a test set at every step.
        clip_scale : bool
            The factor by which every step's gradient was clipped.
        complete : bool
            The final parameters.
        by : str
            The method that asks, for the message.

        Raises
        ------
        RunError
            If something is missing; the message says what to record next time.
        NonFiniteError
            If a recorded test risk is not finite.
        """
        before_step = [checkpoint for checkpoint in self.checkpoints if not checkpoint.final]
        every_state = "record with Recorder(..., every=1)"
        lacking = [
            (batches, not self.steps, "steps", "call recorder.step(indices) in the training loop"),
            (checkpoints, not before_step, "parameters before a step", every_state),
            (
                every_step,
                not self.steps or len(before_step) < len(self.steps),
                f"parameters at every step (the run has them at {len(before_step):,} of "
                f"{len(self.steps):,})",
                every_state,
            ),
            (
                optimizer_state,
                not all(checkpoint.has_optimizer_state for checkpoint in before_step),
                "the optimizer's state",
                "record with Recorder(..., optimizer_state=True)",
            ),
            (
                test_risks,
                self.test_risks is None,
                "the risks of a test set at every step",
                "give the recorder the test set before training: Recorder(..., test=test)",
            ),
            (
                clip_scale,
                any(step.clip_scale is None for step in self.steps),
                "the factor by which each gradient was clipped",
                "clip by norm, and give the factor: recorder.step(indices, clip_scale=...)",
            ),
            (
                complete,
                not self.complete,
                "the final parameters",
                "let the recorder's `with` block end without an error",
            ),
        ]
        for wanted, is_lacking, what, remedy in lacking:
            if wanted and is_lacking:
                raise RunError(f"{by} needs {what}, which the run at {self.path} lacks: {remedy}.")
        if test_risks and self.test_risks is not None and self.test_ids is not None:
            wrong = ~np.isfinite(self.test_risks)
            if wrong.any():
                row, column = np.argwhere(wrong)[0]
                raise NonFiniteError(
                    f"{by}: {wrong.sum():,} recorded test risks are not finite, first that of "
                    f"test instance {self.test_ids[column]} after step {row}."
                )


def _read_header(path: Path) -> dict[str, Any]:
    if not (path / journal.HEADER).is_file():
        raise RunError(
            f"there is no recorded run at {path}: it has no {journal.HEADER}. Record one with "
            f"Recorder(path, module, optimizer)."
        )
    header = journal.read_json(path / journal.HEADER)
    number = header.get("format_version")
    if header.get("format") != journal.FORMAT or not isinstance(number, int):
        raise RunError(f"{path / journal.HEADER} is not the header of a recorded run.")
    if number > journal.FORMAT_VERSION:
        raise RunError(
            f"the run at {path} has format {number}, written by proponent "
            f"{header.get('library_version')}; this version reads up to format "
            f"{journal.FORMAT_VERSION}. Install a newer proponent."
        )
    if lost := HEADER_ENTRIES - set(header):
        raise RunError(f"{path / journal.HEADER} is damaged: it lacks {', '.join(sorted(lost))}.")
    return header


def _recorded_loss(path: Path, header: Mapping[str, Any]) -> str:
    loss = header["loss"]
    if not isinstance(loss, str):
        raise RunError(
            f"the run at {path} was recorded without the name of a loss; give loss= (a name such "
            f"as 'cross_entropy', or a callable) or risk= to TrainingRun.load."
        )
    return loss


def _check_set(instances: Instances, n: int, fingerprint: str | None, kind: str) -> None:
    """Refuse a set of another length or content than the recorded one."""
    if len(instances) != n:
        raise RunError(
            f"this run was recorded on another {kind} set: it had {n:,} instances, and the set "
            f"given has {len(instances):,}."
        )
    with fixed_randomness():
        given = instances.fingerprint()
    if given != fingerprint:
        raise RunError(
            f"this run was recorded on another {kind} set: the length is the same, the content is "
            f"not. Give the {kind} set as it was, in the same order."
        )
