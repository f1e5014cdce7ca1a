"""What a representer needs of a fitted model: inputs, outputs, a penalty's optimum, a kernel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.static.high_dimensional.arrays import Array
from proponent.static.high_dimensional.kernels import Form, Kernel
from proponent.static.high_dimensional.losses import Loss, Targets

if TYPE_CHECKING:
    from typing_extensions import Self

# The residual of the Karush-Kuhn-Tucker conditions, relative to lambda, that refinement aims at.
TOLERANCE = 1e-10
# The columns of labels that Instances know, where a set is a dict.
LABEL_NAMES = ("labels", "label", "y", "target")


@dataclass(frozen=True)
class Refinement:
    """How a solution is refined: the largest number of steps, and whether a bar shows them."""

    max_iterations: int
    progress: bool | None


class Study(ABC):
    """A fitted model whose predictions, but for a constant, are sums over its training set.

    Attributes
    ----------
    loss : Loss
        Of the outputs (n, k).
    """

    loss: Loss

    @property
    @abstractmethod
    def intercept(self) -> Array:
        """The constant part of the outputs, ``(k,)``, which no training instance stands for."""

    @abstractmethod
    def read(self, instances: Instances, role: str) -> tuple[Any, Targets]:
        """Return what the kernel compares of n instances, and their targets or None.

        Raises
        ------
        InvalidInputError
            If the instances are not of the kind that the model takes.
        """

    @abstractmethod
    def outputs(self, inputs: Any) -> Array:
        """Return the predictions before any link, ``(n, k)``."""

    @abstractmethod
    def kkt_residual(self, inputs: Any, targets: Targets) -> float:
        """Return how far the model is from the optimum of its objective, relative to lambda."""

    @abstractmethod
    def refined(self, inputs: Any, targets: Targets, how: Refinement) -> Self:
        """Return the model at the optimum next to this one."""

    @abstractmethod
    def kernel(self, inputs: Any, slopes: Array, form: Form) -> Kernel:
        """Return the kernel, for training slopes ``(1/n) d loss_i / d output``, ``(n, k)``."""

    @abstractmethod
    def size(self) -> dict[str, int]:
        """Return what the penalty has left of the model: a count with its name."""


def numbers_of(instances: Instances, role: str) -> Array | None:
    """Return the labels of a set as targets of one output, ``(n, 1)``; None where it has none.

    Raises
    ------
    InvalidInputError
        If they are not one number an instance.
    """
    labels = instances.labels()
    if labels is None:
        return None
    try:
        return labels.astype(np.float64).reshape(len(instances), 1)
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"{role}: expected one number an instance as its label; got labels of shape "
            f"{labels.shape} and dtype {labels.dtype}."
        ) from None


def inputs_of(instances: Instances) -> NDArray[Any]:
    """Return the column before the labels, or several such columns side by side, ``(n, ...)``."""
    rows = []
    for position in range(len(instances)):
        item = instances.item(position)
        if isinstance(item, Mapping):
            parts = [_array(part) for name, part in item.items() if name not in LABEL_NAMES]
        elif isinstance(item, (tuple, list)):
            parts = [_array(part) for part in (item[:-1] if len(item) > 1 else item)]
        else:
            parts = [_array(item)]
        rows.append(parts[0] if len(parts) == 1 else np.stack(parts))
    return np.stack(rows)


def _array(part: Any) -> NDArray[Any]:
    return np.asarray(part.detach().cpu() if hasattr(part, "detach") else part)
