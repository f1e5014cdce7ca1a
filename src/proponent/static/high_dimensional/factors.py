"""Matrix factorisation under weight decay: collaborative filtering as a sum over ratings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.data import Instances
from proponent.progress import progress as progress_bar
from proponent.static.high_dimensional.arrays import Array, group_sums, row_sums
from proponent.static.high_dimensional.kernels import Form, Kernel
from proponent.static.high_dimensional.losses import Logistic, SquaredError
from proponent.static.high_dimensional.ratings import pair_kernels, pairs_of
from proponent.static.high_dimensional.study import (
    TOLERANCE,
    Refinement,
    Study,
    inputs_of,
    numbers_of,
)


@dataclass(frozen=True)
class Factors(Study):
    """``f(u, v) = intercept + U_u^T V_v``, stationary for mean risk plus weight decay.

    With alpha the survey's, stationarity in U and in V is

        U_u = sum_{i of u} alpha_i V_{v_i},    V_v = sum_{i of v} alpha_i U_{u_i},

    so that ``f(u, v)`` is a sum over the user's ratings, each by how alike its item is to v, and
    another over the item's ratings, each by how alike its user is to u.

    Attributes
    ----------
    users, items : arrays of shape (users, r) and (items, r)
        U and V.
    decays : two arrays of shapes (users,) and (items,)
        lambda of each row.
    loss : SquaredError or Logistic
        Of one output.
    constant : float
        The intercept.
    """

    users: Array
    items: Array
    decays: tuple[Array, Array]
    loss: SquaredError | Logistic
    constant: float

    @property
    @override
    def intercept(self) -> Array:
        return np.array([self.constant])

    @override
    def read(self, instances: Instances, role: str) -> tuple[NDArray[np.intp], Array | None]:
        pairs = pairs_of(inputs_of(instances), (len(self.users), len(self.items)), role)
        return pairs, numbers_of(instances, role)

    @override
    def outputs(self, inputs: NDArray[np.intp]) -> Array:
        found = row_sums(self.users[inputs[:, 0]] * self.items[inputs[:, 1]])
        return found[:, None] + self.constant

    @override
    def kkt_residual(self, inputs: NDArray[np.intp], targets: Array) -> float:
        """Return the largest entry of the gradient by lambda, relative to the largest factor."""
        pulls = (self._pull(inputs, targets, side) for side in (0, 1))
        sides = zip((self.users, self.items), pulls, self.decays, strict=True)
        gaps = [own - pull / decay[:, None] for own, pull, decay in sides]
        largest = max(np.abs(self.users).max(), np.abs(self.items).max())
        gap = float(max(np.abs(part).max() for part in gaps))
        return gap / float(largest) if gap else 0.0

    @override
    def refined(self, inputs: NDArray[np.intp], targets: Array, how: Refinement) -> Factors:
        study = self
        sweeps = progress_bar(
            range(how.max_iterations), description="alternating squares", enabled=how.progress
        )
        with sweeps as bar:
            for _ in bar:
                if study.kkt_residual(inputs, targets) <= TOLERANCE:
                    break
                study = replace(study, users=study._solved(inputs, targets, 0))
                study = replace(study, items=study._solved(inputs, targets, 1))
        return study

    @override
    def kernel(self, inputs: NDArray[np.intp], slopes: Array, form: Form) -> Kernel:
        by_user, by_item = (
            -slopes[:, 0] / decays[inputs[:, side]] for side, decays in enumerate(self.decays)
        )
        return pair_kernels(inputs, (self.users, self.items), (by_user, by_item), form)

    @override
    def size(self) -> dict[str, int]:
        return {"rank": int(min(map(np.linalg.matrix_rank, (self.users, self.items))))}

    def _seen(self, pairs: NDArray[np.intp], side: int) -> tuple[Array, Array]:
        """Return users (side 0) or items (1), and for each rating the factors on its other side."""
        own, others = (self.items, self.users) if side else (self.users, self.items)
        return own, others[pairs[:, 1 - side]]

    def _pull(self, pairs: NDArray[np.intp], targets: Array, side: int) -> Array:
        """Return minus the gradient of the mean risk by the factors of a side."""
        own, others = self._seen(pairs, side)
        slopes = self.loss.gradient(self.outputs(pairs), targets) / len(pairs)
        return group_sums(pairs[:, side], -slopes * others, len(own))

    def _solved(self, pairs: NDArray[np.intp], targets: Array, side: int) -> Array:
        """Return the factors of a side that minimise the objective for those of the other.

        Exactly so for squared errors; for another loss, of its quadratic upper bound.
        """
        own, others = self._seen(pairs, side)
        columns, rows, rank = others.T.copy(), pairs[:, side], len(own.T)
        bend = np.empty((len(own), rank, rank))
        for a, b in combinations_with_replacement(range(rank), 2):
            sums = np.bincount(rows, columns[a] * columns[b], minlength=len(own))
            bend[:, a, b] = bend[:, b, a] = self.loss.bound / len(pairs) * sums
        right = np.einsum("nab,nb->na", bend, own) + self._pull(pairs, targets, side)
        shifted = bend + self.decays[side][:, None, None] * np.eye(rank)
        return np.linalg.solve(shifted, right[:, :, None])[:, :, 0]
