"""Many positive definite systems: numpy's solutions, however they are found."""

import numpy as np
import pytest

from proponent.models import batched_cholesky
from proponent.models.batched_cholesky import BatchedCholesky


def systems(order, count, seed=0):
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(count, order, order + 2))
    matrices = np.moveaxis(roots @ roots.transpose(0, 2, 1), 0, -1)
    return np.ascontiguousarray(matrices), rng.normal(size=(3, order, count))


@pytest.mark.parametrize("order", [1, 2, 7, 20])
@pytest.mark.parametrize("count", [1, 3, 60])
def test_solutions(order, count):
    matrices, right = systems(order, count)
    factor = BatchedCholesky(np.tril(matrices.T).T.transpose(1, 0, 2).copy())
    stacked = matrices.transpose(2, 0, 1)
    expected = np.linalg.solve(stacked, right.transpose(2, 1, 0)).transpose(2, 1, 0)
    np.testing.assert_allclose(factor.solve(right), expected, rtol=1e-8)
    np.testing.assert_allclose(factor.solve(right[0]), expected[0], rtol=1e-8)
    pivots = np.diagonal(np.linalg.cholesky(stacked), axis1=1, axis2=2).T
    np.testing.assert_allclose(factor.pivots, pivots, rtol=1e-10)
    assert not factor.failed.any()


def test_both_ways_are_the_same(monkeypatch):
    matrices, right = systems(6, 40)
    together = BatchedCholesky(matrices.copy())
    monkeypatch.setattr(batched_cholesky, "LARGEST_VECTORISED", 0)
    each = BatchedCholesky(matrices.copy())
    assert isinstance(together.solve(right), np.ndarray)
    np.testing.assert_allclose(together.solve(right), each.solve(right), rtol=1e-9)


@pytest.mark.parametrize("count", [5, 50])
def test_a_matrix_that_is_not_positive_definite_fails_alone(count):
    matrices, right = systems(4, count)
    expected = BatchedCholesky(matrices.copy()).solve(right)
    matrices[:, :, 1] *= -1
    matrices[:, :, 3] = 1.0
    matrices[:, :, 4] = np.nan
    factor = BatchedCholesky(matrices)
    bad = np.isin(np.arange(count), [1, 3, 4])
    assert np.array_equal(factor.failed, bad)
    found = factor.solve(right)
    assert np.isnan(found[:, :, bad]).all()
    np.testing.assert_allclose(found[:, :, ~bad], expected[:, :, ~bad], rtol=1e-12)
