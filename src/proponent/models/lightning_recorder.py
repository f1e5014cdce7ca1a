"""Recording inside the training loop of Lightning."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.models._recording_callback import (
    RecordingCallback,
    all_finite,
    as_positions,
    clip_scale_of,
    gradients_of,
)
from proponent.models.indexed import INDEX


class LightningRecorder(RecordingCallback):
    """Records the training of a Lightning ``Trainer``, as :class:`Recorder` does a plain loop.

    Give it to ``Trainer(callbacks=[...])``, of ``lightning`` or ``pytorch_lightning``. With
    gradient accumulation a step has the instances of all of its batches.

    Parameters
    ----------
    path, loss, risk, train, test, every, optimizer_state, seed, overwrite
        As for :class:`Recorder`.
    module : str, optional
        The attribute of the ``LightningModule`` that holds the network to record; the default
        is the ``LightningModule`` itself.
    indices : callable, optional
        ``indices(batch) -> (batch,)``, the positions of a batch in the training set; the default
        is what loaders over :func:`indexed` data sets give, ``batch["index"]`` or ``batch[0]``.

    Raises
    ------
    ImportError
        If Lightning is not installed.

    Notes
    -----
    The trainer clips gradients after the last hook before a step. For clipping by norm the
    factor is computed here as the trainer then does; clipping by value and a
    ``configure_gradient_clipping`` of the user's own have no known factor: it is recorded as
    None, with a warning.
    """

    _frameworks = (("lightning.pytorch", "Callback"), ("pytorch_lightning", "Callback"))
    _install = "Lightning: pip install lightning"

    def __init__(
        self,
        path: str | Path,
        *,
        module: str | None = None,
        indices: Callable[[Any], ArrayLike | Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self._attribute = module
        self._indices_of = indices or _first_entry
        self._current: NDArray[Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the recorder."""
        if not pl_module.automatic_optimization:
            raise InvalidInputError(
                "LightningRecorder: in manual optimisation use a Recorder in training_step."
            )
        if len(trainer.optimizers) != 1:
            raise InvalidInputError(
                f"LightningRecorder: expected one optimizer; the module has "
                f"{len(trainer.optimizers)}."
            )
        module = pl_module if self._attribute is None else getattr(pl_module, self._attribute)
        self._open(module, trainer.optimizers[0])

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take note of the batch's positions."""
        self._current = as_positions(self._indices_of(batch))

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        """Count the batch as a part of the next step."""
        if self._current is not None:
            # The trainer divides the mean over each batch by the number of batches.
            divisor = len(self._current) * trainer.accumulate_grad_batches
            self._batches.append((self._current, np.full(len(self._current), float(divisor))))
            self._current = None

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Record the step."""
        gradients = gradients_of(optimizer)
        if getattr(trainer.precision_plugin, "scaler", None) is not None and not all_finite(
            gradients
        ):
            self._batches = []  # the scaler skips this step
            return
        self._record(_lightning_clip_scale(trainer, pl_module, gradients))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Store the final parameters."""
        self.close(complete=True)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close the run; it is not complete."""
        self.close()


def _first_entry(batch: Any) -> Any:
    """Return the positions in a batch of an indexed data set."""
    if isinstance(batch, Mapping):
        if INDEX in batch:
            return batch[INDEX]
    elif isinstance(batch, (tuple, list)) and batch:
        return batch[0]
    raise InvalidInputError(
        "LightningRecorder: the batch has no positions; load from indexed(dataset), or give "
        "indices=callable(batch)."
    )


def _lightning_clip_scale(trainer: Any, pl_module: Any, gradients: list[Tensor]) -> float | None:
    """Return the factor by which the trainer is about to scale the gradients, None if unknown."""
    own = type(pl_module).configure_gradient_clipping.__module__
    if not own.startswith(("lightning.", "pytorch_lightning.")):
        _warn_unknown("the module's own configure_gradient_clipping")
        return None
    if not trainer.gradient_clip_val:
        return 1.0
    if str(trainer.gradient_clip_algorithm or "norm").lower().endswith("value"):
        _warn_unknown("clipping by value")
        return None
    norms = [torch.linalg.vector_norm(gradient) for gradient in gradients]
    return clip_scale_of(norms, float(trainer.gradient_clip_val))


def _warn_unknown(what: str) -> None:
    warnings.warn(
        f"LightningRecorder: {what} has no factor that can be recorded; methods that replay the "
        f"steps will refuse this run.",
        RuntimeWarning,
        stacklevel=3,
    )
