"""Fitting the blocks: covariances, eigenbases, corrected eigenvalues, group by group of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from proponent.exceptions import NonFiniteError
from proponent.gradients.kfac.blocks import Block, kronecker_block
from proponent.gradients.kfac.covariances import Covariances
from proponent.gradients.kfac.layers import Kind, Layer
from proponent.gradients.kfac.passes import (
    EigenvalueSums,
    FisherGradients,
    covariance_pass,
    eigenvalue_pass,
)
from proponent.gradients.kfac.storage import FactorStore
from proponent.models.torch import TorchModel

if TYPE_CHECKING:
    from proponent.gradients.kfac.factors import KroneckerFactors

Method = Literal["ekfac", "kfac"]


class FactorError(NonFiniteError):
    """Some layers could not be factorised; the others are in ``factors``.

    Attributes
    ----------
    failed : dict
        The layers by name, and what was wrong.
    factors : KroneckerFactors
        The layers that are finished.
    """

    def __init__(self, failed: Mapping[str, str], factors: KroneckerFactors) -> None:
        self.failed = dict(failed)
        self.factors = factors
        listed = "; ".join(f"layer {name!r}: {reason}" for name, reason in failed.items())
        super().__init__(
            f"{len(failed)} of {len(failed) + len(factors.blocks)} layers could not be factorised. "
            f"{listed}. Correct or leave out these instances, or leave the layers out with "
            f"exclude=; the finished layers are in this exception's .factors."
        )


def covariances(
    model: TorchModel, instances: Any, *, exclude: Sequence[str] = (), **settings: Any
) -> Covariances:
    """Return the first pass's sums over a shard of the training set.

    ``settings`` are those of :class:`FisherGradients`: ``shard``, ``labels``, ``seed``,
    ``batch_size``, ``memory``, ``dtype``, ``progress``. Add the shards' sums up with ``+`` and
    give them to :meth:`KroneckerFactors.from_covariances`.
    """
    gradients = FisherGradients(model, instances, **settings)
    return covariance_pass(gradients, *gradients.layers(exclude))


def eigenvalue_sums(
    model: TorchModel, instances: Any, factors: KroneckerFactors, **settings: Any
) -> EigenvalueSums:
    """Return the second pass's sums over a shard, in the eigenbases of ``factors``.

    ``settings`` as for :func:`covariances`, with the same labels and seed. Add the shards' sums
    up with ``+`` and give them to :meth:`KroneckerFactors.corrected`.
    """
    return eigenvalue_pass(FisherGradients(model, instances, **settings), factors.blocks)


def fit_blocks(
    gradients: FisherGradients,
    layers: Sequence[Layer],
    method: Method,
    store: FactorStore | None,
) -> tuple[dict[str, Block], dict[str, str]]:
    """Fit the layers that the store does not hold yet.

    Returns
    -------
    fitted, failed
        The finished blocks, and what was wrong with the others, by their weight.
    """
    fitted: dict[str, Block] = {}
    bases: dict[str, Block] = {}
    failed: dict[str, str] = {}
    for layer in layers if store is not None else ():
        basis, corrected = store.read(layer) if store is not None else (None, False)
        if basis is not None:
            done = corrected or method == "kfac" or layer.diagonal
            (fitted if done else bases)[layer.weight] = basis
    for group in _groups([layer for layer in layers if layer.weight not in fitted], gradients):
        missing = [layer for layer in group if layer.weight not in bases]
        if missing:
            sums = covariance_pass(gradients, missing)
            failed |= sums.failed
            for block in eigenbases(sums, failed, gradients.precision, release=True):
                bases[block.layer.weight] = block
                if store is not None:
                    store.write_basis(block)
        ready = [bases.pop(layer.weight) for layer in group if layer.weight in bases]
        # The first pass has all there is of a diagonal block.
        final = [b for b in ready if method == "kfac" or b.layer.diagonal]
        fitted |= {block.layer.weight: block for block in final}
        rest = [block for block in ready if block.layer.weight not in fitted]
        if rest:
            moments = eigenvalue_pass(gradients, rest)
            failed |= moments.failed
            for block in rest:
                name = block.layer.weight
                if name in moments.sums:
                    fitted[name] = block.with_eigenvalues(moments.sums.pop(name) / moments.n)
                    if store is not None:
                        store.write_eigenvalues(fitted[name])
    return fitted, failed


def eigenbases(
    sums: Covariances, failed: dict[str, str], dtype: torch.dtype, *, release: bool = False
) -> Iterator[Block]:
    """Go through the layers' K-FAC blocks; layers that fail are added to ``failed``.

    ``release`` takes the sums out of ``sums`` as they are used, and so frees their memory.
    """
    for layer in sums.layers:
        if layer.weight in failed:
            continue
        own = sums.sums.pop(layer.weight) if release else sums.sums[layer.weight]
        try:
            yield kronecker_block(layer, own, sums.n, dtype)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            failed[layer.weight] = f"the eigendecomposition failed ({error})"


def _groups(layers: Sequence[Layer], gradients: FisherGradients) -> list[list[Layer]]:
    """Cut the layers into groups whose covariances and bases fit the memory."""
    groups: list[list[Layer]] = []
    held = largest = 0
    for layer in layers:
        size, work = _bytes(layer, gradients.precision)
        if not groups or held + size + max(largest, work) > gradients.memory:
            groups.append([])
            held = largest = 0
        groups[-1].append(layer)
        held, largest = held + size, max(largest, work)
    return groups


def _bytes(layer: Layer, dtype: torch.dtype) -> tuple[int, int]:
    """Return what is held of a layer while it is fitted, and what its decomposition takes."""
    sides = [] if layer.diagonal else [layer.columns]
    sides += [layer.rows] if layer.kind is Kind.KRONECKER else []
    squares = sum(side**2 for side in sides)
    # Sums in float64, and beside them either products of some batches, or the bases.
    sums = layer.entries if layer.diagonal else squares
    held = 8 * sums + dtype.itemsize * (squares + 2 * layer.entries)
    # The eigenvectors, LAPACK's two matrices to work in, and the copy of another precision.
    work = max((4 * 8 * side**2 for side in sides), default=0)
    return held, max(work, 8 * layer.entries)
