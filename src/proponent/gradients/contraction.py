"""Inner products of captured gradients with given vectors, in pieces that stay in the caches.

Gradients ``G_i = sum_t left_it right_it^T`` meet k matrices V either by their factors,
``<G_i, V> = sum_t left_it^T V right_it``, which forms no gradient, or *formed*, as a matrix
product. The first takes k times the multiplications of forming them, and is the cheaper one
where there are few positions.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from proponent.gradients.forms import Form, Lookup, Outer, Uses

# What a formed gradient's entry costs beside its multiplications, in multiply-adds (measured).
ENTRY_COST = 8
# Factors and their products with one vector, and gradients that are formed at a time.
FACTOR_BYTES = 3 * 2**19
FORMED_BYTES = 8 * 2**20
# An accelerator is given so many times more at a time: it waits for calls, not for its caches.
ACCELERATOR = 64


def contract(form: Form, vectors: Tensor) -> Tensor:
    """Return ``<G_i, vectors_k>``, (n, k), for vectors ``(k, *shape)``.

    Parameters
    ----------
    form : Form
        Captured gradients of one parameter.
    vectors : Tensor of shape (k, *shape)
        In the gradients' precision.
    """
    if isinstance(form, Uses):
        total, *others = (contract(part, vectors) for part in form.forms)
        for part in others:
            total += part
        return total
    if isinstance(form, Lookup):
        return form.contract(vectors)
    if isinstance(form, Outer) and form.positions:
        k, positions = len(vectors), form.positions
        if k * positions <= positions + k + ENTRY_COST:
            return _by_factors(form, vectors)
    return _formed(form, vectors)


def _by_factors(form: Outer, vectors: Tensor) -> Tensor:
    left, right = form.left.flatten(0, 1), form.right.flatten(0, 1)
    matrices = vectors.reshape(len(vectors), left.shape[1], right.shape[1]).mT
    if left.shape[1] > right.shape[1]:
        # The longer factors enter the matrix product, the shorter ones the sum after it.
        left, right, matrices = right, left, matrices.mT
    rows = len(left)
    result = left.new_empty(len(vectors), rows)
    size = (left.shape[1] + right.shape[1]) * left.element_size()
    for piece in _pieces(rows, max(16, _room(FACTOR_BYTES, left) // max(1, size))):
        some_left, some_right = left[piece], right[piece]
        product = torch.empty_like(some_left)
        for matrix, row in zip(matrices, result, strict=True):
            torch.mm(some_right, matrix, out=product)
            torch.sum(product.mul_(some_left), 1, out=row[piece])
    return result.view(len(vectors), form.n, form.positions).sum(2).T


def _formed(form: Form, vectors: Tensor) -> Tensor:
    columns = vectors.reshape(len(vectors), -1).T
    result = form.like.new_empty(form.n, len(vectors))
    # As many gradients as vectors at least, so that neither is read more often than the other.
    size = max(1, form.numel * form.like.element_size())
    rows = max(len(vectors), _room(FORMED_BYTES, form.like) // size)
    for piece in _pieces(form.n, rows):
        torch.mm(form[piece].flat(), columns, out=result[piece])
    return result


def _room(size: int, like: Tensor) -> int:
    return size if like.device.type == "cpu" else ACCELERATOR * size


def _pieces(n: int, rows: int) -> list[slice]:
    """Cut n rows into pieces of nearly the same size, of no more than ``rows``."""
    count = -(-n // rows)
    ends = [n * part // max(1, count) for part in range(count + 1)]
    return [slice(start, end) for start, end in pairwise(ends)]
