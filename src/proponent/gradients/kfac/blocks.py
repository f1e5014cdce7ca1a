r"""One block of the curvature in its eigenbasis, ``C = Q diag(Lambda) Q^T``.

For a layer with Kronecker factors ``Q = Q_S (x) Q_A``: a matrix V of the weight's shape has the
coordinates ``Q_S^T V Q_A``. Gradients are never formed to be rotated; their factors are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proponent.exceptions import InvalidInputError
from proponent.gradients.forms import Dense, Form, Lookup, Outer
from proponent.gradients.kfac.covariances import LayerSums
from proponent.gradients.kfac.layers import Kind, Layer


@dataclass(frozen=True)
class Block:
    """A block of the curvature: an orthogonal basis, and undamped eigenvalues in it.

    Attributes
    ----------
    layer : Layer
        The parameters.
    left : Tensor or None
        ``Q_S`` (rows, rows), eigenvectors in its columns; None: the identity.
    right : Tensor or None
        ``Q_A`` (columns, columns); None: the identity.
    eigenvalues : Tensor
        Lambda, of the layer's ``eigenvalue_shape``; in units of the mean risk's curvature.
    """

    layer: Layer
    left: Tensor | None
    right: Tensor | None
    eigenvalues: Tensor

    def with_eigenvalues(self, eigenvalues: Tensor) -> Block:
        """Return the block with other eigenvalues in the same basis."""
        return replace(self, eigenvalues=eigenvalues)

    def to(self, dtype: torch.dtype) -> Block:
        """Return the block in another precision."""
        left = None if self.left is None else self.left.to(dtype)
        right = None if self.right is None else self.right.to(dtype)
        return Block(self.layer, left, right, self.eigenvalues.to(dtype))

    def rotate(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Return the coordinates of k vectors in the eigenbasis, ``(k, *eigenvalue_shape)``.

        Parameters
        ----------
        vectors : mapping
            For each parameter of the block ``(k, *shape)``.
        """
        matrix = self.joined(vectors)
        if self.right is not None:
            matrix = matrix @ self.right
        return matrix if self.left is None else self.left.T @ matrix

    def joined(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Return k vectors as matrices, a bias as the last row or column of its weight's.

        They are ``(k, *eigenvalue_shape)``, in the factors' precision.
        """
        layer, dtype = self.layer, self.eigenvalues.dtype
        matrix = vectors[layer.weight].to(dtype)
        if layer.kind is Kind.DIAGONAL:
            return matrix
        matrix = matrix.flatten(2) if matrix.ndim > 2 else matrix.unsqueeze(2)
        if layer.bias is None:
            return matrix
        bias = vectors[layer.bias].to(dtype)
        border = bias.unsqueeze(1) if layer.bias_on_left else bias.unsqueeze(2)
        return torch.cat([matrix, border], 1 if layer.bias_on_left else 2)

    def unrotate(self, coordinates: Tensor) -> dict[str, Tensor]:
        """Return the vectors that have these coordinates, parameter by parameter."""
        layer, k = self.layer, len(coordinates)
        if layer.kind is Kind.DIAGONAL:
            return {layer.weight: coordinates}
        matrix = coordinates if self.left is None else self.left @ coordinates
        if self.right is not None:
            matrix = matrix @ self.right.T
        if layer.bias is None:
            return {layer.weight: matrix.reshape(k, *layer.shape)}
        if layer.bias_on_left:
            weight, bias = matrix[:, :-1], matrix[:, -1]
        else:
            weight, bias = matrix[:, :, :-1], matrix[:, :, -1]
        return {layer.weight: weight.reshape(k, *layer.shape), layer.bias: bias}

    def rotate_gradients(self, forms: Mapping[str, Form]) -> Form | None:
        """Return captured gradients in the eigenbasis; None where they are zero.

        A convolution's factors are its patches: give the gradients in pieces that fit memory.
        """
        layer = self.layer
        form = forms.get(layer.weight)
        if layer.kind is Kind.DIAGONAL or form is None:
            if layer.bias is not None and layer.bias in forms:
                raise InvalidInputError(
                    f"layer {layer.name!r}: a batch has gradients of {layer.bias!r} and none of "
                    f"{layer.weight!r}; leave both out with exclude=."
                )
            return form
        tokens = layer.tokens(forms)
        shape = torch.Size(layer.eigenvalue_shape)
        if tokens is None or tokens.one_hot != (layer.kind is Kind.LOOKUP):
            whole = {name: forms[name].materialise() for name in layer.parameters}
            return Dense(self.rotate(whole))
        homogeneous = layer.bias is not None
        right = _rotated(tokens.right, self.right, homogeneous and not layer.bias_on_left)
        if layer.kind is Kind.LOOKUP:
            return Lookup(tokens.left, right, shape)
        left = _rotated(tokens.left, self.left, homogeneous and layer.bias_on_left)
        return Outer(left, right, shape)


def _rotated(factors: Tensor, basis: Tensor | None, homogeneous: bool) -> Tensor:
    """Return ``Q^T a`` of each factor a (with a 1 behind it where homogeneous)."""
    if basis is None:
        return factors
    if homogeneous:
        return (factors @ basis[:-1]).add_(basis[-1])
    return factors @ basis


def kronecker_block(layer: Layer, sums: LayerSums, n: int, dtype: torch.dtype) -> Block:
    """Return a layer's K-FAC block from the sums of the first pass.

    Its eigenvalues are the products of those of both covariances. Eigenvalues of a covariance
    that rounding made negative are zero.

    Raises
    ------
    torch.linalg.LinAlgError
        If an eigendecomposition does not converge.
    """
    if layer.kind is Kind.DIAGONAL:
        return Block(layer, None, None, (sums.left / n).to(dtype))
    right_values, right = _eigh(sums.right, max(1, sums.positions), dtype)
    if layer.kind is Kind.LOOKUP:
        left_values, left = sums.left / n, None
    else:
        left_values, left = _eigh(sums.left, n, dtype)
    eigenvalues = torch.outer(left_values, right_values).to(dtype)
    return Block(layer, left, right, eigenvalues)


def _eigh(total: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues of ``total / count``, and its eigenvectors in a precision."""
    values, vectors = torch.linalg.eigh(total)
    return values.clamp_(min=0).div_(count), vectors.to(dtype).contiguous()
