"""Recording inside the training loop of Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from proponent.exceptions import InvalidInputError
from proponent.models._recording_callback import (
    RecordingCallback,
    all_finite,
    as_positions,
    clip_scale_of,
    gradients_of,
)
from proponent.models.indexed import INDEX


class TransformersRecorder(RecordingCallback):
    """Records the training of a Hugging Face ``Trainer``, as :class:`Recorder` does a plain loop.

    Give it to ``Trainer(callbacks=[...])``, together with ``train_dataset=indexed(dataset)`` and
    ``TrainingArguments(remove_unused_columns=False)``. While training lasts the entry ``index``
    is taken out of the batches on their way into the model.

    Parameters
    ----------
    path, loss, risk, train, test, every, optimizer_state, seed, overwrite
        As for :class:`Recorder`.
    divisor : callable, optional
        ``divisor(inputs)``, from a batch as it enters the model: what each instance's risk is
        divided by in the loss of a step, a number or one an instance. The default follows the
        trainer's rules. Where the model is given ``num_items_in_batch``, a step's loss is the
        sum over all items, labels or tokens, divided by their number; the risk is taken to be an
        instance's mean over its items. Otherwise it is the mean over the step's batches of their
        means.

    Raises
    ------
    ImportError
        If transformers is not installed.

    Notes
    -----
    The trainer clips gradients before the only hook before a step, so the norms are taken as
    the gradients are accumulated. It tells its callbacks nothing when training fails: call
    :meth:`close` then if the process goes on.
    """

    _frameworks = (("transformers", "TrainerCallback"),)
    _install = "transformers: pip install transformers accelerate"

    def __init__(
        self,
        path: str | Path,
        *,
        divisor: Callable[[Mapping[str, Any]], ArrayLike | Tensor] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path, **options)
        self._divisor_of = divisor
        self._is_mean_of_means = False
        self._norms: dict[nn.Parameter, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def close(self, *, complete: bool = False) -> None:
        """End the recording and take the hooks off the model."""
        super().close(complete=complete)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the recorder and put the hooks on the model."""
        if args.remove_unused_columns:
            raise InvalidInputError(
                "TransformersRecorder: the trainer drops the positions of the instances; give "
                "TrainingArguments(remove_unused_columns=False)."
            )
        if args.world_size > 1 or args.n_gpu > 1:
            raise InvalidInputError(
                "TransformersRecorder: training on several devices cannot be recorded."
            )
        model = kwargs["model"]
        self._open(model, kwargs["optimizer"])
        self._handles.append(
            model.register_forward_pre_hook(self._take_indices, with_kwargs=True, prepend=True)
        )
        if args.max_grad_norm > 0:
            self._handles += [
                parameter.register_post_accumulate_grad_hook(self._note_norm)
                for parameter in model.parameters()
                if parameter.requires_grad
            ]

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the step."""
        norms, self._norms = list(self._norms.values()), {}
        scaler = getattr(kwargs["optimizer"], "scaler", None)
        if scaler is not None and not all_finite(gradients_of(kwargs["optimizer"])):
            self._batches = []  # the scaler skips this step
            return
        if self._is_mean_of_means:
            self._batches = [
                (indices, divisors * len(self._batches)) for indices, divisors in self._batches
            ]
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        limit = args.max_grad_norm
        self._record(clip_scale_of(norms, limit * scale, scale) if limit > 0 else 1.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Store the final parameters, before the trainer may load the best ones."""
        if control.should_training_stop and self._recorder is not None:
            self._recorder.close()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Store the final parameters if training stops early."""
        self.on_step_end(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End the recording."""
        self.close(complete=True)

    def _note_norm(self, parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            self._norms[parameter] = torch.linalg.vector_norm(parameter.grad)

    def _take_indices(
        self, model: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Take the positions out of a batch that enters the model (a hook of the model)."""
        rest = {key: value for key, value in inputs.items() if key != INDEX}
        if model.training:
            if INDEX not in inputs:
                raise InvalidInputError(
                    "TransformersRecorder: the batches have no entry 'index'; give the trainer "
                    "train_dataset=indexed(dataset)."
                )
            indices = as_positions(inputs[INDEX])
            divisors = np.broadcast_to(self._divisors(model, len(indices), rest), indices.shape)
            self._batches.append((indices, divisors))
        return args, rest

    def _divisors(self, model: nn.Module, n: int, inputs: Mapping[str, Any]) -> NDArray[np.float64]:
        items = inputs.get("num_items_in_batch")
        self._is_mean_of_means = self._divisor_of is None and items is None
        if self._divisor_of is not None:
            divisor = self._divisor_of(inputs)
            return np.asarray(divisor.cpu() if isinstance(divisor, Tensor) else divisor, float)
        if items is None:
            return np.asarray(float(n))
        labels = inputs.get("labels")
        if not isinstance(labels, Tensor) or labels.ndim < 2:
            return np.asarray(float(items))
        if "CausalLM" in getattr(getattr(model, "loss_function", None), "__name__", ""):
            labels = labels[:, 1:]  # the first token is not predicted
        counts = (labels != -100).flatten(1).sum(1).clamp(min=1).cpu().numpy()
        return np.asarray(float(items) / counts)
