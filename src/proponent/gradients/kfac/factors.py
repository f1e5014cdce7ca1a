r"""K-FAC and EK-FAC: block-diagonal curvature with a Kronecker-factored eigenbasis for each layer.

.. math:: C = \bigoplus_l Q_l \operatorname{diag}(\Lambda_l) Q_l^T,
          \qquad Q_l = Q_{S_l} \otimes Q_{A_l}

K-FAC takes ``Lambda_rc = lambda_S,r lambda_A,c``; EK-FAC takes the second moments of the gradients
in the same basis, ``Lambda_rc = (1/n) sum_i (Q_S^T G_i Q_A)_rc^2``, the best diagonal there is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.gradients.curvature import Curvature, Positions
from proponent.gradients.kfac.blocks import Block
from proponent.gradients.kfac.covariances import Covariances
from proponent.gradients.kfac.fit import FactorError, Method, eigenbases, fit_blocks
from proponent.gradients.kfac.layers import Layer
from proponent.gradients.kfac.passes import MEMORY, EigenvalueSums, FisherGradients
from proponent.gradients.kfac.precondition import Preconditioner, checked_shifts
from proponent.gradients.kfac.storage import FactorStore, manifest, read_factors, write_factors
from proponent.gradients.labels import FisherLabels
from proponent.gradients.space import ParameterSpace
from proponent.models.torch import TorchModel

DEFAULT_DAMPING = 0.1


class KroneckerFactors(Curvature):
    """Undamped Kronecker factors of the mean risk's Fisher, one block a layer.

    Linear layers and convolutions (with their bias as a homogeneous coordinate) and embeddings
    are factorised; every other parameter has the diagonal of its Fisher. :meth:`fit` makes them,
    :meth:`prepare` adds a shift and makes them ready to solve with, as often as wanted.

    Attributes
    ----------
    space : ParameterSpace
        The parameters.
    blocks : tuple of Block
        One a layer.
    method : "ekfac" or "kfac"
        Where the eigenvalues come from.
    n : int
        Number of training instances.
    excluded : tuple of str
        Parameters that were left out: no block has them, and solutions are zero there.

    Notes
    -----
    **Source**: George et al. (2018); Grosse et al. (2023), section 3.1. Exact, up to the sampling
    of labels, where the loss's Hessian in the outputs is constant and the model has one linear
    layer; otherwise an approximation, in which blocks and positions do not interact.
    """

    name = "Kronecker-factored Fisher matrix"
    positive = True

    def __init__(
        self,
        space: ParameterSpace,
        blocks: Sequence[Block],
        *,
        method: Method,
        n: int,
        excluded: Sequence[str] = (),
    ) -> None:
        self.space = space
        self.blocks = tuple(blocks)
        self.method: Method = method
        self.n = n
        self.excluded = tuple(excluded)

    def __repr__(self) -> str:
        """Return the method and the numbers of layers and parameters."""
        return (
            f"KroneckerFactors({self.method!r}, {len(self.blocks)} layers, "
            f"{self.size:,} parameters, n={self.n:,})"
        )

    @classmethod
    def fit(
        cls,
        model: TorchModel,
        instances: Any,
        *,
        method: Method = "ekfac",
        labels: FisherLabels = None,
        seed: int = 0,
        batch_size: int | None = None,
        memory: int = MEMORY,
        exclude: Sequence[str] = (),
        path: str | Path | None = None,
        dtype: torch.dtype | None = None,
        progress: bool | None = None,
    ) -> KroneckerFactors:
        """Fit the factors: one pass over the training set for K-FAC, two for EK-FAC.

        Parameters
        ----------
        model : TorchModel
            The module, its risk and the chosen parameters.
        instances : Instances, or what they are made of
            The training set.
        method : "ekfac" or "kfac"
            Whether the eigenvalues are corrected by a second pass.
        labels : array of shape (n, ...), "observed" or None
            Labels sampled from the model (None), samples drawn elsewhere, or the data set's own,
            which makes it the empirical Fisher.
        seed : int
            Seed of the sampled labels.
        batch_size : int, optional
            Instances in a pass; None chooses. It does not change the numbers.
        memory : int
            Bytes that layers being fitted may take; those that are finished come on top. If all
            layers do not fit, groups of them are fitted one after the other, with their own
            passes.
        exclude : sequence of str
            Names or globs of parameters to leave out.
        path : str or Path, optional
            A directory in which each layer is stored once it is finished; finished layers that
            are there already are not fitted again.
        dtype : torch.dtype, optional
            Precision of gradients and factors; the default is the module's, at least float32.
            Covariances are summed and eigendecomposed in float64.
        progress : bool, optional
            Whether to show progress bars; None: on a terminal, when the work lasts.

        Raises
        ------
        FactorError
            If the gradients of some layers are not finite or an eigendecomposition fails. The
            other layers are finished, and are on the exception (and in ``path``).
        InvalidInputError
            If a setting cannot be used, or ``path`` holds factors of something else.
        """
        if method not in get_args(Method):
            raise InvalidInputError(f"method={method!r}: expected 'ekfac' or 'kfac'.")
        gradients = FisherGradients(
            model,
            instances,
            labels=labels,
            seed=seed,
            batch_size=batch_size,
            memory=memory,
            dtype=dtype,
            progress=progress,
        )
        layers, excluded = gradients.layers(exclude)
        store = None
        if path is not None:
            header = manifest(gradients, method, excluded, layers)
            store = FactorStore.open(path, header)
        fitted, failed = fit_blocks(gradients, layers, method, store)
        blocks = [fitted[layer.weight] for layer in layers if layer.weight in fitted]
        space, n = ParameterSpace.of(model), len(gradients.instances)
        factors = cls(space, blocks, method=method, n=n, excluded=excluded)
        return factors._complete(layers, failed)

    @classmethod
    def from_covariances(
        cls, model: TorchModel, covariances: Covariances, *, dtype: torch.dtype | None = None
    ) -> KroneckerFactors:
        """Return K-FAC from the first pass's sums, those of all shards added up.

        The sums are not changed. ``dtype`` is the factors' precision; the default is the
        module's, at least float32.

        Raises
        ------
        FactorError
            If a layer's sums are not finite or an eigendecomposition fails.
        """
        failed = dict(covariances.failed)
        space = ParameterSpace.of(model)
        blocks = list(eigenbases(covariances, failed, dtype or space.dtype))
        n, excluded = covariances.n, covariances.excluded
        factors = cls(space, blocks, method="kfac", n=n, excluded=excluded)
        return factors._complete(covariances.layers, failed)

    def corrected(self, sums: EigenvalueSums) -> KroneckerFactors:
        """Return EK-FAC from the second pass's sums in this basis, of all shards added up.

        Raises
        ------
        FactorError
            If a layer's sums are not finite.
        """
        blocks = [
            block.with_eigenvalues(sums.sums[block.layer.weight] / sums.n)
            for block in self.blocks
            if block.layer.weight in sums.sums
        ]
        factors = KroneckerFactors(
            self.space, blocks, method="ekfac", n=sums.n, excluded=self.excluded
        )
        return factors._complete([block.layer for block in self.blocks], sums.failed)

    def _complete(self, layers: Sequence[Layer], failed: Mapping[str, str]) -> KroneckerFactors:
        """Return the factors, unless a layer failed."""
        if failed:
            names = {layer.weight: layer.name for layer in layers}
            raise FactorError({names[weight]: why for weight, why in failed.items()}, self)
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not factorised although it is a matrix, and what was left out."""
        notes = [
            f"{block.layer.name}: diagonal ({block.layer.note})"
            for block in self.blocks
            if block.layer.note
        ]
        if self.excluded:
            notes.append(f"left out: {', '.join(self.excluded)}")
        return tuple(notes)

    def default_damping(self, fraction: float = DEFAULT_DAMPING) -> dict[str, float]:
        """Return ``fraction`` times each layer's mean eigenvalue, by layer.

        **Source**: Grosse et al. (2023), section 5: 0.1 for each layer.
        """
        return {
            block.layer.name: fraction * float(block.eigenvalues.mean(dtype=torch.float64))
            for block in self.blocks
        }

    def prepare(
        self, shift: float | Mapping[str, float], *, dtype: torch.dtype | None = None
    ) -> Preconditioner:
        """Make the factors ready to solve ``(C + shift I) x = b``.

        Parameters
        ----------
        shift : float or mapping
            Weight decay plus damping, in units of the mean risk's curvature: one number, or one
            a layer by its name, as :meth:`default_damping` returns them.
        dtype : torch.dtype, optional
            Precision of the gradients that will be met; the default is that of the space.

        Raises
        ------
        SolveError
            If ``C + shift I`` is singular, or not positive.
        InvalidInputError
            If a mapping does not name each layer once.
        """
        blocks = tuple(block.to(dtype or self.space.dtype) for block in self.blocks)
        shifts = checked_shifts(shift, [block.layer.name for block in blocks])
        return Preconditioner(self.space, blocks, shifts, self.method, self.n, self.notes)

    @override
    def diagonal(self) -> None:
        """Return None: the diagonal is not at hand outside the eigenbasis."""

    @override
    def _average(self, vectors: Tensor, positions: Positions | None) -> Tensor:
        if positions is not None:
            raise InvalidInputError(
                "Kronecker factors are fitted to the whole training set; they have no average "
                "over a part of it."
            )
        parts = self.space.unflatten(vectors)
        result: dict[str, Tensor] = {}
        for block in self.blocks:
            result |= block.unrotate(block.rotate(parts) * block.eigenvalues)
        return self.space.flatten(result) if result else torch.zeros_like(vectors)

    def save(self, path: str | Path) -> None:
        """Write the factors to a directory: one safetensors file a layer, and a manifest."""
        write_factors(path, self.space, self.blocks, self.method, self.n, self.excluded)

    @classmethod
    def load(cls, path: str | Path, model: TorchModel) -> KroneckerFactors:
        """Read factors that :meth:`save`, or :meth:`fit` with ``path``, wrote.

        Raises
        ------
        InvalidInputError
            If there are none, some layers are unfinished, or they are of another model.
        """
        space = ParameterSpace.of(model)
        blocks, method, n, excluded = read_factors(path, space)
        return cls(space, blocks, method=method, n=n, excluded=excluded)
