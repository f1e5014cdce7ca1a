"""The two passes over the training set that Kronecker factors are made from.

Both are sums over instances: those of disjoint shards, fitted anywhere, add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from proponent.data import Instances
from proponent.exceptions import InvalidInputError
from proponent.gradients.capture import GradientCapture
from proponent.gradients.kfac.blocks import Block
from proponent.gradients.kfac.covariances import Covariances, LayerSums, blame
from proponent.gradients.kfac.layers import Layer, find_layers, pieces
from proponent.gradients.kfac.squares import add_squares
from proponent.gradients.labels import FisherLabels, with_fisher_labels
from proponent.gradients.products import Gradients
from proponent.models.torch import TorchModel
from proponent.progress import progress as progress_bar

MEMORY = 512 * 2**20


@dataclass(frozen=True)
class FisherGradients:
    """The gradients whose second moment is the Fisher: how they are had, batch by batch.

    Parameters
    ----------
    model : TorchModel
        The module, its risk and the chosen parameters.
    data : Instances, or what they are made of
        The whole training set.
    labels, seed
        As for :func:`~proponent.gradients.labels.with_fisher_labels`.
    shard : (int, int)
        ``(i, k)``: the i-th of k parts of the training set, i from 0.
    batch_size : int, optional
        Instances in a pass; None chooses by what their gradients take. It does not change the
        numbers.
    memory : int
        Bytes that factors and gradients held at a time may take.
    dtype : torch.dtype, optional
        Precision of the gradients, no coarser than the module's; the default is the module's, at
        least float32.
    progress : bool, optional
        Whether to show a progress bar; None: on a terminal, when the work lasts.

    Raises
    ------
    InvalidInputError
        If a setting cannot be used.
    """

    model: TorchModel
    data: Any
    labels: FisherLabels = None
    seed: int = 0
    shard: tuple[int, int] = (0, 1)
    batch_size: int | None = None
    memory: int = MEMORY
    dtype: torch.dtype | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        """Refuse settings that cannot be used."""
        index, count = self.shard
        if not 0 <= index < count:
            raise InvalidInputError(f"shard={self.shard}: expected (i, k) with 0 <= i < k.")
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidInputError(f"batch_size must be at least 1; got {self.batch_size}.")
        if self.memory < 1:
            raise InvalidInputError(f"memory must be a positive number of bytes; got {self.memory}")
        own = torch.promote_types(self.model.dtype, torch.float32)
        if torch.promote_types(own, self.precision) != self.precision:
            raise InvalidInputError(
                f"dtype={self.dtype} is coarser than the module's {own}: convert the module, or "
                f"leave dtype out."
            )

    @property
    def instances(self) -> Instances:
        """The whole training set."""
        return Instances.of(self.data)

    @property
    def precision(self) -> torch.dtype:
        """Type in which gradients and factors are held."""
        own = torch.promote_types(self.model.dtype, torch.float32)
        return own if self.dtype is None else self.dtype

    def layers(self, exclude: Sequence[str] = ()) -> tuple[tuple[Layer, ...], tuple[str, ...]]:
        """Return the blocks of the curvature, and the names of the parameters left out.

        They are read off the first instances of the whole set, so that all shards agree.
        """
        capture, instances = self._whole
        model = capture.model
        rows = slice(0, min(len(instances), 3))
        with model.evaluating():
            forms = capture(model.prepare(instances.batch(rows)), instances.ids[rows])
            shapes = {name: parameter.shape for name, parameter in model.selected.items()}
            return find_layers(forms, shapes, exclude)

    def batches(
        self, layers: Sequence[Layer], description: str
    ) -> Iterator[tuple[Gradients, int, Any]]:
        """Go through the shard: the layers' gradients, their number and their ids."""
        capture, instances = self._whole
        names = [name for layer in layers for name in layer.parameters]
        if set(names) != set(capture.model.selected):
            model = capture.model.with_parameters(names)
            capture = GradientCapture(model, instances, self.precision)
        model = capture.model
        index, count = self.shard
        first, end = (len(instances) * part // count for part in (index, index + 1))
        size = self.batch_size or capture.batch_size
        bar: Any = progress_bar(total=end - first, description=description, enabled=self.progress)
        with bar, model.evaluating():
            for start in range(first, end, size):
                rows = slice(start, min(start + size, end))
                ids = instances.ids[rows]
                yield capture(model.prepare(instances.batch(rows)), ids), len(ids), ids
                bar.update(len(ids))

    @cached_property
    def _whole(self) -> tuple[GradientCapture, Instances]:
        """The capture of all chosen parameters' pseudo-gradients, and what it is to be shown."""
        model, instances = with_fisher_labels(
            self.model, self.instances, labels=self.labels, seed=self.seed
        )
        return GradientCapture(model, instances, self.precision), instances


@dataclass
class EigenvalueSums:
    """Sums of the second pass over n instances; those of disjoint shards add up with ``+``.

    Attributes
    ----------
    sums : dict
        For each layer, by its weight, ``sum_i (Q_S^T G_i Q_A)^2``, entry by entry.
    n : int
        Number of instances.
    failed : dict
        Layers with gradients that are not finite, by their weight, and what was seen.
    """

    sums: dict[str, Tensor]
    n: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def __add__(self, other: EigenvalueSums) -> EigenvalueSums:
        """Return the sums over both sets of instances.

        Raises
        ------
        InvalidInputError
            If they are of different layers.
        """
        failed = {**self.failed, **other.failed}
        names = self.sums.keys() - failed.keys()
        if names != other.sums.keys() - failed.keys():
            raise InvalidInputError("eigenvalue sums of different layers cannot be added.")
        sums = {name: self.sums[name] + other.sums[name] for name in self.sums if name in names}
        return EigenvalueSums(sums, self.n + other.n, failed)


def covariance_pass(
    gradients: FisherGradients, layers: Sequence[Layer], excluded: Sequence[str] = ()
) -> Covariances:
    """Return the first pass's sums over the shard."""
    device = gradients.model.device
    sums = {layer.weight: LayerSums.zero(layer, device) for layer in layers}
    result = Covariances(tuple(layers), sums, excluded=tuple(excluded))
    for forms, n, ids in gradients.batches(layers, "K-FAC covariances"):
        result.add(forms, n, ids, gradients.memory // 4)
    result.gather()
    return result


def eigenvalue_pass(gradients: FisherGradients, blocks: Sequence[Block]) -> EigenvalueSums:
    """Return the second pass's sums over the shard, in the eigenbases of ``blocks``.

    An instance's gradient is summed over positions, and over the calls of a layer that is called
    several times, before it is squared.

    **Source**: George et al. (2018), "Fast approximate natural gradient descent in a Kronecker
    factored eigenbasis", equation (11); Grosse et al. (2023), equation (20).
    """
    result = EigenvalueSums(
        {block.layer.weight: torch.zeros_like(block.eigenvalues) for block in blocks}
    )
    layers = [block.layer for block in blocks]
    for forms, n, ids in gradients.batches(layers, "EK-FAC eigenvalues"):
        result.n += n
        for block in blocks:
            name = block.layer.weight
            if name in result.failed:
                continue
            for piece in pieces(block.layer, forms, gradients.memory // 4):
                rotated = block.rotate_gradients(piece)
                if rotated is not None:
                    # Factors that were rotated are nobody else's.
                    fresh = not block.layer.diagonal
                    add_squares(result.sums[name], rotated, overwrite=fresh)
            if not torch.isfinite(result.sums[name].sum()):
                result.failed[name] = blame(block.layer, forms, ids)
                del result.sums[name]
    return result
