"""Pairs of a user and an item: read, compared by index, and told where they share nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from proponent.exceptions import InvalidInputError
from proponent.static.high_dimensional.arrays import Array, group_sums, row_sums
from proponent.static.high_dimensional.kernels import Form, Kernel, chosen_form

NAMES = ("users", "items")
NAMED = 5  # users or items that a warning names


@dataclass(frozen=True)
class PairKernel(Kernel):
    """``K((a_i, b_i), (a, b)) = <F_{b_i}, F_b> if a_i = a else 0``: found by index, never dense.

    With users a and factors F of items b, what a user's other ratings say about an item; with
    items a and factors of users b, what other users' ratings say about this user.

    Attributes
    ----------
    pairs : integer array of shape (n, 2)
        The training pairs, as ``inputs`` has them.
    alphas : array of shape (n,)
        alpha.
    factors : array of shape (b, r)
        F.
    shared : int
        The column of the pairs that holds a: 0 or 1.
    count : int
        Number of users or items a.
    """

    pairs: NDArray[np.intp]
    alphas: Array
    factors: Array
    shared: int
    count: int

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        """The training instances grouped by a, each group in order."""
        return np.asarray(np.argsort(self.pairs[:, self.shared], kind="stable"))

    @cached_property
    def _sorted(self) -> NDArray[np.intp]:
        found: NDArray[np.intp] = self.pairs[self._order, self.shared]
        return found

    def _members(self, a: int, rows: range) -> NDArray[np.intp]:
        """Return the training instances at ``rows`` that share a."""
        first, last = np.searchsorted(self._sorted, [a, a + 1])
        group = self._order[first:last]
        start, stop = np.searchsorted(group, [rows.start, rows.stop])
        members: NDArray[np.intp] = group[start:stop]
        return members

    def _factors_of(self, pairs: NDArray[np.intp]) -> Array:
        return self.factors[pairs[:, 1 - self.shared]]

    @override
    def values(self) -> Array:
        return self.alphas[:, None]

    @override
    def add_scores(
        self, scores: Array, inputs: NDArray[np.intp], weights: Array, rows: range
    ) -> None:
        asked = weights * self._factors_of(inputs)
        order = np.argsort(inputs[:, self.shared], kind="stable")
        present, starts = np.unique(inputs[order, self.shared], return_index=True)
        for a, tests in zip(present, np.split(order, starts[1:]), strict=True):
            members = self._members(a, rows)
            known = self.alphas[members, None] * self._factors_of(self.pairs[members])
            scores[np.ix_(tests, members - rows.start)] += asked[tests] @ known.T

    @override
    def joint(self, inputs: NDArray[np.intp], weights: Array, rows: range) -> Array:
        pairs = self.pairs[rows.start : rows.stop]
        sums = group_sums(inputs[:, self.shared], weights * self._factors_of(inputs), self.count)
        asked = sums[pairs[:, self.shared]]
        return self.alphas[rows.start : rows.stop] * row_sums(self._factors_of(pairs) * asked)

    @override
    def own(self, weights: Array, rows: range) -> Array:
        norms = row_sums(self._factors_of(self.pairs[rows.start : rows.stop]) ** 2)
        return weights[:, 0] * self.alphas[rows.start : rows.stop] * norms

    @override
    def total(self, inputs: NDArray[np.intp], weights: Array) -> Array:
        known = self.alphas[:, None] * self._factors_of(self.pairs)
        sums = group_sums(self.pairs[:, self.shared], known, self.count)
        rebuilt = sums[inputs[:, self.shared]]
        return weights[:, 0] * row_sums(self._factors_of(inputs) * rebuilt)

    @override
    def warnings(self, inputs: NDArray[np.intp]) -> list[str]:
        alone = ~np.isin(inputs[:, self.shared], self.pairs[:, self.shared])
        if not alone.any():
            return []
        ids = np.unique(inputs[alone, self.shared])
        listed = ", ".join(map(str, ids[:NAMED])) + (", ..." if len(ids) > NAMED else "")
        return [
            f"{alone.sum()} test instance(s) are of {NAMES[self.shared]} without a training "
            f"instance ({listed}): their scores in the form {NAMES[1 - self.shared]!r} are zero."
        ]


def pairs_of(inputs: NDArray[Any], shape: tuple[int, ...], role: str) -> NDArray[np.intp]:
    """Return pairs (n, 2) of rows and columns of a matrix of some shape.

    Raises
    ------
    InvalidInputError
        If they are not pairs of whole numbers in its range.
    """
    wrong = inputs.ndim != 2 or inputs.shape[1] != 2 or inputs.dtype.kind not in "iuf"
    if wrong or (inputs.dtype.kind == "f" and not np.array_equal(inputs, np.round(inputs))):
        raise InvalidInputError(
            f"{role}: expected pairs (n, 2) of a user and an item, as whole numbers; got shape "
            f"{inputs.shape} and dtype {inputs.dtype}. Pass (pairs, ratings) or "
            f"(users, items, ratings)."
        )
    for column, count, name in zip(inputs.T, shape, NAMES, strict=True):
        outside = column[(column < 0) | (column >= count)]
        if len(outside):
            raise InvalidInputError(
                f"{role}: the model has {name} 0 .. {count - 1}, and no {outside[0]:g}."
            )
    return inputs.astype(np.intp)


def pair_kernels(
    pairs: NDArray[np.intp],
    factors: tuple[Array, Array],
    alphas: tuple[Array, Array],
    form: Form,
) -> Kernel:
    """Return the kernel of collaborative filtering in the chosen form.

    Parameters
    ----------
    pairs : integer array of shape (n, 2)
        The training pairs.
    factors : (users, r) and (items, r)
        What is compared.
    alphas : two arrays of shape (n,)
        alpha by the strength of the penalty of the user, and of the item.
    form : "both", "items" or "users"
        Which.
    """
    items = PairKernel(pairs, alphas[0], factors[1], shared=0, count=len(factors[0]))
    users = PairKernel(pairs, alphas[1], factors[0], shared=1, count=len(factors[1]))
    return chosen_form({"items": items, "users": users}, form)
