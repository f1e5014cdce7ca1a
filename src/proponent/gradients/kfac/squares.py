"""Sums of the squared entries of gradients, from their factors where that is cheaper.

For one position an instance, ``sum_i (left_i right_i^T)^2 = (left^2)^T (right^2)``, elementwise
squares: one matrix product, and no gradient is formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proponent.gradients.forms import Dense, Form, Lookup, Outer

# Gradients are formed in pieces that stay in the caches.
PIECE_BYTES = 2**20
# Up to this many large gradients are squared and added one by one, in one step.
FEW = 16


def add_squares(total: Tensor, form: Form, *, overwrite: bool = False) -> None:
    """Add ``sum_i G_i^2``, entry by entry, to ``total``, of the gradients' ``shape``.

    ``overwrite`` allows the form's factors to be changed.
    """
    if total.dtype != form.like.dtype:
        part = torch.zeros_like(total, dtype=form.like.dtype)
        add_squares(part, form, overwrite=overwrite)
        total += part
        return
    if isinstance(form, Outer) and form.positions == 1:
        left, right = form.left[:, 0], form.right[:, 0]
        squared = (left.square_(), right.square_()) if overwrite else (left**2, right**2)
        matrix = total.view(left.shape[1], right.shape[1])
        matrix.addmm_(squared[0].T, squared[1])
        return
    if isinstance(form, Lookup):
        _, entries, sums = _by_instance(form)
        total.index_add_(0, entries, sums.square_())
        return
    for piece in _pieces(form):
        gradients = piece.materialise()
        if len(gradients) <= FEW:
            for gradient in gradients:
                total.addcmul_(gradient, gradient)
        else:
            # What was formed here may be overwritten; a dense form is the gradients themselves.
            square = gradients.square() if isinstance(form, Dense) else gradients.square_()
            total += square.sum(0)


def weighted_squares(form: Form, weights: Tensor) -> Tensor:
    """Return ``sum_rc weights_rc (G_i)_rc^2``, (n,), for weights of the gradients' ``shape``."""
    if isinstance(form, Outer) and form.positions == 1:
        left, right = form.left[:, 0].square(), form.right[:, 0].square()
        return ((left @ weights) * right).sum(1)
    if isinstance(form, Lookup):
        instances, entries, sums = _by_instance(form)
        parts = (sums.square_() * weights[entries]).sum(1)
        return parts.new_zeros(form.n).index_add_(0, instances, parts)
    flat = weights.reshape(-1)
    return torch.cat([piece.flat().square() @ flat for piece in _pieces(form)])


def _pieces(form: Form) -> list[Form]:
    rows = max(1, PIECE_BYTES // max(1, form.numel * form.like.element_size()))
    return [form[start : start + rows] for start in range(0, form.n, rows)]


def _by_instance(form: Lookup) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the factors of each row of the table within each instance.

    Returns the instance and the row of the table of each sum, (u,), and the sums, (u, d).
    """
    rows = form.shape[0]
    offsets = rows * torch.arange(form.n, device=form.indices.device)
    keys, where = torch.unique(form.indices + offsets[:, None], return_inverse=True)
    sums = form.right.new_zeros(len(keys), form.right.shape[2])
    sums.index_add_(0, where.flatten(), form.right.flatten(0, 1))
    return keys // rows, keys % rows, sums
