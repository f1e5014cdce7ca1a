"""Adversarial training that is recorded as it goes, so that it can be replayed exactly."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from proponent import __version__
from proponent._randomness import fixed_randomness
from proponent.dynamic.gan.adversaries import PLAYERS, Adversaries, Move
from proponent.dynamic.gan.batches import ShuffledBatches
from proponent.dynamic.gan.losses import AdversarialLoss, loss_of
from proponent.dynamic.gan.noise import Noise, noise_of
from proponent.dynamic.gan.optimizers import checked_optimizer
from proponent.exceptions import InvalidInputError, RunError
from proponent.models._recorder_checks import checked_module, checked_set, positions
from proponent.models.layout import describe_module
from proponent.models.schedule import Schedule
from proponent.models.writer import RunWriter

FORMAT = "proponent-adversarial-run"
FORMAT_VERSION = 1


class AdversarialTraining:
    """Trains a generator against a discriminator and records what a replay needs.

    The loop is the user's; each step is taken here, with its own seed::

        with pp.AdversarialTraining(
            "runs/gan", generator, discriminator, generator_optimizer, discriminator_optimizer,
            loss="bce", noise=16, train=images, seed=0,
        ) as training:
            for indices in batches:
                training.discriminator_step(indices)
                training.generator_step(64)

    or ``training.run(steps=1000, batch_size=64)`` is the loop. The modules and optimizers that
    were given are the ones that are trained; schedulers may change learning rates between steps.

    Parameters
    ----------
    path : str or Path
        Directory of the run; created.
    generator, discriminator : torch.nn.Module
        The two players. The generator is called with the noise and the conditions, where there
        are any; the discriminator with what it judges and its conditions.
    generator_optimizer, discriminator_optimizer : torch.optim.Optimizer
        ``SGD``, ``Adam`` or ``AdamW``, one for each.
    loss : str or AdversarialLoss
        ``"bce"`` (the generator's is not saturating), ``"minimax"``, ``"least_squares"``,
        ``"hinge"``, ``"wasserstein"``, ``"wasserstein_gp"`` (gradient penalty of weight 10), or
        one's own. With these names the columns of the training set are the discriminator's
        arguments: give ``(X,)``, or ``(X, y)`` to a discriminator with conditions.
    noise : int, sequence of int, or callable
        Shape of one instance's standard normal noise; or ``noise(n)``, which draws with torch's
        global generator and returns the noise, or a tuple of noise and conditions.
    train : (X,), (X, y), dict, Dataset or Instances
        The training set.
    seed : int
        Everything random in a step (noise, dropout, augmentation in the data set) is drawn from
        it and the step's number. The random state outside is left alone.
    max_norm : float, optional
        Largest norm of each player's gradient, which is scaled down to it.
    every : int or collection of ints
        The state is stored before the first step and then every so many steps, or before the
        given ones; states between are computed again when they are needed.
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
    A simultaneous step (:meth:`joint_step`) takes both gradients at the same parameters and with
    the same noise. In the discriminator's steps the generator's BatchNorm runs in its mode too,
    so its running statistics move.
    """

    def __init__(
        self,
        path: str | Path,
        generator: nn.Module,
        discriminator: nn.Module,
        generator_optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        *,
        train: Any,
        noise: Noise,
        loss: str | AdversarialLoss = "bce",
        seed: int = 0,
        max_norm: float | None = None,
        every: int | Collection[int] = 100,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        if isinstance(every, str):
            raise InvalidInputError(f"every: expected a number of steps; got {every!r}.")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise InvalidInputError(f"seed: expected an integer of at least 0; got {seed!r}.")
        if max_norm is not None and not 0 < float(max_norm) < float("inf"):
            raise InvalidInputError(f"max_norm: expected a positive number; got {max_norm!r}.")
        self._every = Schedule(every, None)
        instances = checked_set(train, "train")
        if instances is None:
            raise InvalidInputError("train: give the training set; the steps take batches of it.")
        modules = {"generator": checked_module(generator)}
        modules["discriminator"] = checked_module(discriminator)
        shared = {id(value) for value in modules["generator"].parameters()}
        if any(id(value) in shared for value in modules["discriminator"].parameters()):
            raise InvalidInputError(
                "discriminator: it shares parameters with the generator; each needs its own."
            )
        optimizers = {
            "generator": checked_optimizer(generator_optimizer, "generator_optimizer"),
            "discriminator": checked_optimizer(discriminator_optimizer, "discriminator_optimizer"),
        }
        self._adversaries = Adversaries(
            modules,
            optimizers,
            loss=loss_of(loss),
            noise=noise_of(noise),
            train=instances,
            seed=int(seed),
            max_norm=None if max_norm is None else float(max_norm),
        )
        self._recipe: dict[str, Any] = {
            "loss": loss if isinstance(loss, str) else None,
            "noise": None if callable(noise) else np.atleast_1d(noise).tolist(),
            "seed": int(seed),
            "max_norm": None if max_norm is None else float(max_norm),
        }
        self._train = instances
        self._overwrite = overwrite
        self._writer: RunWriter | None = None
        self._taken = 0

    def __repr__(self) -> str:
        """Return the path and what was recorded."""
        state = "closed" if self._writer is None else "open"
        return f"AdversarialTraining({str(self.path)!r}, {self._taken:,} steps taken, {state})"

    def __enter__(self) -> AdversarialTraining:
        """Create the run's directory.

        Raises
        ------
        RunError
            If something is at the path already.
        """
        if self._writer is not None or self._taken:
            raise RunError("an AdversarialTraining records one run; make another for another run.")
        self._described: dict[str, Any] = {}
        writer = RunWriter(self.path.absolute(), overwrite=self._overwrite)
        try:
            writer.write_header(self._header())
        except BaseException:
            writer.discard()
            raise
        self._membership = self._members()
        self._versions = self._parameter_versions()
        self._writer = writer
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Store the final state; after an error the run is not complete."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        try:
            if kind is None:
                self._check_untouched()
                final = self._store(writer, self._taken + 1)
                writer.append({"end": self._taken, "checkpoint": final, "notes": []})
        finally:
            writer.close()

    def discriminator_step(
        self, indices: ArrayLike | Tensor, *, generated: int | None = None
    ) -> None:
        """Take a step of the discriminator.

        Parameters
        ----------
        indices : integers of shape (batch,)
            Positions of the real instances in the training set.
        generated : int, optional
            Number of generated instances; the default is as many.

        Raises
        ------
        RunError
            If the training is not open, or parameters, settings' groups or frozen parameters
            were changed since the last step.
        NonFiniteError
            If the loss is not finite.
        """
        batch = positions(indices, len(self._train))
        self._take(("discriminator",), batch, len(batch) if generated is None else generated)

    def generator_step(self, generated: int) -> None:
        """Take a step of the generator.

        Parameters
        ----------
        generated : int
            Number of generated instances.

        Raises
        ------
        RunError, NonFiniteError
            As :meth:`discriminator_step`.
        """
        self._take(("generator",), np.empty(0, dtype=np.int64), generated)

    def joint_step(self, indices: ArrayLike | Tensor, *, generated: int | None = None) -> None:
        """Take a step of both at once, from the same parameters and noise.

        Parameters
        ----------
        indices, generated
            As for :meth:`discriminator_step`.

        Raises
        ------
        RunError, NonFiniteError
            As :meth:`discriminator_step`.
        """
        batch = positions(indices, len(self._train))
        self._take(PLAYERS, batch, len(batch) if generated is None else generated)

    def run(
        self,
        steps: int,
        *,
        batch_size: int = 64,
        discriminator_steps: int = 1,
        simultaneous: bool = False,
    ) -> None:
        """Take steps over batches of the shuffled training set.

        Parameters
        ----------
        steps : int
            Number of the generator's steps.
        batch_size : int
            Instances in a batch; what is left of an epoch is left out.
        discriminator_steps : int
            Steps of the discriminator before each of the generator's.
        simultaneous : bool
            Whether both move at once (with ``discriminator_steps=1``).

        Raises
        ------
        InvalidInputError
            If an argument is out of range.
        """
        wanted = {"batch_size": batch_size, "discriminator_steps": discriminator_steps}
        for name, value in wanted.items():
            if value < 1:
                raise InvalidInputError(f"{name}: expected 1 or more; got {value!r}.")
        if batch_size > len(self._train):
            raise InvalidInputError(
                f"batch_size: {batch_size} is more than the {len(self._train)} instances."
            )
        if simultaneous and discriminator_steps != 1:
            raise InvalidInputError("discriminator_steps: a simultaneous step has one of each.")
        batches = ShuffledBatches(len(self._train), batch_size, (self._recipe["seed"], self._taken))
        for _ in range(steps):
            if simultaneous:
                self.joint_step(next(batches))
                continue
            for _ in range(discriminator_steps):
                self.discriminator_step(next(batches))
            self.generator_step(batch_size)

    def _take(self, players: tuple[str, ...], indices: NDArray[np.int64], generated: int) -> None:
        if self._writer is None:
            raise RunError(
                "the training is not open: use it as `with AdversarialTraining(...) as training:`."
            )
        if isinstance(generated, bool) or not isinstance(generated, (int, np.integer)):
            raise InvalidInputError(f"generated: expected an integer; got {generated!r}.")
        if generated < 1:
            raise InvalidInputError(f"generated: expected 1 or more instances; got {generated}.")
        self._check_untouched()
        described: dict[str, Any] = {
            "settings": {name: list(each) for name, each in self._adversaries.settings().items()},
            "evaluating": self._adversaries.evaluating(),
        }
        entry = {
            "step": self._taken + 1,
            "players": list(players),
            "batch": indices.tolist(),
            "generated": int(generated),
            **{part: now for part, now in described.items() if now != self._described.get(part)},
        }
        move = Move(
            index=self._taken + 1,
            players=players,
            indices=indices,
            generated=int(generated),
            settings=self._adversaries.settings(),
            evaluating=described["evaluating"],
        )
        if move.index == 1 or self._every.is_due(move.index, indices):
            entry["checkpoint"] = self._store(self._writer, move.index)
        self._adversaries.take(move)
        self._writer.append(entry)
        self._described = described
        self._taken += 1
        self._versions = self._parameter_versions()

    def _store(self, writer: RunWriter, step: int) -> str:
        """Store the state before ``step`` and return its name."""
        state = self._adversaries.state()
        kept = {key: value for key, value in state.items() if "/parameters/" in key}
        moments = {key: value for key, value in state.items() if key not in kept}
        return writer.store(step, None, kept, moments)

    def _check_untouched(self) -> None:
        if self._parameter_versions() != self._versions:
            raise RunError(
                "parameters were changed between two steps (clamped, averaged or loaded), which "
                "a replay cannot know of; train without that."
            )
        if self._members() != self._membership:
            raise RunError(
                "the optimizers' groups, or which parameters are frozen, were changed during the "
                "training; record the rest as another run."
            )

    def _parameter_versions(self) -> tuple[int, ...]:
        """Return counters that move whenever a parameter is written to."""
        modules = self._adversaries.modules.values()
        return tuple(value._version for module in modules for value in module.parameters())

    def _members(self) -> list[list[tuple[int, bool]]]:
        """Return which parameters are in which group, and which of them move."""
        return [
            [(id(value), value.requires_grad) for value in group["params"]]
            for optimizer in self._adversaries.optimizers.values()
            for group in optimizer.param_groups
        ]

    def _header(self) -> dict[str, Any]:
        with fixed_randomness():
            fingerprint = self._train.fingerprint()
        every = self._every.every
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "library_version": __version__,
            "players": {player: self._describe(player) for player in PLAYERS},
            **self._recipe,
            "every": sorted(every) if isinstance(every, frozenset) else every,
            "n_train": len(self._train),
            "train_fingerprint": fingerprint,
        }

    def _describe(self, player: str) -> dict[str, Any]:
        module, optimizer = self._adversaries.modules[player], self._adversaries.optimizers[player]
        names = {id(value): name for name, value in self._adversaries.trained[player].items()}
        return {
            "module": describe_module(module),
            "optimizer": type(optimizer).__name__,
            "groups": [
                [names[id(value)] for value in group["params"] if id(value) in names]
                for group in optimizer.param_groups
            ],
        }
