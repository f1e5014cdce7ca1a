r"""Leverages of weighted least squares in a random subspace of the coefficients.

With coefficients :math:`\Omega \beta` for a random :math:`\Omega` of shape ``(d, k)``, the design
is :math:`Y = W^{1/2} X \Omega`, and the penalty on them :math:`\lambda \Omega^\top \Omega`:

.. math::
    \tilde h_i = y_i^\top (Y^\top Y + \lambda \Omega^\top \Omega)^{-1} y_i \le h_i .

An intercept is kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Projection = Literal["gaussian", "sparse"]

FEATURES = 4096  # features that are projected at once; part of what a seed decides


@dataclass(frozen=True)
class Leverages:
    """Leverages in the subspace.

    Attributes
    ----------
    values : ndarray of shape (n,)
        h.
    squared : ndarray of shape (n,)
        The diagonal of the squared hat matrix: h itself where there is no penalty.
    """

    values: Values
    squared: Values


def projection_blocks(
    features: int, k: int, kind: Projection, seed: int
) -> Iterator[tuple[slice, Any]]:
    """Yield some features at a time, and their rows of a random matrix, ``(some, k)``.

    Gaussian entries have variance ``1 / k``. Very sparse ones are 0 but for one in ``sqrt(d)`` of
    them, and have the same variance (Li, Hastie and Church, KDD 2006).
    """
    density = 1 / np.sqrt(features)
    for number, start in enumerate(range(0, features, FEATURES)):
        some = slice(start, min(start + FEATURES, features))
        rng = np.random.default_rng([seed, number])
        shape = some.stop - some.start, k
        if kind == "gaussian":
            yield some, rng.standard_normal(shape) / np.sqrt(k)
        else:
            yield some, _sparse(shape, density, rng) / np.sqrt(k * density)


def leverages(
    features: Any,
    weights: Values,
    intercept: bool,
    penalty: float,
    k: int,
    kind: Projection,
    seed: int,
) -> Leverages:
    """Return leverages in a random subspace of k dimensions, the whole space from ``k = d`` on.

    Parameters
    ----------
    features : ndarray or sparse matrix of shape (n, d)
    weights : ndarray of shape (n,)
    intercept : bool
    penalty : float
        lambda.
    k : int
    kind : {"gaussian", "sparse"}
    seed : int
    """
    n, d = features.shape
    if k >= d:
        sketched, squares = _dense(features), np.eye(d)
    else:
        sketched, squares = np.zeros((n, k)), np.zeros((k, k))
        columns = features.tocsc() if hasattr(features, "tocsc") else features
        for some, random in projection_blocks(d, k, kind, seed):
            sketched += _dense(columns[:, some] @ random)
            squares += _dense(random.T @ random) if penalty else 0.0
    roots, total = np.sqrt(weights), weights.sum()
    if intercept:
        sketched = sketched - weights @ sketched / total
    sketched = roots[:, None] * sketched
    own = weights / total if intercept else np.zeros(n)
    gram = sketched.T @ sketched
    whitened = sketched @ _whitening(gram + penalty * squares)
    values = np.square(whitened).sum(axis=1)
    if not penalty:
        return Leverages(own + values, own + values)
    squared = (whitened @ (whitened.T @ whitened) * whitened).sum(axis=1)
    return Leverages(own + values, own + squared)


def _whitening(matrix: Values) -> Values:
    """Return B with ``B B^T`` the inverse of a matrix, or its pseudo-inverse."""
    from scipy.linalg import LinAlgError, cholesky, eigh, solve_triangular

    try:
        lower = cholesky(matrix, lower=True)
        pivots = np.diagonal(lower)
        if pivots.min() > 1e-7 * pivots.max():
            inverse = solve_triangular(lower, np.eye(len(lower)), lower=True)
            return np.asarray(inverse.T)
    except LinAlgError:
        pass  # singular: there are more directions than the instances span
    values, vectors = eigh(matrix)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return np.asarray(vectors[:, kept] / np.sqrt(values[kept]))


def _sparse(shape: tuple[int, int], density: float, rng: np.random.Generator) -> Any:
    """Return signs at random places, a sparse matrix."""
    from scipy.sparse import csr_array

    cells = shape[0] * shape[1]
    places = rng.choice(cells, size=rng.binomial(cells, density), replace=False)
    signs = rng.choice([-1.0, 1.0], size=len(places))
    return csr_array((signs, np.divmod(places, shape[1])), shape=shape)


def _dense(matrix: Any) -> Values:
    return np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, np.float64)
