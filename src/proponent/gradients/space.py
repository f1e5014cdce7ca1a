"""Flat vectors in the space of a model's chosen parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.gradients.forms import Form
from proponent.models.torch import TorchModel


@dataclass(frozen=True)
class ParameterSpace:
    """The chosen parameters side by side, as one vector of p entries.

    Attributes
    ----------
    names : tuple of str
        The parameters, in the module's order.
    shapes : tuple of torch.Size
        Their shapes.
    dtype : torch.dtype
        Precision of the vectors: the module's, at least float32.
    device : torch.device
        Where the vectors are.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, model: TorchModel) -> ParameterSpace:
        """Return the space of a model's chosen parameters."""
        return cls(
            tuple(model.selected),
            tuple(parameter.shape for parameter in model.selected.values()),
            torch.promote_types(model.dtype, torch.float32),
            model.device,
        )

    @property
    def size(self) -> int:
        """p, the number of entries of a vector."""
        return sum(self._lengths)

    @property
    def _lengths(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]

    def flatten(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Put k vectors, given parameter by parameter, side by side.

        Parameters
        ----------
        parts : mapping
            For each parameter ``(k, *shape)``. A parameter that is not named has entries zero,
            as the gradient of a risk that does not depend on it.

        Returns
        -------
        Tensor of shape (k, p)

        Raises
        ------
        InvalidInputError
            If a parameter is not of this space, or has another shape.
        """
        unknown = [name for name in parts if name not in self.names]
        if unknown or not parts:
            raise InvalidInputError(
                f"parts: no parameters {', '.join(unknown) or '(nothing was given)'} here; the "
                f"chosen ones are {', '.join(self.names)}."
            )
        k = len(next(iter(parts.values())))
        columns = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            part = parts.get(name)
            if part is None:
                zeros = torch.zeros(k, math.prod(shape), dtype=self.dtype, device=self.device)
                columns.append(zeros)
                continue
            if part.shape != (k, *shape):
                raise InvalidInputError(
                    f"parts[{name!r}] has shape {tuple(part.shape)}; expected {(k, *shape)}."
                )
            columns.append(part.reshape(k, -1).to(dtype=self.dtype, device=self.device))
        return torch.cat(columns, 1)

    def unflatten(self, vectors: Tensor, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Cut vectors (k, p) into parameters, each ``(k, *shape)``: views unless cast."""
        self.check(vectors)
        columns = vectors.to(dtype or vectors.dtype).split(self._lengths, 1)
        return {
            name: column.reshape(len(vectors), *shape)
            for name, shape, column in zip(self.names, self.shapes, columns, strict=True)
        }

    def gradients(self, forms: Mapping[str, Form], n: int) -> Tensor:
        """Return captured gradients of n instances as vectors, ``(n, p)``."""
        if not forms:
            return torch.zeros(n, self.size, dtype=self.dtype, device=self.device)
        return self.flatten({name: form.materialise() for name, form in forms.items()})

    def gradient_sum(self, forms: Mapping[str, Form], n: int) -> Tensor:
        """Return the sum of the captured gradients of n instances, ``(1, p)``."""
        if not forms:
            return torch.zeros(1, self.size, dtype=self.dtype, device=self.device)
        return self.flatten(
            {
                name: form.weighted_sum(torch.ones(1, n, dtype=form.like.dtype, device=self.device))
                for name, form in forms.items()
            }
        )

    def check(self, vectors: Tensor, name: str = "vectors") -> Tensor:
        """Return vectors (k, p) in the space's precision and on its device.

        Raises
        ------
        InvalidInputError
            If the shape is not (k, p), or an entry is not finite.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.size:
            raise InvalidInputError(
                f"{name}: expected shape (k, {self.size}), one row a vector; got "
                f"{tuple(vectors.shape)}."
            )
        vectors = vectors.to(dtype=self.dtype, device=self.device)
        # One sum is quicker than a look at each entry, and is not finite where an entry is not.
        if not torch.isfinite(vectors.sum()) and not torch.isfinite(vectors).all():
            rows = (~torch.isfinite(vectors).all(1)).nonzero().flatten().tolist()
            raise InvalidInputError(f"{name}: rows {rows[:10]} have entries that are not finite.")
        return vectors
