"""Orders of the instances of a class, in the company of random instances of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proponent.retraining.coalitions import Coalitions, join

Values = NDArray[np.float64]
Worth = Callable[[Coalitions], Values]


@dataclass(frozen=True)
class ClassWalks:
    """Instances of a class that are added one by one, P times, each time to another context.

    Attributes
    ----------
    code : int
        Position of the class.
    members : ndarray of shape (m,)
        Positions of its instances, ascending.
    orders : ndarray of shape (P, m)
        The same positions, in the order in which they are added.
    rows : ndarray of shape (P, m + 1)
        The coalition after so many steps, as a row of a table; -1: the walk was cut before it.
    """

    code: int
    members: NDArray[np.intp]
    orders: NDArray[np.intp]
    rows: NDArray[np.intp]

    def marginals(self, worths: Values) -> tuple[Values, NDArray[np.bool_]]:
        """Return what each instance adds in each walk, ``(P, m)``, and which walks are whole.

        After a cut nothing is added. A walk with a failed training (NaN) is not whole.

        Parameters
        ----------
        worths : ndarray of shape (K,)
            Of all coalitions.
        """
        known = self.rows >= 0
        found = np.where(known, worths[self.rows], 0)
        whole = np.asarray(~np.isnan(found).any(axis=1))
        cut = ~known.all(axis=1)
        for step in range(1, found.shape[1]):
            lost = cut & ~known[:, step]
            found[lost, step] = found[lost, step - 1]
        found[cut, -1] = found[cut, -2]  # known too, but not walked to
        placed: Values = np.empty(self.orders.shape)
        places = np.searchsorted(self.members, self.orders)
        np.put_along_axis(placed, places, np.diff(found, axis=1), axis=1)
        return placed, whole


def walk_class(
    code: int,
    codes: NDArray[Any],
    n_walks: int,
    rng: np.random.Generator,
    *,
    first_row: int,
    tolerance: float,
    worth: Worth | None,
) -> tuple[ClassWalks, Coalitions]:
    """Draw walks through a class, and return them with their coalitions.

    The context of a walk holds each instance of another class with probability 1/2, and all of
    its trainings have the same seed.

    Parameters
    ----------
    code : int
        Position of the class.
    codes : ndarray of shape (n,)
        The class of each training instance.
    n_walks : int
        P.
    rng : Generator
        Of this class alone: the first walks are the same, however many are drawn.
    first_row : int
        The row of the table that the first coalition becomes.
    tolerance : float
        A walk is cut where its worth is this near to that of its end, relatively; 0 cuts none.
    worth : callable or None
        What coalitions are worth to the class, ``(K,)``; None where nothing is cut.
    """
    members = np.flatnonzero(codes == code)
    # Streams of their own, so that more walks begin with the same ones.
    of_orders, of_masks, of_seeds = rng.spawn(3)
    orders = np.stack([of_orders.permutation(members) for _ in range(n_walks)])
    masks = of_masks.random((n_walks, len(codes))) < 0.5
    seeds = of_seeds.integers(0, 2**63 - 1, size=n_walks, dtype=np.int64)
    masks[:, members] = False
    full = masks.copy()
    full[:, members] = True
    parts = [Coalitions(masks.copy(), seeds), Coalitions(full, seeds)]
    rows = np.full((n_walks, len(members) + 1), -1, dtype=np.intp)
    rows[:, 0] = first_row + np.arange(n_walks)
    rows[:, -1] = first_row + n_walks + np.arange(n_walks)
    next_row = first_row + 2 * n_walks
    before, end = (worth(part) if worth else np.zeros(n_walks) for part in parts)
    on = np.arange(n_walks)
    for step in range(1, len(members)):
        if worth:
            # NaN, a failed training, ends a walk: it will not count.
            on = on[np.abs(end[on] - before[on]) > tolerance * np.abs(end[on])]
        if not len(on):
            break
        masks[on, orders[on, step - 1]] = True
        part = Coalitions(masks[on], seeds[on])
        if worth:
            before[on] = worth(part)
        rows[on, step] = next_row + np.arange(len(on))
        next_row += len(on)
        parts.append(part)
    return ClassWalks(code, members, orders, rows), join(parts)


def utility_of_class(correct: Values, of_class: NDArray[np.bool_]) -> Values:
    """Return ``a_y exp(a_-y)`` of submodels, ``(K,)``.

    Parameters
    ----------
    correct : ndarray of shape (K, T)
        Whether each test instance is predicted right.
    of_class : ndarray of shape (T,)
        Which of them are of class y.
    """
    inside, outside = correct[:, of_class].sum(axis=1), correct[:, ~of_class].sum(axis=1)
    return np.asarray(inside / len(of_class) * np.exp(outside / len(of_class)))
