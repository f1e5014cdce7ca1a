"""Inner products with given vectors against the dense gradients."""

import pytest
import torch
from gradients.form_examples import KERNELS, MATRICES, outer, written_out
from references import relative_error

from proponent.gradients import contraction
from proponent.gradients.contraction import contract
from proponent.gradients.forms import Outer


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("k", [1, 7, 40])
@pytest.mark.parametrize("make", (*MATRICES, *KERNELS), ids=lambda make: make.__name__)
def test_products_are_those_of_the_dense_gradients(make, k, small, monkeypatch):
    if small:
        monkeypatch.setattr(contraction, "FACTOR_BYTES", 1)
        monkeypatch.setattr(contraction, "FORMED_BYTES", 1)
    form = make(33)
    vectors = torch.randn(k, *form.shape)
    expected = written_out(form).flatten(1) @ vectors.flatten(1).T
    assert relative_error(contract(form, vectors), expected) < 1e-12


@pytest.mark.parametrize("shape", [(9, 2), (2, 9)])
@pytest.mark.parametrize("positions", [1, 3])
def test_either_factor_may_be_the_longer_one(shape, positions):
    o, d = shape
    form = Outer(torch.randn(50, positions, o), torch.randn(50, positions, d), torch.Size(shape))
    vectors = torch.randn(3, o, d)
    expected = torch.einsum("nto,ntd,kod->nk", form.left, form.right, vectors)
    assert relative_error(contract(form, vectors), expected) < 1e-12


def test_gradients_of_few_positions_are_not_formed(monkeypatch):
    def refused(self):
        raise AssertionError("a gradient was formed")

    monkeypatch.setattr(Outer, "materialise", refused)
    form = outer(8, 1)
    contract(form, torch.randn(100, *form.shape))
    with pytest.raises(AssertionError, match="formed"):
        contract(outer(8, 60), torch.randn(100, *form.shape))
