"""A recorded adversarial training, read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from proponent._randomness import fixed_randomness
from proponent.data import Instances
from proponent.dynamic.gan.adversaries import PLAYERS, Move, State
from proponent.dynamic.gan.losses import AdversarialLoss, loss_of
from proponent.dynamic.gan.noise import Noise, noise_of
from proponent.dynamic.gan.training import FORMAT, FORMAT_VERSION
from proponent.exceptions import RunError
from proponent.models import journal
from proponent.models._recorder_checks import checked_module
from proponent.models.history import read_only
from proponent.models.layout import differences, list_differences

ENTRIES = frozenset(
    {"players", "loss", "noise", "seed", "max_norm", "n_train", "train_fingerprint"}
)


@dataclass(frozen=True)
class StoredState:
    """A stored state, before step ``t`` or, one past the last step, the final one."""

    t: int
    folder: Path
    parameters: journal.StoredFile
    moments: journal.StoredFile | None

    def load(self) -> State:
        """Return the parameters, buffers and optimizers' states.

        Raises
        ------
        RunError
            If a file is missing or damaged.
        """
        state = journal.read_tensors(self.folder, self.parameters)
        return state | (journal.read_tensors(self.folder, self.moments) if self.moments else {})


class AdversarialRun:
    """An adversarial training that :class:`AdversarialTraining` has recorded.

    :meth:`load` reads it.

    Attributes
    ----------
    path : Path
        The run's directory.
    modules : dict of str to torch.nn.Module
        The ``"generator"`` and the ``"discriminator"`` that were given to :meth:`load`; they are
        only ever copied.
    moves : tuple of Move
        The steps 1 .. T.
    states : tuple of StoredState
        The stored states in their order; the last one is final if the run is complete.
    loss : AdversarialLoss
        What the players minimised.
    noise : callable
        What the generator started from.
    seed : int
        The seed of the training.
    max_norm : float or None
        Largest norm of a gradient.
    n_train : int
        Number of training instances.
    train_fingerprint : str
        The training set's fingerprint.
    complete : bool
        Whether the recording ended as it should.
    """

    path: Path
    modules: dict[str, nn.Module]
    players: dict[str, dict[str, Any]]
    moves: tuple[Move, ...]
    states: tuple[StoredState, ...]
    loss: AdversarialLoss
    noise: Callable[[int], Any]
    seed: int
    max_norm: float | None
    n_train: int
    train_fingerprint: str
    complete: bool

    @classmethod
    def load(
        cls,
        path: str | Path,
        generator: nn.Module,
        discriminator: nn.Module,
        *,
        loss: str | AdversarialLoss | None = None,
        noise: Noise | None = None,
    ) -> AdversarialRun:
        """Read a run.

        Parameters
        ----------
        path : str or Path
            The run's directory.
        generator, discriminator : torch.nn.Module
            Modules of the recorded kinds, by the names and shapes of their parameters and
            buffers. They are left as they are.
        loss, noise : optional
            As :class:`AdversarialTraining` takes them; needed where they were no names and no
            numbers then.

        Raises
        ------
        RunError
            If there is no such run at the path, a file of it is missing or damaged, it is of
            other modules, or the loss or the noise has to be given.
        """
        run = cls()
        run.path = Path(path)
        header = _read_header(run.path)
        run.modules = {
            "generator": checked_module(generator),
            "discriminator": checked_module(discriminator),
        }
        run.players = header["players"]
        for player, module in run.modules.items():
            layout = run.players[player]["module"]
            if found := differences(layout, module):
                raise RunError(
                    f"the run at {run.path} is of another {player} ({layout['class']}):"
                    f"{list_differences(found)}"
                )
        run.loss = loss_of(_given(loss, header["loss"], "loss", "an AdversarialLoss", run.path))
        run.noise = noise_of(_given(noise, header["noise"], "noise", "a callable", run.path))
        run.seed, run.max_norm = header["seed"], header["max_norm"]
        run.n_train = header["n_train"]
        run.train_fingerprint = header["train_fingerprint"]
        run._read_moves()
        run._read_states()
        return run

    def _read_moves(self) -> None:
        entries = journal.read_lines(self.path / journal.STEPS)
        end = entries.pop() if entries and "end" in entries[-1] else None
        if end is not None and end["end"] != len(entries):
            raise RunError(
                f"{self.path / journal.STEPS} is damaged: the run ended after step {end['end']}, "
                f"and the journal has {len(entries):,} steps."
            )
        self.complete = end is not None
        moves: list[Move] = []
        known: dict[str, Any] = {}
        for index, entry in enumerate(entries, 1):
            known |= {part: entry[part] for part in ("settings", "evaluating") if part in entry}
            moves.append(_read_move(entry, index, known, self.n_train))
        self.moves = tuple(moves)

    def _read_states(self) -> None:
        stored = [move.index for move in self.moves if move.has_checkpoint]
        if self.complete:
            stored.append(len(self.moves) + 1)
        folder = self.path.absolute() / journal.CHECKPOINTS
        self.states = tuple(
            StoredState(
                t, folder, *journal.read_sidecar(folder / f"{journal.checkpoint_name(t)}.json", t)
            )
            for t in stored
        )

    def __repr__(self) -> str:
        """Return the path and what was recorded."""
        return (
            f"AdversarialRun({str(self.path)!r}, {len(self.moves):,} steps, "
            f"{len(self.states):,} states, {'complete' if self.complete else 'not complete'})"
        )

    def final_state(self, player: str = "generator") -> dict[str, Any]:
        """Return a player's parameters and buffers at the end, as a state dict.

        Parameters
        ----------
        player : str
            ``"generator"`` or ``"discriminator"``.

        Raises
        ------
        RunError
            If the run is not complete, or the file is missing or damaged.
        """
        self.require_complete("final_state")
        prefix = f"{player}/parameters/"
        found = {
            key.removeprefix(prefix): value
            for key, value in self.states[-1].load().items()
            if key.startswith(prefix)
        }
        aliases = self.players[player]["module"]["aliases"]
        return found | {name: found[first] for name, first in aliases.items()}

    def require_complete(self, by: str) -> None:
        """Refuse a run without steps, or without its final state.

        Raises
        ------
        RunError
            If it is one.
        """
        if not self.moves:
            raise RunError(f"{by} needs steps, and the run at {self.path} has none: take some.")
        if not self.complete:
            raise RunError(
                f"{by} needs the final parameters, which the run at {self.path} lacks: it was "
                f"interrupted after step {len(self.moves):,}. Let the `with` block of "
                f"AdversarialTraining end without an error."
            )

    def check_train(self, train: Instances) -> None:
        """Refuse a training set that is not the recorded one.

        Raises
        ------
        RunError
            If its length or content differs.
        """
        with fixed_randomness():
            same = len(train) == self.n_train and train.fingerprint() == self.train_fingerprint
        if not same:
            raise RunError(
                f"this run was recorded on another training set of {self.n_train:,} instances; "
                f"the set given has {len(train):,}. Give it as it was, in the same order."
            )


def _read_header(path: Path) -> dict[str, Any]:
    if not (path / journal.HEADER).is_file():
        raise RunError(
            f"there is no recorded run at {path}: it has no {journal.HEADER}. Record one with "
            f"AdversarialTraining."
        )
    header = journal.read_json(path / journal.HEADER)
    if header.get("format") != FORMAT:
        raise RunError(
            f"{path / journal.HEADER} is not the header of an adversarial run: it has format "
            f"{header.get('format')!r}. Record one with AdversarialTraining."
        )
    number = header.get("format_version")
    if not isinstance(number, int) or number > FORMAT_VERSION:
        raise RunError(
            f"the run at {path} has format {number}, written by proponent "
            f"{header.get('library_version')}; this version reads up to format "
            f"{FORMAT_VERSION}. Install a newer proponent."
        )
    if lost := ENTRIES - set(header):
        raise RunError(f"{path / journal.HEADER} is damaged: it lacks {', '.join(sorted(lost))}.")
    return header


def _given(given: Any, recorded: Any, name: str, what: str, path: Path) -> Any:
    if given is None and recorded is None:
        raise RunError(
            f"the run at {path} was recorded with {what} as its {name}, which is not stored; give "
            f"{name}= to AdversarialRun.load, the same as then."
        )
    return recorded if given is None else given


def _read_move(
    entry: Mapping[str, Any], index: int, known: Mapping[str, Any], n_train: int
) -> Move:
    try:
        if entry["step"] != index:
            raise ValueError(f"step {entry['step']} stands where step {index} should")
        move = Move(
            index=index,
            players=tuple(entry["players"]),
            indices=read_only(np.array(entry["batch"], dtype=np.int64)),
            generated=int(entry["generated"]),
            settings={player: tuple(known["settings"][player]) for player in PLAYERS},
            evaluating=known["evaluating"],
            has_checkpoint="checkpoint" in entry,
        )
        if not move.players or not set(move.players) <= set(PLAYERS):
            raise ValueError(f"{entry['players']} are no players")
        if (move.indices >= n_train).any():
            raise ValueError(f"instance {move.indices.max()} is not in the training set")
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{journal.STEPS}, line {index}, is damaged: {error}.") from error
    return move
