"""Coordinates in subspaces of gradients, and where the subspaces come from."""

import pytest
import torch
from gradients.layer_examples import LAYERS, embedding, linear, vector, with_bias
from references import relative_error

from proponent.gradients.kfac.covariances import Covariances, LayerSums
from proponent.gradients.subspaces import as_tensors, basis_sizes, from_tensors, subspaces

LIKE = torch.zeros(0, dtype=torch.float64)


@pytest.mark.parametrize("make", LAYERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("rank", [1, 2, 3, 50])
@pytest.mark.parametrize("memory", [1, 2**24])
def test_coordinates_are_those_of_the_matrices(make, rank, memory):
    example = make(5)
    (space,) = subspaces([example.layer], rank, 0, LIKE)
    rows, columns = example.matrices.shape[1:]
    expected = (rows, columns) if columns > 1 else (rows, 1)
    limits = (rank, rank) if columns > 1 else (rank**2, 1)
    assert basis_sizes(example.layer, rank) == tuple(map(min, expected, limits))
    for basis, total in ((space.left, rows), (space.right, columns)):
        assert len(basis) == total
        assert relative_error(basis.T @ basis, torch.eye(basis.shape[1])) < 1e-12
    found = space.coordinates(example.gradients, 5, memory)
    assert found.shape == (5, space.width)
    projected = space.left.T @ example.matrices @ space.right
    assert relative_error(found, projected.flatten(1)) < 1e-12


def test_bases_of_full_rank_are_the_identity():
    example = with_bias(4)
    (space,) = subspaces([example.layer], 7, 0, LIKE)
    assert torch.equal(space.left, torch.eye(4)) and torch.equal(space.right, torch.eye(7))
    assert (
        relative_error(space.coordinates(example.gradients, 4, 2**20), example.matrices.flatten(1))
        < 1e-12
    )


def test_random_bases_are_fixed_by_seed_and_layer():
    layer = linear(1).layer
    first, again, other = (subspaces([layer], 2, seed, LIKE)[0] for seed in (0, 0, 1))
    assert torch.equal(first.left, again.left) and torch.equal(first.right, again.right)
    assert relative_error(other.left, first.left) > 0.1


def test_leading_eigenvectors_of_the_covariances():
    """Factors that vary in few directions lose nothing; random bases of that rank do."""
    few = torch.randn(40, 1, 2) @ torch.randn(2, 4), torch.randn(40, 1, 2) @ torch.randn(2, 6)
    layer = linear(1).layer
    sums = LayerSums(
        torch.einsum("ntr,nts->rs", few[0], few[0]), torch.einsum("ntr,nts->rs", few[1], few[1])
    )
    covariances = Covariances((layer,), {layer.weight: sums}, 40)
    matrices = few[0].mT @ few[1]
    norms = matrices.flatten(1).norm(dim=1)
    for given, lost in ((covariances, False), (None, True)):
        (space,) = subspaces([layer], 2, 0, LIKE, given)
        kept = (space.left.T @ matrices @ space.right).flatten(1).norm(dim=1)
        assert (float((kept / norms).min()) < 0.9) == lost
        assert lost or relative_error(kept, norms) < 1e-12


def test_what_has_no_covariances_has_random_bases():
    layers = [embedding(1).layer, vector(1).layer]
    covariances = Covariances(tuple(layers), {layers[0].weight: LayerSums(LIKE, LIKE)})
    for found, random in zip(
        subspaces(layers, 2, 0, LIKE, covariances), subspaces(layers, 2, 0, LIKE), strict=True
    ):
        assert torch.equal(found.left, random.left) and torch.equal(found.right, random.right)


def test_bases_by_name():
    layers = [linear(1).layer]
    (space,) = subspaces(layers, 2, 0, LIKE)
    (found,) = from_tensors(layers, as_tensors([space]))
    assert torch.equal(found.left, space.left) and torch.equal(found.right, space.right)
