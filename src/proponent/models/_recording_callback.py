"""What the callbacks for Lightning and for transformers share."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from proponent.models.recorder import Recorder
from proponent.models.risk import Loss, Risk
from proponent.models.schedule import Every

# torch.nn.utils.clip_grad_norm_ adds this to the norm that it divides by.
CLIPPING_EPSILON = 1e-6


class RecordingCallback:
    """What both callbacks share: the recorder, and the batches since the last step."""

    _frameworks: tuple[tuple[str, str], ...] = ()
    _install = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make an instance that is one of the framework's callbacks too."""
        return super().__new__(_with_bases(cls, _bases(cls)))

    def __init__(
        self,
        path: str | Path,
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
        super().__init__()
        self._path = path
        self._options: dict[str, Any] = {
            "loss": loss,
            "risk": risk,
            "train": train,
            "test": test,
            "every": every,
            "optimizer_state": optimizer_state,
            "seed": seed,
            "overwrite": overwrite,
        }
        self._recorder: Recorder | None = None
        self._batches: list[tuple[NDArray[Any], NDArray[np.float64]]] = []

    def close(self, *, complete: bool = False) -> None:
        """End the recording; training that ends as it should does so itself."""
        if self._recorder is not None:
            self._recorder.close(complete=complete)

    def _open(self, module: nn.Module, optimizer: Any) -> None:
        self.close()
        self._batches = []
        self._recorder = Recorder(self._path, module, optimizer, **self._options)
        self._recorder.open()

    def _record(self, clip_scale: float | None) -> None:
        """Record a step on the batches since the last one."""
        batches, self._batches = self._batches, []
        if self._recorder is not None and batches:
            indices, divisors = (np.concatenate(parts) for parts in zip(*batches, strict=True))
            self._recorder.step(indices, divisor=divisors, clip_scale=clip_scale)


def _bases(cls: type[RecordingCallback]) -> tuple[type, ...]:
    """Return the framework's base class: of the packages in use, else of the first installed."""
    loaded = [(sys.modules.get(name), base) for name, base in cls._frameworks]
    if in_use := [getattr(module, base) for module, base in loaded if hasattr(module, base)]:
        return tuple(in_use)
    for name, base in cls._frameworks:
        try:
            return (getattr(import_module(name), base),)
        except ImportError:
            continue
    raise ImportError(f"{cls.__name__} needs {cls._install}")


def _with_bases(cls: type[RecordingCallback], bases: tuple[type, ...]) -> Any:
    return type(cls.__name__, (cls, *bases), {"__doc__": cls.__doc__, "__module__": __name__})


def as_positions(indices: Any) -> NDArray[Any]:
    """Return the positions of a batch as an array."""
    return np.asarray(indices.cpu() if isinstance(indices, Tensor) else indices)


def gradients_of(optimizer: Any) -> list[Tensor]:
    """Return the gradients that an optimizer is about to use."""
    parameters = (value for group in optimizer.param_groups for value in group["params"])
    return [value.grad for value in parameters if value.grad is not None]


def all_finite(gradients: Iterable[Tensor]) -> bool:
    """Whether no gradient has an infinite or undefined entry; a scaler skips steps with one."""
    return all(bool(torch.isfinite(gradient).all()) for gradient in gradients)


def clip_scale_of(norms: list[Tensor], limit: float, unit: float = 1.0) -> float:
    """Return the factor of ``clip_grad_norm_`` for gradients of these norms, in ``unit``."""
    if not norms:
        return 1.0
    norm = float(torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms])))
    return min(1.0, limit / (norm + CLIPPING_EPSILON * unit))
