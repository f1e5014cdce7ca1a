"""Training instances from the nearest to the farthest, by Euclidean distance.

Squared distances are expanded, ``||x||^2 - 2 <x, t> + ||t||^2``, so that they are a product of
matrices. What that rounds depends on how the matrices are cut into blocks; so wherever distances
are closer to each other than it can tell, they are summed up anew, feature by feature. The order
is that of these sums, and of positions where they are equal: whether one instance comes before
another depends on these two and the test instance alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from proponent.exceptions import NonFiniteError

Positions = NDArray[np.int64]
Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

PAIRS_AT_ONCE = 2**20  # of a product of matrices: 8 MB
PAIRS_IN_CACHE = 2**16  # of what is done pair by pair
ROUNDING = 2.0**-53
SMALLEST = 2.0**-1022  # numbers below have fewer digits


class Neighbours:
    """Points, to be put in order as seen from others.

    Parameters
    ----------
    points : ndarray of shape (n, d)
    """

    def __init__(self, points: Matrix) -> None:
        self._points = points
        self._norms = _squared_norms(points, "train")
        self._longest = np.sqrt(self._norms.max())

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self._points)

    def orders(self, tests: Matrix, r: int) -> Iterator[tuple[slice, Positions]]:
        """Yield some of the test points at a time, and the positions of the r nearest of each.

        Positions are ``(some, r)``, nearest first, and equal distances by position.
        """
        for rows, squares, rounding in self._squares(tests):
            if r < len(self):
                yield rows, self._nearest(tests[rows], squares, rounding, r)
            else:
                yield rows, self._sorted(tests[rows], squares, rounding)

    def within(self, tests: Matrix, radius: float) -> Iterator[tuple[slice, NDArray[np.bool_]]]:
        """Yield some of the test points at a time, and which points are within their radius.

        That is ``(some, n)``; points at just this distance are within.
        """
        for rows, squares, rounding in self._squares(tests):
            squares -= radius**2
            near = squares <= 0
            unsure = np.abs(squares, out=squares) <= rounding[:, None]
            for row in np.flatnonzero(unsure.any(axis=1)):
                positions = np.flatnonzero(unsure[row])
                exact = self.squared_distances(positions, tests[rows][row])
                near[row, positions] = exact <= radius**2
            yield rows, near

    def squared_distances(self, positions: Positions | slice, test: Vector) -> Vector:
        """Return the squared distances of some points to a test point, feature by feature."""
        distances: Vector = np.square(self._points[positions] - test).sum(axis=1)
        return distances

    def _squares(self, tests: Matrix) -> Iterator[tuple[slice, Matrix, Vector]]:
        """Yield some rows, their squared distances, and how far two of a row may be off together.

        A product of many rows is fast, and all that follows is where few rows fill the cache.
        """
        norms = _squared_norms(tests, "test")
        terms = tests.shape[1] + 4
        rounding = 2 * terms * ROUNDING * (self._longest + np.sqrt(norms)) ** 2 + SMALLEST
        many = max(1, PAIRS_AT_ONCE // len(self))
        few = max(1, PAIRS_IN_CACHE // len(self))
        for start in range(0, len(tests), many):
            products = (-2 * tests[start : start + many]) @ self._points.T
            for first in range(0, len(products), few):
                squares = products[first : first + few]
                rows = slice(start + first, start + first + len(squares))
                squares += self._norms
                squares += norms[rows, None]
                np.maximum(squares, 0, out=squares)
                yield rows, squares, rounding[rows]

    def _nearest(self, tests: Matrix, squares: Matrix, rounding: Vector, r: int) -> Positions:
        nearest = np.empty((len(tests), r), dtype=np.int64)
        farthest = np.partition(squares, r - 1, axis=1)[:, r - 1] + rounding
        for row, test in enumerate(tests):
            candidates = np.flatnonzero(squares[row] <= farthest[row])
            nearest[row] = self._in_order(candidates, test)[:r]
        return nearest

    def _sorted(self, tests: Matrix, squares: Matrix, rounding: Vector) -> Positions:
        """Return the positions of all points, nearest first; ``squares`` is overwritten.

        The last bits of each square make way for its position: to sort such numbers is several
        times as fast as to find the order of the squares.
        """
        n = len(self)
        bits = (n - 1).bit_length()
        keys = squares.view(np.int64)
        keys &= -1 << bits
        keys |= np.arange(n)
        squares.sort(axis=1)
        # What the lost bits hide comes on top of what rounding may.
        reach = squares[:, :-1] * (1 + 2.0 ** (bits - 51))
        reach += rounding[:, None]
        close = reach >= squares[:, 1:]
        keys &= (1 << bits) - 1
        for row in np.flatnonzero(close.any(axis=1)):
            before, after = np.append(False, close[row]), np.append(close[row], False)
            members = np.flatnonzero(before | after)
            run = np.cumsum(~before)[members]
            keys[row, members] = self._in_order(keys[row, members], tests[row], run)
        return keys

    def _in_order(self, positions: Positions, test: Vector, run: Positions | int = 0) -> Positions:
        """Sort positions by run, then by distance, then by position."""
        squares = self.squared_distances(positions, test)
        order = np.lexsort((positions, squares, np.broadcast_to(run, squares.shape)))
        return positions[order]


def _squared_norms(points: Matrix, role: str) -> Vector:
    norms: Vector = np.einsum("nd,nd->n", points, points)
    finite = np.isfinite(norms)
    if not finite.all():
        raise NonFiniteError(
            f"{role}: the features of the instance at position {int(finite.argmin())}, and of "
            f"{np.count_nonzero(~finite)} in all, are too large for a distance; bring the features "
            "to a common scale."
        )
    return norms
